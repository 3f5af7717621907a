"""The reference, read off what it describes: parsers, configuration, docstrings, metrics and the contract.

Law of this file: nothing is said twice. A page of the reference has no sentence of its own but its first; what is
missing in it is missing where it belongs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import artifactcache
from artifactcache import cli as client_cli
from artifactcache import errors
from artifactcache.client import Client
from cacheserver import cli as daemon_cli
from cacheserver.changes import RESTART
from tools.locked import TOP

EXAMPLE = TOP / "config.example.toml"
METRICS = list((TOP / "cacheserver").glob("metrics*.py"))
PROTO = TOP / "proto" / "artifactcache" / "v1" / "cache.proto"


def cell(text: str) -> str:
    """What may stand in a table."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


# -- commands ---------------------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser) -> str:
    """A program, and each of its commands."""
    below = list(leaves(parser))
    lines = [f"# The command {parser.prog}", "", parser.description or "", "", *_arguments(parser)]
    lines += ["", *_epilog(parser), "", "| command | does |", "| --- | --- |"]
    for name, _, words in below:
        lines.append(f"| [`{parser.prog} {name}`](#{parser.prog}-{name.replace(' ', '-')}) | {cell(words)} |")
    for name, command, _ in below:
        lines += ["", f"## {parser.prog} {name}", "", command.description or "", "", "```text", _usage(command), "```"]
        lines += ["", *_arguments(command), "", *_epilog(command)]
    return "\n".join(lines) + "\n"


def leaves(parser: argparse.ArgumentParser, above: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """The commands that do something, each with the words that name it, and what its help says in a list."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                deeper = list(leaves(command, f"{above}{name} "))
                yield from deeper or [(above + name, command, told[name])]


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [parser.prog]
    for action in sorted(parser._actions, key=lambda each: not each.option_strings):
        shown = _shown(action)
        words.append(shown if action.required and action.option_strings else f"[{shown}]" if shown else "")
        if not action.option_strings:
            many = {"*": f"[{shown} …]", "+": f"{shown} …", "?": f"[{shown}]"}
            words[-1] = many.get(str(action.nargs), shown)
    lines = textwrap.wrap(" ".join(words).replace("[-h, --help]", "[-h]"), 100, subsequent_indent="    ")
    return "\n".join(lines)


def _shown(action: argparse.Action) -> str:
    """An option with its value, or a word, as it is typed."""
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices and action.option_strings and action.metavar is None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return name
    return ", ".join(action.option_strings) + (f" {name}" if action.nargs != 0 else "")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from ("| argument | means |", "| --- | --- |")
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            words = (action.help or "") % {**vars(action), "prog": parser.prog}
            yield f"| `{_shown(action).replace('|', chr(92) + '|')}` | {cell(words)} |"


def _epilog(parser: argparse.ArgumentParser) -> Iterator[str]:
    for paragraph in (parser.epilog or "").split("\n\n"):
        first, *rest = paragraph.split("\n")
        if re.fullmatch("Examples?:", first):
            yield from (first, "", "```sh", *(line.strip() for line in rest), "```", "")
        elif paragraph:
            yield from (re.sub(r"(?<!`)\b([A-Z]+_[A-Z_]+|--\w+)\b", r"`\1`", paragraph), "")


# -- the configuration ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Key:
    """One key of the example: its value there, and the comment above it."""

    section: str
    name: str
    value: str
    comment: str


def example() -> tuple[str, list[Key], str]:
    """The example's introduction, its keys, and the rest of it, which has what there may be several of."""
    text = EXAMPLE.read_text(encoding="utf-8")
    head, _, rest = text.partition("\n\n")
    body, line, several = rest.partition("# ---")
    keys, section, comment = [], "", ""
    for each in body.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", each):
            section, comment = found[1], ""
        elif found := re.fullmatch(r"(?:# )?(\w+) = (.*)", each):
            keys.append(Key(section, found[1], found[2], comment.strip()))
            comment = ""
        else:
            comment = f"{comment} {each[2:]}" if each.startswith("# ") else ""
    return head, keys, line + several


def configuration() -> str:
    """Every key with its default, its variable and its reason."""
    head, keys, several = example()
    lines = ["# Configuration", "", *(each[2:] if each != "#" else "" for each in head.splitlines()), ""]
    section = ""
    for key in keys:
        if key.section != section:
            section = key.section
            lines += ["", f"## [{section}]", "", "| key | default | means |", "| --- | --- | --- |"]
        variable = f"CACHESERVER_{section}_{key.name}".upper()
        lines.append(f"| `{key.name}` | `{key.value}` | {cell(key.comment)} `{variable}` |")
    lines += ["", "## What there may be several of", "", "Each is an example, commented out as in the file.", ""]
    lines += ["```toml", several.rstrip(), "```", "", "## What needs a restart", ""]
    lines += [f"- `[{name}]` {', '.join(f'`{key}`' for key in sorted(found))}" for name, found in RESTART.items()]
    return "\n".join(lines) + "\n"


# -- Python -----------------------------------------------------------------------------------------------------------


def python() -> str:
    """The public names: functions, the client, and what they return."""
    lines = [
        "# In Python",
        "",
        inspect.getdoc(artifactcache) or "",
        "",
        *_function("artifactcache.fetch", fetch(), "##"),
    ]
    lines += ["", "## artifactcache.Client", "", *_prose(inspect.getdoc(Client) or "")]
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            lines += ["", *_function(f"Client.{name}", method, "###")]
    for name in artifactcache.__all__:
        found = getattr(artifactcache, name)
        if inspect.isclass(found) and found is not Client and not issubclass(found, Exception):
            lines += ["", *_values(name, found)]
    return "\n".join(lines) + "\n"


def fetch() -> Callable[..., Any]:
    """The one-shot form."""
    found: Callable[..., Any] = artifactcache.fetch
    return found


def _function(name: str, function: Callable[..., Any], level: str) -> Iterator[str]:
    parameters, _, result = str(inspect.signature(function)).rpartition(" -> ")
    parameters = re.sub(r"\bself(, )?", "", parameters, count=1)
    shown = re.sub(r"(?<=: )'([^']*)'", r"\1", parameters) + " -> " + result.strip("'")
    short = name.rsplit(".", 1)[-1]
    kept = re.sub(r" ?([=|:]) ", _together, f"{short}{shown}")
    call = textwrap.fill(kept, 100, subsequent_indent="    ", break_long_words=False)
    yield from (f"{level} {name}", "", "```python", call.replace("\N{NO-BREAK SPACE}", " "), "```", "")
    yield from _prose(inspect.getdoc(function) or "")


def _together(match: re.Match[str]) -> str:
    return match[0].replace(" ", "\N{NO-BREAK SPACE}")


def _prose(text: str) -> Iterator[str]:
    """A docstring; its arguments are a table."""
    head, mark, arguments = text.partition("\nArgs:\n")
    yield re.sub(r"(?<![`\w])(runs:/|models:/)(?!`)", r"`\1`", head.rstrip())
    if mark:
        yield from ("", "| argument | means |", "| --- | --- |")
        for each in re.split(r"^ {4}(?=\w+: )", arguments, flags=re.M)[1:]:
            name, _, words = each.partition(": ")
            yield f"| `{name}` | {cell(words)} |"


def _values(name: str, kind: type) -> Iterator[str]:
    """A result: its fields, each with the sentence below it, and what it can do."""
    yield from (f"## {name}", "", inspect.getdoc(kind) or "", "", "| field | is |", "| --- | --- |")
    words = _field_words(kind)
    for each in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if not each.name.startswith("_"):
            yield f"| `{each.name}` | `{cell(str(each.type))}` {cell(words.get(each.name, ''))} |"
    for own, found in vars(kind).items():
        if not own.startswith("_") and (isinstance(found, property) or inspect.isfunction(found)):
            call = "" if isinstance(found, property) else "()"
            yield f"| `{own}{call}` | {cell((inspect.getdoc(found) or '').split('Args:')[0])} |"


def _field_words(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            found[field.target.id] = str(ast.literal_eval(after.value))  # type: ignore[attr-defined]
    return found


def faults() -> str:
    """Every error that a caller can meet."""
    lines = ["# Errors", "", *(inspect.getdoc(errors) or "").splitlines()[:1], ""]
    lines += ["| error | means | exit status |", "| --- | --- | --- |"]
    for name, kind in errors.BY_NAME.items():
        status = 2 if kind is errors.InvalidRequest else 1
        lines.append(f"| `artifactcache.{name}` | {cell(inspect.getdoc(kind) or '')} | {status} |")
    return "\n".join(lines) + "\n"


# -- metrics ----------------------------------------------------------------------------------------------------------

_KINDS = {
    "_gauge": "gauge",
    "_gauges": "gauge",
    "_counter": "counter",
    "_counters": "counter",
    "_histogram": "histogram",
}


def metrics() -> str:
    """Every metric, as the code that counts it says."""
    lines = ["# Metrics", "", "[Operations](../explanation/operations.md) says more of each.", ""]
    lines += ["| metric | kind | means |", "| --- | --- | --- |"]
    nodes = [node for path in sorted(METRICS) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _KINDS:
            texts = [str(each.value) for each in node.args[:2] if isinstance(each, ast.Constant)]
            if len(texts) == 2:
                kind = _KINDS[node.func.id]
                name = f"cacheserver_{texts[0]}{'_total' if kind == 'counter' else ''}"
                lines.append(f"| `{name}` | {kind} | {cell(texts[1])} |")
    return "\n".join(lines) + "\n"


# -- the contract -----------------------------------------------------------------------------------------------------


def protocol() -> str:
    """The proto file: its head as prose, its calls as a table, and its messages."""
    text = PROTO.read_text(encoding="utf-8")
    head, _, _ = text.partition("syntax = ")
    lines = ["# Protocol", "", "```text", *(each.removeprefix("//").removeprefix(" ") for each in head.splitlines())]
    lines = [*lines[:-1], lines[-1] or "", "```", "", "| call | takes | gives | does |", "| --- | --- | --- | --- |"]
    call = r"((?:  //.*\n)+)  rpc (\w+)\(([^)]*)\) returns \(([^)]*)\);"
    for comment, name, takes, gives in re.findall(call, text):
        lines.append(f"| `{name}` | `{takes}` | `{gives}` | {cell(comment.replace('//', ''))} |")
    for comment, kind, name, body in re.findall(
        r"((?:^//[^\n]*\n)+)^(message|enum) (\w+) \{(\}|.*?^\})", text, re.M | re.S
    ):
        lines += ["", f"## {name}", "", " ".join(comment.replace("//", "").split()), ""]
        if body != "}":
            lines += ["```proto", f"{kind} {name} {{{body}", "```"]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every page of the reference, by its name."""
    return {
        "artifactcache.md": commands(client_cli._parser()),
        "cacheserver.md": commands(daemon_cli._parser()),
        "configuration.md": configuration(),
        "python.md": python(),
        "errors.md": faults(),
        "metrics.md": metrics(),
        "protocol.md": protocol(),
    }


def titled(page: str) -> str:
    """The title of a page."""
    return page.lstrip().split("\n", 1)[0].removeprefix("# ").strip()
