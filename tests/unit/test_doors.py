"""Doors: the ACL as the kernel has it, and turning access on and off wherever a crash comes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import CacheError
from cacheserver import doors
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from tests.unit.house import FEW, Shelf, fsck_command

IS_ROOT = os.geteuid() == 0
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Shelf]:
    """A store whose views are guarded."""
    shelf = Shelf(tmp_path / "store", shared=True, doors=Doors.GUARDED)
    yield shelf
    shelf.close()


def mode(path: str | Path) -> int:
    """The mode bits; where there is an ACL, those of the group show its mask."""
    return os.stat(path).st_mode & 0o7777


def is_open(path: str | Path) -> bool:
    """Whether everybody may enter, by the mode alone."""
    return mode(path) == 0o555 and ACCESS not in os.listxattr(path)


def is_closed(path: str | Path) -> bool:
    """Whether nobody but the owner may enter."""
    return mode(path) == 0o500 and ACCESS not in os.listxattr(path)


def test_an_acl_is_what_the_kernel_takes(tmp_path: Path) -> None:
    """It gives back the same bytes, and shows the mask in the mode; nobody is no ACL at all."""
    folder = str(tmp_path)
    os.chmod(folder, 0o777)
    doors.let_in_only(folder, {70_000, 5, 4_000_000_000})
    assert os.getxattr(folder, ACCESS) == doors.encode([5, 70_000, 4_000_000_000]) and mode(folder) == 0o550
    assert doors.let_in(folder) == {5, 70_000, 4_000_000_000}
    doors.let_in_only(folder, ())
    assert is_closed(folder) and doors.let_in(folder) == frozenset()
    doors.let_in_only(folder, {5})
    doors.movable(folder, True)
    assert doors.let_in(folder) == {5} and mode(folder) == 0o750  # still nobody else
    doors.movable(folder, False)
    os.chmod(folder, 0o700)
    assert doors.let_in(folder) == frozenset(), "an entry that the mask forbids lets nobody in"
    doors.open_to_all(folder)
    assert is_open(folder)
    os.chmod(folder, 0o700)


@pytest.mark.skipif(shutil.which("getfacl") is None, reason="getfacl is not installed")
def test_an_acl_is_what_it_is_meant_to_be(tmp_path: Path) -> None:
    """As somebody else reads it."""
    doors.let_in_only(str(tmp_path), {70_000})
    out = subprocess.run(("getfacl", "-cnp", str(tmp_path)), check=True, capture_output=True, text=True).stdout
    assert out.split() == ["user::r-x", "user:70000:r-x", "group::---", "mask::r-x", "other::---"]
    os.chmod(tmp_path, 0o700)


def test_a_guarded_view_is_closed_wherever_it_is_made(guarded: Shelf) -> None:
    """Whatever default ACL somebody gave the folders above: a new view has those entries only that were given."""
    default = doors.encode([70_000])
    for name in ("staging", "views"):
        os.setxattr(guarded.root / name, DEFAULT, default)
    held = guarded.put(FEW)
    view = guarded.store.view(held.tree)
    assert is_closed(view)
    guarded.store.view(held.tree, 80_000)
    assert doors.let_in(view) == {80_000}
    guarded.index.record_view(held.tree, exists=False)
    guarded.store.view(held.tree)
    assert doors.let_in(view) == {80_000} and guarded.staging() == []


def test_root_and_the_daemons_own_user_need_no_entry(guarded: Shelf) -> None:
    """No ACL is made for them."""
    held = guarded.put(FEW)
    for uid in (0, os.geteuid()):
        assert is_closed(guarded.store.view(held.tree, uid))


def test_what_is_given_is_looked_up_and_remembered(guarded: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user is let in once; after a restart that is read; what was evicted, or taken back, is forgotten."""
    held, asked = guarded.put(FEW), list[str]()

    def heard(name: str) -> None:
        real = getattr(os, f"{name}xattr")

        def call(*args: object) -> object:
            asked.append(name)
            return real(*args)

        monkeypatch.setattr(os, f"{name}xattr", call)

    heard("get")
    heard("set")

    def calls(uid: int) -> list[str]:
        asked.clear()
        guarded.store.view(held.tree, uid)
        return asked[:]

    assert (calls(70_000), calls(70_000), calls(80_000), calls(70_000)) == (["get", "set"], [], ["get", "set"], [])
    guarded.close()
    guarded.__init__(guarded.root, shared=True, doors=Doors.GUARDED)  # type: ignore[misc] # another daemon
    assert (calls(70_000), calls(80_000)) == (["get"], [])
    guarded.store.departures.evict([held.tree], now=1e9, young_since=1e9)
    held = guarded.put(FEW)
    assert doors.let_in(guarded.store.view(held.tree, 90_000)) == {90_000}


def test_a_view_is_not_opened_to_be_moved(guarded: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is put in place, nor where it is exchanged, nor where it is evicted, at any step."""
    held, seen, real = guarded.put(FEW), set[int](), os.chmod
    view = guarded.root / "views" / held.tree

    def chmod(path: str, mode_: int) -> None:
        real(path, mode_)
        seen.update(mode(view) for _ in range(view.exists()))

    monkeypatch.setattr(os, "chmod", chmod)
    guarded.store.view(held.tree, 70_000)
    guarded.index.record_view(held.tree, exists=False)
    guarded.store.view(held.tree)
    assert {0o550, 0o750} <= seen
    guarded.store.departures.evict([held.tree], now=1e9, young_since=1e9)
    assert not view.exists() and guarded.staging() == [] and not [one for one in seen if one & 0o007]


class Crash(BaseException):
    """The daemon is killed here."""


STEPS = ("unlink", "chmod", "removexattr", "rename")  # what changes something while all views get other doors


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("was", "to_be"), [(Doors.OPEN, Doors.GUARDED), (Doors.GUARDED, Doors.OPEN), (Doors.GUARDED, Doors.SHUT)]
)
def test_a_crash_while_doors_are_closed_or_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: Doors, to_be: Doors, step: str, before: bool
) -> None:
    """Before or after any of its steps: the next start, whichever it is, has every view as it has to be."""
    number, crashed = 0, True
    while crashed:
        crashed = False
        for after in Doors:
            root = tmp_path / f"{number}-{after.value}"
            views = _three_views(root, was)
            with monkeypatch.context() as patch:
                real, calls = getattr(os, step), [0]

                def one(*args: object, **kwargs: object) -> object:
                    calls[0] += 1  # noqa: B023
                    if calls[0] == number + 1 and before:  # noqa: B023
                        raise Crash
                    result = real(*args, **kwargs)  # noqa: B023
                    if calls[0] == number + 1:  # noqa: B023
                        raise Crash
                    return result

                patch.setattr(os, step, one)
                try:
                    doors.settle(str(root), to_be, shared=True)
                except Crash:
                    crashed = True
            Disk(str(root), shared=True, doors=after).close()
            assert all(map(is_open if after is Doors.OPEN else is_closed, views)) or (
                after is was is Doors.GUARDED and all(doors.let_in(view) <= {70_000} for view in views)
            )
        number += 1
    assert number > 1


def _three_views(root: Path, kind: Doors) -> list[str]:
    shelf = Shelf(root, shared=True, doors=kind)
    views = [shelf.store.view(shelf.put({"x": str(n).encode()}, f"s3://b/{n}").tree, 70_000) for n in range(3)]
    shelf.close()
    return views


def test_doors_are_settled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that finds them as they have to be looks at no view; an older store's are looked at; fsck leaves them."""
    views = _three_views(tmp_path / "store", Doors.GUARDED)
    (tmp_path / "store/doors").unlink()
    os.chmod(views[0], 0o555)  # as an older daemon left it
    Disk(str(tmp_path / "store"), shared=True, doors=Doors.GUARDED).close()
    assert all(map(is_closed, views))
    os.chmod(views[0], 0o555)
    before = [mode(view) for view in views]
    Disk(str(tmp_path / "store"), shared=True, doors=Doors.GUARDED).close()
    assert fsck_command(tmp_path / "store") == 0
    assert [mode(view) for view in views] == before and (tmp_path / "store/doors").read_text() == "guarded"


def test_views_are_closed_before_others_may_pass_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store of one's own becomes one for all: at no moment is an open view within reach."""
    root = tmp_path / "store"
    shelf = Shelf(root, shared=False)
    view = shelf.store.view(shelf.put(FEW).tree)
    shelf.close()
    real, within_reach = os.chmod, list[str]()

    def chmod(path: str, mode_: int) -> None:
        real(path, mode_)
        if mode(root / "views") & 0o001 and mode(view) & 0o005:
            within_reach.append(path)

    monkeypatch.setattr(os, "chmod", chmod)
    Disk(str(root), shared=True, doors=Doors.GUARDED).close()
    assert within_reach == [] and mode(root / "views") == 0o711


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_a_view_that_cannot_be_closed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon does not start, and says what to do; nothing says that the store is guarded."""
    views = _three_views(tmp_path / "store", Doors.OPEN)
    subprocess.run(("mount", "--bind", views[0], views[0]), check=True)
    try:
        subprocess.run(("mount", "-o", "remount,ro,bind", views[0]), check=True)
        with pytest.raises(CacheError, match=f"{views[0]} cannot be closed to other users"):
            Disk(str(tmp_path / "store"), shared=True, doors=Doors.GUARDED)
    finally:
        subprocess.run(("umount", views[0]), check=True)
    assert not (tmp_path / "store/doors").exists()
