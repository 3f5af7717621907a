"""The rules of the house, held by a test: nothing goes without a word about it. Who may import what is next door."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomllib

from cacheserver import config, schema, settings
from cacheserver.advice import warnings
from cacheserver.changes import RESTART
from cacheserver.readers import percent
from cacheserver.space import Amount, parse_amount

TOP = Path(__file__).resolve().parent.parent
DAEMON = TOP / "cacheserver"
CLIENT = TOP / "client" / "artifactcache"
PROTO = TOP / "proto" / "artifactcache" / "v1" / "cache.proto"
EXAMPLE = TOP / "config.example.toml"
README = TOP / "README.md"

LINES_MAX = 400


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# -- everything has a word about it -----------------------------------------------------------------------------------


def _documented_in_the_example() -> Iterator[tuple[str, str, Any, str]]:
    """Section, key, value and comment of every key, set or commented out, in config.example.toml.

    The sections of what there may be several of are examples: "[[retention]]", "[quotas".
    """
    section, comment = "", ""
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line) or re.fullmatch(r"# (\[\[\w+\]\]|\[quotas)[\w.\"*]*\]?", line):
            section, comment = found[1], ""
        elif found := re.fullmatch(r"(?:# )?(\w+) = (.*)", line):
            yield section, found[1], tomllib.loads(f"value = {found[2]}")["value"], comment
            comment = ""
        elif line.startswith("# "):
            comment += line[1:]
        else:
            comment = ""


def test_the_example_has_every_key_with_its_default() -> None:
    """In the order of the code, none more and none less; each with a sentence above it."""
    documented = [row for row in _documented_in_the_example() if not row[0].startswith("[")]
    keys = config.keys()
    assert [(section, key) for section, key, _, _ in documented] == [(section, key) for section, key, _ in keys]
    for (section, key, value, comment), (_, _, default) in zip(documented, keys, strict=True):
        shown = parse_amount(value) if isinstance(default, Amount) else value
        if isinstance(default, float) and isinstance(value, str):
            shown = percent(value)
        assert (shown, type(shown)) == (default, type(default)), f"[{section}] {key}"
        _assert_sentence(comment, f"[{section}] {key}")


def test_the_example_says_what_needs_a_restart() -> None:
    """Of every key that does, and of no other."""
    told = {
        (section, key) for section, key, _, comment in _documented_in_the_example() if "Needs a restart." in comment
    }
    assert told == {(section, key) for section, keys in RESTART.items() for key in keys}


def test_the_example_has_every_key_of_what_there_may_be_several_of() -> None:
    """Each where it stands first with a sentence above it; none that does not exist."""
    examples = [row for row in _documented_in_the_example() if row[0].startswith("[")]
    first: dict[tuple[str, str], str] = {}
    for section, key, _, comment in examples:
        first.setdefault((section.strip("[]"), key), comment)
    assert set(first) == {(section, key) for section, keys in config.table_keys().items() for key in keys}
    for (section, key), comment in first.items():
        _assert_sentence(comment, f"{section} {key}")


def _assert_sentence(comment: str, what: str) -> None:
    assert len(comment.split()) >= 4 and comment.strip()[0].isupper(), f"{what} has no sentence"
    assert comment.rstrip().endswith((".", "!", "?")), f"{what}: the sentence has no end"


def test_the_example_can_be_used_as_it_is() -> None:
    """It changes nothing; and with the examples at its end it can be used too, without anything to be warned of."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert config.parse(text, "example") == settings.Config()
    examples = re.sub(r"^# (?=\[|\w+ = )", "", text[text.index("# [[grant]]") :], flags=re.M)
    told = config.parse(f'[access]\ncheck = "rules"\n{examples}', "example")
    assert len(told.grant) == 3
    assert len(told.retention) == 6 and len(told.warm) == 2 and set(told.quotas.users) == {"*", "alice"}
    assert warnings(told) == []


def test_everything_in_the_contract_has_a_sentence() -> None:
    """Each service, rpc, message and field of the proto file, in a comment right above it."""
    lines = PROTO.read_text(encoding="utf-8").splitlines()
    names = re.compile(r"\s*(service|rpc|message|enum|(?:repeated |optional )?[\w.]+(?=\s+\w+\s*=\s*\d+;))\s+(\w+)")
    seen, bare = 0, []
    for number, line in enumerate(lines):
        if found := names.match(line):
            seen += 1
            above = lines[number - 1].strip() if number else ""
            if not (above.startswith("//") and above.endswith((".", "?", ")"))):
                bare.append(f"{number + 1}: {found[0].strip()}")
    assert bare == [] and seen > 100


def _columns() -> Iterator[tuple[str, str, str]]:
    """Table, line of a column, and the comment above the table."""
    for migration in schema.MIGRATIONS:
        above, table = "", ""
        for line in migration.splitlines():
            if found := re.match(r"CREATE TABLE (\w+) \(", line):
                table = found[1]
                yield table, "", above
            elif line.startswith(")"):
                table = ""
            elif table and re.match(r"\s+[a-z_]+ [A-Z]", line):
                yield table, line.strip(), above
            above = line


def test_every_table_and_column_has_a_sentence() -> None:
    """A column explains itself where it is `id`, points to another table, or is a count of what its name says."""
    self_explaining = re.compile(r"id INTEGER PRIMARY KEY|.*\bREFERENCES \w+\(id\)|\w+_count INTEGER")
    columns = list(_columns())
    assert len(columns) > 30
    for table, column, above in columns:
        if column:
            assert "-- " in column or self_explaining.match(column), f"{table}: {column}"
        else:
            assert above.startswith("-- ") and above.endswith("."), f"{table} has no sentence"


def _rpcs() -> set[str]:
    return set(re.findall(r"^\s*rpc (\w+)\(", PROTO.read_text(encoding="utf-8"), re.M))


def _public(
    node: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            overloaded = any(ast.unparse(d).endswith((".setter", "overload")) for d in child.decorator_list)
            if not overloaded:
                yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize(
    "path",
    [p for folder in (DAEMON, CLIENT) for p in sorted(folder.glob("*.py"))],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_everything_public_has_a_docstring(path: Path) -> None:
    """Modules, classes, functions and methods; the handlers are explained by the contract that names them."""
    tree = _tree(path)
    assert ast.get_docstring(tree) or path.name == "__init__.py", f"{path} does not open with its law"
    bare = [name for name, node in _public(tree, "") if not ast.get_docstring(node)]
    handlers = {f"Service.{rpc}" for rpc in _rpcs()} if path == DAEMON / "service.py" else set()
    assert set(bare) <= handlers


def test_every_rpc_is_handled() -> None:
    """The daemon's service has a method for each."""
    tree = _tree(DAEMON / "service.py")
    service = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Service")
    assert _rpcs() <= {n.name for n in service.body if isinstance(n, ast.FunctionDef)} and len(_rpcs()) >= 8


def test_the_figures_in_the_readme_are_those_that_were_measured() -> None:
    """Row by row what `make bench` has kept, but for what docs/eviction.md, docs/faults.md and DESIGN.md tell of."""
    readme = README.read_text(encoding="utf-8")
    kept = json.loads((TOP / "tests" / "bench" / "results.json").read_text(encoding="utf-8"))
    elsewhere = re.compile(r"\| (index of|taking in|evicting)")
    rows = ["| " + " | ".join(one.values()) + " |" for of in kept.values() for one in of["figures"]]
    wanted = [row for row in rows if not elsewhere.match(row) and "whole trees" not in row]
    table = readme[readme.index("| | this | against") : readme.index("As `make bench` printed it")]
    assert table.strip().splitlines()[2:] == wanted and len(wanted) > 30


@pytest.mark.parametrize("room", ["cacheserver.cli", "artifactcache.cli"])
def test_every_command_is_in_the_readme(room: str) -> None:
    """As it is typed."""
    module: ModuleType = pytest.importorskip(room)
    parser = module._parser()
    commands = _commands(parser)
    assert commands
    readme = README.read_text(encoding="utf-8")
    # In one go, or in a list of commands that names the program once.
    missing = [
        name for name in commands if not re.search(rf"`[^`\n]*\b{name}\b|^ {{4}}{parser.prog} {name}\b", readme, re.M)
    ]
    assert missing == []


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    return [
        name for action in parser._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
    ]


@pytest.mark.parametrize("room", ["cacheserver.cli", "artifactcache.cli"])
def test_every_command_and_option_says_what_it_does(room: str) -> None:
    """In `--help`; a positional argument is explained by its name and its command."""
    parser = pytest.importorskip(room)._parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions if choice.help} == set(action.choices)
            for name, command in action.choices.items():
                for option in command._actions:
                    assert option.help or not option.option_strings, f"{name} {option.option_strings}"


# -- the files themselves ---------------------------------------------------------------------------------------------


@cache
def _files() -> tuple[Path, ...]:
    """The files of the project, as git has them or would take them."""
    found = subprocess.run(
        [
            "git",
            "-c",
            "safe.directory=*",
            "-C",
            str(TOP),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        capture_output=True,
        check=False,
    )
    if found.returncode:
        pytest.skip(f"this is no git checkout: {found.stderr.decode().strip()}")
    paths = (TOP / name for name in found.stdout.decode().split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def _generated(path: Path) -> bool:
    return path.is_relative_to(CLIENT / "v1") or path.suffix == ".lock" or path.name == "LICENSE"


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    """A file of more lines is asking to be two. But for the contract: half of it are the sentences of its fields."""
    written = [p for p in _files() if p.suffix in {".py", ".md", ".toml", ".sh", ".service"}]
    assert len(written) > 50
    long = {str(p.relative_to(TOP)): n for p in written if not _generated(p) and (n := _lines(p)) > LINES_MAX}
    assert long == {}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_nothing_is_bound_to_one_mirror() -> None:
    """No address of a package index is written down: whoever builds this uses the one that they have."""
    forbidden = [
        "pypi" + ".org",
        "files." + "pythonhosted",
        "deb." + "debian",
        "registry." + "npmjs",
    ]
    found = [
        f"{path.relative_to(TOP)}: {word}"
        for path in _files()
        for word in forbidden
        if word.encode() in path.read_bytes()
    ]
    assert found == []


def test_every_test_says_what_it_holds() -> None:
    """A docstring for each test and for each file of them."""
    bare = []
    for path in sorted((TOP / "tests").rglob("*.py")):
        tree = _tree(path)
        if not ast.get_docstring(tree):
            bare.append(str(path.relative_to(TOP)))
        tests = [(name, node) for name, node in _public(tree, "") if name.startswith("test_")]
        bare += [f"{path.relative_to(TOP)}: {name}" for name, node in tests if not ast.get_docstring(node)]
    assert bare == []


def test_what_a_package_exports_is_there() -> None:
    """`__all__` of the client is sorted, and names what exists and has a docstring."""
    artifactcache = pytest.importorskip("artifactcache")
    exported = artifactcache.__all__
    assert len(set(exported)) == len(exported)
    for name in exported:
        found = getattr(artifactcache, name)
        assert isinstance(found, str) or inspect.getdoc(found), name
