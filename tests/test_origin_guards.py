"""What the daemon reads for others, and where it goes with its credentials: nowhere but where it is meant to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow.artifacts
import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon, config_text, running
from tests.rig.interpreter import Interpreter
from tests.rig.lying import HONEST, LyingOrigin, Reply, run_info
from tests.rig.mlflow_server import MlflowServer
from tests.rig.users import User

# -- folders of this host ----------------------------------------------------------------------------------------------


def private(path: Path, user: User) -> None:
    """Makes a file one that this user can read and others cannot."""
    os.chown(path, user.uid, user.gid)
    path.chmod(0o600)


@pytest.fixture
def reader(all_users: dict[str, User]) -> User:
    """The user of a daemon that serves all."""
    if not all_users:
        pytest.skip("needs several users")
    return all_users["daemon"]


def test_a_file_that_became_private_is_not_served_from_what_is_held(
    alice: Caller, bob: Caller, reader: User, room: Path
) -> None:
    """Its bytes are held, and its path and size are the same: it is looked at all the same, in a folder and alone."""
    trees.plant(room / "shared", {"sub/file": b"x" * 100, "other": b"y"})
    uri = (room / "shared").as_uri()
    assert trees.read(alice.fetch(uri).path) == {"sub/file": b"x" * 100, "other": b"y"}
    assert alice.fetch(f"{uri}/sub/file").size_bytes == 100
    private(room / "shared/sub/file", reader)
    for named in (uri, f"{uri}/sub", f"{uri}/sub/file"):
        with pytest.raises(errors.PermissionDenied, match="every user of this host"):
            bob.fetch(named)
    assert bob.fetch(f"{uri}/other").size_bytes == 1


def run_at(server: MlflowServer, uri: str) -> str:
    """A finished run whose artifacts the tracking server puts below a root of this name; returns its artifact root."""
    experiment = server.client.create_experiment(f"at {uri} {os.urandom(4).hex()}", artifact_location=uri)
    run = server.client.create_run(experiment)
    server.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def test_a_root_that_the_tracking_server_names_is_read_if_all_can_or_it_is_listed(
    start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer, reader: User, room: Path
) -> None:
    """Whoever may create runs names any folder: only `local_roots` lets the daemon of all users read its own there."""
    run_id = run_at(mlflow_file, (room / "listed").as_uri())
    where = mlflow_file.folder(run_id)
    trees.plant(where, {"open": b"o", "sub/private": b"p"})
    private(where / "sub/private", reader)
    strict = caller_of(start_daemon(mlflow_file.uri, local_roots=(str(room / "liste"),)), room)
    assert strict.fetch(f"runs:/{run_id}/open").size_bytes == 1
    for uri in (f"runs:/{run_id}", f"runs:/{run_id}/sub/private"):
        with pytest.raises(errors.PermissionDenied, match="local_roots"):
            strict.fetch(uri)
    lenient = caller_of(start_daemon(mlflow_file.uri, local_roots=("/nowhere", str(room / "listed"))), room)
    assert trees.read(lenient.fetch(f"runs:/{run_id}").path) == {"open": b"o", "sub/private": b"p"}
    with pytest.raises(errors.PermissionDenied, match="every user of this host"):
        lenient.fetch(f"{where.as_uri()}/sub/private")  # named by a client: what is listed does not matter


def test_a_symlink_into_a_listed_folder_lists_nothing(
    start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer, reader: User, room: Path
) -> None:
    """Who may create runs lays a symlink where his own run's root would be, in a folder of his or in the listed one: by
    his run nobody reads what lies in the listed folder for somebody else's."""
    uris = [(room / folder).as_uri() for folder in ("listed", "his", "listed")]
    hers, *his = (run_at(mlflow_file, uri) for uri in uris)
    trees.plant(mlflow_file.folder(hers), {"private": b"p"})
    private(mlflow_file.folder(hers) / "private", reader)
    for run_id in his:
        mlflow_file.folder(run_id).parent.mkdir(parents=True)
        mlflow_file.folder(run_id).symlink_to(mlflow_file.folder(hers))
    named = [
        mlflow_file.client.get_experiment(run.info.experiment_id).name for run in map(mlflow_file.client.get_run, his)
    ]
    more = "".join(f'[[grant]]\nto = ["*"]\nexperiment = {json.dumps(name)}\n' for name in named)
    daemon = start_daemon(mlflow_file.uri, check="rules", local_roots=(str(room / "listed"),), more=more)
    bob = caller_of(daemon, room, "bob")
    assert caller_of(daemon, room, "root").fetch(f"runs:/{hers}").file_count == 1
    for run_id in his:
        with pytest.raises(errors.PermissionDenied, match="every user of this host"):
            bob.fetch(f"runs:/{run_id}")


def test_a_daemon_of_ones_own_reads_what_its_user_can(
    interpreter: Interpreter, all_users: dict[str, User], room: Path, mlflow_file: MlflowServer, caller_of: CallerOf
) -> None:
    """Nothing has to be listed for it, whoever names the folder."""
    user = all_users.get("alice")
    run_id = mlflow_file.run({"private": b"p"})
    if user is not None:
        private(mlflow_file.folder(run_id) / "private", user)
    (room / "own").mkdir()
    text = config_text(room / "own/store", mlflow_file.uri)
    with running(Daemon(interpreter, user, room / "own", room / "own/store", text, is_system=False)) as daemon:
        alice = caller_of(daemon, room)
        assert trees.read(alice.fetch(f"runs:/{run_id}").path) == {"private": b"p"}
        assert alice.fetch(f"{mlflow_file.artifact_uri(run_id)}/private").size_bytes == 1


def test_the_store_is_no_origin_for_the_tracking_server_either(
    start_daemon: StartDaemon, caller_of: CallerOf, mlflow_file: MlflowServer, room: Path
) -> None:
    """Nor is a folder above it, listed or not; other folders there are."""
    trees.plant(room / "above/fine", {"x": b"x"})
    daemon = start_daemon(mlflow_file.uri, root=room / "above/store", local_roots=(str(room),))
    alice = caller_of(daemon, room)
    run_id = run_at(mlflow_file, (room / "above").as_uri())
    up = mlflow_file.folder(run_id).relative_to(room / "above")
    assert len(up.parts) == 2  # MLflow has put <run id>/artifacts below the location
    mlflow_file.folder(run_id).parent.mkdir()
    mlflow_file.folder(run_id).symlink_to("..")
    for named in (f"runs:/{run_id}/../store", f"runs:/{run_id}"):
        with pytest.raises((errors.PermissionDenied, errors.InvalidRequest)):
            alice.fetch(named)
    mlflow_file.folder(run_id).unlink()
    mlflow_file.folder(run_id).symlink_to(room / "above")
    for path in ("", "/store", "/store/index.db", "/store/blobs"):
        with pytest.raises(errors.PermissionDenied, match=r"the store itself|every user of this host"):
            alice.fetch(f"runs:/{run_id}{path}")
    assert trees.read(alice.fetch(f"runs:/{run_id}/fine").path) == {"x": b"x"}


# -- names and escapes -------------------------------------------------------------------------------------------------

NAMES = {"a b": b"space", "a%20b": b"quoted", "a#b": b"hash", "a?b": b"question", "a": b"plain"}
FOLDERS: trees.Files = {f"in {name}/{name}": content for name, content in NAMES.items()} | {
    f"in%20{name}/{name}": b"%" + content for name, content in NAMES.items()
}


@pytest.mark.parametrize("written", ["a b", "a%20b", "in a b/a b", "in%20a%20b/a%20b", "in a b", "in%20a%20b"])
def test_a_file_uri_means_what_it_means_to_mlflow(alice: Caller, room: Path, written: str) -> None:
    """Where MLflow finds something, the same is found, by escapes and without, for files and folders."""
    trees.plant(room / "x", {"a b": b"1", "a%20b": b"2", "in a b/a b": b"3", "in%20a%20b/a%20b": b"4"})
    uri = f"file://{room}/x/{written}"
    found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(room / "by mlflow")))
    handed = alice.fetch(uri).path
    if found.is_dir():
        assert list(trees.read(found).values()) == list(trees.read(handed).values())
    else:
        assert found.read_bytes() == handed.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_written_with_escapes(alice: Caller, room: Path, name: str) -> None:
    """`as_uri()` names any path, also below a folder that is held already, which has its neighbours too."""
    trees.plant(room / "x y%20z", NAMES | FOLDERS)
    whole = room / "x y%20z"
    for _ in range(2):
        assert alice.fetch((whole / name).as_uri()).path.read_bytes() == NAMES[name]
        assert trees.read(alice.fetch((whole / f"in {name}").as_uri()).path) == {name: NAMES[name]}
        assert alice.fetch((whole / f"in%20{name}" / name).as_uri()).path.read_bytes() == b"%" + NAMES[name]
        assert trees.read(alice.fetch(whole.as_uri()).path) == NAMES | FOLDERS


@pytest.mark.parametrize("form", ["URI", "plain path"])
def test_the_tracking_server_names_a_root_as_a_uri_and_paths_as_they_are(
    alice_of_files: Caller, mlflow_file: MlflowServer, room: Path, form: str
) -> None:
    """Escapes in its root are escapes, in the path below they are characters."""
    uri = (room / "root of runs").as_uri()
    run_id = run_at(mlflow_file, uri if form == "URI" else uri.removeprefix("file://"))
    root = mlflow_file.client.get_run(run_id).info.artifact_uri
    assert "%20" in root
    trees.plant(room / "root of runs" / run_id / "artifacts", NAMES | FOLDERS)
    for name, content in NAMES.items():
        assert alice_of_files.fetch(f"runs:/{run_id}/{name}").path.read_bytes() == content
        assert trees.read(alice_of_files.fetch(f"runs:/{run_id}/in%20{name}").path) == {name: b"%" + content}
        assert trees.read(alice_of_files.fetch(run_id=run_id, artifact_path=f"in {name}").path) == {name: content}
    assert trees.read(alice_of_files.fetch(f"runs:/{run_id}").path) == NAMES | FOLDERS
    by_client = alice_of_files.fetch((room / "root of runs" / run_id / "artifacts/a%20b").as_uri())
    assert by_client.path.read_bytes() == b"quoted"


@pytest.fixture
def alice_of_files(start_daemon: StartDaemon, mlflow_file: MlflowServer, caller_of: CallerOf, room: Path) -> Caller:
    """A caller of a daemon for the server with a `file:` root."""
    return caller_of(start_daemon(mlflow_file.uri), room)


@pytest.mark.parametrize("files", [{"a/a": b"x"}, {"a/a/a": b"x"}, {"a/a": b"", "b/b": b"y", "c": b"c"}], ids=str)
def test_a_folder_whose_only_file_has_its_name(alice: Caller, mlflow_proxied: MlflowServer, files: trees.Files) -> None:
    """MLflow's HTTP client lists it as if it were a file: it arrives as the folder that it is, at every depth."""
    run_id = mlflow_proxied.run(files)
    for folder in sorted({name.rpartition("/")[0] for name in files}, reverse=True):
        handed = alice.fetch(
            run_id=run_id, artifact_path=folder or None, dst=alice.cwd / f"dst of {folder or 'all'}"[:9]
        )
        expected = trees.below(files, folder) if folder else files
        assert trees.read(handed.path) == expected
    assert trees.read(alice.fetch(f"runs:/{run_id}").path) == files


# -- other servers, other stores ---------------------------------------------------------------------------------------

TOKEN = "token-of-the-daemon"


class Recorder:
    """An HTTP server that finds everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connection_count = 0
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                recorder.connection_count += 1
                super().setup()

            def do_GET(self) -> None:
                recorder.requests.append((self.path, dict(self.headers)))
                body = b'{"files": [{"path": "x", "is_dir": false, "file_size": 1}]}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Not to standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def other() -> Iterator[Recorder]:
    """A server that is not the daemon's tracking server."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def trusting(module_start: StartDaemon, mlflow_proxied: MlflowServer) -> Daemon:
    """A daemon that has a token for its tracking server."""
    return module_start(mlflow_proxied.uri, env={"MLFLOW_TRACKING_TOKEN": TOKEN})


_ENDPOINT = "api/2.0/mlflow-artifacts/artifacts"


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts://{other}/run/x",
        "MLFLOW-ARTIFACTS://{other}/run/x",
        f"http://{{other}}/{_ENDPOINT}/run/x",
        f"https://{{other}}/{_ENDPOINT}/run/x",
        f"http://{{here}}@{{other}}/{_ENDPOINT}/x",
        f"http://{{here}}\\@{{other}}/{_ENDPOINT}/x",
        f"http://{{here}}.@{{other}}/{_ENDPOINT}/x",
        "mlflow-artifacts://{here}@{other}/x",
        f"http:/{{other}}/{_ENDPOINT}/x",
        f"http://[{{other}}/{_ENDPOINT}/x",
        "http://{here}/elsewhere/x",
        f"http://{{here}}/elsewhere/{_ENDPOINT}/x",
        f"http://{{here}}/{_ENDPOINT}x/{_ENDPOINT}/x",
    ],
)
def test_credentials_stay_with_the_tracking_server(
    trusting: Daemon, other: Recorder, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer, uri: str
) -> None:
    """A client that names another server gets InvalidRequest, and that server no request at all."""
    here = mlflow_proxied.uri.removeprefix("http://")
    with pytest.raises(errors.InvalidRequest):
        caller_of(trusting, room).fetch(uri.format(other=other.host, here=here))
    assert (other.requests, other.connection_count) == ([], 0)
    trusting.assert_no_traceback()


@pytest.mark.parametrize("root", [f"http://{{other}}/{_ENDPOINT}/x", f"http://{{here}}/elsewhere/{_ENDPOINT}/x"])
def test_a_run_elsewhere_on_the_tracking_servers_host(
    start_daemon: StartDaemon, other: Recorder, caller_of: CallerOf, room: Path, liar: LyingOrigin, root: str
) -> None:
    """Whoever listens at another port of that host, or has an application beside the tracking server, names it as the
    root of his run, and gets neither token nor what ~/.netrc has for the host; the tracking server gets what it got."""
    seen, answer = list[tuple[str, str]](), liar.answer

    def noting(reply: Reply, path: str, query: dict[str, list[str]]) -> None:
        seen.append((path, reply.header("Authorization")))
        answer(reply, path, query)

    liar.answer = noting  # type: ignore[method-assign]
    here, run_id = liar.uri.removeprefix("http://"), liar.run(HONEST)
    where = root.format(other=other.host, here=here)
    liar.answers["runs/get"] = {"run": {"info": run_info(run_id) | {"artifact_uri": where}, "data": {}}}
    netrc = room / "netrc"
    netrc.write_text("machine 127.0.0.1 login daemon password of-the-daemon\n")
    netrc.chmod(0o644)
    alice = caller_of(start_daemon(liar.uri, env={"MLFLOW_TRACKING_TOKEN": TOKEN, "NETRC": str(netrc)}), room)
    with pytest.raises(errors.CacheError):
        alice.fetch(f"runs:/{run_id}/x")
    elsewhere = [login for path, login in seen if "elsewhere" in path]
    elsewhere += [headers.get("Authorization", "") for _, headers in other.requests]
    assert elsewhere and not any(elsewhere)
    assert all(login for path, login in seen if path.startswith("/api/2.0/mlflow/"))


def test_the_tracking_server_may_be_named(
    start_daemon: StartDaemon, other: Recorder, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """Its own host is as good as none; and it does get the token, so that the test above would see one."""
    recorded = caller_of(start_daemon(f"http://{other.host}", env={"MLFLOW_TRACKING_TOKEN": TOKEN}), room)
    with pytest.raises(errors.CacheError):
        recorded.fetch(f"mlflow-artifacts://{other.host}/run/y")
    assert {headers.get("Authorization") for _, headers in other.requests} == {f"Bearer {TOKEN}"}
    alice = caller_of(start_daemon(mlflow_proxied.uri), room)
    run_id = mlflow_proxied.run({"x": b"x"})
    root = mlflow_proxied.artifact_uri(run_id).removeprefix("mlflow-artifacts:")
    for uri in (f"mlflow-artifacts:{root}", f"{mlflow_proxied.uri}/{_ENDPOINT}{root}"):
        assert trees.read(alice.fetch(uri).path) == {"x": b"x"}


INSTALLED_BY = {
    "google.cloud": "pip install 'cacheserver[gcs]'",
    "azure": "pip install 'cacheserver[azure]'",
    "paramiko": "the package that has paramiko",
}
_LACKS = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
"""


@pytest.fixture(scope="module")
def bare(module_start: StartDaemon, module_room: Path, interpreter: Interpreter, origin: CountingProxy) -> Daemon:
    """A daemon in whose environment no client of an artifact store is installed, whatever there is in the tests'."""
    (module_room / "bare").mkdir()
    (module_room / "bare" / "sitecustomize.py").write_text(_LACKS.format(missing=set(INSTALLED_BY)))
    known = interpreter.env.get("PYTHONPATH", "")
    return module_start(origin.uri, env={"PYTHONPATH": f"{module_room / 'bare'}{known and os.pathsep}{known}"})


@pytest.mark.parametrize(
    ("uri", "module"),
    [("gs://bucket/x", "google.cloud"), ("wasbs://c@a.blob.core.windows.net/x", "azure"), ("sftp://h/x", "paramiko")],
)
def test_a_store_whose_client_is_not_installed(
    bare: Daemon, caller_of: CallerOf, room: Path, uri: str, module: str
) -> None:
    """InvalidRequest that names the module and where to install it."""
    with pytest.raises(errors.InvalidRequest, match=f"lacks the Python module {module}.*where the daemon runs") as told:
        caller_of(bare, room).fetch(uri)
    assert f"({INSTALLED_BY[module]})" in str(told.value)


def test_only_a_store_that_mlflow_does_not_know_is_called_unknown(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path
) -> None:
    """One that it knows and cannot open is not the caller's mistake."""
    room.chmod(0o777)
    alice = caller_of(start_daemon((room / "tracking").as_uri(), env={"MLFLOW_ALLOW_FILE_STORE": "true"}), room)
    with pytest.raises(errors.InvalidRequest, match="knows no artifact store"):
        alice.fetch("nonsense:/x/y")
    with pytest.raises(errors.OriginUnavailable, match="Failed to get credentials"):
        alice.fetch("dbfs:/x/y")
