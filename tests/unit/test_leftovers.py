"""What another user has made inside the store: it cannot be removed by the daemon, and stops nobody."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from cacheserver import fsck
from cacheserver.fsck import Report
from tests.unit.house import Shelf

DAEMON_UID = 60_123  # anybody but root
FILES = {"code/model.py": b"x = 1\n", "weights": b"w"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")

R = TypeVar("R")


def _become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def as_daemon(work: Callable[[Path], R], root: Path) -> R:
    """Does something as the user whom the store belongs to, in a process of its own."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork, initializer=_become, initargs=(DAEMON_UID,)) as pool:
        return pool.submit(work, root).result(60)


@pytest.fixture
def root(room: Path) -> Path:
    """A store that is not root's, with a view into which root has imported a module."""
    root = room / "store"
    # All that Python loads late is loaded before there is a process that may not read Python's own folder.
    _view_again(room / "rehearsal")
    _check(room / "rehearsal")
    root.mkdir()
    os.chown(root, DAEMON_UID, DAEMON_UID)
    view = as_daemon(_view, root)
    (view / "code/__pycache__").mkdir()
    (view / "code/__pycache__/model.pyc").write_bytes(b"compiled")
    return root


def _view(root: Path) -> Path:
    shelf = Shelf(root)
    view = Path(shelf.store.view(shelf.put(FILES).tree))
    shelf.close()
    return view


def _view_again(root: Path) -> tuple[list[str], list[str], int]:
    """Fetches as often as there are names in staging/ to stumble over. Returns what is left there, what is in the
    view, and how often the log speaks of it."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign, assignment]
    logging.getLogger("cacheserver").addHandler(handler)
    shelf = Shelf(root)
    held = shelf.put(FILES)
    if not shelf.store.view_is_sound(held.tree):
        view = Path(shelf.store.view(held.tree))
        assert shelf.store.view_is_sound(held.tree)
    else:
        view = Path(shelf.store.view(held.tree))
    for n in range(10):
        other = shelf.put({str(n): str(n).encode()}, f"s3://bucket/{n}")
        assert Path(shelf.store.view(other.tree), str(n)).read_bytes() == str(n).encode()
    found = sorted(str(p.relative_to(view)) for p in view.rglob("*") if p.is_file())
    left = shelf.staging()
    shelf.close()
    return left, found, len([record for record in told if record.levelno >= logging.WARNING])


def _check(root: Path) -> Report:
    return fsck.check(str(root))


def test_what_root_made_in_a_view_stops_nobody(root: Path) -> None:
    """The fetch gets a view without it; what cannot be removed is told once, stays, and its name is not used again."""
    left, found, told = as_daemon(_view_again, root)
    assert found == sorted(FILES) and len(left) == 1 and told == 1
    assert sorted(p.name for p in (root / "staging").rglob("*")) == sorted([*left, "code", "__pycache__", "model.pyc"])


def test_a_daemon_starts_over_what_it_cannot_remove(root: Path) -> None:
    """As often as it likes, telling it once each time; when root has removed it there is nothing to tell."""
    left, _, _ = as_daemon(_view_again, root)
    for _ in range(2):
        assert as_daemon(_view_again, root) == (left, sorted(FILES), 1)
    shutil.rmtree(root / "staging" / left[0])
    assert as_daemon(_view_again, root) == ([], sorted(FILES), 0)


def test_fsck_tells_what_it_cannot_remove(root: Path) -> None:
    """In staging/ and in views/ that no row speaks of: the path, and who can remove it. The store is sound."""
    left, _, _ = as_daemon(_view_again, root)
    stray = root / "views" / ("d" * 64)
    (stray / "inside").mkdir(parents=True)
    (stray / "inside/file").write_bytes(b"root's")
    stuck = {str(root / "staging" / left[0]), str(stray)}
    report = as_daemon(_check, root)
    assert report.sound and set(report.stuck) == stuck and report.strays == 0
    assert all(f"{path}; remove it as root" in "\n".join(report.lines()) for path in stuck)
    report = fsck.check(str(root))  # root can
    assert report.sound and report.stuck == () and report.strays == 1 and not stray.exists()
