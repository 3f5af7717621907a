"""The store's files, on a real disk."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from xxhash import xxh3_128

from artifactcache.errors import CacheError
from cacheserver.disk import SYNC_ONE_BY_ONE_MAX, Disk
from cacheserver.staging import Staged
from cacheserver.views import Views
from cacheserver.words import Entry, Manifest
from tests.unit.house import blob_names, overwrite

IS_ROOT = os.geteuid() == 0
SOMEBODY = 60_124  # no user's number


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A store's folder."""
    disk = Disk(str(tmp_path / "store"), shared=False)
    yield disk
    disk.close()


def staged(disk: Disk, content: bytes) -> Staged:
    """A finished file in staging/."""
    path = disk.stage()
    Path(path).write_bytes(content)
    return disk.measure(path)


def placed(disk: Disk, content: bytes) -> Staged:
    """A blob."""
    one = staged(disk, content)
    disk.sync([one])
    assert disk.place([one]) == [one.row]
    return one


def path_of(disk: Disk, digest: str) -> Path:
    """Where a blob is."""
    return Path(disk.root, "blobs", digest[:2], digest[2:])


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_both_hashes_are_of_the_bytes(disk: Disk, size: int) -> None:
    """One pass gives what b3sum and xxhsum give, the size, and the inode as it is."""
    content = os.urandom(size)
    one = staged(disk, content)
    seen = os.stat(one.path)
    assert one.row == (blake3(content).hexdigest(), size, xxh3_128(content).hexdigest(), seen.st_ino, seen.st_mtime_ns)
    assert seen.st_mode & 0o777 == 0o444


def test_a_blob_is_named_by_its_bytes_and_read_only(disk: Disk) -> None:
    """`blobs/ab/cdef…`, mode 0444, in folders that only the daemon passes; nothing stays in staging/."""
    one = placed(disk, b"content")
    path = path_of(disk, blake3(b"content").hexdigest())
    assert path.read_bytes() == b"content" and path.stat().st_mode & 0o777 == 0o444
    assert Path(disk.root, "blobs").stat().st_mode & 0o777 == 0o700
    assert os.listdir(os.path.join(disk.root, "staging")) == []
    assert blob_names(disk) == [one.row.digest]
    fd = disk.open_blob(one.row.digest)
    with pytest.raises(OSError):
        os.write(fd, b"x")
    os.close(fd)


def test_many_files_are_placed_at_once(disk: Disk) -> None:
    """Beyond a few files the whole filesystem is synced; each blob is in its place all the same."""
    ones = [staged(disk, str(n).encode()) for n in range(SYNC_ONE_BY_ONE_MAX + 30)]
    disk.sync(ones)
    disk.place(ones)
    assert sorted(blob_names(disk)) == sorted(one.row.digest for one in ones)
    assert disk.suspects(one.row for one in ones) == []


def test_only_a_file_of_the_daemons_own_becomes_a_blob(disk: Disk, tmp_path: Path) -> None:
    """A file with a second name, a symlink or a folder in staging/ is no download: it could be changed elsewhere."""
    (tmp_path / "users").write_bytes(b"x")
    linked, pointing, folder = disk.stage(), disk.stage(), disk.stage()
    os.link(tmp_path / "users", linked)
    os.symlink(tmp_path / "users", pointing)
    os.mkdir(folder)
    for path in (linked, pointing, folder):
        with pytest.raises((CacheError, OSError)):
            disk.measure(path)
        disk.discard(path)
    assert (tmp_path / "users").read_bytes() == b"x" and (tmp_path / "users").stat().st_mode & 0o777 != 0o444


def test_a_blob_that_looks_otherwise_is_suspected(disk: Disk) -> None:
    """Another size, mtime or inode, a symlink, or nothing at all: the index's word is not taken any more."""
    ones = [placed(disk, f"blob {n}".encode()) for n in range(7)]
    fine, touched, longer, copied, gone, pointing, written = (path_of(disk, one.row.digest) for one in ones)
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    longer.chmod(0o644)
    with longer.open("ab") as file:
        file.write(b"!")
    shutil.copy2(copied, copied.with_name("copy"))
    copied.with_name("copy").rename(copied)
    gone.unlink()
    pointing.unlink()
    pointing.symlink_to(fine)
    overwrite(written)
    assert [row.digest for row in disk.suspects(one.row for one in ones)] == [one.row.digest for one in ones[1:]]


def test_a_suspect_with_the_right_bytes_is_taken_back(disk: Disk) -> None:
    """Its row becomes what the inode is now; a mode that somebody changed is put right."""
    one = placed(disk, b"right")
    path = path_of(disk, one.row.digest)
    path.chmod(0o666)
    os.utime(path, ns=(0, 12345))
    fine = disk.recheck(one.row)
    assert fine == one.row._replace(mtime_ns=12345) and disk.suspects([fine]) == []
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_suspect_with_other_bytes_is_not(disk: Disk, tmp_path: Path) -> None:
    """Same size or not, a symlink to the right bytes, or nothing: it is not what its name says."""
    ones = [placed(disk, f"blob {n}".encode()) for n in range(4)]
    same_size, longer, pointing, gone = (path_of(disk, one.row.digest) for one in ones)
    overwrite(same_size)
    longer.chmod(0o644)
    longer.write_bytes(b"longer than it was")
    (tmp_path / "right").write_bytes(pointing.read_bytes())
    pointing.unlink()
    pointing.symlink_to(tmp_path / "right")
    gone.unlink()
    assert [disk.recheck(one.row) for one in ones] == [None] * 4


def test_what_is_wrong_goes_to_quarantine(disk: Disk) -> None:
    """For a person to look at, under its digest; a second one of the same name stands beside it."""
    one = placed(disk, b"x")
    disk.quarantine.put(one.row.digest)
    disk.quarantine.put(one.row.digest)  # gone already: nothing happens
    assert disk.quarantine.count() == 1 and blob_names(disk) == []
    placed(disk, b"x")
    disk.quarantine.put(one.row.digest)
    kept = Path(disk.root, "quarantine")
    assert sorted(p.read_bytes() for p in kept.iterdir()) == [b"x", b"x"]
    assert all(p.name.startswith(one.row.digest) for p in kept.iterdir())


def test_a_blob_gets_a_fresh_inode(disk: Disk, tmp_path: Path) -> None:
    """The same bytes under the same name; links to the old inode keep it."""
    one = placed(disk, b"popular")
    path = path_of(disk, one.row.digest)
    os.link(path, tmp_path / "job")
    fresh = disk.place([disk.copy(one.row.digest)])[0]
    assert fresh.inode != one.row.inode == (tmp_path / "job").stat().st_ino
    assert (fresh.digest, fresh.size, fresh.xxh3) == (one.row.digest, one.row.size, one.row.xxh3)
    assert disk.suspects([fresh]) == [] and path.stat().st_nlink == 1 and path.stat().st_mode & 0o777 == 0o444
    assert os.listdir(os.path.join(disk.root, "staging")) == []


def test_a_copy_says_what_it_is(disk: Disk) -> None:
    """Of wrong bytes, that they are; of none, and of a symlink's, there is no copy."""
    wrong, gone, pointing = (placed(disk, f"popular {n}".encode()).row.digest for n in range(3))
    overwrite(path_of(disk, wrong))
    path_of(disk, gone).unlink()
    path_of(disk, pointing).unlink()
    path_of(disk, pointing).symlink_to(path_of(disk, wrong))
    staged = disk.copy(wrong)
    assert staged.row.digest == blake3(path_of(disk, wrong).read_bytes()).hexdigest() != wrong
    disk.discard(staged.path)
    for digest in (gone, pointing):
        with pytest.raises(OSError):
            disk.copy(digest)
    assert os.listdir(os.path.join(disk.root, "staging")) == []


def test_a_manifest_is_named_by_its_text(disk: Disk) -> None:
    """`b3sum` of the file prints its name; what is changed, cut or gone is no manifest."""
    manifest = Manifest.of([Entry(b"a\nb\xff", blake3(b"x").hexdigest(), 1)])
    disk.write_manifest(manifest)
    disk.write_manifest(manifest)
    path = Path(disk.root, "manifests", manifest.digest[:2], manifest.digest[2:])
    assert blake3(path.read_bytes()).hexdigest() == manifest.digest and path.stat().st_mode & 0o777 == 0o444
    assert disk.read_manifest(manifest.digest) == manifest
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b" 1 ", b" 2 "))
    assert disk.read_manifest(manifest.digest) is None
    path.unlink()
    assert disk.read_manifest(manifest.digest) is None


def test_a_view_in_the_making_is_not_seen(disk: Disk) -> None:
    """It is built in staging/ and comes into being whole, with read-only folders and empty files for all to read."""
    digest = placed(disk, b"x").row.digest
    manifest = Manifest.of(
        [Entry(b"d/x", digest, 1), Entry(b"d/zero", blake3(b"").hexdigest(), 0), Entry(b"e/", "-", 0)]
    )
    before = os.umask(0o077)
    try:
        path = disk.stage()
        Views(disk).start(path, manifest)
        assert not os.path.exists(Views(disk).path(manifest.digest))
        os.link(path_of(disk, digest), os.path.join(path, "d/x"))
        Views(disk).finish(path, manifest)
    finally:
        os.umask(before)
    view = Path(Views(disk).path(manifest.digest))
    assert sorted(str(p.relative_to(view)) for p in view.rglob("*")) == ["d", "d/x", "d/zero", "e"]
    assert {p.stat().st_mode & 0o777 for p in (view, view / "d", view / "e")} == {0o555}
    assert {p.stat().st_mode & 0o777 for p in (view / "d/x", view / "d/zero")} == {0o444}


def test_a_second_daemon_is_refused(disk: Disk) -> None:
    """Until the first one lets go; the message names the store."""
    with pytest.raises(CacheError, match=f"Another daemon uses {disk.root}"):
        Disk(disk.root, shared=False)
    placed(disk, b"x")
    disk.close()
    again = Disk(disk.root, shared=False)
    assert len(blob_names(again)) == 1
    again.close()
    disk.__init__(disk.root, shared=False)  # type: ignore[misc] # for the fixture to close


def test_what_a_crash_left_in_staging_is_removed(tmp_path: Path, dice: random.Random) -> None:
    """Files, half-built views with read-only folders, and symlinks, of which nothing is followed."""
    Disk(str(tmp_path / "store"), shared=False).close()
    staging = tmp_path / "store/staging"
    (tmp_path / "outside").mkdir(mode=0o750)
    (tmp_path / "outside/precious").write_bytes(b"1")
    (staging / "0-half").write_bytes(b"half a download")
    (staging / "view/a/b").mkdir(parents=True)
    (staging / "view/a/b/file").write_bytes(b"x")
    (staging / "view/a/out").symlink_to(tmp_path / "outside")
    (staging / "view/a/b").chmod(0o555)
    (staging / "view/a").chmod(0o555)
    (staging / "planted").symlink_to(tmp_path / "outside")
    (staging / "dangling").symlink_to(tmp_path / "none")
    disk = Disk(str(tmp_path / "store"), shared=False)
    assert list(staging.iterdir()) == []
    assert (tmp_path / "outside/precious").read_bytes() == b"1"
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o750
    disk.close()


@pytest.mark.parametrize(("shared", "mode"), [(True, 0o711), (False, 0o700)])
def test_others_may_pass_to_a_view_only_where_the_store_is_shared(tmp_path: Path, shared: bool, mode: int) -> None:
    """Nobody but the daemon can list anything; blobs, manifests and staging are its own in any case."""
    Disk(str(tmp_path / "store"), shared=not shared).close()
    Disk(str(tmp_path / "store"), shared=shared).close()
    Disk(str(tmp_path / "store"), shared=None).close()  # leaves it as it is
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "store").iterdir() if p.is_dir()}
    closed = dict.fromkeys(("blobs", "manifests", "staging", "quarantine"), 0o700)
    assert modes == {**closed, "views": mode} and (tmp_path / "store").stat().st_mode & 0o777 == mode


def test_a_folder_that_cannot_be_used_is_said_to_be_so(tmp_path: Path) -> None:
    """With the path and the reason."""
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(CacheError, match=f"The store {root} cannot be used: "):
            Disk(str(root), shared=False)


def test_a_folder_without_write_permission_is_said_to_be_so(room: Path) -> None:
    """With the path and the reason."""
    closed = room / "closed"
    closed.mkdir(mode=0o500)
    if IS_ROOT:  # to whom nothing is closed
        os.chown(closed, SOMEBODY, SOMEBODY)
        os.seteuid(SOMEBODY)
    try:
        with pytest.raises(CacheError, match=f"The store {closed}/store cannot be used: Permission denied"):
            Disk(str(closed / "store"), shared=False)
    finally:
        if IS_ROOT:
            os.seteuid(0)


def test_folders_above_a_shared_store_let_others_pass(tmp_path: Path) -> None:
    """Whatever the umask of the daemon: a view is no use where its path is closed. A private store's stay closed."""
    before = os.umask(0o077)
    try:
        for shared, mode in ((True, 0o755), (False, 0o700)):
            above = tmp_path / str(shared)
            Disk(str(above / "deep" / "store"), shared=shared).close()
            assert {p.stat().st_mode & 0o777 for p in (above, above / "deep")} == {mode}
    finally:
        os.umask(before)
