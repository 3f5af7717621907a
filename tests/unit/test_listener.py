"""The handoff socket has its name only when those whom it is for may connect, and are heard."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cacheserver import listening
from cacheserver.place import Place


@pytest.mark.parametrize(("serves_all", "mode"), [(True, 0o666), (False, 0o600)])
def test_it_is_named_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serves_all: bool, mode: int) -> None:
    """Whoever finds it at its name gets through; nothing else is left beside it."""
    named_at_chmod, chmod = list[bool](), os.chmod

    def noting(path: str, mode: int) -> None:
        named_at_chmod.append(os.path.lexists(tmp_path / "handoff.sock"))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", noting)
    listener = listening.listener(Place("", str(tmp_path), "", serves_all, ""), "handoff.sock")
    try:
        assert named_at_chmod == [False]
        assert stat.S_IMODE((tmp_path / "handoff.sock").stat().st_mode) == mode
        assert os.listdir(tmp_path) == ["handoff.sock"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(tmp_path / "handoff.sock"))
    finally:
        listener.close()
