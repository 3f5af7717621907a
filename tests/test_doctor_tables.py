"""The tables in docs/doctor.md are those that come out; `pytest -s tests/test_doctor_tables.py` prints them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactcache import diagnosis
from artifactcache.findings import Filesystem, Mode, Modes, Report
from tests.conftest import CallerOf, StartDaemon
from tests.rig.doctor import Told, doctor
from tests.rig.mlflow_server import MlflowServer
from tests.rig.mounts import Filesystem as Mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and several users need root")

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "doctor.md"
WIDTH = 100
UNSHARED = ("unshare", "--mount", "--propagation", "private")


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "namespace", "container"])
def test_a_table(
    mounted: Callable[[str], Mounted],
    start_daemon: StartDaemon,
    mlflow_proxied: MlflowServer,
    caller_of: CallerOf,
    name: str,
) -> None:
    """For an ordinary user, with the store on that filesystem; or on ext4, from another mount namespace, or from a
    container in which the store is not."""
    filesystem = mounted(name if name in ("xfs", "btrfs") else "ext4")
    place = filesystem.root / "tables"
    (place / "jobs").mkdir(parents=True)
    (place / "cacheserver").mkdir()
    daemon = start_daemon(mlflow_proxied.uri, root=place / "cacheserver" / "store")
    alice = caller_of(daemon, place / "jobs")
    hidden = ("sh", "-c", f'mount -t tmpfs none {place / "cacheserver"} && exec "$@"', "sh")
    wrap = {"namespace": UNSHARED, "container": (*UNSHARED, *hidden)}.get(name, ())
    told = doctor(alice, wrap=wrap)
    shown = table(told, {str(place): "/srv"})
    daemon.stop()
    shutil.rmtree(place)
    print(f"\n{name}\n\n{shown}")
    assert shown in DOCUMENT.read_text(encoding="utf-8")


def table(told: Told, names: dict[str, str]) -> str:
    """The table as the command shows it to people, with other paths; indented as in a document."""
    found = told.document["modes"]

    def named(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        return text

    modes = Modes(
        Filesystem(named(found["destination"]["path"]), found["destination"]["kind"]),
        Filesystem(named(found["store"]["path"]), found["store"]["kind"]),
        tuple(Mode(each["mode"], each["works"], named(each["why"]), named(each["todo"])) for each in found["modes"]),
        found["auto"],
        found["auto_writable"],
        found["writes_through"],
    )
    lines = diagnosis.lines(Report(True, modes, ()), WIDTH, False)
    return "\n".join(f"    {line}".rstrip() for line in lines[: lines.index("")])
