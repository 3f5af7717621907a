"""The documentation's site: whole, with a reference of everything there is, and nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import artifactcache
from artifactcache import cli as client_cli
from artifactcache import errors
from artifactcache.client import Client
from cacheserver import cli as daemon_cli
from cacheserver.changes import RESTART
from cacheserver.config import keys as config_keys
from cacheserver.config import table_keys
from tools import reference, site
from tools.locked import TOP

MKDOCS = TOP / ".venv-docs" / "bin" / "mkdocs"
PROTO = (TOP / "proto" / "artifactcache" / "v1" / "cache.proto").read_text()
# What a browser fetches by itself; a link is for its reader.
FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mkdocs is given."""
    folder = tmp_path_factory.mktemp("docs") / "docs"
    site.make(folder)
    return folder


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The reference."""
    return reference.pages()


@pytest.mark.parametrize("room", [client_cli, daemon_cli])
def test_every_command_and_option_is_in_the_reference(room: ModuleType, pages: dict[str, str]) -> None:
    """With what `--help` says of it, and its examples."""
    parser = room._parser()
    page = pages[f"{parser.prog}.md"]
    for name, command, _ in reference.leaves(parser):
        begin = page.index(f"\n## {parser.prog} {name}\n")
        part = page[begin : page.find("\n## ", begin + 1) if page.find("\n## ", begin + 1) > 0 else len(page)]
        assert (command.description or "-") in part and f"```text\n{parser.prog} {name} " in part and "```sh\n" in part
        for action in command._actions:
            shown = action.option_strings or [str(action.metavar or action.dest.upper())]
            row = _row(part, shown[0]).replace("\\", "").replace("&lt;", "<")
            assert all(each in row for each in shown) and " ".join(str(action.help).split()[:3]) in row, (name, shown)


def _row(page: str, begins: str) -> str:
    return next(
        line for line in page.splitlines() if re.match(rf"\| `{re.escape(begins)}\b|\| `{re.escape(begins)}`", line)
    )


def test_every_key_is_in_the_reference(pages: dict[str, str]) -> None:
    """With its default, its reason and its variable; and what needs a restart."""
    page = pages["configuration.md"]
    for section, key, _ in config_keys():
        part = page[page.index(f"\n## [{section}]\n") :]
        row = _row(part, key)
        assert f"`CACHESERVER_{section}_{key}`".upper().replace("`", "") in row and len(row.split()) > 8, (section, key)
    for section, keys in RESTART.items():
        assert f"- `[{section}]` {', '.join(f'`{key}`' for key in sorted(keys))}\n" in page
    for section, several in table_keys().items():
        assert all(re.search(rf"^# {key} = ", page, re.M) for key in several), section


def test_everything_public_is_in_the_reference(pages: dict[str, str]) -> None:
    """Every name of the library, each method of the client and each of its arguments, every field, every error."""
    page = pages["python.md"]
    for name in set(artifactcache.__all__) - {"__version__", "fetch", "Client", *errors.BY_NAME}:
        assert f"\n## {name}\n" in page
        fields = getattr(getattr(artifactcache, name), "__dataclass_fields__", {})
        part = page[page.index(f"\n## {name}\n") :]
        assert all(_row(part, field) for field in fields if not field.startswith("_"))
    methods = [name for name in dir(Client) if not name.startswith("_")]
    assert len(methods) > 12 and all(f"\n### Client.{name}\n" in page for name in methods)
    part = page[page.index("\n### Client.fetch\n") :]
    assert all(_row(part, argument) for argument in ("uri", "dst", "mode", "include", "refresh", "timeout"))
    assert all(_row(pages["errors.md"], f"artifactcache.{name}") for name in errors.BY_NAME)


def test_every_metric_and_every_message_is_in_the_reference(pages: dict[str, str]) -> None:
    """The metrics are those that docs/operations.md explains, which is held to a scrape elsewhere."""
    explained = set(re.findall(r"^\| `(cacheserver_\w+)", (TOP / "docs" / "operations.md").read_text(), re.M))
    assert set(re.findall(r"^\| `(cacheserver_\w+)`", pages["metrics.md"], re.M)) == explained and len(explained) > 30
    for call in re.findall(r"^ *rpc (\w+)\(", PROTO, re.M):
        assert len(_row(pages["protocol.md"], call).split("|")[4].split()) > 3
    for message in re.findall(r"^message (\w+)", PROTO, re.M):
        assert f"\n## {message}\n" in pages["protocol.md"]


def test_every_document_is_on_the_site(made: Path) -> None:
    """And in its navigation, once; what is new in docs/ is an explanation by itself."""
    nav = json.dumps(json.loads((made / "mkdocs.yml").read_text())["nav"])
    for name, place in site.sources().items():
        assert (made / "pages" / place).read_text().startswith("# ") and nav.count(f'"{place}"') == 1, name
    assert {path.name for path in (TOP / "docs").glob("*.md")} <= {Path(name).name for name in site.sources()}
    assert sum(place.startswith("explanation/") for place in site.sources().values()) >= 8


def test_a_dead_link_is_found() -> None:
    """To a page, to a file and into the reference; what stands in code is no link."""
    places = {"docs/a.md": "explanation/a.md", "DESIGN.md": "explanation/design.md"}
    for target in ("b.md", "../nothing.toml", "reference/nothing.md"):
        with pytest.raises(site.DeadLink, match=re.escape(target)):
            site.linked(f"[x]({target})", "docs/a.md", places, set())
    files: set[str] = set()
    text = "[d](../DESIGN.md#laws) [c](../config.example.toml) [r](reference/errors.md) `[n](no.md)` [w](https://e.example)"
    told = site.linked(text, "docs/a.md", places, files)
    assert told == (
        "[d](design.md#laws) [c](../files/config.example.toml) [r](../reference/errors.md) `[n](no.md)` "
        "[w](https://e.example)"
    )
    assert files == {"config.example.toml"}


class _Page(HTMLParser):
    """What a page fetches, what it links to, and what can be linked to on it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            if (tag, name) in FETCHED and value:
                self.fetched.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.mark.skipif(not MKDOCS.exists(), reason=".venv-docs is not there: `make .venv-docs/done`")
def test_the_site_is_built(made: Path, tmp_path: Path) -> None:
    """Strictly; no page or style sheet fetches anything from another host, and each link and anchor is there."""
    command = (str(MKDOCS), "build", "--strict", "--config-file", str(made / "mkdocs.yml"), "--site-dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = {path: _Page(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 20
    for path, page in found.items():
        outside = [each for each in page.fetched if urlsplit(each).netloc]
        assert outside == [], path
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in found:
                assert unquote(parts.fragment) in found[target].anchors, f"{path.name}: {link}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Whoever names one by mistake loses nothing."""
    kept = tmp_path / "thesis.txt"
    kept.touch()
    (tmp_path / "mkdocs.yml").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.txt was not made here"):
        site.make(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
