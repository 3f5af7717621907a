"""Tries each mode at a destination, on a file of the daemon's own, and says why one cannot be had.

Law of this file: nothing is guessed from names of filesystems. What a fetch would do is done, with the same system
calls, in a staging folder such as a fetch makes; filesystems and mounts only explain what came of it. Nothing stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from artifactcache import links, staging
from artifactcache.deadline import Deadline
from artifactcache.findings import Filesystem, Mode, Modes
from artifactcache.handoff import Handoff
from artifactcache.materialize import Order, kinds_to_try
from artifactcache.mounts import Mount, mount_of
from artifactcache.request import KINDS
from artifactcache.v1 import cache_pb2 as pb

FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ELSEWHERE = (
    "put the store ([store] root) on the filesystem, and the mount, that jobs write to, or give a dst on the store's"
)
_ONE_MOUNT = (
    "let both be reached through one mount: no bind mount between them, and neither the daemon nor the job in a mount"
    " namespace of its own (systemd's PrivateTmp=, ProtectSystem= and their like make one; in containers mount one"
    " folder that has both)"
)
_WITHIN_A_MOUNT = (
    "within one mount another subvolume (btrfs), or another project's quota (XFS, ext4), keeps links out: take a dst in"
    " the store's, or the other way round"
)
_WRITABLE = "give a dst in a folder that you may write to, on a disk with room"
_NO_CLONES = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS})


def folder_for(dst: bytes) -> bytes:
    """Return the folder in which a fetch to `dst` would begin: it itself, or the nearest above it that exists."""
    while not os.path.isdir(dst):
        above = os.path.dirname(dst)
        if above == dst:
            break
        dst = above
    return dst


def try_all(handoff: Handoff, folder: bytes, hardlink_for_root: bool, deadline: Deadline) -> Modes:
    """Try every mode in a folder. Raises CacheError where the daemon cannot be asked, or knows no probe."""
    with contextlib.ExitStack() as ends:
        trouble, staged = "", None
        try:
            staged = ends.enter_context(staging.staged(folder))
            staged.make_tree()
        except OSError as error:
            trouble, staged = f"{os.fsdecode(folder)}: {_named(error)}", None
        reply, probe = handoff.probe(None if staged is None else staged.tree, deadline)
        ends.callback(os.close, probe)
        store = Filesystem(os.path.dirname(os.fsdecode(reply.views_path)), reply.filesystem)
        if staged is None:
            here, writes_through = Mount("", "", ""), False
            tried = {kind: Mode(kind, False, trouble, _WRITABLE) for kind in KINDS}
        else:
            here, place = mount_of(staged.tree), _Place(reply, probe, staged, deadline)
            tried = {"reflink": place.reflink(), "hardlink": place.hardlink(), "copy": place.copy()}
            writes_through = place.writes_through
        return Modes(
            destination=Filesystem(os.fsdecode(folder), here.kind),
            store=store,
            modes=(_view(reply), *(tried[kind] for kind in KINDS)),
            auto=_first(tried, hardlink_for_root, writable=False),
            auto_writable=_first(tried, hardlink_for_root, writable=True),
            writes_through=writes_through,
        )


def _first(tried: dict[str, Mode], hardlink_for_root: bool, *, writable: bool) -> str | None:
    order = Order(b"", "auto", "error", writable, hardlink_for_root, b"", file_count=1, size_bytes=1)
    return next((kind for kind in kinds_to_try(order, os.geteuid()) if tried[kind].works), None)


class _Place:
    """A staging folder, the probe, and what the daemon has said of both."""

    def __init__(self, reply: pb.ProbeReply, probe: int, staged: staging.Staging, deadline: Deadline) -> None:
        self._reply = reply
        self._probe = probe
        self._staged = staged
        self._deadline = deadline
        self._here = mount_of(staged.tree)
        self._is_same_mount = mount_of(probe).number == self._here.number != ""
        self._is_same_filesystem = reply.filesystem_id == self._here.filesystem != ""
        self.writes_through = False

    def reflink(self) -> Mode:
        """Clone the probe."""
        try:
            with self._file(b"clone") as target:
                links.clone(self._probe, target)
                return self._compared("reflink", target)
        except OSError as error:
            name = _name_of(error)
            if error.errno == errno.EXDEV:
                todo = "clones go within one filesystem: " + _ELSEWHERE
                return Mode("reflink", False, f"{name}: {self._apart()}", todo)
            if error.errno in _NO_CLONES and self._is_same_filesystem:
                kind = self._here.kind or "this filesystem"
                todo = "links and copies do as well; clones need store and destination on one XFS or btrfs filesystem"
                return Mode("reflink", False, f"{name}: {kind} has no reflinks", todo)
            if error.errno in _NO_CLONES:
                return Mode("reflink", False, f"{name}: {self._apart()}", _ELSEWHERE)
            return Mode("reflink", False, _named(error), _WRITABLE)

    def hardlink(self) -> Mode:
        """Look at the link that the daemon has made."""
        reply = self._reply
        if not reply.linked_as:
            if self._is_same_filesystem and not self._is_same_mount:
                return Mode("hardlink", False, f"EXDEV: {self._another_mount()}", _ONE_MOUNT)
            if self._is_same_mount:
                return Mode("hardlink", False, reply.no_link or "the daemon made no link", _WITHIN_A_MOUNT)
            return Mode("hardlink", False, f"EXDEV: {self._apart()}", _ELSEWHERE)
        try:
            found = os.stat(reply.linked_as, dir_fd=self._staged.tree, follow_symlinks=False)
            if not os.path.samestat(found, os.fstat(self._probe)) or found.st_nlink < 2:
                return Mode("hardlink", False, "the link that the daemon made is another file here", _ONE_MOUNT)
            self._try_to_write(reply.linked_as)
        except OSError as error:
            return Mode(
                "hardlink", False, f"the link that the daemon made cannot be used here: {_named(error)}", _ONE_MOUNT
            )
        return Mode("hardlink", True)

    def copy(self) -> Mode:
        """Copy the probe."""
        try:
            with self._file(b"copy") as target:
                links.copy(self._probe, target, os.fstat(self._probe).st_size, self._deadline)
                return self._compared("copy", target)
        except OSError as error:
            return Mode("copy", False, _named(error), _WRITABLE)

    @contextlib.contextmanager
    def _file(self, name: bytes) -> Iterator[int]:
        target = os.open(name, FILE_FLAGS, 0o600, dir_fd=self._staged.folder)
        try:
            yield target
        finally:
            os.close(target)

    def _compared(self, mode: str, target: int) -> Mode:
        size = os.fstat(self._probe).st_size
        if os.pread(target, size + 1, 0) != os.pread(self._probe, size, 0):
            return Mode(mode, False, "what came of it has other bytes than the probe", "look at the destination's disk")
        return Mode(mode, True)

    def _try_to_write(self, name: str) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC  # opened and closed: not a byte is written
        with contextlib.suppress(PermissionError):
            os.close(os.open(name, flags, dir_fd=self._staged.tree))
            self.writes_through = True

    def _apart(self) -> str:
        """Why clones or links do not go from the store to here."""
        if self._is_same_filesystem:
            return self._another_mount()
        store, here = self._reply.filesystem or "its own", self._here.kind or "another one"
        return f"the store is on another filesystem ({store}) than this ({here})"

    def _another_mount(self) -> str:
        text = f"the same filesystem ({self._here.kind}), but reached through another mount, and no link crosses mounts"
        if not mount_of(self._probe).is_here:
            text += "; the store's mount is of another mount namespace than this process"
        return text


def _view(reply: pb.ProbeReply) -> Mode:
    """Try to reach the folder of views by its path: views are handed out as paths."""
    if reply.no_view:
        todo = "give a dst; with [access] views = true, on a filesystem with ACLs, there are views"
        return Mode("view", False, reply.no_view, todo)
    path = reply.views_path
    try:
        found = os.stat(path)
    except OSError as error:
        return Mode("view", False, *_unreachable(path, error))
    if (found.st_dev, found.st_ino) != (reply.views_device, reply.views_inode):
        what = f"at {os.fsdecode(path)} this process sees another folder than the daemon"
        return Mode("view", False, what, "mount the store at the same path in this container, or give a dst")
    if not os.access(path, os.X_OK, effective_ids=True):
        return Mode("view", False, f"EACCES: {os.fsdecode(path)} is closed to you", _closed(path))
    return Mode("view", True)


def _unreachable(path: bytes, error: OSError) -> tuple[str, str]:
    """Why the folder of views cannot be looked at, and what to do: which folder on the way to it is in the way."""
    at = path
    while at != os.path.dirname(at):
        at = os.path.dirname(at)
        with contextlib.suppress(OSError):
            os.stat(at)
            break
    if error.errno == errno.EACCES:
        return f"EACCES: {os.fsdecode(at)}, on the way to the store, is closed to you", _closed(at)
    what = (
        f"{_name_of(error)}: {os.fsdecode(path)} is not there for this process; the way to it ends at {os.fsdecode(at)}"
    )
    return what, "mount the store at the same path in this container or mount namespace, read-only, or give a dst"


def _closed(path: bytes) -> str:
    return (
        f"let others pass through it (`chmod o+x {os.fsdecode(path)}`), or have a daemon for all users"
        ' ([access] users = "all"); else give a dst'
    )


def _name_of(error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:  # which is ENOTSUP, too
        return "EOPNOTSUPP"
    return errno.errorcode.get(error.errno or 0, "error")


def _named(error: OSError) -> str:
    return f"{_name_of(error)}: {error.strerror or error}"
