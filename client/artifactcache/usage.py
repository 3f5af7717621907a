"""What `--help` shows beside what the options say: examples of each command, and how all of them end.

Law of this file: a command without an example is not finished; a test reads each line of these with the parser.
"""

from __future__ import annotations

import argparse
import textwrap

EPILOG = """\
Examples:
  artifactcache fetch models:/resnet@champion ./resnet
  artifactcache warm models:/resnet@champion runs:/0123456789abcdef0123456789abcdef/data
  eval "$(artifactcache --completion bash)"

`artifactcache COMMAND --help` says more of each. A DURATION is a number and s, m, h, d or w, as in 12h or 7d; a SIZE
is bytes as a number, or as in 10GiB.

Exit status: 0 success, 1 error or corrupted bytes, 2 wrong request, 128 and its number after a signal. With --json
stdout is one JSON document; after an error it is {"error": class, "message": text}.

Environment: ARTIFACTCACHE_SOCKET_DIR is the folder of the daemon's sockets; ARTIFACTCACHE=off has MLflow download by
itself. MLflow's own variables, files and plugins for a login are passed on where the daemon checks access."""

EXAMPLES = {
    "fetch": (
        "artifactcache fetch models:/resnet@champion ./resnet",
        "artifactcache fetch runs:/0123456789abcdef0123456789abcdef/data ./data --include '**/*.parquet'",
        'ls "$(artifactcache fetch models:/resnet/3)"',
    ),
    "warm": ("artifactcache warm models:/resnet@champion models:/tokenizer/7",),
    "ls": ("artifactcache ls", "artifactcache ls --json"),
    "inspect": (
        "artifactcache inspect models:/resnet/3",
        "artifactcache inspect models:/resnet/3 --format b3sum",
    ),
    "verify": ("artifactcache verify models:/resnet/3", "artifactcache verify"),
    "pin": ("artifactcache pin models:/resnet@champion --for 7d",),
    "unpin": ("artifactcache unpin models:/resnet@champion",),
    "sweep": ("artifactcache sweep --dry-run --free 10GiB",),
    "explain": ("artifactcache explain models:/resnet/3",),
    "audit": (
        "artifactcache audit --refused --since 1h",
        "artifactcache audit --user alice --artifact 'models:/resnet*' --json",
    ),
    "lock": (
        "artifactcache lock models:/resnet@champion runs:/0123456789abcdef0123456789abcdef/data",
        "artifactcache lock --output models.lock",
    ),
    "sync": ("artifactcache sync --locked artifacts.lock ./models",),
    "quota": ("artifactcache quota", "artifactcache quota --all --json"),
    "top": ("artifactcache top", "artifactcache top --once --json"),
    "page": ("artifactcache page",),
    "stats": ("artifactcache stats --json",),
    "doctor": ("artifactcache doctor ./models", "artifactcache doctor --uri models:/resnet@champion --json"),
    "whoami": ("artifactcache whoami",),
    "ping": ("artifactcache ping --timeout 2",),
}


def examples(command: str) -> str | None:
    """The examples of a command, as they stand below its options."""
    return shown(EXAMPLES[command]) if command in EXAMPLES else None


def shown(lines: tuple[str, ...]) -> str:
    """Examples as a paragraph of their own."""
    return "\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))


class Formatter(argparse.HelpFormatter):
    """Paragraphs are filled; one that has indented lines is left as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.split("\n\n"):
            if "\n  " in paragraph:
                paragraphs.append(textwrap.indent(paragraph, indent))
            else:
                paragraphs.append(super()._fill_text(paragraph, width, indent))
        return "\n\n".join(paragraphs)
