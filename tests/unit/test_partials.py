"""Downloads that were broken off: what is noted of them, and which of them may go on."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3
from xxhash import xxh3_128

from artifactcache.errors import CacheError, Corrupted
from cacheserver.partials import NOTE, Partials
from cacheserver.staging import Sink

KEY = "s3://bucket/large"
BEGIN = (5, xxh3_128(b"begin").hexdigest())


def test_what_was_noted_goes_on_once(tmp_path: Path) -> None:
    """For one caller, by its key, also where it was complete and waited to be kept with others."""
    partials, path = Partials(str(tmp_path)), tmp_path / "1"
    path.write_bytes(b"begin")
    path.chmod(0o444)
    partials.note(str(path), KEY, '"tag"', *BEGIN)
    assert partials.set_aside(str(path)) and partials.keeps(str(path)) and partials.keeps(str(path) + NOTE)
    assert partials.take("s3://bucket/other") is None
    assert partials.take(KEY) == (str(path), '"tag"', *BEGIN) and partials.take(KEY) is None
    assert path.stat().st_mode & 0o777 == 0o600, "its owner can write it"
    with Sink(str(path), 8, KEY, etag='"tag"', proven=BEGIN) as sink:
        sink.write(b"end")
        assert sink.finish().row.size == 8 and sink.resumed == 5


@pytest.mark.parametrize(
    ("there", "proven", "resumed"),
    [
        (b"begin", BEGIN, 5),
        (b"begin and more", BEGIN, 5),
        (b"begiN", BEGIN, 0),
        (b"begiN and more", BEGIN, 0),
        (b"begi", BEGIN, 0),
        (b"begin, and more than the whole", BEGIN, 0),
        (b"begin", (0, ""), 0),
    ],
)
def test_no_more_goes_on_than_was_noted_and_is_still_so(
    tmp_path: Path, there: bytes, proven: tuple[int, str], resumed: int
) -> None:
    """A bit that flips while it waits would else be stored, and served, under the right name of wrong bytes."""
    partials, path = Partials(str(tmp_path)), tmp_path / "1"
    path.write_bytes(there)
    partials.note(str(path), KEY, '"tag"', *proven)
    with Sink(str(path), 17, KEY, etag='"tag"', proven=proven, note=partial(partials.note, str(path), KEY)) as sink:
        assert (sink.size, sink.resumed, sink.etag) == (resumed, resumed, '"tag"' if resumed else "")
        assert os.path.exists(f"{path}{NOTE}") == (resumed > 0)
        sink.write((b"begin" if not resumed else b"") + b" of the file")
        assert sink.finish().row.digest == blake3(b"begin of the file").hexdigest()


def test_what_is_written_is_noted_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed daemon loses no more than the last few bytes; one that ends, or an origin that breaks off, nothing."""
    monkeypatch.setattr("cacheserver.staging.NOTE_EVERY_BYTES", 4)
    partials, path = Partials(str(tmp_path)), str(tmp_path / "1")

    def noted() -> bytes:
        later = Partials(str(tmp_path))
        later.load()
        found = later.take(KEY)
        if found is None:
            return b""
        content = Path(path).read_bytes()[: found.size_bytes]
        assert found.xxh3 == xxh3_128(content).hexdigest()
        return content

    with pytest.raises(RuntimeError), Sink(path, None, KEY, note=partial(partials.note, path, KEY)) as sink:
        sink.begin('"a longer tag"')
        assert noted() == b"", "nothing of it is there"
        sink.write(b"beg")
        assert noted() == b""
        sink.write(b"in of")
        assert noted() == b"begin of"
        sink.write(b" it")
        assert noted() == b"begin of"
        sink.restart()
        sink.begin('"tag"')
        sink.write(b"other")
        assert noted() == b"other"
        sink.write(b" it")
        raise RuntimeError
    assert noted() == b"other it"


def test_a_disk_that_takes_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the disk's fault, as where it takes no bytes; and the end of a download is not lost by it."""
    monkeypatch.setattr("cacheserver.staging.NOTE_EVERY_BYTES", 4)
    told = list[int]()

    def note(etag: str, size: int, xxh3: str) -> None:
        told.append(size)
        if size:
            raise OSError(28, "No space left on device")

    with Sink(str(tmp_path / "1"), 8, KEY, note=note) as sink:
        sink.begin('"tag"')
        with pytest.raises(CacheError, match="could not be written"):
            sink.write(b"begin")
    assert told == [0, 5, 5]


def test_bytes_that_begin_anew_are_no_longer_what_was_noted(tmp_path: Path) -> None:
    """Whatever breaks off then would go on as something that it is not."""
    partials, path = Partials(str(tmp_path)), str(tmp_path / "1")
    with Sink(path, None, KEY, note=partial(partials.note, path, KEY)) as sink:
        sink.begin('"tag"')
        sink.write(b"some")
        assert os.path.exists(path + NOTE)
        sink.restart()
        assert not os.path.exists(path + NOTE) and not partials.set_aside(path)
        sink.begin('"tag"')
        sink.begin("")
        assert not partials.set_aside(path), "nor are bytes without a tag"
        sink.begin('"tag"')
        Path(tmp_path / "by name").write_bytes(b"another client's")
        sink.take_over(str(tmp_path / "by name"))
        assert not partials.set_aside(path) and not sink.etag


@pytest.mark.parametrize("what", ["gone", "a link", "two names"])
def test_what_is_no_plain_file_does_not_go_on(tmp_path: Path, what: str) -> None:
    """Neither it nor its note stays where somebody asks for it; and it is not an error."""
    partials, path, secret = Partials(str(tmp_path)), tmp_path / "1", tmp_path / "secret"
    secret.write_bytes(b"secret")
    path.write_bytes(b"begin")
    partials.note(str(path), KEY, '"tag"', *BEGIN)
    assert partials.set_aside(str(path))
    path.unlink()
    if what == "a link":
        path.symlink_to(secret)
    if what == "two names":
        path.hardlink_to(secret)
        assert not Partials(str(tmp_path)).set_aside(str(path))
        return
    assert partials.take(KEY) is None and not path.is_symlink() and secret.read_bytes() == b"secret"


def test_a_sink_that_cannot_be_read_again_lets_its_descriptor_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that fails while the beginning is hashed costs no descriptor."""
    (tmp_path / "1").write_bytes(b"begin")

    def fail(*args: object) -> int:
        raise OSError(5, "Input/output error")

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        Sink(str(tmp_path / "1"), 8, KEY, etag='"tag"', proven=BEGIN)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_more_bytes_than_listed_are_refused_as_they_come(tmp_path: Path) -> None:
    """Not after the disk is full of them."""
    with Sink(str(tmp_path / "1"), 4, KEY) as sink:
        with pytest.raises(Corrupted, match="sends more"):
            sink.write(b"12345")
        assert (tmp_path / "1").stat().st_size == 0


def test_a_disk_that_does_not_take_bytes_is_not_the_origins_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tries again from a place that the file never reached, and what was asked for is not called unavailable."""

    def fail(fd: int, data: object) -> int:
        raise OSError(5, "Input/output error")

    with Sink(str(tmp_path / "1"), 8, KEY) as sink:
        sink.begin('"tag"')
        sink.write(b"1234")
        monkeypatch.setattr(os, "write", fail)
        with pytest.raises(CacheError, match="disk does not work") as told:
            sink.write(b"5678")
        monkeypatch.undo()
        assert type(told.value) is CacheError and sink.size == 4
