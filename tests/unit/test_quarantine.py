"""What is wrong is kept to be looked at, and never so much of it that good artifacts go."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from cacheserver import quarantine
from cacheserver.quarantine import Quarantine

PUT = 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store's folder with what the quarantine needs of it."""
    for name in ("quarantine", "blobs"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(root: Path, number: int, size: int = 1) -> str:
    """Puts a wrong blob into quarantine. Returns its digest."""
    digest = f"{number:064x}"
    fan = root / "blobs" / digest[:2]
    fan.mkdir(exist_ok=True)
    (fan / digest[2:]).write_bytes(os.urandom(size))
    Quarantine(str(root)).put(digest)
    time.sleep(0.02)  # the kernel's clock of files goes on in steps
    return digest


def kept(root: Path) -> list[str]:
    """The digests of what is in quarantine."""
    return sorted(name[:64] for name in os.listdir(root / "quarantine"))


def test_the_newest_files_are_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many go wrong. Where some go, that is one line."""
    monkeypatch.setattr(quarantine, "FILES_MAX", 3)
    digests = [put(root, number) for number in range(PUT)]
    assert kept(root) == digests[-3:] and Quarantine(str(root)).count() == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (PUT - 3)


def test_the_newest_bytes_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large they are: the newest stays even where it is too large alone."""
    monkeypatch.setattr(quarantine, "BYTES_MAX", 100_000)
    digests = [put(root, number, 40_000) for number in range(PUT)]
    assert kept(root) == digests[-2:]
    large = put(root, PUT, 200_000)
    assert kept(root) == [large]


def test_an_index_counts_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that damages it again and again fills nothing with it."""
    monkeypatch.setattr(quarantine, "BYTES_MAX", 100_000)
    for _ in range(PUT):
        (root / "index.db").write_bytes(os.urandom(60_000))
        newest = Quarantine(str(root)).put_index(str(root / "index.db"))
        time.sleep(0.02)
    assert [str(root / "quarantine" / name) for name in os.listdir(root / "quarantine")] == [newest]


def test_what_was_kept_in_its_place_goes_with_its_symlink(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another user has put into blobs/ could be given another name there, and no other parent."""
    monkeypatch.setattr(quarantine, "FILES_MAX", 1)
    name = f"{7:064x}-01234567"
    (root / "blobs" / "00").mkdir()
    (root / "blobs" / "00" / f".{name}").write_bytes(b"wrong")
    (root / "quarantine" / name).symlink_to(f"../blobs/00/.{name}")
    time.sleep(0.02)
    digest = put(root, 1)
    assert kept(root) == [digest] and os.listdir(root / "blobs" / "00") == []


def test_a_symlink_that_was_found_as_a_blob_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has put it there: it goes, and nothing that it leads to."""
    monkeypatch.setattr(quarantine, "FILES_MAX", 1)
    good = root / "blobs" / "00" / "good"
    good.parent.mkdir()
    good.write_bytes(b"good")
    digest = f"{7:064x}"
    (root / "blobs" / "00" / digest[2:]).symlink_to("../blobs/00/good")
    Quarantine(str(root)).put(digest)
    assert kept(root) == [digest]
    time.sleep(0.02)
    newest = put(root, 1)
    assert kept(root) == [newest] and good.read_bytes() == b"good"
