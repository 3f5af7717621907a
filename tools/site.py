"""`make docs`: the pages of the site, put together from `docs/`, what lies beside it, and the reference.

Law of this file: every link leads somewhere. Pages stand elsewhere than their files do, so each link between files is
written anew; one that leads to no page and no file stops the work.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tools import reference
from tools.locked import TOP

DOCS = TOP / "docs"
# What is not in docs/, and where it stands on the site.
BESIDE = {
    "DESIGN.md": "explanation/design.md",
    "SECURITY.md": "explanation/security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "how-to/examples.md",
    "docs/index.md": "index.md",
    "docs/tutorial.md": "tutorial.md",
}
FIRST = ("design.md", "security.md")  # of the explanations; the others follow by name
HOW_TO = ("training-job.md", "ci-runner.md", "administrator.md", "examples.md")
MADE = {"mkdocs.yml", "pages"}
NOT_PAGES = {"distributions"}
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.M | re.S)
LINK = re.compile(r"(!?\[(?:[^\]\\]|\\.)*\]\()([^)\s]+)(\))")


class DeadLink(Exception):
    """A link between files leads nowhere."""


def sources() -> dict[str, str]:
    """Every file that is a page, by its place in the checkout: its place on the site."""
    found = dict(BESIDE)
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(TOP).as_posix()
        inside = path.relative_to(DOCS)
        if name not in found and inside.parts[0] not in NOT_PAGES:
            found[name] = inside.as_posix() if len(inside.parts) > 1 else f"explanation/{inside.name}"
    return found


def linked(text: str, source: str, places: dict[str, str], files: set[str]) -> str:
    """A page's text with its links written anew; the files of the checkout that it links to are added to `files`.

    Raises DeadLink for a link to nothing.
    """
    kept = [match.span() for match in CODE.finditer(text)]

    def anew(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if any(begin <= match.start() < end for begin, end in kept) or not target or re.match(r"\w+:", target):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in places:
            place = places[path]
        elif path.startswith("docs/reference/"):
            place = path.removeprefix("docs/")
            if os.path.basename(place) not in reference.pages():
                raise DeadLink(f"{source}: {match[2]}: the reference has no such page")
        elif (TOP / path).is_file():
            files.add(path)
            place = f"files/{path}"
        else:
            raise DeadLink(f"{source}: {match[2]}: there is no such page and no such file")
        return f"{match[1]}{os.path.relpath(place, os.path.dirname(places[source]) or '.')}{mark}{anchor}{match[3]}"

    return LINK.sub(anew, text)


def make(folder: Path) -> None:
    """Put everything into `folder`: `mkdocs.yml`, and below `pages` what it is about.

    Raises FileExistsError where it has anything else: nothing of it is removed then.
    """
    for old in sorted(folder.iterdir()) if folder.exists() else ():
        if old.name not in MADE:
            raise FileExistsError(f"{old} was not made here: name a folder that is empty, or not there yet")
    shutil.rmtree(folder, ignore_errors=True)
    places, files = sources(), set[str]()
    texts = {place: linked((TOP / name).read_text("utf-8"), name, places, files) for name, place in places.items()}
    texts |= {f"reference/{name}": page for name, page in reference.pages().items()}
    for place, text in texts.items():
        _write(folder / "pages" / place, text)
    _write(folder / "pages" / "style.css", (DOCS / "style.css").read_text("utf-8"))
    for name in files:
        _copy(TOP / name, folder / "pages" / "files" / name)
    (folder / "mkdocs.yml").write_text(json.dumps(settings(texts), indent=2), encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    """As it is: it may be a picture."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(path.read_bytes())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def settings(texts: dict[str, str]) -> dict[str, object]:
    """For mkdocs, which reads YAML, and so JSON. Nothing of the site is loaded from anywhere else."""
    explanations = sorted((place for place in texts if place.startswith("explanation/")), key=_rank)
    nav: list[dict[str, object]] = [
        {"Home": "index.md"},
        {"Tutorial": "tutorial.md"},
        {"How to": [*_entries((f"how-to/{name}" for name in HOW_TO), texts)]},
        {"Reference": [*_entries((f"reference/{name}" for name in reference.pages()), texts)]},
        {"Explanation": [*_entries(explanations, texts)]},
        {"Changelog": "changelog.md"},
    ]
    return {
        "site_name": "artifactcache",
        "docs_dir": "pages",
        "use_directory_urls": False,  # so that it can be read from a folder, without a server
        "theme": {"name": "mkdocs", "highlightjs": False, "color_mode": "auto", "user_color_mode_toggle": True},
        "plugins": ["search"],
        "markdown_extensions": [
            "tables",
            "fenced_code",
            "sane_lists",
            {"toc": {"permalink": True}},
            {"codehilite": {"noclasses": False, "guess_lang": False}},
        ],
        "extra_css": ["style.css"],
        "validation": {"omitted_files": "warn", "absolute_links": "warn", "anchors": "warn"},
        "nav": nav,
    }


def _rank(place: str) -> tuple[int, str]:
    name = os.path.basename(place)
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


def _entries(places: Iterator[str] | list[str], texts: dict[str, str]) -> Iterator[dict[str, str]]:
    for place in places:
        yield {reference.titled(texts[place]): place}


if __name__ == "__main__":
    make(Path(sys.argv[1]))
