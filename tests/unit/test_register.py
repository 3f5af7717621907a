"""The register of views: what the daemon after this one knows of who has which."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver import register as room
from cacheserver.register import Process, Register, process
from tests.rig.until import until

BOOT = "boot 1"
ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the register is."""
    return tmp_path / "leases"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is told otherwise."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kills a process, and leaves nothing of it."""
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def of(pid: int) -> Process:
    """A process that lives."""
    found = process(pid)
    assert found is not None and found.pid == pid
    return found


def me() -> Process:
    """This process."""
    return of(os.getpid())


def known(path: Path, boot: str = BOOT) -> dict[Process, set[str]]:
    """What the next daemon would know; of a copy, for it writes its register anew."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    register = Register(str(copy), boot)
    register.close()
    assert Register(str(copy), boot).trees() == register.trees(), "and the one after that"
    return register.trees()


def test_a_process_is_known_by_its_number_and_its_start(child: subprocess.Popen[bytes]) -> None:
    """Not one that has ended, nor one of which nobody has taken the exit status, nor what is no number of any."""
    assert process(child.pid) == of(child.pid) != me()
    assert of(child.pid).started >= me().started > 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process(child.pid) is None, "a zombie reads nothing any more"
    end(child)
    assert process(child.pid) is None
    assert [process(pid) for pid in (0, -1, 2**31, 2**70)] == [None] * 4


def test_a_process_lives_as_long_as_any_of_its_threads(path: Path) -> None:
    """One whose first thread has ended looks like a zombie, and reads its views with the others; with the last of them
    it has ended."""
    program = """
        import ctypes, os, sys, threading
        def last():
            print(flush=True)
            sys.stdin.read()
            os._exit(0)
        threading.Thread(target=last).start()
        ctypes.CDLL(None).pthread_exit(None)
    """
    command = (sys.executable, "-c", textwrap.dedent(program))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        stat = Path(f"/proc/{child.pid}/stat")
        until(lambda: ") Z " in stat.read_text(), "its first thread to end")
        Register(str(path), BOOT).add(of(child.pid), ONE)
        assert known(path) == {of(child.pid): {ONE}}
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process(child.pid) is None and known(path) == {}


HIDING = [("hidepid=0", 65534, True), ("hidepid=1", 65534, False), ("hidepid=2", 65534, False), ("hidepid=2", 0, True)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount /proc")
@pytest.mark.parametrize(("options", "uid", "seen"), HIDING)
def test_a_proc_that_hides_others_is_noticed(options: str, uid: int, seen: bool) -> None:
    """By whoever is not root; a daemon for all users says so, one that serves its own user only has nothing to say. In
    namespaces of its own: of one namespace of processes, all mounts of /proc may share their options."""
    look = f"""
        import logging, os
        from cacheserver.settings import Config
        from cacheserver.daemon import _warn
        from cacheserver.register import sees_others
        logging.basicConfig(format="%(message)s")
        os.setgroups([])
        os.setresgid({uid}, {uid}, {uid})
        os.setresuid({uid}, {uid}, {uid})
        print(sees_others())
        _warn(Config(), serves_all=False)
        print(flush=True)
        logging.warning("for all:")
        _warn(Config(), serves_all=True)
    """
    script = (
        f'mount -t proc -o {options} proc /proc && "$0" -c "$1"; exit $?'  # the shell stays: it is the first process
    )
    command = ("unshare", "--mount", "--pid", "--fork", "sh", "-c", script, sys.executable, textwrap.dedent(look))
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if "unshare failed" in ran.stderr or ran.stderr.startswith("mount:"):
        pytest.skip(ran.stderr)
    assert (ran.returncode, ran.stdout.strip()) == (0, str(seen)), ran.stderr
    before, _, after = ran.stderr.partition("for all:")
    assert "hidepid" not in before and ("hidepid" in after) is not seen


def test_the_next_daemon_knows_who_has_what(path: Path, child: subprocess.Popen[bytes]) -> None:
    """Without a word of goodbye from the one before it: each line is there once `add` returns."""
    one = Register(str(path), BOOT)
    assert one.trees() == {}
    for tree in (ONE, TWO):
        one.add(me(), tree)
    one.add(of(child.pid), ONE)
    expected = {me(): {ONE, TWO}, of(child.pid): {ONE}}
    assert one.trees() == expected and known(path) == expected
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_boot_knows_nothing(path: Path) -> None:
    """Its processes are others, whatever their numbers."""
    Register(str(path), BOOT).add(me(), ONE)
    assert known(path, "boot 2") == {} and known(path) == {me(): {ONE}}
    assert Register(str(path), "boot 2").trees() == {} == known(path), "it is another boot's register now"


def test_what_has_ended_is_not_known(path: Path, child: subprocess.Popen[bytes]) -> None:
    """Nor is who has its number now."""
    one = Register(str(path), BOOT)
    one.add(of(child.pid), ONE)
    one.add(me()._replace(started=me().started + 1), TWO)
    one.add(me(), THREE)
    end(child)
    assert known(path) == {me(): {THREE}}


def test_what_is_given_back_as_often_as_it_was_had_is_gone(path: Path) -> None:
    """And not before that; the file has a line for the first and one for the last only."""
    one = Register(str(path), BOOT)
    for tree in (ONE, ONE, TWO):
        one.add(me(), tree)
    one.remove(me(), ONE)
    assert known(path) == {me(): {ONE, TWO}}
    one = Register(str(path), BOOT)
    one.add(me(), ONE)
    one.remove(me(), ONE)
    assert known(path) == {me(): {ONE, TWO}}, "what it had of an earlier daemon, it has still"
    for tree in (ONE, TWO):
        one.remove(me(), tree)
    assert one.trees() == {} == known(path)
    one.add(me(), THREE)
    assert known(path) == {me(): {THREE}}


def test_counts_are_of_each_process(path: Path, child: subprocess.Popen[bytes]) -> None:
    """What one gives back, the other has."""
    one = Register(str(path), BOOT)
    for who in (me(), of(child.pid), me()):
        one.add(who, ONE)
    one.remove(of(child.pid), ONE)
    one.remove(of(child.pid), ONE)
    assert one.trees() == {me(): {ONE}} == known(path)


def test_a_process_that_has_ended_gives_nothing_back(path: Path) -> None:
    """What is told of it afterwards is told of nobody."""
    one = Register(str(path), BOOT)
    one.add(me(), ONE)
    one.forget(me())
    one.remove(me(), ONE)
    assert one.trees() == {}


@pytest.mark.parametrize("torn", range(1, 90, 7))
def test_a_last_line_that_is_torn_counts_for_nothing(path: Path, torn: int) -> None:
    """And what is written behind it counts, as if it stood alone."""
    one = Register(str(path), BOOT)
    one.add(me(), ONE)
    whole = path.stat().st_size
    one.add(me(), TWO)
    os.truncate(path, max(path.stat().st_size - torn, whole))
    one.add(me(), THREE)
    assert known(path) == {me(): {ONE, THREE}}


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe\x80 not ASCII",
        f"+ 1 {ONE}".encode(),
        f"+ 1 2 {ONE}0".encode(),
        f"* 1 2 {ONE}".encode(),
        f"+ -1 2 {ONE}".encode(),
        f"+ 999999999999 2 {ONE}".encode(),
        f" + 1 2 {ONE}".encode(),
        f"+ {'9' * 5000} 2 {ONE}".encode(),
        f"+ 1 {'9' * 5000} {ONE}".encode(),
    ],
    ids=lambda garbage: repr(garbage[:12]),
)
def test_garbage_is_passed_over(path: Path, garbage: bytes) -> None:
    """What stands before and behind it counts, and the daemon starts."""
    Register(str(path), BOOT).add(me(), ONE)
    with path.open("ab") as file:
        file.write(b"\n" + garbage + f"\n+ {me().pid} {me().started} {TWO}".encode())
    assert known(path) == {me(): {ONE, TWO}}


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 4096, b"boot 1 or so\n+ 1 2 3"], ids=repr)
def test_a_file_that_is_no_register_is_none(path: Path, content: bytes) -> None:
    """It is written anew."""
    path.write_bytes(content)
    assert known(path) == {}
    Register(str(path), BOOT).add(me(), ONE)
    assert known(path) == {me(): {ONE}}


def test_what_cannot_be_written_is_told_and_no_error(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon gives out views all the same; once it can be written, all that is had then is in it."""
    path.with_name("leases.new").mkdir()
    with caplog.at_level(logging.WARNING):
        one = Register(str(path), BOOT)
        one.add(me(), ONE)
    assert "leased by connections only" in caplog.text and str(path) in caplog.text
    assert one.trees() == {me(): {ONE}} and not path.exists()
    path.with_name("leases.new").rmdir()
    one.add(me(), TWO)
    assert known(path) == {me(): {ONE, TWO}}


def test_a_register_that_grew_is_written_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays within a small multiple of what counts, and loses nothing of that."""
    monkeypatch.setattr(room, "COMPACT_BYTES_MIN", 4096)
    one = Register(str(path), BOOT)
    one.add(me(), ONE)
    sizes = []
    for n in range(500):
        one.add(me(), f"{n:064x}")
        one.remove(me(), f"{n:064x}")
        sizes.append(path.stat().st_size)
    assert max(sizes) < 4096 + 200 and min(sizes) < 400
    assert one.trees() == {me(): {ONE}} == known(path)
    many = {f"{n:064x}" for n in range(200)}
    for tree in many:
        one.add(me(), tree)
    assert known(path) == {me(): {ONE} | many}


def with_bytes_left(path: Path, size: int, then: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with `register`, in a process that gets no file longer than so many bytes: as on a full disk, what
    is written ends there without an error, and what comes after that gets one."""
    program = f"""
        import logging, os, resource
        from cacheserver.register import Register, process
        logging.basicConfig(format="%(message)s")
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
        register = Register({str(path)!r}, {BOOT!r})
    """
    text = textwrap.dedent(program) + textwrap.dedent(then)
    return subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)


def test_a_full_disk_takes_nothing_that_was_known(path: Path) -> None:
    """A daemon that starts on a full disk loses no line of the register that it has read, and says so."""
    one, many = Register(str(path), BOOT), {f"{n:064x}" for n in range(100)}
    for tree in many:
        one.add(me(), tree)
    ran = with_bytes_left(path, 1000, "print(sum(map(len, register.trees().values())))")
    assert ran.stdout.strip() == "100"
    assert known(path) == {me(): many}
    assert "cannot be written" in ran.stderr


def test_half_of_a_line_is_told(path: Path) -> None:
    """Where only a part of a line could be written, nobody is left to think that the view is registered."""
    Register(str(path), BOOT).add(me(), ONE)
    left = path.stat().st_size + 20
    ran = with_bytes_left(path, left, f"register.add(process({os.getpid()}), {TWO!r})")
    assert "cannot be written" in ran.stderr
    Register(str(path), BOOT).add(me(), THREE)
    assert known(path) == {me(): {ONE, THREE}}
