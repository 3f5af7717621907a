"""A root that lies in one of `[origin] local_roots` when it is first opened, and elsewhere when it is opened again."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactcache.errors import PermissionDenied
from cacheserver.local import LocalFiles
from cacheserver.words import Location


def test_each_opening_is_judged_by_itself(tmp_path: Path) -> None:
    """Between two attempts of one download whose root it is may lay a symlink in its place, to what is another's."""
    for folder, mode in (("listed/run", 0o755), ("private", 0o700)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"bytes")
        (tmp_path / folder / "file").chmod(0o600)
        (tmp_path / folder).chmod(mode)
    root, listed = tmp_path / "listed/run", str(tmp_path / "listed")
    local = LocalFiles(str(root), forbidden="/proc", world_only=True, clock=lambda: 1e10, exempt=((listed, listed),))
    assert local.listing(Location(str(root), "")).files
    root.rename(tmp_path / "listed/away")
    root.symlink_to(tmp_path / "private")
    with pytest.raises(PermissionDenied):
        local.listing(Location(str(root), ""))
