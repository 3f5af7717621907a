"""A real LDAP server whose users the host knows by NSS: slapd, and nslcd with a libnss-ldapd of its own configuration.

The files of the host stay as they are: /etc/nsswitch.conf, /etc/nslcd.conf and /run are others in a mount namespace of
this directory's own, which a process holds open. Whoever is to know its users runs in there: `Directory.wrap`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.rig.process import free_port, stop_group
from tests.rig.until import until
from tests.rig.users import User

PROGRAMS = ("slapd", "slapadd", "ldapmodify", "nslcd", "unshare", "nsenter", "setpriv")
SCHEMAS = Path("/etc/ldap/schema")
_SUFFIX = "dc=directory,dc=test"
_ADMIN, _PASSWORD = f"cn=admin,{_SUFFIX}", "of no worth"
_SLAPD = """
include {schemas}/core.schema
include {schemas}/cosine.schema
include {schemas}/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.pid
database mdb
maxsize 33554432
directory {folder}/database
suffix "{suffix}"
rootdn "{admin}"
rootpw "{password}"
"""
# It keeps nothing of what it was told (members are named, not by a DN that it would remember), and gives up soon.
_NSLCD = """
uri ldap://127.0.0.1:{port}/
base {suffix}
bind_timelimit 2
timelimit 2
reconnect_sleeptime 1
reconnect_retrytime 1
"""
_ROOT = f"dn: {_SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: directory\ndc: directory\n"
_USER = """dn: uid={name},{suffix}
objectClass: account
objectClass: posixAccount
cn: {name}
uid: {name}
uidNumber: {uid}
gidNumber: {gid}
homeDirectory: /nonexistent
"""
_GROUP = """dn: cn={name},{suffix}
objectClass: posixGroup
cn: {name}
gidNumber: {gid}
{members}"""
_NAMESPACE = """
mount --bind nsswitch.conf /etc/nsswitch.conf
mount --bind nslcd.conf /etc/nslcd.conf
mount -t tmpfs -o mode=0755 none /run
mkdir /run/nslcd
echo ready
read end
"""


def reason_not_to_serve() -> str | None:
    """Why there can be no directory here, or None where there can."""
    if os.geteuid() != 0:
        return "a name service of one's own needs root"
    missing = [program for program in PROGRAMS if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if not any(Path("/lib").glob("*/libnss_ldap.so.2")):
        return "libnss-ldapd is not installed"
    return None


@dataclasses.dataclass
class Directory:
    """A running one. `nslcd` is what every question of the name service goes through."""

    folder: Path
    port: int
    namespace: subprocess.Popen[bytes]
    slapd: subprocess.Popen[bytes] | None = None
    nslcd: subprocess.Popen[bytes] | None = None

    @property
    def wrap(self) -> tuple[str, ...]:
        """Runs a command where its users are known."""
        return "nsenter", f"--mount=/proc/{self.namespace.pid}/ns/mnt", "--"

    def start_slapd(self) -> None:
        """Start the LDAP server."""
        url = f"ldap://127.0.0.1:{self.port}/"
        self.slapd = self._start("slapd", "-f", str(self.folder / "slapd.conf"), "-h", url, "-d", "0")
        until(
            lambda: self._client("ldapsearch", "-LLL", "-b", _SUFFIX, "-s", "base").returncode == 0, "slapd to answer"
        )

    def stop_slapd(self) -> None:
        """Stop the LDAP server: nslcd runs on, and has nobody to ask."""
        if self.slapd is not None:
            stop_group(self.slapd)
        self.slapd = None

    def start_nslcd(self) -> None:
        """Start what asks the LDAP server."""
        self.nslcd = self._start(*self.wrap, "nslcd", "-n")
        until(lambda: self.getent("passwd", "root") and self.is_known(), "nslcd to answer")

    def stop_nslcd(self) -> None:
        """Stop it: there is nobody at its socket."""
        if self.nslcd is not None:
            stop_group(self.nslcd, seconds=0.5)
        self.nslcd = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Whoever asks waits until this is over."""
        assert self.nslcd is not None
        self.nslcd.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.nslcd.send_signal(signal.SIGCONT)

    def is_known(self) -> bool:
        """Whether the name service gives what only the directory has."""
        return self.getent("group", "directory-probe")

    def getent(self, database: str, name: str) -> bool:
        """Whether the name service knows something."""
        command = (*self.wrap, "getent", database, name)
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0

    def change_members(self, group: str, *, add: str = "", remove: str = "") -> None:
        """Put a user into a group, or out of it."""
        kind, user = ("add", add) if add else ("delete", remove)
        text = f"dn: cn={group},{_SUFFIX}\nchangetype: modify\n{kind}: memberUid\nmemberUid: {user}\n"
        done = self._client("ldapmodify", text=text)
        assert done.returncode == 0, done.stderr

    def _client(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        who = ("-x", "-D", _ADMIN, "-w", _PASSWORD, "-H", f"ldap://127.0.0.1:{self.port}/")
        return subprocess.run((command[0], *who, *command[1:]), input=text, capture_output=True, text=True, check=False)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        # With the tests it ends in any case; before that by its process ID.
        with (self.folder / "directory.log").open("ab") as log:
            return subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextlib.contextmanager
def serving(folder: Path, people: list[User], groups: dict[str, tuple[int, list[str]]]) -> Iterator[Directory]:
    """A directory of these users, and of groups with their numbers and members. Everything is stopped at the end."""
    folder.mkdir()
    (folder / "database").mkdir()
    port = free_port()
    told = {"folder": folder, "schemas": SCHEMAS, "suffix": _SUFFIX, "admin": _ADMIN, "password": _PASSWORD}
    (folder / "slapd.conf").write_text(_SLAPD.format(**told))
    (folder / "nslcd.conf").write_text(_NSLCD.format(port=port, suffix=_SUFFIX))
    (folder / "nsswitch.conf").write_text("passwd: files ldap\ngroup: files ldap\n")
    (folder / "people.ldif").write_text("\n".join(_entries(people, groups | {"directory-probe": (799_999, [])})))
    command = ("slapadd", "-f", str(folder / "slapd.conf"), "-l", str(folder / "people.ldif"))
    subprocess.run(command, check=True, capture_output=True)
    namespace = subprocess.Popen(
        ("unshare", "--mount", "--propagation", "private", "sh", "-ec", _NAMESPACE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    )
    directory = Directory(folder, port, namespace)
    try:
        assert namespace.stdout is not None
        assert namespace.stdout.readline() == b"ready\n", "the mount namespace was not made"
        directory.start_slapd()
        directory.start_nslcd()
        yield directory
    finally:
        directory.stop_nslcd()
        directory.stop_slapd()
        stop_group(namespace, seconds=0.5)  # with it its namespace goes, and all that was mounted there


def _entries(people: list[User], groups: dict[str, tuple[int, list[str]]]) -> Iterator[str]:
    yield _ROOT
    for one in people:
        yield _USER.format(name=one.name, uid=one.uid, gid=one.gid, suffix=_SUFFIX)
    for name, (gid, members) in groups.items():
        lines = "".join(f"memberUid: {member}\n" for member in members)
        yield _GROUP.format(name=name, gid=gid, members=lines, suffix=_SUFFIX)
