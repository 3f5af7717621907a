"""The daemon against a dictionary, by Hypothesis: a client on the sockets, an origin that changes, a daemon that dies.

What each step of each verb does when it fails is next door, in process; here is what a client sees of the whole.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import artifactcache
from artifactcache.errors import NotFound
from tests.conftest import StartDaemon
from tests.rig.daemon import Daemon
from tests.unit.house import overwrite

Files = dict[str, bytes]

NOBODY = "http://127.0.0.1:9"  # a tracking server that is not needed for what lies on this host
NAMES = ("x", "d/y", "d/e/z")
CONTENTS = (b"", b"shared", b"large " * 20_000, b"other")
ARTIFACTS = ("one", "two")
SETTINGS = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
)
_numbers = count()


class DaemonModel(RuleBasedStateMachine):
    """What a client gets of artifacts on this host's own disk, which are looked at by each fetch.

    Attributes:
        files: what the origin has.
        views: those that were handed out and not released, with what was in them.
    """

    daemon: ClassVar[Daemon]
    room: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.room / f"example-{next(_numbers)}"
        self.files: dict[str, Files] = {}
        self.pinned: set[str] = set()
        self.views: list[tuple[artifactcache.Fetched, Files]] = []
        self.client = artifactcache.Client(self.daemon.socket_dir)

    @initialize(contents=st.lists(st.sampled_from(CONTENTS), min_size=2, max_size=2))
    def begin(self, contents: list[bytes]) -> None:
        """Two artifacts of one file each."""
        for name, content in zip(ARTIFACTS, contents, strict=True):
            self.files[name] = {}
            self.write(name, "x", content)

    def teardown(self) -> None:
        """The daemon holds nothing of this for anybody."""
        for name in self.pinned:
            self.client.unpin(self._uri(name))
        for fetched, _ in self.views:
            fetched.release()
        self.client.close()
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(ARTIFACTS), path=st.sampled_from(NAMES), content=st.sampled_from(CONTENTS))
    def write(self, name: str, path: str, content: bytes) -> None:
        """A file is written, or rewritten, at the origin."""
        target = self.folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self.files[name][path] = content

    @rule(name=st.sampled_from(ARTIFACTS), path=st.sampled_from(NAMES[1:]))
    def delete(self, name: str, path: str) -> None:
        """A file goes."""
        if self.files[name].pop(path, None) is not None:
            (self.folder / name / path).unlink()

    @rule(name=st.sampled_from(ARTIFACTS), refresh=st.booleans())
    def view(self, name: str, refresh: bool) -> None:
        """A view shows what the origin has."""
        fetched = self.client.fetch(self._uri(name), refresh=refresh)
        assert _read(Path(fetched)) == self.files[name]
        self.views.append((fetched, dict(self.files[name])))

    @rule(name=st.sampled_from(ARTIFACTS), mode=st.sampled_from(("auto", "copy", "hardlink")), replace=st.booleans())
    def place(self, name: str, mode: str, replace: bool) -> None:
        """A folder has what the origin has, however it comes there."""
        target = self.folder / "placed"
        if not replace and target.exists():
            shutil.rmtree(target)
        self.client.fetch(self._uri(name), target, mode=mode, exists="replace" if replace else "error")
        assert _read(target) == self.files[name]
        assert os.listdir(self.folder).count("placed") == 1 and not list(self.folder.glob(".artifactcache*"))

    @rule(name=st.sampled_from(ARTIFACTS))
    def fetch_a_part(self, name: str) -> None:
        """Patterns take what they match."""
        target = self.folder / f"part-{next(_numbers)}"
        self.client.fetch(self._uri(name), target, include=["d/**"])
        assert _read(target) == {p: c for p, c in self.files[name].items() if p.startswith("d/")}

    @precondition(lambda self: self.views)
    @rule()
    def release(self) -> None:
        """The oldest view is given back."""
        self.views.pop(0)[0].release()

    @rule(name=st.sampled_from(ARTIFACTS))
    def pin(self, name: str) -> None:
        """What is pinned is fetched first."""
        self.client.pin(self._uri(name))
        self.pinned.add(name)

    @rule(name=st.sampled_from(ARTIFACTS))
    def unpin(self, name: str) -> None:
        """A pin ends, if there is one."""
        try:
            self.client.unpin(self._uri(name))
        except NotFound:
            assert name not in self.pinned
        self.pinned.discard(name)

    @rule()
    def sweep(self) -> None:
        """All goes that may, and what is pinned does not."""
        self.client.sweep(free_bytes=2**62)
        held = {one.version for one in self.client.list()}
        assert {self._uri(name) for name in self.pinned} <= held

    @rule(content=st.sampled_from(CONTENTS[1:]))
    def damage(self, content: bytes) -> None:
        """A bad disk changes a blob, in the store and in all views of it: nobody is handed that from then on."""
        blob = self.daemon.blob(blake3(content).hexdigest())
        if blob.exists():
            overwrite(blob)
            self.views = [(fetched, files) for fetched, files in self.views if content not in files.values()]

    @rule()
    def verify(self) -> None:
        """What is damaged is found, and nothing else fails."""
        self.client.verify()

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        """Another daemon has the store; views that were handed out stay."""
        self.daemon.kill() if is_killed else self.daemon.stop()
        self.daemon.start()

    @invariant()
    def views_stay(self) -> None:
        """What was handed out is what it was."""
        for fetched, files in self.views:
            assert _read(Path(fetched)) == files

    def _uri(self, name: str) -> str:
        return f"file://{self.folder}/{name}"


def _read(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(start_daemon: StartDaemon, room: Path) -> Iterator[type[DaemonModel]]:
    """The machine, with a daemon of its own in which nothing is young."""
    DaemonModel.daemon, DaemonModel.room = start_daemon(NOBODY, grace=0.0), room
    yield DaemonModel
    DaemonModel.daemon.assert_no_traceback()


def test_the_daemon_is_a_dictionary(model: type[DaemonModel]) -> None:
    """Whatever a client does, in whatever order, and whenever the daemon dies."""
    some = settings(SETTINGS, max_examples=3, stateful_step_count=15, derandomize=True)
    run_state_machine_as_test(model, settings=some)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_daemon_is_a_dictionary_for_long(model: type[DaemonModel], request: pytest.FixtureRequest) -> None:
    """The same, longer, by a seed that is printed; `--seed` sets it."""
    told = request.config.getoption("--seed")
    number = random.SystemRandom().randrange(2**32) if told is None else told
    print(f"--seed {number}")
    run_state_machine_as_test(seed(number)(model), settings=settings(SETTINGS, max_examples=40, stateful_step_count=50))
