"""The check of a whole store while no daemon uses it, and what does not belong into a store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from blake3 import blake3

from artifactcache.errors import CacheError
from cacheserver import fsck
from cacheserver.words import Entry, Manifest
from tests.unit.house import FEW, Shelf, blob_names, fsck_command


def test_fsck_removes_what_no_row_speaks_of(shelf: Shelf) -> None:
    """Manifests and views as well as blobs; what has no name of the store's is told and left; what is held stays."""
    held = shelf.put(FEW)
    view = Path(shelf.store.view(held.tree))
    ours = [shelf.root / kind / "ab" / ("c" * 62) for kind in ("blobs", "manifests")]
    for path in ours:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left by a crash")
    ours += [shelf.root / "views" / ("d" * 64), shelf.root / "blobs" / "ab" / ("e" * 62)]
    for path in ours[2:]:
        (path / "inside").mkdir(parents=True)
        (path / "inside/file").write_bytes(b"x")
        (path / "inside").chmod(0o555)
        path.chmod(0o555)
    theirs = [shelf.root / at for at in ("blobs/notes", "manifests/ff", "blobs/ab/short", "views/mine")]
    for path in theirs:
        path.write_bytes(b"somebody's")
    (shelf.root / "blobs/lost+found").mkdir()
    theirs.append(shelf.root / "blobs/lost+found")
    shelf.store.close()
    report = fsck.check(str(shelf.root))
    assert report.sound and report.strays == len(ours) and not any(path.exists() for path in ours)
    assert sorted(report.strange) == sorted(map(str, theirs)) and all(path.exists() for path in theirs)
    assert all(str(path) in "\n".join(report.lines()) for path in theirs)
    shelf.__init__(shelf.root)  # type: ignore[misc]
    assert shelf.store.view_is_sound(held.tree) and (view / "d1/1").read_bytes() == b"file 1"


def test_fsck_says_what_is_in_quarantine(shelf: Shelf) -> None:
    """How much, and where a person finds it; what could not be moved there is counted too, and once."""
    held = shelf.put({"x": b"1"})
    shelf.damage(shelf.digest(held, "x"))
    for name in ("known", "unknown"):
        (shelf.root / "blobs/ab" / f".{name}").mkdir(parents=True)
    (shelf.root / "quarantine/known").symlink_to("../blobs/ab/.known")
    shelf.store.close()
    report = fsck.check(str(shelf.root))
    assert report.quarantined == 3 and report.strange == () and report.strays == 0
    assert f"{shelf.root}/quarantine" in "\n".join(report.lines())
    shelf.__init__(shelf.root)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_a_file_where_the_store_needs_a_folder_is_told(shelf: Shelf, kind: str) -> None:
    """An error of ours that names it, and the rest is served; when it is gone, all is well."""
    content = {"x": b"x"}
    blob = blake3(b"x").hexdigest()
    digest = blob if kind == "blobs" else Manifest.of([Entry(b"x", blob, 1)]).digest
    strange = shelf.root / kind / digest[:2]
    strange.write_bytes(b"somebody's")
    with pytest.raises(CacheError, match=f"{strange}.*move it away"):
        shelf.put(content)
    assert shelf.staging() == []
    assert list(blob_names(shelf.disk)) == ([] if kind == "blobs" else [blob])
    strange.unlink()
    assert shelf.content(shelf.put(content)) == content


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_disk_that_fails_under_fsck_is_told_in_words(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The path, and what the disk said of it; no traceback, and an exit status that says so."""
    shelf.put(FEW)
    shelf.store.close()
    views, listdir = str(shelf.root / "views"), os.listdir

    def fail(path: str) -> list[str]:
        if path == views:
            raise OSError(number, os.strerror(number), path)
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        assert fsck_command(shelf.root) == 1
    assert f"cacheserver: {views}: {os.strerror(number)}" in capsys.readouterr().err
    assert fsck_command(shelf.root) == 0
    shelf.__init__(shelf.root)  # type: ignore[misc]
