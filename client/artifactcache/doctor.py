"""`artifactcache doctor`: examines what has to work for a fetch to work, from the sockets to the tracking server.

Law of this file: it is run when something is wrong, so nothing that is wrong ends it. Each check is by itself and
within its time; one that fails is a finding, and the others go on without what it would have told.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from artifactcache.deadline import Deadline
from artifactcache.errors import CacheError, DeadlineExceeded, NotFound, QuotaExceeded
from artifactcache.findings import NOTE, OK, PROBLEM, Finding, Modes, Report
from artifactcache.request import Selection

if TYPE_CHECKING:
    from artifactcache.calls import Calls
    from artifactcache.session import Connection
    from artifactcache.v1 import cache_pb2 as pb

CALL_SECONDS_MAX = 5.0  # of a call that reads nothing but memory
CHECKUP_SECONDS_MAX = 20.0  # the daemon gives each question to the tracking server 3 s, and may wait for its turn
MODES_SECONDS_MAX = 10.0  # four system calls on one block, on whatever disk
ARTIFACT_SECONDS_MAX = 20.0
HANGING_SECONDS = 2.0  # that a check is given beyond its own limit: what hangs then is the kernel's

Result = TypeVar("Result")


def examine(socket_dir: str | None, dst: str | None, uri: str | None, timeout: float | None) -> Report:
    """Examine everything.

    Args:
        socket_dir: of --socket-dir.
        dst: where something is to be fetched to; None: the working directory, or where that cannot be written to the
            folder for temporary files.
        uri: an artifact that is asked about as well.
        timeout: seconds for all of it.
    """
    return Examination(timeout).report(socket_dir, dst, uri)


class Examination:
    """One examination."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = Deadline(timeout)
        self._found: list[Finding] = []

    def report(self, socket_dir: str | None, dst: str | None, uri: str | None) -> Report:
        """Make the checks, one after the other."""
        from artifactcache import surroundings  # with protobuf, which may be what is missing

        folder = self._sockets(socket_dir)
        self._tell("client", surroundings.client)
        modes = None if folder is None else self._daemon(folder, dst, uri)
        self._tell("limits", surroundings.limits)
        if folder is None:
            self._tell("mlflow", lambda: surroundings.plugin(""))
        healthy = all(each.level != PROBLEM for each in self._found)
        return Report(healthy, modes, tuple(self._found))

    def _sockets(self, socket_dir: str | None) -> str | None:
        from artifactcache import whereabouts

        found = self._try(
            "sockets",
            lambda _: whereabouts.findings(socket_dir, os.environ, os.geteuid()),
            4 * whereabouts.LOOK_SECONDS_MAX,
        )
        if found is None:
            return None
        self._found += found[0]
        return found[1]

    def _daemon(self, folder: str, dst: str | None, uri: str | None) -> Modes | None:
        """Ask the daemon, and try what it can do at the destination."""
        from artifactcache import surroundings

        calls = self._try("client", lambda _: _calls(folder), CALL_SECONDS_MAX)
        if calls is None:
            return None
        try:
            pong = self._try("daemon", calls.ping, CALL_SECONDS_MAX)
            if pong is None:  # handoff.sock answers, and cache.sock does not
                return None
            self._tell("daemon", lambda: surroundings.daemon_version(pong.version))
            me = self._try("identity", calls.whoami, CALL_SECONDS_MAX)
            if me is not None:
                self._tell("identity", lambda: surroundings.identity(me.uid, os.geteuid()))
            modes = self._checkup(calls, dst)
            if me is not None:
                self._tell("credentials", lambda: surroundings.logins(me.tracking_uri, me.access_check))
                self._tell("mlflow", lambda: surroundings.plugin(me.tracking_uri))
            if uri is not None:
                self._artifact(calls, uri)
            return modes
        finally:
            calls.session.close()

    def _checkup(self, calls: Calls, dst: str | None) -> Modes | None:
        from artifactcache import surroundings

        began = time.time()
        is_old, failed = False, len(self._found)
        reply = self._try("daemon", lambda deadline: checkup(calls, deadline), CHECKUP_SECONDS_MAX)
        if reply is None and len(self._found) == failed:
            is_old = True
            what = (
                "the daemon is older than this client: it examines neither itself nor the tracking server, and has no"
                " probe to try modes with"
            )
            self._found.append(Finding("daemon", NOTE, what, "update the daemon, and run this again"))
        if reply is not None:
            took = time.time() - began
            self._found += [Finding(each.check, each.level, each.what, each.todo) for each in reply.findings]
            self._tell("clock", lambda: surroundings.clock(reply.now - (began + took / 2), took))
        if is_old:
            return None
        return self._modes(calls, dst, hardlink_for_root=reply is not None and reply.hardlink_for_root)

    def _modes(self, calls: Calls, dst: str | None, *, hardlink_for_root: bool) -> Modes | None:
        from artifactcache import trying

        def tried(deadline: Deadline) -> Modes:
            folder = trying.folder_for(os.fsencode(destination(dst)))

            def try_all(connection: Connection) -> Modes:
                with connection.join(deadline) as handoff:
                    return trying.try_all(handoff, folder, hardlink_for_root, deadline)

            return calls.session.call(try_all, deadline)

        modes = self._try("destination", tried, MODES_SECONDS_MAX)
        if modes is not None and modes.auto is None:
            copy = next(each for each in modes.modes if each.mode == "copy")
            self._found.append(Finding("destination", PROBLEM, f"nothing can be placed there: {copy.why}", copy.todo))
        if modes is not None and modes.writes_through:
            what = "you could write into the store through a hard link: file modes do not stop you"
            todo = '`auto` gives you none, unless [access] hardlink_for_root says so; ask for mode="hardlink" with care'
            self._found.append(Finding("destination", NOTE, what, todo))
        return modes

    def _artifact(self, calls: Calls, uri: str) -> None:
        def looked(deadline: Deadline) -> Finding:
            try:
                held = calls.inspect(Selection(uri, "", "", (), ()), deadline).artifact
            except NotFound as error:
                return Finding(
                    "artifact", NOTE, f"{uri} is not held: {error}", "a fetch brings it, if the origin has it"
                )
            return Finding(
                "artifact", OK, f"{held.version} is held: {held.file_count} files, {held.size_bytes:,} bytes"
            )

        found = self._try("artifact", looked, ARTIFACT_SECONDS_MAX)
        if found is not None:
            self._found.append(found)

    # -- one check --------------------------------------------------------------------------------------------------

    def _tell(self, check: str, made: Callable[[], list[Finding]]) -> None:
        """Make a check that asks no daemon."""
        self._found += self._try(check, lambda _: made(), CALL_SECONDS_MAX) or ()

    def _try(self, check: str, made: Callable[[Deadline], Result], seconds: float) -> Result | None:
        """Make a check within its time. What goes wrong is a finding, and then there is no result."""
        try:
            left = self._deadline.remaining()
        except DeadlineExceeded:
            what = "this check was not made, for the time of --timeout was over"
            over = Finding(check, NOTE, what, "give it more time: `--timeout` is for all of it")
            if over not in self._found:
                self._found.append(over)
            return None
        limit = seconds if left is None else min(seconds, left)
        try:
            return _within(limit, made)
        except DeadlineExceeded:
            what = f"this check was not done within {limit:.2g} s"
            todo = "what it is about hangs, or is very busy: look at its log, and at `dmesg` where it is a disk"
            self._found.append(Finding(check, PROBLEM, what, todo))
        except QuotaExceeded as error:  # it works, but for others as well
            what = f"this check was not made: {error}"
            self._found.append(
                Finding(check, NOTE, what, "run it again when those who ask the same have been answered")
            )
        except CacheError as error:
            self._found.append(Finding(check, PROBLEM, f"{type(error).__name__}: {error}", "what it says"))
        except Exception as error:  # noqa: BLE001 - a check that breaks is a finding as well
            what = f"this check could not be made: {type(error).__name__}: {error}"
            self._found.append(Finding(check, PROBLEM, what, "if the other findings do not explain it, report it"))
        return None


def checkup(calls: Calls, deadline: Deadline) -> pb.CheckupReply | None:
    """Have the daemon examine itself, with the credentials of this process; None where it is too old for that."""
    import grpc

    from artifactcache.v1 import cache_pb2 as pb

    def examined(connection: Connection) -> pb.CheckupReply | None:
        connection.present(deadline)
        try:
            reply: pb.CheckupReply = connection.unary("Checkup", pb.CheckupRequest(), deadline)
            return reply
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise

    return calls.session.call(examined, deadline)


def destination(dst: str | None) -> str:
    """Return where something is to be fetched to, as an absolute path."""
    if dst is not None:
        return os.path.abspath(dst)
    here = os.getcwd()
    return here if os.access(here, os.W_OK | os.X_OK, effective_ids=True) else tempfile.gettempdir()


def _calls(folder: str) -> Calls:
    from artifactcache.calls import Calls

    return Calls(folder)


def _within(seconds: float, made: Callable[[Deadline], Result]) -> Result:
    """Do something within a time. What hangs in the kernel beyond that, as on a disk that is gone, is left behind.

    Raises DeadlineExceeded, and whatever it raises.
    """
    deadline, results, errors = Deadline(seconds), list[Result](), list[BaseException]()

    def work() -> None:
        try:
            results.append(made(deadline))
        except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits
            errors.append(error)

    thread = threading.Thread(target=work, name="check", daemon=True)
    thread.start()
    thread.join(seconds + HANGING_SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise deadline.exceeded()
    return results[0]
