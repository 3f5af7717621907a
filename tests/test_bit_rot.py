"""Bytes that the disk itself has lost: reading them is an input/output error, and they are fetched again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache.errors import Corrupted
from cacheserver import fsck
from cacheserver.words import Progress
from tests.rig import mounts
from tests.unit.house import Shelf, fsck_command

FILE_BYTES = 100_000  # btrfs keeps small files beside their names, twice
DISK_BYTES = 256 << 20
FILES = {"good": os.urandom(FILE_BYTES), "lost": os.urandom(FILE_BYTES)}


class Rotting(Shelf):
    """A store on btrfs, whose checksums find what has changed below them."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        super().__init__(folder / "disk/store")

    def rot(self, path: Path) -> None:
        """Changes a file's bytes on the device. Reading it fails from now on; nothing else about it changes."""
        content = path.read_bytes()
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            image = self._image.read_bytes()
            at = image.index(content[:4096])
            with self._image.open("r+b") as device:
                device.seek(at)
                device.write(bytes(4096))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        with pytest.raises(OSError) as refused:
            path.read_bytes()
        assert refused.value.errno == errno.EIO

    def again(self) -> None:
        """Another daemon on the same store."""
        Shelf.__init__(self, self.root)


@pytest.fixture
def rotting(base: Path) -> Iterator[Rotting]:
    """A store on a disk that can rot."""
    kind = mounts.BY_NAME["btrfs"]
    if reason := mounts.reason_not_to_mount(kind):
        pytest.skip(reason)
    folder = base / "rotting"
    folder.mkdir()
    try:
        mounts.mount(kind, folder / "disk.img", folder / "disk", size_bytes=DISK_BYTES)
        shelf = Rotting(folder)
        yield shelf
        shelf.close()
    finally:
        mounts.unmount_below(folder)
        (folder / "disk.img").unlink(missing_ok=True)
        (folder / "disk").rmdir()
        folder.rmdir()


def test_verify_goes_on_after_bytes_that_cannot_be_read(rotting: Rotting) -> None:
    """The blob is put aside like a wrong one, the others are hashed, and it is whole when it was fetched again."""
    held = rotting.put(FILES)
    digest = rotting.digest(held, "lost")
    rotting.rot(rotting.blob(digest))
    found = rotting.store.verify(None, Progress())
    assert (found.corrupted, found.affected, found.blobs_checked) == ((digest,), (held.uri,), 2)
    assert rotting.store.quarantine_count() == 1
    held = rotting.put(FILES)
    assert rotting.content(held) == FILES and rotting.store.verify(None, Progress()).corrupted == ()


def test_a_hit_finds_bytes_that_cannot_be_read(rotting: Rotting) -> None:
    """Where its inode makes the store look closer, the blob is missing, and no error of the disk escapes."""
    held = rotting.put(FILES)
    digest = rotting.digest(held, "lost")
    rotting.rot(rotting.blob(digest))
    os.utime(rotting.blob(digest), ns=(0, 1))
    assert rotting.store.unsound(rotting.tree(held)) == {digest}
    assert rotting.content(rotting.put(FILES)) == FILES


def test_no_second_inode_is_made_of_bytes_that_cannot_be_read(rotting: Rotting) -> None:
    """The next fetch brings the blob again, instead of meeting the same error for ever."""
    held = rotting.put(FILES)
    digest = rotting.digest(held, "lost")
    rotting.rot(rotting.blob(digest))
    with pytest.raises(Corrupted, match="fetch again"):
        rotting.store._renew(digest)
    assert rotting.store.unsound(rotting.tree(held)) == {digest} and rotting.staging() == []


def test_a_view_whose_second_inode_cannot_be_read_is_not_sound(rotting: Rotting) -> None:
    """It is built again from the blob that can."""
    held = rotting.put(FILES)
    view, digest = Path(rotting.store.view(held.tree)), rotting.digest(held, "lost")
    rotting.store._renew(digest)
    rotting.rot(view / "lost")
    assert not rotting.store.view_is_sound(held.tree)
    assert Path(rotting.store.view(held.tree), "lost").read_bytes() == FILES["lost"]


def test_a_manifest_that_cannot_be_read_is_gone(rotting: Rotting) -> None:
    """The artifact is fetched again."""
    files = {f"{n:04}": b"x" for n in range(200)}
    held = rotting.put(files)
    rotting.rot(rotting.root / "manifests" / held.tree[:2] / held.tree[2:])
    rotting.store.close()
    rotting.again()
    assert rotting.store.tree(held.tree) is None
    assert rotting.content(rotting.put(files)) == files


def test_fsck_reports_bytes_that_cannot_be_read(rotting: Rotting, capsys: pytest.CaptureFixture[str]) -> None:
    """And who types the command reads words and no traceback."""
    held = rotting.put(FILES)
    digest = rotting.digest(held, "lost")
    rotting.rot(rotting.blob(digest))
    rotting.store.close()
    assert fsck_command(rotting.root) == 1
    assert digest in capsys.readouterr().out
    assert not fsck.check(str(rotting.root)).sound
    rotting.again()
