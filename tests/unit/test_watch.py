"""Watching folders: what the kernel is asked to hold, and that nothing is missed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver import watch
from cacheserver.watch import Watch


@pytest.fixture
def watching() -> Iterator[Watch]:
    """A watch."""
    watching = Watch()
    yield watching
    watching.close()


def held_by_the_kernel() -> int:
    """How many watches this process has, as the kernel counts them."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        if os.path.islink(fd) and os.readlink(fd) == "anon_inode:inotify":
            found += Path("/proc/self/fdinfo", fd.name).read_text().count("inotify wd:")
    return found


def test_the_kernel_holds_no_more_watches_than_are_counted(
    watching: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often something has happened since: the limit is one on the kernel's memory."""
    monkeypatch.setattr(watch, "WATCHES_MAX", 4)
    for n in range(10):
        folders = [tmp_path / f"{n}-{m}" for m in range(3)]
        for folder in folders:
            folder.mkdir()
            assert watching.view(str(folder), ())
        assert held_by_the_kernel() == 3
        before = watching.generation()
        (folders[0] / "new").touch()
        assert watching.generation() > before
        assert watching.generation() == watching.generation()
    assert all(watching.blobs(str(tmp_path / f"0-{m}")) for m in range(3)) and watching.blobs(str(tmp_path))
    assert not watching.blobs(str(tmp_path / "1-0")) and held_by_the_kernel() == 4


def test_a_folder_that_is_watched_anew_is_heard_of_again(watching: Watch, tmp_path: Path) -> None:
    """Each time that something happens in it, and at once."""
    seen = [watching.generation()]
    for n in range(3):
        assert watching.view(str(tmp_path), ())
        (tmp_path / str(n)).touch()
        seen.append(watching.generation())
    assert seen == sorted(set(seen))


def test_what_is_not_there_cannot_be_watched(watching: Watch, tmp_path: Path) -> None:
    """Then files are looked at instead."""
    assert not watching.blobs(str(tmp_path / "none")) and not watching.view(str(tmp_path), [b"none"])
