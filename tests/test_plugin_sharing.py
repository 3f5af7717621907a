"""The plugin where several have to do with the same bytes: callers who write, who come at once, and runs that go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CallerOf
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.plugin import LISTEN, MlflowUser
from tests.rig.slow import slow_but
from tests.rig.until import until

ROUNDS = 8


@pytest.fixture
def files() -> trees.Files:
    """Bytes that no other test has."""
    return trees.unique() | {"part/deep/er/one.bin": os.urandom(300_000), "part/empty": b""}


@pytest.fixture
def uri(mlflow_proxied: MlflowServer, files: trees.Files) -> str:
    """A folder of them."""
    return f"runs:/{mlflow_proxied.run(files)}/part"


def _assert_sound(caller: Caller) -> None:
    """The command, as an operator runs it."""
    verified = caller.as_operator().command("verify")
    assert verified.returncode == 0, verified.stderr


def _of(mlflow_user: MlflowUser, caller: Caller) -> MlflowUser:
    return MlflowUser(caller, mlflow_user.distribution, mlflow_user.tracking_uri)


# -- callers who write ------------------------------------------------------------------------------------------------

# What is done to a file at `path`, which has 5,000 bytes or more.
DEEDS = {
    "write": "open(path, 'r+b').write(b'mine!')",
    "write anew": "open(path, 'wb').write(b'mine!')",
    "append": "open(path, 'ab').write(b'mine!')",
    "truncate": "os.truncate(path, 3)",
    "write through a map": (
        "import mmap\nwith open(path, 'r+b') as file, mmap.mmap(file.fileno(), 0) as seen:\n    seen[:5] = b'mine!'"
    ),
    "delete": "os.unlink(path)",
    "replace": "open(path + '.new', 'wb').write(b'mine!')\nos.replace(path + '.new', path)",
    "make a folder of it": "os.unlink(path)\nos.mkdir(path)",
    "take its rights": "os.chmod(path, 0)",
    "give rights": "os.chmod(path, 0o4777)",
    "set its time": "os.utime(path, (0, 0))",
    "link and write": "os.link(path, path + '.link')\nopen(path + '.link', 'r+b').write(b'mine!')",
}


@pytest.mark.parametrize("role", ["alice", "root"])
def test_what_callers_do_to_their_files(
    daemon: Daemon,
    mlflow_user: MlflowUser,
    room: Path,
    caller_of: CallerOf,
    origin: CountingProxy,
    uri: str,
    files: trees.Files,
    role: str,
) -> None:
    """Each of these changes what this caller has, and nothing for the next one, who takes no byte from the origin."""
    user = _of(mlflow_user, caller_of(daemon, room, role))
    code = """
mlflow.artifacts.download_artifacts(uri, dst_path="untouched")
for number, deed in enumerate(deeds):
    top = mlflow.artifacts.download_artifacts(uri, dst_path=str(number))
    for name in ("0.bin", "deep/er/one.bin"):
        path = os.path.join(top, name)
        exec(deed)
result = mlflow.artifacts.download_artifacts(uri, dst_path="last")
"""
    path = user.run(code, uri=uri, deeds=list(DEEDS.values()))
    before = origin.bytes
    last = _of(mlflow_user, caller_of(daemon, room, "bob")).run(
        "result = mlflow.artifacts.download_artifacts(uri, dst_path='d')", uri=uri
    )
    assert origin.bytes == before
    expected = trees.below(files, "part")
    for found in (Path(path), Path(last), user.caller.cwd / "untouched" / "part"):
        assert trees.read(found) == expected
    _assert_sound(user.caller)


def test_a_download_over_what_was_done(
    mlflow_user: MlflowUser, room: Path, daemon: Daemon, caller_of: CallerOf, uri: str
) -> None:
    """What comes of a second download over it is what MLflow makes of it: the same files, or the same error."""
    code = """
import shutil
result = {}
for name, deed in deeds.items():
    top = mlflow.artifacts.download_artifacts(uri, dst_path="d")
    path = os.path.join(top, "0.bin")
    exec(deed)
    try:
        mlflow.artifacts.download_artifacts(uri, dst_path="d")
        came = "fine"
    except Exception as error:
        came = [type(error).__name__, getattr(error, "error_code", None)]
    found = {}
    for at, folders, names in os.walk("d"):
        for one in names:
            where = os.path.join(at, one)
            mode = os.stat(where).st_mode & 0o7777
            os.chmod(where, 0o600)
            found[where] = [open(where, "rb").read().hex(), mode if one != "0.bin" else None]
        found[at] = sorted(folders)
    result[name] = [came, found]
    shutil.rmtree("d")
"""
    found = []
    for switch in ("off", ""):
        where = room / f"switch-{switch}"
        where.mkdir()
        user = _of(mlflow_user, caller_of(daemon, where))
        found.append(user.run(code, env={"ARTIFACTCACHE": switch}, uri=uri, deeds=DEEDS))
    off, on = found
    # MLflow writes into the file that is there, and cannot; the daemon's takes its place, and is whole.
    differing = {name for name in DEEDS if on[name] != off[name]}
    assert differing <= {"link and write", "take its rights"}, {name: (off[name], on[name]) for name in differing}
    assert on["take its rights"][0] == "fine"


# -- callers who come at once -----------------------------------------------------------------------------------------

# All begin each round together; each says what it found after each.
TOGETHER = (
    LISTEN
    + """
result = []
for number in range(rounds):
    say(number)
    hear()
    top = mlflow.artifacts.download_artifacts(uri, dst_path=dst)
    result.append({n: open(os.path.join(top, n), "rb").read().hex() for n in os.listdir(top) if n.endswith(".bin")})
result = [result, said]
"""
)


@pytest.mark.parametrize(
    "who",
    slow_but(
        ["one user, one folder", "one user, two folders", "two users", "two users and root"],
        lambda who: who in ("one user, one folder", "two users and root"),
    ),
)
def test_processes_that_download_at_once(
    mlflow_user: MlflowUser,
    daemon: Daemon,
    room: Path,
    caller_of: CallerOf,
    all_users: Any,
    uri: str,
    files: trees.Files,
    origin: CountingProxy,
    who: str,
) -> None:
    """Each gets all of it each time, the origin sends it once, and nothing half-made lies beside it."""
    roles = {"two users": ["alice", "bob"], "two users and root": ["alice", "bob", "root"]}.get(who, ["alice", "alice"])
    if len(set(roles)) > 1 and not all_users:
        pytest.skip("needs root")
    folders = ["one", "two", "three"] if who != "one user, one folder" else ["one", "one"]
    users = [_of(mlflow_user, caller_of(daemon, room, role)) for role in roles]
    before = origin.bytes
    jobs = [user.start(TOGETHER, uri=uri, dst=dst, rounds=ROUNDS) for user, dst in zip(users, folders, strict=False)]
    try:
        for number in range(ROUNDS):
            for job in jobs:
                assert job.hear() == number
            for job in jobs:
                job.say("go on")
        found = [job.result() for job in jobs]
    finally:
        for job in jobs:
            job.__exit__(None, None, None)
    part = trees.below(files, "part")
    expected = {name: content.hex() for name, content in part.items() if name.endswith(".bin") and "/" not in name}
    assert found == [[[expected] * ROUNDS, []]] * len(users)
    assert origin.bytes - before == trees.size(part)
    for user, dst in zip(users, folders, strict=False):
        assert trees.read(user.caller.cwd / dst) == {f"part/{name}": content for name, content in part.items()}
    _assert_sound(users[0].caller)


def test_another_users_folder(
    mlflow_user: MlflowUser, daemon: Daemon, room: Path, caller_of: CallerOf, bob: Caller, uri: str
) -> None:
    """Where alice's files are bob cannot download over them, with the plugin as without; they stay as they are."""
    found = []
    code = """
try:
    result = mlflow.artifacts.download_artifacts(uri, dst_path=dst)
except Exception as error:
    result = [type(error).__name__, getattr(error, "error_code", None)]
"""
    for switch in ("off", ""):
        where = room / f"switch-{switch}"
        where.mkdir()
        shared = where / "shared"
        shared.mkdir()
        os.chmod(shared, 0o777)
        alice = _of(mlflow_user, caller_of(daemon, where))
        path = Path(alice.run(code, env={"ARTIFACTCACHE": switch}, uri=uri, dst=str(shared)))
        before = trees.read(path)
        found.append(_of(mlflow_user, bob).run(code, env={"ARTIFACTCACHE": switch}, uri=uri, dst=str(shared)))
        assert trees.read(shared) == {f"part/{name}": content for name, content in before.items()}
    assert found[0] == found[1] and "MlflowException" in found[0]


# -- runs that go on --------------------------------------------------------------------------------------------------


def test_a_file_rewritten_with_the_same_size(mlflow_user: MlflowUser, mlflow_proxied: MlflowServer) -> None:
    """In a running run the next download has the new bytes, by each of its names, also while another process reads
    the old ones, which stay as they are for it."""
    run = mlflow_proxied.client.create_run(mlflow_proxied.experiment).info
    folder = mlflow_proxied.folder(run.run_id)
    forms = {
        "runs": f"mlflow.artifacts.download_artifacts('runs:/{run.run_id}/part', dst_path=dst)",
        "run_id": f"os.path.join(mlflow.artifacts.download_artifacts(run_id='{run.run_id}', dst_path=dst), 'part')",
        "bare": f"mlflow.artifacts.download_artifacts('{run.artifact_uri}/part', dst_path=dst)",
        "client": f"mlflow.MlflowClient().download_artifacts('{run.run_id}', 'part', dst)",
    }
    code = """
result = {}
for name, form in forms.items():
    dst = f"{name}-{round}"
    os.makedirs(dst, exist_ok=True)
    result[name] = open(os.path.join(eval(form), "weights"), "rb").read(5).decode()
"""
    read = """
path = mlflow.artifacts.download_artifacts(uri, dst_path="read")
file = open(os.path.join(path, "weights"), "rb", buffering=0)
say(file.read(5).decode())
hear()
file.seek(0)
again = open(os.path.join(path, "weights"), "rb").read(5).decode()
over = mlflow.artifacts.download_artifacts(uri, dst_path="read")
result = [file.read(5).decode(), again, open(os.path.join(over, "weights"), "rb").read(5).decode()]
"""
    trees.plant(folder, {"part/weights": b"first" * 1000, "part/other": b"other"})
    assert set(mlflow_user.run(code, forms=forms, round=1).values()) == {"first"}
    with mlflow_user.start(read, uri=f"runs:/{run.run_id}/part") as reader:
        assert reader.hear() == "first"
        trees.plant(folder, {"part/weights": b"again" * 1000})
        assert mlflow_user.run(code, forms=forms, round=2) == dict.fromkeys(forms, "again")
        reader.say("go on")
        old, kept, new = reader.result()
    assert (old, kept, new) == ("first", "first", "again")
    mlflow_proxied.client.set_terminated(run.run_id)
    trees.plant(folder, {"part/weights": b"third" * 1000})
    assert mlflow_user.run(code, forms=forms, round=3) == dict.fromkeys(forms, "third")
    _assert_sound(mlflow_user.caller)


def test_a_model_that_is_waited_for(mlflow_user: MlflowUser, mlflow_proxied: MlflowServer) -> None:
    """A process that asks for a run's logged model before it is there gets it as every other one does afterwards."""
    code = """
run = mlflow.MlflowClient().create_run(experiment).info.run_id
result = []
for number in range(3):
    if number == 1:
        with mlflow.start_run(run_id=run):
            mlflow.pyfunc.log_model(name="late", python_model=lambda model_input: model_input, pip_requirements=["x"])
    for path in ("late", "late/MLmodel"):
        dst = f"{number}-{path}".replace("/", "-")
        try:
            found = mlflow.artifacts.download_artifacts(f"runs:/{run}/{path}", dst_path=dst)
        except mlflow.MlflowException as error:
            result.append(error.error_code)
            continue
        result.append([os.path.relpath(found, dst), sorted(os.listdir(os.path.join(dst, "late")))])
"""
    off, on = (
        mlflow_user.run(
            code.replace("dst =", f"dst = 'plugin{switch}' +"), env={"ARTIFACTCACHE": switch}, experiment=one
        )
        for switch, one in (("off", mlflow_proxied.experiment), ("", mlflow_proxied.experiment))
    )
    assert off[:2] == ["RESOURCE_DOES_NOT_EXIST"] * 2 and len(off[2][1]) > 2
    assert on == off


# -- another registry, and a container --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", slow_but(["variable", "function", "argument"], lambda way: way == "variable"))
def test_another_registry(
    mlflow_user: MlflowUser,
    mlflow_proxied: MlflowServer,
    mlflow_file: MlflowServer,
    daemon: Daemon,
    origin: CountingProxy,
    uri: str,
    way: str,
) -> None:
    """A model of the registry that MLflow asks is that registry's, though the tracking server has one of that name;
    runs are served all the same."""
    name, of_tracking, of_registry = f"twin-{way}", trees.unique(), trees.unique()
    mlflow_proxied.add_version(name, mlflow_proxied.run(of_tracking), "part")
    mlflow_file.add_version(name, mlflow_file.run(of_registry), "part")
    env = {"MLFLOW_REGISTRY_URI": mlflow_file.uri} if way == "variable" else {}
    begin = f"mlflow.set_registry_uri({mlflow_file.uri!r})\n" if way == "function" else ""
    more = f", registry_uri={mlflow_file.uri!r}" if way == "argument" else ""
    code = (
        LISTEN + begin + f"path = mlflow.artifacts.download_artifacts(uri, dst_path=dst{more})\nresult = [path, said]"
    )
    mlflow_user.run(code, env=env, uri=uri, dst="runs-1")
    for number, switch in enumerate(("off", "", "")):
        path, said = mlflow_user.run(
            code, env=env | {"ARTIFACTCACHE": switch}, uri=f"models:/{name}/1", dst=f"models-{number}"
        )
        assert said == []
        found = trees.read(Path(path))
        found.pop("registered_model_meta", None)
        # MLflow takes its own argument for nothing.
        assert found == trees.below(of_tracking if way == "argument" else of_registry, "part")
    before, audited = origin.bytes, daemon.root / "audit.jsonl"
    length = audited.stat().st_size
    _, said = mlflow_user.run(code, env=env, uri=uri, dst="runs-2")
    assert (origin.bytes, said) == (before, [])
    wanted = f"runs:/{uri.split('/')[1]}".encode()
    until(lambda: wanted in audited.read_bytes()[length:], "the daemon to have served it")


def test_a_container_without_the_store(
    mlflow_user: MlflowUser, daemon: Daemon, origin: CountingProxy, mlflow_proxied: MlflowServer, all_users: Any
) -> None:
    """Who has the sockets and cannot see the store is served; what is looked into before, an MLmodel, too."""
    if not all_users:
        pytest.skip("needs root")
    files = trees.unique() | {"part/MLmodel": b"flavors: {}\n"}
    uri = f"runs:/{mlflow_proxied.run(files)}/part"
    hide = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'mount -t tmpfs none {daemon.root}; exec "$@"',
    )
    code = (
        LISTEN
        + "path = mlflow.artifacts.download_artifacts(uri, dst_path=dst)\nresult = [path, said, os.listdir(root)]"
    )
    for dst in ("first", "second"):
        before = origin.bytes
        path, said, seen = mlflow_user.run(code, uri=uri, dst=dst, root=str(daemon.root), wrap=(*hide, "sh"))
        assert (said, seen) == ([], [])
        found = trees.read(Path(path))
        found.pop("registered_model_meta", None)
        assert found == trees.below(files, "part")
    assert origin.bytes == before
