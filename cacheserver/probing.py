"""The probe: a file of no user's data, on which a client tries what it could do with blobs.

Law of this file: it is handed out as blobs are, by the same checks of what a client passes, and says nothing of them;
what is made beside it to try something is gone before the answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass

from artifactcache.errors import CacheError, Corrupted, ModeUnavailable, NoSpace
from cacheserver import doors
from cacheserver.disk import Disk
from cacheserver.doors import Doors
from cacheserver.faults import trouble
from cacheserver.links import link_file, mount_of
from cacheserver.plain import open_plain

NAME = "probe"
_WORDS = b"On this file `artifactcache doctor` tries hard links, clones and copies. It may be removed at any time.\n"
BYTES = _WORDS + b"." * (4095 - len(_WORDS)) + b"\n"  # one block: what is smaller some filesystems keep elsewhere
ROOT = 0


@dataclass(frozen=True)
class Probed:
    """What came of it.

    Attributes:
        descriptor: read-only, of the probe; the caller closes it.
        linked_as: the probe's name in the client's folder; empty where it has none.
        no_link, no_view: why not; empty where nothing is in the way, or nothing was to be linked.
        views: where views are, and that folder.
        filesystem: the store's, its kind and its number.
    """

    descriptor: int
    linked_as: str
    no_link: str
    no_view: str
    views: str
    views_found: os.stat_result
    filesystem: tuple[str, str]


class Probe:
    """The probe of a store. It is made when somebody asks for it, and anew where it has all the links it can have."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._own = os.geteuid()
        self._making = threading.Lock()

    def tried(self, folder_fd: int | None, uid: int) -> Probed:
        """Tries what the daemon does for a user, in a folder of theirs.

        Raises InvalidRequest where that is not one, NoSpace and CacheError where the store's disk takes no probe.
        """
        try:
            linked_as, no_link = "", ""
            os.close(self._opened())
            if folder_fd is not None:
                linked_as, no_link = self._linked(folder_fd, uid)
            descriptor = self._opened()  # now: it may have got another inode for its links
            try:
                views = self._disk.at("views")
                filesystem = _filesystem(mount_of(self._disk.blobs_fd))
                no_view, found = self._no_view(uid), os.stat(views)
                return Probed(descriptor, linked_as, no_link, no_view, views, found, filesystem)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise trouble(error, "the probe could not be handed out") from None

    def _linked(self, folder_fd: int, uid: int) -> tuple[str, str]:
        """The probe's name in a folder, or why it has none there."""
        for more in (True, False):
            try:
                link_file(f"../{NAME}", NAME.encode(), self._disk.blobs_fd, folder_fd, uid, lambda _: self._make())
                return NAME, ""
            except (ModeUnavailable, NoSpace) as error:
                return "", str(error)
            except Corrupted:  # it has gone since it was opened, as it may at any time
                if more:
                    self._make()
        raise CacheError(f"{self._disk.at(NAME)} was removed again and again while it was tried: run this once more.")

    def _opened(self) -> int:
        """A descriptor of it, as of a blob; made where there is none, or what is there is none of the daemon's."""
        with contextlib.suppress(OSError):
            if (fd := self._open()) is not None:
                return fd
        self._make()
        fd = self._open()
        if fd is None:
            raise CacheError(f"{self._disk.at(NAME)} is in the way of a file of the daemon's own: move it away.")
        return fd

    def _open(self) -> int | None:
        fd, is_own = open_plain(self._disk.at(NAME)), False
        try:
            found = os.fstat(fd)
            is_own = (found.st_uid, found.st_size) == (self._own, len(BYTES))
        finally:
            if not is_own:
                os.close(fd)
        return fd if is_own else None

    def _make(self) -> None:
        with self._making:
            path = self._disk.stage()
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, BYTES)
                    os.fchmod(fd, 0o444)
                finally:
                    os.close(fd)
                os.rename(path, self._disk.at(NAME))
            except BaseException:
                self._disk.discard(path)
                raise

    def _no_view(self, uid: int) -> str:
        """Why a user cannot be let into a view, as far as the daemon knows; empty where they can."""
        if self._disk.doors is Doors.SHUT:
            return "[access] views = false in the daemon's configuration: this host gives out no views"
        if self._disk.doors is Doors.OPEN or uid in (ROOT, self._own):
            return ""
        path = self._disk.stage()
        os.mkdir(path, 0o500)
        try:
            doors.let_in_only(path, {uid})
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return "the store's filesystem has no ACLs, by which a view is given to one user alone"
        finally:
            self._disk.discard(path)
        return ""


def is_read_only(folder: str) -> bool:
    """Whether a filesystem takes no files now. Raises OSError.

    One that was mounted so says it. Where it has turned so by itself, after an error, that shows in no flag: ext4 of
    Linux 6.18 tells only who tries (EROFS). The file that is tried has no name, and goes with its descriptor.
    """
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return True
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _filesystem(mount: str) -> tuple[str, str]:
    """The kind and the number of a mount's filesystem (proc_pid_mountinfo(5)); empty texts where that is not told."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            number, _, device = fields.split()[:3]
            if number == mount:
                return rest.split()[0], device
    return "", ""
