"""What the doctor finds of this process itself: packages, the MLflow plugin, credentials, limits.

Law of this file: it asks nobody but this host's files, imports neither mlflow nor grpc, and shows no credential.
"""

from __future__ import annotations

import os
import platform
import resource
import stat
from importlib.metadata import PackageNotFoundError, entry_points, version

from artifactcache import __version__, credentials
from artifactcache.findings import NOTE, OK, PROBLEM, Finding
from artifactcache.handoff import DESCRIPTORS_MAX, DESCRIPTORS_RESERVE
from artifactcache.servers import server
from artifactcache.switch import SWITCH, is_on

OLDEST = {"grpcio": (1, 62), "protobuf": (4, 25)}  # as pyproject.toml has them
MLFLOW_OLDEST, MLFLOW_NEWEST = (2, 22), (3, 17)  # that the plugin was tried with
PLUGINS = "mlflow.artifact_repository"
# What MLflow can log in with and a client cannot hand over: it belongs to a connection, or to one request.
_STAYS_HERE = ("MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH")
_OPEN_FILES = DESCRIPTORS_MAX + DESCRIPTORS_RESERVE


def client() -> list[Finding]:
    """Versions of this client and what it depends on, and whether it can be used around fork."""
    told = {name: found_version(name) for name in OLDEST}
    versions = ", ".join(f"{name} {found or 'is missing'}" for name, found in told.items())
    found = [Finding("client", OK, f"artifactcache {__version__}, Python {platform.python_version()}, {versions}")]
    for name, oldest in OLDEST.items():
        if _numbers(told[name]) < oldest:
            wanted = ".".join(map(str, oldest))
            what = f"{name} is {told[name] or 'missing'}, and {wanted} or newer is needed"
            found.append(Finding("client", PROBLEM, what, f"pip install '{name}>={wanted}'"))
    if os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() in ("0", "false", "no"):
        what = "GRPC_ENABLE_FORK_SUPPORT is off: a child of fork, such as a DataLoader worker, cannot call the daemon"
        found.append(Finding("client", NOTE, what, "unset GRPC_ENABLE_FORK_SUPPORT"))
    return found


def daemon_version(its: str) -> list[Finding]:
    """Compare the daemon's version with this client's."""
    if its == __version__:
        return []
    older = "older" if _numbers(its) < _numbers(__version__) else "newer"
    what = f"the daemon is {its}, {older} than this client, {__version__}"
    return [
        Finding("daemon", NOTE, what, "they work together, but not with what only the newer one has: update the other")
    ]


def limits() -> list[Finding]:
    """How many files this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 2 * _OPEN_FILES:
        return [Finding("limits", OK, f"this process may have {soft:,} files open")]
    level = NOTE if soft > 2 * DESCRIPTORS_RESERVE else PROBLEM
    what = f"this process may have only {soft:,} files open: copies and clones are made a few at a time, or fail"
    return [Finding("limits", level, what, f"raise it with `ulimit -n`; it may be up to {hard:,}")]


def plugin(tracking_uri: str) -> list[Finding]:
    """Tell whether MLflow's own calls are served in a process like this one, by the daemon of that tracking server."""
    its = found_version("mlflow") or found_version("mlflow-skinny")
    where = _other_server(tracking_uri, has_mlflow=bool(its))
    if not its:
        what = "MLflow is not installed here; `artifactcache.fetch` and the command need none"
        return [*where, Finding("mlflow", OK, what)]
    found = [*where, *_of_version(its)]
    seen = [one for one in entry_points(group=PLUGINS) if one.value.startswith("artifactcache.plugin:")]
    if not seen:
        what = f"MLflow {its} does not see the plugin: {PLUGINS} has no entry point of artifactcache"
        found.append(
            Finding("mlflow", PROBLEM, what, "install artifactcache with pip: a copied folder has no entry points")
        )
    elif not is_on(os.environ):
        is_off = bool(os.environ.get(SWITCH))
        what = (
            f"{SWITCH}={os.environ[SWITCH]} switches the plugin off"
            if is_off
            else "the plugin is off in a tracking server"
        )
        todo = f"unset {SWITCH}" if is_off else "nothing: a tracking server has the originals"
        found.append(Finding("mlflow", NOTE, f"MLflow {its} downloads by itself: {what}", todo))
    elif not where:
        found.append(Finding("mlflow", OK, f"MLflow {its} is served by the plugin, for {len(seen)} schemes of URIs"))
    return found


def _other_server(tracking_uri: str, *, has_mlflow: bool) -> list[Finding]:
    """Whether MLflow has the daemon's tracking server in a process with this environment."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking_uri or (not named and not has_mlflow):
        return []
    if not named:
        what = "MLFLOW_TRACKING_URI is not set: the plugin serves only where a program calls mlflow.set_tracking_uri"
        return [Finding("mlflow", NOTE, what, f"export MLFLOW_TRACKING_URI={tracking_uri}")]
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        other = os.environ.get(name)
        if other and (server(other) is None or server(other) != server(tracking_uri)):
            is_served = has_mlflow and is_on(os.environ)
            effects = ["the plugin steps aside"] if is_served else []
            if name == "MLFLOW_TRACKING_URI":
                effects.append("`artifactcache` fetches from the daemon's")
            if not effects:
                continue
            what = f"{name} is {_plain(other)}, and the daemon serves {tracking_uri}: {', and '.join(effects)}"
            todo = f"export {name}={tracking_uri}, by just that name: localhost is not 127.0.0.1"
            return [Finding("mlflow", PROBLEM if is_served else NOTE, what, todo)]
    return []


def _of_version(its: str) -> list[Finding]:
    if MLFLOW_OLDEST <= _numbers(its) <= MLFLOW_NEWEST:
        return []
    tried = f"{_dotted(MLFLOW_OLDEST)} to {_dotted(MLFLOW_NEWEST)}"
    return [
        Finding("mlflow", NOTE, f"the plugin was not tried with MLflow {its}, but with {tried}", "take one of these")
    ]


def logins(tracking_uri: str, access_check: str) -> list[Finding]:
    """Say what this process's credentials are taken from, where the daemon wants some; and who else may read them."""
    found = [finding for path in credentials.files() for finding in _readable_by_others(path)]
    if access_check != "caller":
        return found
    sources = credentials.sources(tracking_uri)
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if named and not sources and server(named) != server(tracking_uri):
        what = f"no credentials are presented: they are for {_plain(named)}, and the daemon asks {tracking_uri}"
        return [*found, Finding("credentials", PROBLEM, what, f"export MLFLOW_TRACKING_URI={tracking_uri}")]
    for name in _STAYS_HERE:
        if os.environ.get(name):
            what = f"{name} is set: such a login cannot be handed to the daemon"
            todo = 'servers that want it need [access] check = "rules", with an account of the daemon\'s'
            found.append(Finding("credentials", PROBLEM if not sources else NOTE, what, todo))
    if sources:
        found.append(Finding("credentials", OK, f"presented to the daemon: those of {sources[0]}"))
    else:
        what = "this process has no credentials for the tracking server"
        todo = "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN, or write ~/.mlflow/credentials"
        found.append(Finding("credentials", NOTE, what, todo))
    return found


def _readable_by_others(path: str) -> list[Finding]:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return []
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return []
    return [Finding("credentials", NOTE, f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")]


def found_version(package: str) -> str:
    """Return the version of an installed package; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def clock(skew: float, most: float) -> list[Finding]:
    """Compare the daemon's clock with this process's: `skew` seconds, of which `most` are the call's own."""
    if abs(skew) <= most + 1:
        return []
    what = f"the daemon's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this process's"
    return [
        Finding(
            "clock", PROBLEM, what, "is the daemon on another host, or in a virtual machine? Set both clocks by NTP"
        )
    ]


def identity(uid: int, euid: int) -> list[Finding]:
    """Compare who this process is with whom the daemon sees."""
    if uid == euid:
        return []
    what = f"you are uid {euid} here, and uid {uid} to the daemon: there is a user namespace in between"
    return [Finding("identity", NOTE, what, "roles, quotas, rules and doors of views go by the daemon's number")]


def _numbers(its: str) -> tuple[int, int]:
    major, minor, *_ = (*its.split("."), "0", "0")
    return (int(major) if major.isdigit() else 0), (int(minor) if minor.isdigit() else 0)


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


def _plain(uri: str) -> str:
    """A URI without the login that may be in it."""
    scheme, apart, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{apart}{host.rpartition('@')[2]}{slash}{path}" if apart else uri
