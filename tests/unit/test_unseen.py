"""What cannot be looked at, or put aside, keeps nobody from looking at the rest; manifests are looked at too."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifactcache.errors import CacheError, Corrupted, NoSpace
from cacheserver import fsck
from cacheserver.words import Progress
from tests.unit.house import FILES, ROOT
from tests.unit.test_scrubbing import DAY, Watched, rot


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Watched]:
    """With one artifact of a few files."""
    house = Watched(tmp_path / "store")
    house.origin.files = {f"{ROOT}/{name}": content for name, content in FILES.items()}
    house.bring(ROOT)
    yield house
    house.close()


def deny(monkeypatch: pytest.MonkeyPatch, call: str, name: str, number: int = errno.EACCES) -> None:
    """Root has closed a file, or a folder, to the daemon: a call is refused where a path has `name`."""
    real = getattr(os, call)

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str) and name in path:
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, call, refuse)


def scrub(house: Watched) -> None:
    """One whole pass."""
    house.now += 8 * DAY
    began = house.now
    while house.index.scrubs.last().ended_at < began:
        house.scrubber.look()


def verify(house: Watched) -> None:
    """All of it."""
    house.store.verify(None, Progress())


LOOKS = pytest.mark.parametrize("look", [scrub, verify])


def manifest(house: Watched) -> Path:
    """Of the one artifact."""
    tree = house.index.asked()[0].tree
    return house.root / "manifests" / tree[:2] / tree[2:]


def change(path: Path) -> None:
    """A name in a manifest becomes another."""
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b" top\n", b" tob\n"))


@LOOKS
def test_a_blob_that_root_has_closed_is_put_aside(
    house: Watched, monkeypatch: pytest.MonkeyPatch, look: Callable[[Watched], None]
) -> None:
    """Its name is the store's: what stands there goes to quarantine, the others are looked at; it is fetched again."""
    digest = house.digest(house.bring(ROOT).held, "b/three")
    with monkeypatch.context() as patch:
        deny(patch, "open", f"{digest[:2]}/{digest[2:]}")
        look(house)
    assert house.store.quarantine_count() == 1 and digest not in house.index.all_digests()
    house.heal()
    assert house.healing.count() == 0 and house.content(house.bring(ROOT).held) == FILES


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
@LOOKS
def test_what_cannot_be_looked_at_is_told_once_and_passed(
    house: Watched,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    look: Callable[[Watched], None],
    kind: str,
) -> None:
    """A folder that root has closed condemns nothing that is in it; the others are looked at, and what is wrong among
    them is found."""
    held = house.bring(ROOT).held
    first, wrong = min(house.index.all_digests()), max(house.index.all_digests())
    digest = first if kind == "blobs" else held.tree
    rot(house, wrong)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        for call in ("stat", "lstat", "open"):
            deny(patch, call, f"{digest[:2]}/{digest[2:]}")
        look(house)
        look(house)
    told = [message for message in caplog.messages if digest in message]
    assert len(told) == 1 and "cannot be looked at" in told[0] and "fetched again" not in told[0]
    assert house.store.quarantine_count() == 1 and wrong not in house.index.all_digests()
    assert first in house.index.all_digests()


def test_a_full_disk_stops_no_pass(house: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong cannot be put aside: the others are looked at all the same, nobody is given it, and when there is
    room it is fetched again."""
    held = house.bring(ROOT).held
    wrong = min(house.index.all_digests())
    rot(house, wrong)

    def is_full(digest: str) -> list[str]:
        raise NoSpace("The store's disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(house.index, "forget_blob", is_full)
        scrub(house)
        last = house.index.scrubs.last()
        assert (last.wrong_count, last.blob_count) == (1, 4) and house.healing.count() == 1
        with pytest.raises(NoSpace):
            house.bring(ROOT)
    house.heal()
    assert house.healing.count() == 0 and house.store.quarantine_count() == 1
    assert house.content(held) == FILES


def test_what_leaves_no_folder_is_healed_all_the_same(house: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong blob whose row has gone and whose file cannot be moved: whoever heals hears of it."""
    digest = house.digest(house.bring(ROOT).held, "top")
    rot(house, digest)
    with monkeypatch.context() as patch:
        deny(patch, "rename", digest[2:], errno.EROFS)
        scrub(house)
    assert house.healing.count() == 1 and house.index.scrubs.last().wrong_count == 1
    house.heal()
    assert house.content(house.bring(ROOT).held) == FILES


@LOOKS
def test_a_wrong_manifest_is_found_and_fetched_again(house: Watched, look: Callable[[Watched], None]) -> None:
    """Nobody has asked for it, and what is in memory of it was right."""
    house.tree(house.bring(ROOT).held)
    change(manifest(house))
    look(house)
    assert house.healing.count() == 1
    house.heal()
    assert house.healing.count() == 0 and b" top\n" in manifest(house).read_bytes()
    assert house.content(house.bring(ROOT).held) == FILES


def test_a_wrong_manifest_is_said(house: Watched) -> None:
    """By a verification, with the artifacts; by the scrub, as a number."""
    tree = house.bring(ROOT).held.tree
    change(manifest(house))
    found = house.store.verify(None, Progress())
    assert (found.manifests, found.affected, found.corrupted) == ((tree,), (ROOT,), ())
    scrub(house)
    assert house.index.scrubs.last().wrong_count == 1


def test_a_manifest_that_root_has_closed_is_no_end_of_fsck(house: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and so is a blob; the rest is checked."""
    held = house.bring(ROOT).held
    blob = house.digest(held, "top")
    house.close()
    with monkeypatch.context() as patch:
        for digest in (held.tree, blob):
            deny(patch, "open", f"{digest[:2]}/{digest[2:]}")
        report = fsck.check(str(house.root))
    assert report.manifests == (ROOT,) and report.verified.corrupted == (blob,) and report.verified.blobs_checked == 4
    house.__init__(house.root)  # type: ignore[misc]


def test_who_asks_for_one_that_cannot_be_looked_at_hears_why(house: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch is no pass: what nobody can look at, nobody is given."""
    digest = house.digest(house.bring(ROOT).held, "top")
    os.utime(house.blob(digest), ns=(0, 1))
    with monkeypatch.context() as patch:
        for call in ("stat", "lstat", "open"):
            deny(patch, call, f"{digest[:2]}/{digest[2:]}")
        with pytest.raises(CacheError, match="cannot be looked at"):
            house.find(ROOT)
    assert digest in house.index.all_digests()


def test_who_copies_a_blob_that_root_has_closed_has_it_fetched_again(
    house: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mtime shows nothing: the fetch finds it sound, and the hand-over cannot open it."""
    held = house.bring(ROOT).held
    digest = house.digest(held, "top")
    with monkeypatch.context() as patch:
        deny(patch, "open", f"{digest[:2]}/{digest[2:]}")
        with pytest.raises(Corrupted, match="fetch again"):
            house.store.open_blobs(held.tree, 0)
    assert house.store.quarantine_count() == 1 and house.content(house.bring(ROOT).held) == FILES
