"""Artifact stores that are folders of this host."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactcache.errors import CacheError, Corrupted, NotFound, PermissionDenied
from cacheserver.local import LocalFiles
from cacheserver.staging import Sink
from cacheserver.words import File, Location


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An artifact root."""
    root = tmp_path / "artifacts"
    root.mkdir()
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's folder with an index in it, which is no origin."""
    store = tmp_path / "lib/store"
    (store / "blobs").mkdir(parents=True)
    (store / "index.db").write_bytes(b"secret")
    return store


def files(
    root: Path, *, forbidden: Path = Path("/proc"), world_only: bool = False, exempt: tuple[str, ...] = ()
) -> LocalFiles:
    """The artifact store over it."""
    pairs = tuple((folder, os.path.realpath(folder)) for folder in exempt)
    return LocalFiles(str(root), forbidden=str(forbidden), world_only=world_only, clock=lambda: 1e10, exempt=pairs)


def at(path: str) -> Location:
    """A path below the root."""
    return Location("file:/root", path)


def copy(local: LocalFiles, path: str, to: Path, size: int | None = None) -> None:
    """Copies a file; None stands for whatever its size is. Of one of which nothing was taken nothing is left."""
    try:
        with Sink(str(to), size, path) as sink:
            local.fill(File(os.fsencode(path), size, path), sink)
            sink.finish()
    except BaseException:
        if not to.stat().st_size:
            to.unlink()
        raise


def listed(store: Path | LocalFiles, path: str = "") -> list[File]:
    """What is listed, sorted, without entity tags."""
    local = files(store) if isinstance(store, Path) else store
    return sorted(file._replace(etag="") for file in local.listing(at(path)).files)


def test_all_files_and_empty_folders_are_listed(root: Path) -> None:
    """With sizes, by their paths below what was asked for; the origin's spelling is kept beside."""
    (root / "a/b").mkdir(parents=True)
    (root / "a/empty").mkdir()
    (root / "a/b/two").write_bytes(b"22")
    (root / "one").write_bytes(b"1")
    (root / "zero").write_bytes(b"")
    assert listed(root) == [
        File(b"a/b/two", 2, "a/b/two"),
        File(b"a/empty", 0, "a/empty", is_folder=True),
        File(b"one", 1, "one"),
        File(b"zero", 0, "zero"),
    ]
    assert listed(root, "a") == [File(b"b/two", 2, "a/b/two"), File(b"empty", 0, "a/empty", is_folder=True)]
    assert listed(root, "a/b/two") == [File(b"two", 2, "a/b/two")]
    assert [files(root).listing(at(path)).file_name for path in ("a/b/two", "a/empty", "")] == ["two", "", ""]
    assert listed(root, "a/empty") == []


def test_odd_names_are_listed_and_copied(root: Path, tmp_path: Path) -> None:
    """`#`, `?`, `%20`, spaces, newlines and bytes that are no UTF-8 are names like any other."""
    odd = [b"a#b", b"a?b", b"a%20b", b"a b", b"new\nline", b"\xff\xfe", b"back\\slash"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    assert [f.path for f in listed(root)] == sorted(odd)
    for number, file in enumerate(listed(root)):
        copy(files(root), file.remote, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == file.path


def test_a_copy_is_of_the_files_bytes(root: Path, tmp_path: Path) -> None:
    """All of them, in a new file that is the daemon's own."""
    content = os.urandom(3_000_000)
    (root / "x").write_bytes(content)
    (root / "empty").write_bytes(b"")
    for name in ("x", "empty"):
        copy(files(root), name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o444


def test_a_copy_crosses_filesystems(tmp_path: Path) -> None:
    """An artifact on tmpfs comes into a store on disk: the kernel's own way to copy refuses that."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem at /dev/shm")
    source = shm / f"artifactcache-test-{os.getpid()}"
    source.mkdir()
    try:
        content = os.urandom(3_000_000)
        (source / "x").write_bytes(content)
        copy(files(source), "x", tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == content
    finally:
        (source / "x").unlink(missing_ok=True)
        source.rmdir()


@pytest.mark.parametrize("size", [10, 0, 2_999_999, 3_000_001])
def test_a_file_that_has_grown_or_shrunk_is_refused(tmp_path: Path, size: int) -> None:
    """Of one that grows as fast as it is read no more than its listed size comes in."""
    source = tmp_path / "artifacts"
    source.mkdir()
    (source / "x").write_bytes(bytes(3_000_000))
    with pytest.raises(Corrupted, match=f"lists {size} bytes"):
        copy(files(source), "x", tmp_path / "copy", size)
    assert not (tmp_path / "copy").exists() or (tmp_path / "copy").stat().st_size <= 3_000_000


def test_a_symlink_inside_is_followed(root: Path, tmp_path: Path) -> None:
    """Files and folders may be symlinks, as long as they stay below the root."""
    (root / "real").mkdir()
    (root / "real/x").write_bytes(b"123")
    (root / "folder").symlink_to("real")
    (root / "file").symlink_to("real/x")
    assert listed(root) == [File(b"file", 3, "file"), File(b"folder/x", 3, "folder/x"), File(b"real/x", 3, "real/x")]
    copy(files(root), "folder/x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"123"


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../secret", "../secret/file", "sub/../../secret/file", "/proc/self/fd/0"]
)
def test_a_symlink_that_leads_out_is_refused(root: Path, tmp_path: Path, target: str) -> None:
    """Neither its size nor a byte of it is told, whether it is listed, named, or on the way to what is named."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_bytes(b"secret")
    (root / "sub").mkdir()
    (root / "link").symlink_to(target)
    for ask in (
        lambda: files(root).listing(at("")),
        lambda: files(root).listing(at("link")),
        lambda: files(root).listing(at("link/file")),
        lambda: copy(files(root), "link", tmp_path / "copy"),
        lambda: copy(files(root), "link/file", tmp_path / "copy"),
    ):
        with pytest.raises((PermissionDenied, NotFound)):
            ask()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("path", ["../secret", "..", "sub/../../secret", "/etc/passwd"])
def test_a_path_that_leads_out_is_refused(root: Path, tmp_path: Path, path: str) -> None:
    """Even one that no listing would have given."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "sub").mkdir()
    with pytest.raises(PermissionDenied):
        copy(files(root), path, tmp_path / "copy")
    with pytest.raises(PermissionDenied):
        files(root).listing(at(path))
    assert not (tmp_path / "copy").exists()


def test_symlinks_in_a_circle_end(root: Path) -> None:
    """A folder that contains itself, and a symlink to itself, are errors of ours, not endless listings."""
    (root / "self").symlink_to("self")
    with pytest.raises(CacheError):
        files(root).listing(at(""))
    (root / "self").unlink()
    (root / "a").mkdir()
    (root / "a/up").symlink_to("..")
    with pytest.raises(CacheError):
        files(root).listing(at(""))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [_fifo, _socket])
def test_what_is_no_plain_file_is_refused_without_waiting(
    root: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A FIFO or a socket in the artifact holds nobody up."""
    make(root / "odd")
    for ask in (lambda: copy(files(root), "odd", tmp_path / "copy"), lambda: files(root).listing(at("odd"))):
        with pytest.raises((Corrupted, PermissionDenied)):
            ask()
    assert not (tmp_path / "copy").exists()


def test_what_is_not_there_is_not_found(root: Path, tmp_path: Path) -> None:
    """A missing root, path or file, and a path below a file."""
    (root / "file").write_bytes(b"x")
    for ask in (
        lambda: files(root / "none").listing(at("")),
        lambda: files(root).listing(at("none")),
        lambda: files(root).listing(at("file/below")),
        lambda: files(root / "file").listing(at("")),
        lambda: copy(files(root), "none", tmp_path / "copy"),
    ):
        with pytest.raises(NotFound):
            ask()


def test_the_store_itself_is_no_origin(root: Path, tmp_path: Path) -> None:
    """Neither the store's folder nor anything in it, by whatever name it is reached; a neighbour is fine."""
    (root / "in").mkdir()
    (tmp_path / "alias").symlink_to(root)
    for way in (root, root / "in", tmp_path / "alias", tmp_path / "alias/in", tmp_path / "x/../artifacts"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(PermissionDenied, match="lies in the store itself"):
            files(way, forbidden=root).listing(at(""))
    neighbour = tmp_path / "artifacts2"
    neighbour.mkdir()
    assert files(neighbour, forbidden=root).listing(at("")).files == []


def test_the_store_inside_a_root_is_no_origin(store: Path, tmp_path: Path) -> None:
    """A root above the store: neither is it listed, nor is anything in it, nor by a symlink to it or into it."""
    (store.parent / "direct").symlink_to("store")
    (store.parent / "into").symlink_to("store/index.db")
    (store.parent / "fine").mkdir()
    (store.parent / "fine/x").write_bytes(b"x")
    local = files(store.parent, forbidden=store)
    for path in ("", "store", "store/blobs", "store/index.db", "direct", "direct/blobs", "direct/index.db", "into"):
        with pytest.raises(PermissionDenied, match="the store itself"):
            local.listing(at(path))
        with pytest.raises(CacheError):
            copy(local, path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (store / "blobs").rmdir()
    for path in ("", "store", "direct"):  # where nothing below it is a folder that shows where it is
        with pytest.raises(PermissionDenied, match="the store itself"):
            local.listing(at(path))
    assert listed(local, "fine") == [File(b"x", 1, "fine/x")]


@pytest.mark.parametrize("link", ["store", "store/blobs", "store/index.db"])
def test_a_symlink_to_the_store_among_others_is_refused(store: Path, link: str) -> None:
    """A listing follows it, and finds where it leads."""
    (store.parent / "run").mkdir()
    (store.parent / "run/link").symlink_to(f"../{link}")
    with pytest.raises(PermissionDenied):
        files(store.parent, forbidden=store).listing(at("run"))


def test_the_store_under_a_second_mount_is_no_origin(store: Path, root: Path) -> None:
    """A mount has another path, and the same device and inode."""
    (root / "mount").mkdir()
    (root / "fine").write_bytes(b"")
    if os.geteuid() != 0 or subprocess.run(("mount", "--bind", store, root / "mount"), check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        for where, path in ((root, ""), (root, "mount/index.db"), (root / "mount", ""), (root / "mount/blobs", "")):
            with pytest.raises(PermissionDenied, match="the store itself"):
                files(where, forbidden=store).listing(at(path))
        assert files(root, forbidden=store).listing(at("fine")).file_name == "fine"
    finally:
        subprocess.run(("umount", root / "mount"), check=True)


def test_half_written_files_of_mlflow_are_not_seen(root: Path) -> None:
    """MLflow writes a file under such a name until it is whole."""
    (root / "whole").write_bytes(b"1")
    (root / ".artifact.uploading.0123").write_bytes(b"ha")
    assert [f.path for f in listed(root)] == [b"whole"]


@pytest.fixture
def public(root: Path) -> Path:
    """A root that every user of the host can read; skipped where it lies below a folder that nobody may pass."""
    for folder in root.parents:
        if not folder.stat().st_mode & 0o001:
            if folder.stat().st_uid != os.geteuid():
                pytest.skip(f"{folder} is not open to all users")
            folder.chmod(folder.stat().st_mode | 0o011)
    (root / "sub").mkdir()
    (root / "sub/file").write_bytes(b"x")
    for path, mode in ((root, 0o755), (root / "sub", 0o755), (root / "sub/file", 0o644)):
        path.chmod(mode)
    return root


def test_a_daemon_of_many_users_reads_what_all_may_read(public: Path, tmp_path: Path) -> None:
    """Where every user could have read it, nothing is held back."""
    assert listed(files(public, world_only=True)) == [File(b"sub/file", 1, "sub/file")]
    copy(files(public, world_only=True), "sub/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x"


CLOSED = "sub/file=640 sub=750 sub=754 =750 ..=750 sub/file=604 sub=705 sub=745 =705 ..=701"


@pytest.mark.parametrize(("closed", "mode"), [one.split("=") for one in CLOSED.split()])
def test_a_daemon_of_many_users_reads_for_none_what_another_could_not(
    public: Path, tmp_path: Path, closed: str, mode: str
) -> None:
    """A file, its folder, the root or a folder above that is not open to all keeps it from everybody."""
    (public / closed).resolve().chmod(int(mode, 8))
    with pytest.raises(PermissionDenied, match="every user of this host"):
        _list_and_copy(files(public, world_only=True), tmp_path)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("closed", ["sub", ""])
@pytest.mark.parametrize("way", ["sub/file", "link"])
def test_a_readable_file_in_a_closed_folder_is_not_read_for_others(
    public: Path, tmp_path: Path, closed: str, way: str
) -> None:
    """A user who may not pass a folder gets no file of it, be it named directly or through a symlink beside it."""
    (public / "link").symlink_to("sub/file")
    (public / closed).chmod(0o700)
    local = files(public, world_only=True)
    for ask in (lambda: local.listing(at(way)), lambda: copy(local, way, tmp_path / "copy")):
        with pytest.raises(PermissionDenied, match="every user of this host"):
            ask()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o600, 0o000])
@pytest.mark.parametrize("way", ["", "sub", "sub/file"])
def test_a_file_that_not_all_can_read_is_not_even_listed(public: Path, mode: int, way: str) -> None:
    """Its bytes may be held already: then nobody would open it."""
    (public / "sub/file").chmod(mode)
    with pytest.raises(PermissionDenied, match="every user of this host"):
        files(public, world_only=True).listing(at(way))


@pytest.mark.parametrize(("closed", "mode"), [("closed/in/file", 0o640), ("closed/in", 0o750), ("closed", 0o750)])
@pytest.mark.parametrize("target", ["closed/in/file", "closed/in"])
def test_what_is_behind_a_symlink_is_checked_when_it_is_listed(
    public: Path, closed: str, mode: int, target: str
) -> None:
    """With every folder on the way to it, which the listing itself does not pass."""
    (public / "closed/in").mkdir(parents=True)
    (public / "closed/in/file").write_bytes(b"x")
    for path in ("closed", "closed/in", "closed/in/file"):
        (public / path).chmod(0o755)
    (public / "sub/link").symlink_to(f"../{target}")
    assert len(files(public, world_only=True).listing(at("sub")).files) == 2
    (public / closed).chmod(mode)
    with pytest.raises(PermissionDenied, match="every user of this host"):
        files(public, world_only=True).listing(at("sub"))


@pytest.mark.parametrize(
    ("exempt", "is_exempt"), [(".", True), ("..", True), ("sub", False), ("../artifact", False), ("/", True)]
)
def test_a_root_in_an_exempt_folder_is_read_as_the_daemon_can(
    public: Path, tmp_path: Path, exempt: str, is_exempt: bool
) -> None:
    """Folders are compared by their parts: `artifact` is not above `artifacts`."""
    (public / "sub/file").chmod(0o600)
    local = files(public, world_only=True, exempt=(str((public / exempt).resolve()),))
    if is_exempt:
        _list_and_copy(local, tmp_path)
        assert (tmp_path / "copy").read_bytes() == b"x"
    else:
        with pytest.raises(PermissionDenied, match="every user of this host"):
            local.listing(at(""))


def test_a_root_is_exempt_by_where_it_really_is(public: Path, tmp_path: Path) -> None:
    """A symlink in an exempt folder to a root elsewhere exempts nothing, nor does one to a root in it; but the exempt
    folder may be one itself."""
    (public / "sub/file").chmod(0o600)
    (tmp_path / "exempt").mkdir()
    (tmp_path / "exempt/link").symlink_to(public)
    for exempt in (str(tmp_path / "exempt"), str(public.parent)):
        with pytest.raises(PermissionDenied, match="every user of this host"):
            files(tmp_path / "exempt/link", world_only=True, exempt=(exempt,)).listing(at(""))
    (tmp_path / "listed").symlink_to(public.parent)
    assert files(tmp_path / "listed" / public.name, world_only=True, exempt=(str(tmp_path / "listed"),)).listing(at(""))


def _list_and_copy(local: LocalFiles, to: Path) -> None:
    for file in local.listing(at("")).files:
        copy(local, file.remote, to / "copy")
