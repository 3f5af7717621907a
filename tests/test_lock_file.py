"""The lock file: the same bytes every time, whatever an alias says today, or a failure that names what differs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.locking import OTHER, Model, edit, refused, succeed
from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import SMALL

WRONG = "0" * 64


@pytest.fixture
def model_of_two(mlflow_proxied: MlflowServer) -> Model:
    """A model of the test's own."""
    return Model(mlflow_proxied)


@pytest.fixture
def lock_file(alice: Caller, model_of_two: Model) -> Path:
    """A lock of the model and of its second run, in alice's folder."""
    succeed(alice, "lock", model_of_two.uri, f"runs:/{model_of_two.runs[1]}/m")
    return alice.cwd / "artifacts.lock"


def test_an_alias_that_moves(alice: Caller, model_of_two: Model, lock_file: Path) -> None:
    """What was locked is what comes, byte for byte, and the file says what it is; locking again follows the alias."""
    found = {each["name"]: each for each in json.loads(lock_file.read_text())["artifacts"]}
    locked = found[model_of_two.name]
    assert (locked["uri"], locked["version"]) == (model_of_two.uri, f"models:/{model_of_two.name}/1")
    assert (locked["file_count"], locked["size_bytes"]) == (trees.count(SMALL), trees.size(SMALL))
    model_of_two.point_at(2)
    assert alice.fetch(model_of_two.uri).digest != locked["digest"]
    done = succeed(alice, "sync", "--locked", lock_file, "here/models")
    assert {each["name"]: each["path"] for each in done} == {
        name: str(alice.cwd / "here" / "models" / name) for name in (model_of_two.name, "m")
    }
    assert trees.read(alice.cwd / "here" / "models" / model_of_two.name) == SMALL
    assert trees.read(alice.cwd / "here" / "models" / "m") == OTHER
    assert sorted(os.listdir(alice.cwd / "here" / "models")) == sorted((model_of_two.name, "m"))
    edit(lock_file, lambda lock: lock["artifacts"][0].update(name="mine"))
    again = succeed(alice, "lock")
    assert {each["name"]: each["digest"] for each in again["artifacts"]}.keys() >= {"mine"}
    assert locked["digest"] not in lock_file.read_text()


def test_the_same_is_the_same_text(alice: Caller, model_of_two: Model) -> None:
    """The order of the URIs, and saying one twice, change no byte; it ends with a newline; no temporary file stays."""
    uris = (model_of_two.uri, f"runs:/{model_of_two.runs[1]}/m")
    texts = set()
    for number, order in enumerate((uris, uris[::-1], (*uris, *uris))):
        assert alice.command("lock", *order, "-o", f"{number}.lock").returncode == 0
        texts.add((alice.cwd / f"{number}.lock").read_text())
        texts.add(alice.command("lock", *order, "-o", "-").stdout)
    assert len(texts) == 1
    assert texts.pop().endswith("}\n")
    assert sorted(os.listdir(alice.cwd)) == ["0.lock", "1.lock", "2.lock"]


def test_patterns_are_kept(alice: Caller, model_of_two: Model) -> None:
    """The digest is that of the selection, and so is what comes."""
    succeed(alice, "lock", model_of_two.uri, "--include", "data/**", "--exclude", "**/*.bin", "-o", "part.lock")
    succeed(alice, "sync", "--locked", "part.lock", "out")
    assert trees.read(alice.cwd / "out" / model_of_two.name) == {"data/deep/er/one.txt": b"one\n"}
    succeed(alice, "lock", "-o", "part.lock")
    assert json.loads((alice.cwd / "part.lock").read_text())["artifacts"][0]["include"] == ["data/**"]


def test_one_file_and_odd_names(
    alice: Caller, mlflow_file: MlflowServer, start_daemon: StartDaemon, room: Path, caller_of: CallerOf
) -> None:
    """An artifact that is one file is a file in the folder; a `file:` version with escapes in its name comes again."""
    mine = caller_of(start_daemon(mlflow_file.uri), room)
    run = mlflow_file.run({"data/a%20b c": b"1", "data/plain": b"2"})
    os.chmod(mlflow_file.artifacts, 0o755)
    escaped = f"{mlflow_file.artifact_uri(run)}/data/a%2520b%20c"
    succeed(mine, "lock", escaped, f"runs:/{run}/data/plain")
    succeed(mine, "sync", "--locked", "artifacts.lock", "out")
    assert trees.read(mine.cwd / "out") == {"a%20b c": b"1", "plain": b"2"}


def test_without_a_folder(
    alice: Caller, start_daemon: StartDaemon, room: Path, caller_of: CallerOf, origin: CountingProxy, lock_file: Path
) -> None:
    """On a host whose store is new everything is made present, and nothing is placed."""
    fresh = caller_of(start_daemon(origin.uri), room, "bob")
    done = succeed(fresh, "sync", "--locked", lock_file)
    assert [(each["hit"], each["path"], each["mode"]) for each in done] == [(False, None, None)] * 2
    assert os.listdir(fresh.cwd) == []
    versions = {each["version"] for each in succeed(fresh, "ls")}
    assert versions >= {each["version"] for each in done}
    assert [each["hit"] for each in succeed(fresh, "sync", "--locked", lock_file)] == [True, True]


def test_with_the_origin_down(alice: Caller, model_of_two: Model, origin: CountingProxy, lock_file: Path) -> None:
    """What is held is enough; but an alias cannot be locked then, and the old lock file stays as it is."""
    before = lock_file.read_bytes()
    with origin.down():
        succeed(alice, "sync", "--locked", lock_file, "out")
        assert refused(alice, "lock", model_of_two.uri, status=1)[0] == "OriginUnavailable"
    assert trees.read(alice.cwd / "out" / model_of_two.name) == SMALL
    assert lock_file.read_bytes() == before


def test_a_wrong_digest(alice: Caller, model_of_two: Model, lock_file: Path) -> None:
    """It fails with the entry and both digests, also where the entry is the last, and DIR stays as it was."""
    succeed(alice, "sync", "--locked", lock_file, "out")
    trees.plant(alice.cwd / "out" / "m", {"mine": b"kept"})
    before = trees.read(alice.cwd / "out")
    right = json.loads(lock_file.read_text())["artifacts"][-1]
    edit(lock_file, lambda lock: lock["artifacts"][-1].update(digest=WRONG))
    for folder in ("out", "new"):
        error, message = refused(alice, "sync", "--locked", lock_file, folder, status=1)
        assert error == "Corrupted"
        assert all(word in message for word in (right["name"], WRONG, right["digest"], str(lock_file)))
    assert trees.read(alice.cwd / "out") == before
    assert not (alice.cwd / "new").exists()


def test_a_wrong_digest_with_the_origin_down(alice: Caller, origin: CountingProxy, lock_file: Path) -> None:
    """What is held is not given out for what was locked: it says that the origin has to be asked."""
    edit(lock_file, lambda lock: lock["artifacts"][0].update(digest=WRONG))
    with origin.down():
        error, message = refused(alice, "sync", "--locked", lock_file, status=1)
    assert error == "OriginUnavailable"
    assert WRONG in message


def test_a_run_that_was_rewritten(
    alice: Caller,
    daemon: Daemon,
    start_daemon: StartDaemon,
    room: Path,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
    origin: CountingProxy,
) -> None:
    """Where it is held it is what was locked; a new store gets the new bytes and says which artifact they are of."""
    run = mlflow_proxied.run({"kept/a": b"old"})
    succeed(alice, "lock", f"runs:/{run}/kept")
    trees.plant(mlflow_proxied.folder(run), {"kept/a": b"new"})
    succeed(alice, "sync", "--locked", "artifacts.lock", "out")
    assert trees.read(alice.cwd / "out" / "kept") == {"a": b"old"}
    fresh = caller_of(start_daemon(origin.uri), room, "bob")
    lock = alice.cwd / "artifacts.lock"
    error, message = refused(fresh, "sync", "--locked", lock, "out", status=1)
    assert error == "Corrupted"
    assert "kept" in message
    assert os.listdir(fresh.cwd) == []
    trees.plant(mlflow_proxied.folder(run), {"kept/a": b"old"})
    succeed(fresh, "sync", "--locked", lock, "out")  # the origin was mended: what is held is not the last word
    assert trees.read(fresh.cwd / "out" / "kept") == {"a": b"old"}


def test_a_run_that_is_still_running(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """It can be locked, as everything can; that it has gone on since is told, and not handed out."""
    run = mlflow_proxied.client.create_run(mlflow_proxied.experiment).info.run_id
    trees.plant(mlflow_proxied.folder(run), {"logs/1": b"one"})
    try:
        succeed(alice, "lock", f"runs:/{run}/logs")
        succeed(alice, "sync", "--locked", "artifacts.lock", "out")
        trees.plant(mlflow_proxied.folder(run), {"logs/2": b"two"})
        assert refused(alice, "sync", "--locked", "artifacts.lock", "out", status=1)[0] == "Corrupted"
        assert trees.read(alice.cwd / "out") == {"logs/1": b"one"}
    finally:
        mlflow_proxied.client.set_terminated(run)


def test_a_run_that_goes_on_meanwhile(
    alice: Caller,
    start_daemon: StartDaemon,
    room: Path,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
    origin: CountingProxy,
) -> None:
    """Of a tree that was right when it was compared, and is another when it is to be placed, nothing is placed."""
    run = mlflow_proxied.client.create_run(mlflow_proxied.experiment).info.run_id
    trees.plant(mlflow_proxied.folder(run), {"a/1": b"one", "b/1": b"two"})
    fresh = caller_of(start_daemon(origin.uri), room, "bob")
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            client.sync(lock, "out")
    """
    try:
        succeed(alice, "lock", f"runs:/{run}/a", f"runs:/{run}/b")
        succeed(fresh, "warm", f"runs:/{run}/a")
        with contextlib.ExitStack() as stack:
            with origin.holding():
                job = stack.enter_context(fresh.start(code, lock=str(alice.cwd / "artifacts.lock")))
                origin.wait_for_download()  # of b, so that a was compared already
                trees.plant(mlflow_proxied.folder(run), {"a/2": b"three"})
            with pytest.raises(errors.Corrupted, match=r"a: it has the digest"):
                job.result()
        assert os.listdir(fresh.cwd) == []
    finally:
        mlflow_proxied.client.set_terminated(run)


def test_what_cannot_be_asked_is_not_locked(alice: Caller, mlflow_proxied: MlflowServer, origin: CountingProxy) -> None:
    """A run that was running is held, but with the origin down nobody knows whether that is still what it has."""
    run = mlflow_proxied.client.create_run(mlflow_proxied.experiment).info.run_id
    trees.plant(mlflow_proxied.folder(run), {"logs/1": b"one"})
    try:
        succeed(alice, "warm", f"runs:/{run}/logs")
        with origin.down():
            assert refused(alice, "lock", f"runs:/{run}/logs", status=1)[0] == "OriginUnavailable"
    finally:
        mlflow_proxied.client.set_terminated(run)
    assert os.listdir(alice.cwd) == []


def test_another_origin(
    alice: Caller,
    start_daemon: StartDaemon,
    room: Path,
    caller_of: CallerOf,
    mlflow_file: MlflowServer,
    origin: CountingProxy,
    lock_file: Path,
) -> None:
    """Both are named, and nothing is fetched; a slash at the end is no difference."""
    edit(lock_file, lambda lock: lock.update(tracking_uri=lock["tracking_uri"] + "/"))
    succeed(alice, "sync", "--locked", lock_file)
    other = caller_of(start_daemon(mlflow_file.uri), room, "bob")
    error, message = refused(other, "sync", "--locked", lock_file)
    assert error == "InvalidRequest"
    assert origin.uri in message
    assert mlflow_file.uri in message
    assert succeed(other, "ls") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lock: lock["artifacts"][0].update(digset="x"), "did you mean 'digest'"),
        (lambda lock: lock["artifacts"][0].update(name="../x"), "slash"),
        (lambda lock: lock["artifacts"][0].update(name=".."), "no name"),
        (lambda lock: lock["artifacts"][0].update(name=lock["artifacts"][1]["name"]), "name of its own"),
        (lambda lock: lock["artifacts"][0].update(size_bytes=1), "the lock says"),
        (lambda lock: lock.update(format=2), "newer"),
        (lambda lock: lock.update(artifacts={}), "list"),
        (lambda lock: lock.update(tracking_uri="http://u:hunter2@h"), "password"),
    ],
)
def test_edited_by_hand(alice: Caller, lock_file: Path, change: Callable[[Any], object], words: str) -> None:
    """It is refused in words, by the file's name, before anything is placed, with and without --json."""
    edit(lock_file, change)
    error, message = refused(alice, "sync", "--locked", lock_file, "out")
    assert error == "InvalidRequest"
    assert str(lock_file) in message
    assert words in message
    assert "hunter2" not in message
    done = alice.command("sync", "--locked", lock_file, "out")
    assert str(lock_file) in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(alice.cwd) == ["artifacts.lock"]


def test_an_alias_for_a_version(alice: Caller, model_of_two: Model, lock_file: Path) -> None:
    """Whoever writes an alias where the version belongs is told what it stands for."""
    edit(lock_file, lambda lock: [each.update(version=each["uri"]) for each in lock["artifacts"]])
    error, message = refused(alice, "sync", "--locked", lock_file)
    assert error == "InvalidRequest"
    assert f"models:/{model_of_two.name}/1" in message


def test_files_that_are_no_lock(alice: Caller, lock_file: Path) -> None:
    """Cut off, empty, binary, a folder, missing: each is refused in a line."""
    whole = lock_file.read_bytes()
    (alice.cwd / "folder").mkdir()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("binary", b"\xff\x00" * 100)):
        (alice.cwd / name).write_bytes(content)
    for name in ("cut", "empty", "binary", "folder", "missing"):
        error, message = refused(alice, "sync", "--locked", name)
        assert error == "InvalidRequest"
        assert name in message
    (alice.cwd / "binary").write_bytes(b" " * (17 << 20))
    assert "larger" in refused(alice, "sync", "--locked", "binary")[1]


@pytest.mark.parametrize(
    "uri",
    [
        "https://alice:hunter2@example.com/api/2.0/mlflow-artifacts/artifacts/x",
        "https://hunter2@example.com/x",
        "s3://key:hunter2@bucket/x",
        "models://hunter2@databricks/x/1",
        "https://bucket.example.com/x?X-Amz-Signature=hunter2",
        "abfss://container@account.example.com/x?sig=hunter2",
    ],
)
def test_secrets_do_not_get_in(alice: Caller, daemon: Daemon, lock_file: Path, uri: str) -> None:
    """A URI with one is refused before the daemon hears of it; a file with one is refused without repeating it."""
    before = lock_file.read_bytes()
    for arguments in (("lock", uri), ("lock", uri, "-o", "-")):
        error, message = refused(alice, *arguments)
        assert error == "InvalidRequest"
        assert "hunter2" not in message
    assert lock_file.read_bytes() == before
    for key in ("uri", "version"):
        document = json.loads(before)
        document["artifacts"][0][key] = uri
        lock_file.write_text(json.dumps(document))
        for command in (("sync", "--locked", "artifacts.lock"), ("lock",)):
            done = alice.command(*command)
            assert done.returncode == 2
            assert "hunter2" not in done.stdout + done.stderr
    assert "hunter2" not in daemon.read_log()


def test_a_file_that_cannot_be_written(alice: Caller, model_of_two: Model, origin: CountingProxy) -> None:
    """In a folder that is missing, or not alice's, or as a folder: told before anything is downloaded."""
    (alice.cwd / "folder").mkdir()
    for output, error in (("no/such/x.lock", "InvalidRequest"), ("folder", "InvalidRequest")):
        assert refused(alice, "lock", model_of_two.uri, "-o", output)[0] == error
    if alice.user is not None:
        assert refused(alice, "lock", model_of_two.uri, "-o", "/usr/x.lock", status=1)[0] == "PermissionDenied"
    assert not any(model_of_two.runs[0] in path for path in origin.bytes_by_path)
    assert os.listdir(alice.cwd / "folder") == []


def test_one_that_cannot_be_locked(alice: Caller, model_of_two: Model, lock_file: Path) -> None:
    """Where one URI of several leads nowhere the old file stays, whole."""
    before = lock_file.read_bytes()
    assert refused(alice, "lock", model_of_two.uri, f"runs:/{'0' * 32}", status=1)[0] == "NotFound"
    assert lock_file.read_bytes() == before
    assert os.listdir(alice.cwd) == ["artifacts.lock"]


def test_wrong_command_lines(alice: Caller, lock_file: Path) -> None:
    """`sync` needs a file, `lock` on standard output a URI, and patterns go with a URI."""
    assert alice.command("sync", "out").returncode == 2
    assert refused(alice, "lock", "-o", "-")[0] == "InvalidRequest"
    assert refused(alice, "lock", "--include", "*")[0] == "InvalidRequest"
    assert refused(alice, "lock", "-o", "missing.lock")[0] == "InvalidRequest"


def test_in_python(alice: Caller, model_of_two: Model) -> None:
    """`Client.lock`, `Lock.text` and `Client.sync` do the same, and a lock made by hand is checked as well."""
    code = """
        import artifactcache, dataclasses
        with artifactcache.Client() as client:
            lock = client.lock(uri)
            open("x.lock", "w").write(lock.text())
            leases = client.stats().lease_count
            done = [client.sync(lock, "a", mode="copy"), client.sync("x.lock", "b")]
            evil = dataclasses.replace(lock, artifacts=(dataclasses.replace(lock.artifacts[0], name="../x"),))
            result = [[each[0].name for each in done], client.stats().lease_count - leases]
            say(result)
            client.sync(evil, "c")
    """
    with alice.start(code, uri=model_of_two.uri) as job:
        assert job.hear() == [[model_of_two.name] * 2, 0]
        with pytest.raises(errors.InvalidRequest, match="slash"):
            job.result()
    assert sorted(os.listdir(alice.cwd)) == ["a", "b", "x.lock"]
    for folder in ("a", "b"):
        assert trees.read(alice.cwd / folder / model_of_two.name) == SMALL


def test_a_folder_that_cannot_be_made(alice: Caller, lock_file: Path) -> None:
    """Where a file is in the way the file stays."""
    (alice.cwd / "file").write_bytes(b"mine")
    error, message = refused(alice, "sync", "--locked", lock_file, "file")
    assert error == "InvalidRequest"
    assert "file" in message
    assert (alice.cwd / "file").read_bytes() == b"mine"
