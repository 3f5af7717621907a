"""What a fetch gives: the right bytes for every kind of URI, and from the origin only what is not held."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import LoggedModelOutput

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

MODEL_URIS = (
    "models:/doubler/1",
    "models:/doubler@champion",
    "models:/doubler/latest",
    "models:/{model_id}",
    "runs:/{run_id}/model",
)


@pytest.fixture(params=["view", "placed"])
def dst(request: pytest.FixtureRequest, room: Path, alice: Caller) -> Path | None:
    """No destination, or one in a folder of alice's."""
    return None if request.param == "view" else alice.cwd / "some" / "where"


def test_a_run(alice: Caller, mlflow_proxied: MlflowServer, dst: Path | None) -> None:
    """`runs:/<id>` is the whole run, nothing added, and what is said of it is true."""
    run_id = mlflow_proxied.run(SMALL)
    handed = alice.fetch(f"runs:/{run_id}", dst)
    assert trees.read(handed.path) == SMALL
    assert handed.path == dst or dst is None
    assert (handed.file_count, handed.size_bytes) == (trees.count(SMALL), trees.size(SMALL))
    assert handed.uri == f"runs:/{run_id}"
    assert not handed.stale
    assert (handed.mode == "view") == (dst is None)
    reads = "result = [open(os.path.join(at, name)).name for at, _, names in os.walk(path) for name in names]"
    assert len(alice.run(reads, path=str(handed.path))) == trees.count(SMALL)


def test_a_path_in_a_run(alice: Caller, mlflow_proxied: MlflowServer, dst: Path | None) -> None:
    """`runs:/<id>/<folder>` is that folder's content, named relative to it."""
    run_id = mlflow_proxied.run(SMALL)
    assert trees.read(alice.fetch(f"runs:/{run_id}/data", dst).path) == trees.below(SMALL, "data")


@pytest.mark.parametrize("path", ["", "data", "data/deep"])
def test_a_run_id(alice: Caller, mlflow_proxied: MlflowServer, path: str) -> None:
    """`run_id=` with `artifact_path=` is the same artifact as the `runs:/` URI."""
    run_id = mlflow_proxied.run(SMALL)
    options: dict[str, Any] = {"artifact_path": path} if path else {}
    handed = alice.fetch(run_id=run_id, **options)
    assert trees.read(handed.path) == (trees.below(SMALL, path) if path else SMALL)
    assert alice.fetch(f"runs:/{run_id}/{path}").digest == handed.digest


@pytest.mark.parametrize("uri", MODEL_URIS)
def test_a_model(alice: Caller, mlflow_proxied: MlflowServer, model: Any, dst: Path | None, uri: str) -> None:
    """Every way to name a model gives exactly the files that MLflow logged, without the file that MLflow adds."""
    handed = alice.fetch(uri.format(model_id=model.model_id, run_id=model.run_id), dst)
    assert trees.read(handed.path) == trees.read(mlflow_proxied.model_folder(model.model_id))


def test_logged_models_of_one_name(alice: Caller, mlflow_proxied: MlflowServer, tmp_path: Path) -> None:
    """Of several that a run logged by one name, the newest one that is still there, as MLflow has it; many of them, one
    deleted and one of another run are no trouble."""
    import mlflow

    server = mlflow_proxied
    run_id, other = server.run({"model/of the run": b"run's"}), server.run({})
    contents = [{"MLmodel": f"{number}".encode()} for number in range(12)]
    models = [server.add_logged_model(run_id, "model", files) for files in contents]
    server.client.delete_logged_model(models[-1])
    foreign = server.add_logged_model(other, "model", {"MLmodel": b"foreign"})
    server.client.log_outputs(run_id, [LoggedModelOutput(foreign, 0)])
    found = trees.read(alice.fetch(f"runs:/{run_id}/model").path)
    assert found == {"MLmodel": b"10", "of the run": b"run's"}
    mlflow.set_tracking_uri(server.uri)
    theirs = trees.read(Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model", dst_path=tmp_path)))
    assert theirs.pop("registered_model_meta") and found == theirs


def test_aliases_resolve_to_a_version(alice: Caller, model: Any) -> None:
    """An alias and `latest` are gone from the version: it says which bytes these are."""
    assert alice.fetch("models:/doubler@champion").version == alice.fetch("models:/doubler/1").version
    assert alice.fetch("models:/doubler/latest").version == alice.fetch("models:/doubler/1").version


def test_an_alias_that_moves(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """After an alias was moved, a fetch gives the version that it points to now."""
    files = [trees.unique(), trees.unique()]
    versions = [
        mlflow_proxied.add_version("mover", mlflow_proxied.run({f"m/{k}": v for k, v in f.items()}), "m") for f in files
    ]
    for version, content in zip(versions, files, strict=True):
        mlflow_proxied.client.set_registered_model_alias("mover", "best", version)
        assert trees.read(alice.fetch("models:/mover@best").path) == content


@pytest.mark.filterwarnings("ignore:.*stages.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning")
def test_a_stage(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """A stage is the newest version in it; whatever else was registered since does not count."""
    for _ in range(3):
        mlflow_proxied.add_version("staged", mlflow_proxied.run({"m/a": os.urandom(100)}), "m")
    for version in ("1", "2"):
        mlflow_proxied.client.transition_model_version_stage("staged", version, "Production")
    fetched = alice.fetch("models:/staged/Production")
    assert fetched.version == "models:/staged/2"
    assert alice.fetch("models:/staged/production").version == fetched.version
    with pytest.raises(errors.NotFound):
        alice.fetch("models:/staged/Staging")


def test_latest_moves(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """`latest` is the newest version at the time of the call."""
    for content in (trees.unique(), trees.unique()):
        mlflow_proxied.add_version("grower", mlflow_proxied.run({f"m/{k}": v for k, v in content.items()}), "m")
        assert trees.read(alice.fetch("models:/grower/latest").path) == content


def test_a_bare_artifact_uri(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """`mlflow-artifacts:` names the bytes themselves."""
    run_id = mlflow_proxied.run(SMALL)
    assert trees.read(alice.fetch(mlflow_proxied.artifact_uri(run_id)).path) == SMALL
    assert trees.read(alice.fetch(f"{mlflow_proxied.artifact_uri(run_id)}/data").path) == trees.below(SMALL, "data")


@pytest.mark.parametrize("name", ["MLmodel", "data/weights.bin", "data/deep/er/one.txt", "empty.txt"])
def test_an_artifact_that_is_one_file(alice: Caller, mlflow_proxied: MlflowServer, dst: Path | None, name: str) -> None:
    """The path is that file itself, with the file's name in a view and the caller's name at a destination."""
    run_id = mlflow_proxied.run(SMALL)
    handed = alice.fetch(f"runs:/{run_id}/{name}", dst)
    assert handed.path.read_bytes() == SMALL[name]
    assert handed.path == dst or handed.path.name == Path(name).name
    assert (handed.file_count, handed.size_bytes) == (1, len(SMALL[name]))


def test_an_artifact_without_files(alice: Caller, mlflow_proxied: MlflowServer, dst: Path | None) -> None:
    """A run that logged nothing is an empty folder, not an error."""
    handed = alice.fetch(f"runs:/{mlflow_proxied.run({})}", dst)
    assert trees.read(handed.path) == {}
    assert handed.path.is_dir()
    assert (handed.file_count, handed.size_bytes, handed.origin_bytes) == (0, 0, 0)


def test_a_second_fetch_is_a_hit(alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """The first call takes exactly the artifact's bytes from the origin, the second none: by our count and by its."""
    files = trees.unique()
    run_id = mlflow_proxied.run(files)
    before = origin.bytes
    first = alice.fetch(f"runs:/{run_id}")
    assert (first.hit, first.origin_bytes) == (False, trees.size(files))
    assert origin.bytes - before == trees.size(files)
    second = alice.fetch(f"runs:/{run_id}", alice.cwd / "placed")
    assert (second.hit, second.origin_bytes, second.digest) == (True, 0, first.digest)
    assert origin.bytes - before == trees.size(files)
    assert trees.read(second.path) == files


def test_a_part_of_what_is_held(alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """A folder, a file and a selection below a tree that is held cost no bytes."""
    files = trees.unique()
    run_id = mlflow_proxied.run(files)
    alice.fetch(f"runs:/{run_id}")
    before = origin.bytes
    folder = alice.fetch(f"runs:/{run_id}/part")
    file = alice.fetch(f"runs:/{run_id}/part/1.bin")
    selected = alice.fetch(f"runs:/{run_id}", include=["**/2.bin"])
    assert origin.bytes == before
    assert (folder.hit, file.hit, selected.hit) == (True, True, True)
    assert trees.read(folder.path) == trees.below(files, "part")
    assert file.path.read_bytes() == files["part/1.bin"]
    assert trees.read(selected.path) == {"part/2.bin": files["part/2.bin"]}


@pytest.mark.parametrize("part", ["part", "part/1.bin", "selection"])
def test_the_rest_of_what_is_held(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer, part: str
) -> None:
    """The whole asked for after a part of it downloads only the rest."""
    files = trees.unique()
    run_id = mlflow_proxied.run(files)
    if part == "selection":
        held = alice.fetch(f"runs:/{run_id}", include=["part/*"]).size_bytes
    else:
        held = alice.fetch(f"runs:/{run_id}/{part}").size_bytes
    before = origin.bytes
    whole = alice.fetch(f"runs:/{run_id}")
    assert trees.read(whole.path) == files
    assert origin.bytes - before == trees.size(files) - held == whole.origin_bytes
    assert not whole.hit


def test_a_model_and_its_run_are_one_download(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """A model version whose files lie in a run that is held costs no bytes."""
    files = trees.unique()
    run_id = mlflow_proxied.run({f"m/{name}": data for name, data in files.items()})
    version = mlflow_proxied.add_version("shared", run_id, "m")
    alice.fetch(f"runs:/{run_id}")
    before = origin.bytes
    assert trees.read(alice.fetch(f"models:/shared/{version}").path) == files
    assert origin.bytes == before


SELECTABLE = {name: name.encode() for name in ("a.txt", "b.bin", "x/a.txt", "x/b.bin", "x/y/a.txt", "x/y/z/c.bin")}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.txt"], [], ["a.txt"]),
        (["**/*.txt"], [], ["a.txt", "x/a.txt", "x/y/a.txt"]),
        (["x/*"], [], ["x/a.txt", "x/b.bin"]),
        (["x/**"], [], ["x/a.txt", "x/b.bin", "x/y/a.txt", "x/y/z/c.bin"]),
        ([], ["**/*.bin"], ["a.txt", "x/a.txt", "x/y/a.txt"]),
        (["x/**"], ["x/y/**"], ["x/a.txt", "x/b.bin"]),
        (["a.txt", "x/?.bin"], [], ["a.txt", "x/b.bin"]),
        (["nothing"], [], []),
    ],
)
def test_include_and_exclude(
    alice: Caller, mlflow_proxied: MlflowServer, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    """Only what the patterns select is handed over, and only that is downloaded."""
    run_id = mlflow_proxied.run(SELECTABLE)
    handed = alice.fetch(f"runs:/{run_id}", alice.cwd / "dst", include=include, exclude=exclude)
    assert trees.read(handed.path) == {name: SELECTABLE[name] for name in expected}
    assert handed.origin_bytes == sum(len(SELECTABLE[name]) for name in expected)


def test_selected_download_takes_only_what_is_selected(
    alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """What is excluded is not asked of the origin."""
    run_id = mlflow_proxied.run(trees.unique())
    before = origin.bytes
    handed = alice.fetch(f"runs:/{run_id}", exclude=["part/**"])
    assert list(trees.read(handed.path)) == ["top"]
    assert origin.bytes - before == 10


def test_refresh_asks_the_origin_again(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """A run that changed after it had finished is seen with `refresh`; what was handed out before stays as it was."""
    run_id = mlflow_proxied.run({"a": b"old", "same": b"same"})
    old = alice.fetch(f"runs:/{run_id}", alice.cwd / "old")
    (mlflow_proxied.folder(run_id) / "a").write_bytes(b"new and longer")
    new = alice.fetch(f"runs:/{run_id}", alice.cwd / "new", refresh=True)
    assert trees.read(new.path) == {"a": b"new and longer", "same": b"same"}
    assert trees.read(old.path) == {"a": b"old", "same": b"same"}
    assert trees.read(alice.fetch(f"runs:/{run_id}").path) == trees.read(new.path)


def test_a_relative_destination(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """It is the caller's working directory that counts, not the daemon's."""
    handed = alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}", "here/there")
    assert trees.read(alice.cwd / "here" / "there") == SMALL
    assert os.path.abspath(alice.cwd / handed.path) == str(alice.cwd / "here" / "there")


def test_a_view_is_read_only(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """Nobody but the daemon can change a view or the bytes below it."""
    view = alice.fetch(f"runs:/{mlflow_proxied.run(SMALL)}")
    assert not view.writable
    attempts = {
        "write": "open(path + '/MLmodel', 'r+b')",
        "truncate": "os.truncate(path + '/MLmodel', 0)",
        "add": "open(path + '/new', 'wb')",
        "remove": "os.unlink(path + '/MLmodel')",
        "rename": "os.rename(path + '/data', path + '/atad')",
        "chmod": "os.chmod(path + '/MLmodel', 0o666)",
    }
    code = """
        result = []
        for name, attempt in attempts.items():
            try:
                eval(attempt)
                result.append(name)
            except OSError:
                pass
    """
    if os.geteuid() == 0:  # otherwise alice is the daemon's own user
        assert alice.run(code, path=str(view.path), attempts=attempts) == []
    for path in (view.path, *view.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)


def test_a_held_artifact_outlives_the_daemon(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, room: Path, caller_of: CallerOf
) -> None:
    """After a restart, and after a crash, everything is still held."""
    files = trees.unique()
    proxy = CountingProxy(mlflow_proxied.uri)
    daemon = start_daemon(proxy.uri)
    alice = caller_of(daemon, room)
    run_id = mlflow_proxied.run(files)
    digest = alice.fetch(f"runs:/{run_id}").digest
    daemon.restart()
    again = alice.fetch(f"runs:/{run_id}")
    assert (again.hit, again.digest, trees.read(again.path)) == (True, digest, files)
    daemon.kill()
    daemon.start()
    again = alice.fetch(f"runs:/{run_id}", alice.cwd / "dst")
    assert (again.hit, again.digest, trees.read(again.path)) == (True, digest, files)
    assert proxy.bytes == trees.size(files)
    proxy.disconnect()


def test_a_timeout_ends_the_call_and_not_the_download(
    daemon: Daemon, alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer
) -> None:
    """`timeout` raises DeadlineExceeded; the download goes on, so that the next call need not begin again."""
    files = {"a": os.urandom(1000)}
    run_id = mlflow_proxied.run(files)
    before = origin.bytes
    with origin.holding():
        with pytest.raises(errors.DeadlineExceeded):
            alice.fetch(f"runs:/{run_id}", alice.cwd / "dst", timeout=0.5)
        assert os.listdir(alice.cwd) == []
        origin.wait_for_download()
    assert trees.read(alice.fetch(f"runs:/{run_id}", alice.cwd / "dst").path) == files
    assert origin.bytes - before == trees.size(files)


def test_progress(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """`progress` is called with what is done, which only grows and ends at the whole."""
    files = trees.unique(files_count=20)
    code = """
        import artifactcache
        seen = []
        artifactcache.fetch(uri, dst, progress=lambda *args, **more: seen.append((args, more)))
        result = len(seen)
    """
    uri = f"runs:/{mlflow_proxied.run(files)}"
    assert alice.run(code, uri=uri, dst=str(alice.cwd / "dst")) > 0
