"""A host's installation, as the page for administrators has it: every command of it, under a real systemd."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import environments, systemd, trees
from tests.rig.mlflow_server import MlflowServer
from tests.rig.pages import Reader
from tests.rig.systemd import Systemd
from tests.rig.users import User
from tools import dist
from tools.locked import TOP

PAGE = TOP / "docs" / "how-to" / "administrator.md"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_PYTHON = "/usr/bin/python3"


def _reason_not_to() -> str | None:
    if reason := systemd.reason_not_to() or environments.reason_not_to():
        return reason
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    if not Path(SYSTEM_PYTHON).exists():
        return "the system has no Python"
    done = subprocess.run((SYSTEM_PYTHON, "-c", code), capture_output=True, text=True, check=False)
    is_right = done.stdout.strip() == environments.OWN
    return None if is_right else f"the wheels here are for Python {environments.OWN}, with venv: {SYSTEM_PYTHON} is not"


@pytest.fixture
def manager(room: Path) -> Iterator[Systemd]:
    """A host of the test's own."""
    if reason := _reason_not_to():
        pytest.skip(reason)
    with systemd.host(room) as found:
        yield found


def _typed(manager: Systemd, folder: Path) -> Any:
    def start(command: tuple[str, ...], *, env: dict[str, str], stderr: int) -> subprocess.Popen[bytes]:
        inside = ("sh", "-c", 'cd "$0" && exec "$@"', str(folder))
        pipe = subprocess.PIPE
        return subprocess.Popen(
            (*manager.wrap, *inside, *command), stdin=pipe, stdout=pipe, stderr=stderr, env=env, start_new_session=True
        )

    return start


def test_a_host_is_installed(
    manager: Systemd, room: Path, all_users: dict[str, User], mlflow_proxied: MlflowServer
) -> None:
    """From wheels into an environment of its own, its account and its unit out of that; then configured, upgraded and
    removed. The daemon serves another user with hard links, from a store where the page has put it."""
    dist.make(room / "dist")
    env = {
        "PATH": PATH,
        "HOME": str(room),
        "LANG": "C.UTF-8",
        # Instead of an index, the folder of what is locked; the rest is as the page has it.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(environments.WHEELS),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
    }
    reader = Reader(
        room, env, here={"http://mlflow.example:5000": mlflow_proxied.uri}, start=_typed(manager, room), is_host=True
    )
    uri = f"runs:/{mlflow_proxied.run(trees.SMALL)}"
    looked: list[str] = []

    def as_alice(script: str) -> str:
        alice = all_users["alice"]
        ids = ("setpriv", f"--reuid={alice.uid}", f"--regid={alice.gid}", "--clear-groups", "--")
        done = subprocess.run(
            (*manager.wrap, *ids, "sh", "-c", script), env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def configured() -> None:
        """The configuration of the page is where the unit's drop-in looks for it."""
        subprocess.run((*manager.wrap, "cp", str(room / "cacheserver.toml"), "/etc/cacheserver.toml"), check=True)

    def serving() -> None:
        """Alice has hard links of the store that the configuration names, whose files are the daemon's."""
        make = ("install", "-d", "-o", str(all_users["alice"].uid), "/srv/alice")
        subprocess.run((*manager.wrap, *make), check=True)
        as_alice(f"cd /srv/alice && artifactcache fetch {uri} dst --mode hardlink && artifactcache whoami")
        owner = as_alice("find /srv/alice/dst -type f -size +0 -printf '%u %m %n\\n' | sort -u").split()
        looked.append(owner[0])
        assert owner[:2] == ["cacheserver", "444"] and int(owner[2]) >= 2
        manager.ctl("reload", "cacheserver")

    reader.hands = {"the configuration is written": configured, "somebody fetches": serving}
    reader.follow(PAGE)
    assert reader.done >= 6 and looked == ["cacheserver"]
    left = (
        "ls /opt/cacheserver /usr/local/bin/cacheserver /srv/cacheserver 2>/dev/null; systemctl is-active cacheserver"
    )
    done = subprocess.run((*manager.wrap, "sh", "-c", left), env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["inactive"]
    with pytest.raises(KeyError):
        pwd.getpwnam("cacheserver")  # nothing of this was done to the machine itself
    assert not os.path.exists("/opt/cacheserver")
