"""The files of the audit log: what is appended is read, whole and once, whatever is renamed meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacheserver.auditfile import AuditFile, AuditReader
from tests.unit.house import PATIENCE_SECONDS


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the log is."""
    return str(tmp_path / "audit.jsonl")


def line(number: int) -> bytes:
    """A line of 20 bytes."""
    return f"{number:019d}\n".encode()


def numbers(lines: list[bytes]) -> list[int]:
    """The other way round."""
    return [int(each) for each in lines]


def now(reader: AuditReader) -> list[int]:
    """All that is there now."""
    found: list[int] = []
    for lines in reader.batches():
        if not lines:
            return found
        found += numbers(lines)
    raise AssertionError


def take(batches: Iterator[list[bytes]]) -> list[int]:
    """What comes until nothing comes any more."""
    return [number for lines in iter(lambda: next(batches), []) for number in numbers(lines)]


def test_only_the_daemons_user_can_read_it(path: str) -> None:
    """Whatever the umask is; and it is appended to, also by the next daemon."""
    before = os.umask(0)
    try:
        AuditFile(path, 1000, 3).append(line(1))
    finally:
        os.umask(before)
    AuditFile(path, 1000, 3).append(line(2))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert now(AuditReader(path, 3)) == [1, 2]


def test_rotation(path: str) -> None:
    """A file holds no more than its bytes, and so many files are kept; the oldest lines go first."""
    file = AuditFile(path, 60, 3)
    for number in range(10):
        file.append(line(number))
    sizes = {name: os.path.getsize(os.path.join(os.path.dirname(path), name)) for name in os.listdir(file_folder(path))}
    assert sizes == {"audit.jsonl": 20, "audit.jsonl.1": 60, "audit.jsonl.2": 60}
    assert now(AuditReader(path, 3)) == list(range(3, 10))


def file_folder(path: str) -> str:
    """The folder of the log."""
    return os.path.dirname(path)


def test_one_file_only(path: str) -> None:
    """Then nothing of what was before is kept."""
    file = AuditFile(path, 60, 1)
    for number in range(5):
        file.append(line(number))
    assert os.listdir(file_folder(path)) == ["audit.jsonl"]
    assert now(AuditReader(path, 1)) == [3, 4]


def test_a_line_longer_than_a_file(path: str) -> None:
    """Is written all the same."""
    file = AuditFile(path, 30, 3)
    for number in range(2):
        file.append(line(number) * 2)
    assert now(AuditReader(path, 3)) == [0, 0, 1, 1]


def test_another_file_by_logrotate(path: str) -> None:
    """Renamed or removed: the next line begins a new one."""
    file = AuditFile(path, 1000, 3)
    file.append(line(1))
    os.rename(path, path + "-20261126")
    file.append(line(2))
    assert now(AuditReader(path, 3)) == [2]
    os.unlink(path)
    file.append(line(3))
    assert now(AuditReader(path, 3)) == [3]


def test_what_is_no_file_of_its_own(path: str) -> None:
    """A symlink is not followed, a pipe not waited for, and nothing is written into a file of another user."""
    elsewhere = path + ".elsewhere"
    Path(elsewhere).touch()
    os.symlink(elsewhere, path)
    with pytest.raises(OSError) as caught:
        AuditFile(path, 1000, 3).append(line(1))
    assert (caught.value.errno, os.path.getsize(elsewhere)) == (errno.ELOOP, 0)
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(OSError):
        AuditFile(path, 1000, 3).append(line(1))
    os.unlink(path)
    if os.geteuid() == 0:
        os.rename(elsewhere, path)
        os.chown(path, 1234, -1)
        with pytest.raises(OSError):
            AuditFile(path, 1000, 3).append(line(1))
        assert os.path.getsize(path) == 0


def test_half_a_line(path: str) -> None:
    """What a full disk has left does not spoil the line after it, also after a restart."""
    file = AuditFile(path, 1000, 3)
    file.append(line(1))
    with open(path, "ab") as torn:
        torn.write(b"half")
    AuditFile(path, 1000, 3).append(line(2))
    assert Path(path).read_bytes() == line(1) + b"half\n" + line(2)


def test_what_a_full_disk_has_room_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is cut is an error; the next line is whole."""
    file = AuditFile(path, 1000, 3)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    with pytest.raises(OSError) as caught:
        file.append(line(1))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "write", write)
    file.append(line(2))
    assert Path(path).read_bytes() == line(1)[:7] + b"\n" + line(2)


def test_a_file_that_cannot_be_renamed_grows_on(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """No line is lost; it is told, and tried again when as much has come."""
    os.mkdir(path + ".1")
    file = AuditFile(path, 60, 2)
    for number in range(7):
        file.append(line(number))
    assert now(AuditReader(path, 1)) == list(range(7))
    assert len([m for m in caplog.messages if "grows on" in m]) == 2
    os.rmdir(path + ".1")
    for number in range(7, 10):
        file.append(line(number))
    assert now(AuditReader(path, 2)) == list(range(10))


def test_a_reader_goes_on(path: str) -> None:
    """With lines to come, one by one; with half of one it waits for the rest."""
    batches = AuditReader(path, 3).batches()
    assert next(batches) == []
    file = AuditFile(path, 60, 3)
    for number in range(20):
        file.append(line(number))
        assert take(batches) == [number]
    with open(path, "ab") as half:
        half.write(line(20)[:5])
        half.flush()
        assert take(batches) == []
        half.write(line(20)[5:])
    assert take(batches) == [20]


def test_a_reader_that_was_outrun(path: str) -> None:
    """When the file that it reads is two rotations old it reads those in between; what is gone, is gone."""
    file = AuditFile(path, 40, 4)
    batches = AuditReader(path, 4).batches()
    file.append(line(0))
    assert take(batches) == [0]
    for number in range(1, 6):
        file.append(line(number))
    assert take(batches) == [1, 2, 3, 4, 5]
    for number in range(6, 20):
        file.append(line(number))
    assert take(batches) == list(range(12, 20)), "four files of two lines"


@pytest.mark.parametrize("name", ["audit.jsonl.1", "audit.jsonl-20261126"])
def test_a_reader_beside_logrotate(path: str, name: str) -> None:
    """Whatever it calls the old file: nothing is read twice, and nothing is missed."""
    file = AuditFile(path, 1000, 4)
    file.append(line(0))
    batches = AuditReader(path, 4).batches()
    assert take(batches) == [0]
    file.append(line(1))
    os.rename(path, os.path.join(file_folder(path), name))
    file.append(line(2))
    assert take(batches) == [1, 2]


def test_a_reader_of_a_file_that_was_cut_off(path: str) -> None:
    """As logrotate does with copytruncate: it begins again."""
    file = AuditFile(path, 1000, 4)
    batches = AuditReader(path, 4).batches()
    for number in range(3):
        file.append(line(number))
    assert take(batches) == [0, 1, 2]
    os.truncate(path, 0)
    file.append(line(3))
    assert take(batches) == [3]


def test_files_that_are_older_are_passed_over(path: str) -> None:
    """By the time of the last line in them."""
    file = AuditFile(path, 40, 4)
    for number in range(6):
        file.append(line(number))
    os.utime(path + ".2", (1000, 1000))
    os.utime(path + ".1", (2000, 2000))
    assert now(AuditReader(path, 4, 1500.0)) == [2, 3, 4, 5]


def test_a_reader_closes_what_it_opened(path: str) -> None:
    """When nobody wants more, at whatever place it is."""
    file = AuditFile(path, 40, 4)
    for number in range(6):
        file.append(line(number))
    before = len(os.listdir("/proc/self/fd"))
    for steps in range(6):
        batches = AuditReader(path, 4).batches()
        for _ in itertools.islice(batches, steps):
            pass
        batches.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_beside_a_writer_that_rotates(path: str) -> None:
    """Several that follow while files are renamed all the time, and are kept long enough, get each line once."""
    last, file = 4000, AuditFile(path, 400, 1000)
    found: list[list[int]] = [[] for _ in range(3)]

    def follow(mine: list[int]) -> None:
        for lines in AuditReader(path, 1000).batches():
            mine += numbers(lines)
            if mine and mine[-1] == last:
                return

    followers = [threading.Thread(target=follow, args=(mine,), daemon=True) for mine in found]
    for follower in followers:
        follower.start()
    for number in range(last + 1):
        file.append(line(number))
    for follower in followers:
        follower.join(PATIENCE_SECONDS)
    assert [len(mine) for mine in found] == [last + 1] * 3
    assert all(mine == list(range(last + 1)) for mine in found)
