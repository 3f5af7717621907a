"""What finished runs have logged on this host is held before anybody asks for it, with a real tracking server."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.ingest import Logged, Shown, section
from tests.rig.mlflow_server import MlflowServer
from tests.rig.slow import slow_but
from tests.rig.until import until
from tests.rig.upkeep import call, held

Asks = Callable[[Daemon], Caller]
BIG_BYTES, PIECES = 16_000_000, 16
PAUSE_SECONDS = 0.003  # less than it takes to copy that


@pytest.fixture
def asks(caller_of: CallerOf, room: Path) -> Asks:
    """Who sees everything of a daemon."""
    return lambda daemon: caller_of(daemon, room, "root")


@pytest.fixture
def logged(mlflow_file: MlflowServer, room: Path) -> Logged:
    """An experiment whose runs have their artifacts in a folder of the test's own."""
    return Logged(mlflow_file, room / "mlartifacts")


def until_held(caller: Caller, daemon: Daemon, *uris: str) -> None:
    """Waits for what nobody has fetched."""
    missing = set(uris)

    def are_held() -> bool:
        missing.difference_update(held(caller))
        return not missing

    until(are_held, lambda: f"{missing}\n{daemon.read_log()}", 60)


def test_what_finished_is_held_before_anybody_asks(
    start_daemon: StartDaemon, mlflow_file: MlflowServer, proxy: CountingProxy, asks: Asks
) -> None:
    """Of a tracking server with a local artifact root: what was there before the daemon, and what comes later. The
    first fetch is a hit, of a part of it too."""
    before = mlflow_file.run({"model/weights": os.urandom(100_000), "notes": b"n"})
    daemon = start_daemon(mlflow_file.uri, more=section(mlflow_file.artifacts))
    caller = asks(daemon)
    after = mlflow_file.run({"a/b": b"later"})
    until_held(caller, daemon, f"runs:/{before}", f"runs:/{after}")
    for uri, size in ((f"runs:/{before}", 100_001), (f"runs:/{before}/model", 100_000), (f"runs:/{after}", 5)):
        found = caller.fetch(uri)
        assert (found.hit, found.origin_bytes, found.size_bytes) == (True, 0, size)


def test_a_model_is_held_by_all_of_its_names(start_daemon: StartDaemon, mlflow_file: MlflowServer, asks: Asks) -> None:
    """A real one, logged and registered as MLflow does it: its ID, its version and its alias take no byte from the
    origin."""
    info = mlflow_file.log_model("ingested")
    mlflow_file.client.set_registered_model_alias("ingested", "champion", "1")
    daemon = start_daemon(mlflow_file.uri, more=section(mlflow_file.artifacts))
    caller = asks(daemon)
    until_held(caller, daemon, f"models:/{info.model_id}")
    for uri in (f"models:/{info.model_id}", "models:/ingested/1", "models:/ingested@champion"):
        found = caller.fetch(uri)
        assert (found.hit, found.origin_bytes) == (True, 0) and (found.path / "MLmodel").is_file()


def test_a_folder_of_mlruns(start_daemon: StartDaemon, room: Path, asks: Asks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server: the tracking URI is the folder itself. What was running when it was seen is held when it has
    finished."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{room}/mlruns", f"file:{room}/mlruns")
    experiment = client.create_experiment("plain")
    run, model = client.create_run(experiment), client.create_logged_model(experiment, "m")
    trees.plant(Path(run.info.artifact_uri.removeprefix("file:")), {"a": b"1"})
    trees.plant(Path(model.artifact_location.removeprefix("file:")), {"b": b"22"})
    daemon = start_daemon(f"file:{room}/mlruns", env={"MLFLOW_ALLOW_FILE_STORE": "true"}, more=section(room / "mlruns"))
    caller = asks(daemon)
    late = client.create_run(experiment)
    trees.plant(Path(late.info.artifact_uri.removeprefix("file:")), {"c": b"333"})
    client.set_terminated(late.info.run_id)
    until_held(caller, daemon, f"runs:/{late.info.run_id}")
    assert set(held(caller)) == {f"runs:/{late.info.run_id}"}
    client.set_terminated(run.info.run_id)
    client.finalize_logged_model(model.model_id, "READY")
    until_held(caller, daemon, f"runs:/{run.info.run_id}", f"models:/{model.model_id}")
    assert caller.fetch(f"runs:/{run.info.run_id}/a").origin_bytes == 0


def test_a_server_that_hands_out_its_files_itself(
    start_daemon: StartDaemon, mlflow_proxied: MlflowServer, proxy: CountingProxy, asks: Asks
) -> None:
    """The bytes come the way that they always come, and the first fetch is a hit."""
    run = mlflow_proxied.run({"a": b"1", "b/c": os.urandom(1000)})
    daemon = start_daemon(proxy.uri, more=section(mlflow_proxied.artifacts))
    caller = asks(daemon)
    until_held(caller, daemon, f"runs:/{run}")
    fetched = caller.fetch(f"runs:/{run}")  # what others have logged there may still be coming
    assert fetched.hit and fetched.origin_bytes == 0


def test_a_run_that_is_running_is_not_brought(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """Nor is one that has failed. When it has finished, it is, with all that was logged by then."""
    running, failed = logged.run({"a": b"1"}, status=None), logged.run({"a": b"1"}, status="FAILED")
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    caller = asks(daemon)
    until_held(caller, daemon, f"runs:/{logged.run({'b': b'2'})}")
    logged.add(running, {"late": b"3"})
    until_held(caller, daemon, f"runs:/{logged.run({'c': b'2'})}")
    assert not {f"runs:/{running}", f"runs:/{failed}"} & set(held(caller))
    logged.finish(running)
    until_held(caller, daemon, f"runs:/{running}")
    assert trees.read(caller.fetch(f"runs:/{running}").path) == {"a": b"1", "late": b"3"}


def test_a_file_that_grows_is_brought_again(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """Somebody goes on writing, deep in a run that has finished: what is given is never half of it for long, and in the
    end it is all of it, though nobody has asked in between."""
    run = logged.run({"deep/er/log": b"begin\n"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root, settle=3.0))
    caller = asks(daemon)
    path = logged.folder(run) / "deep/er/log"
    until(lambda: f"ingested uri=runs:/{run} " in daemon.read_log(), daemon.read_log)
    with path.open("ab") as file:  # while it waits for its second look
        file.write(b"end\n")
    until(lambda: held(caller)[f"runs:/{run}"]["size_bytes"] == path.stat().st_size, daemon.read_log)
    found = caller.fetch(f"runs:/{run}")
    assert found.hit and (found.path / "deep/er/log").read_bytes() == b"begin\nend\n"


def test_what_is_written_without_a_pause_is_never_given_torn(
    start_daemon: StartDaemon, logged: Logged, asks: Asks
) -> None:
    """A file that is rewritten in its place, with as many bytes, while it is copied: by a fetch, or because the writer
    has paused for longer than `settle`. What comes is of one pass, unless the writer, who is given no core, say, has
    paused in the middle of one: nothing shows that it is not the end. And the last one comes, when that has ended."""
    run = logged.run({"big": b"0" * BIG_BYTES})
    path = logged.folder(run) / "big"
    daemon = start_daemon(logged.server.uri, more=section(logged.root, settle=0.01))
    caller = asks(daemon)
    torn: list[tuple[float, float]] = []
    with rewritten(path) as writes:
        for number in range(8):
            began = time.monotonic()
            with contextlib.suppress(errors.Corrupted):  # it was on its way, and was written to meanwhile
                got = (caller.fetch(f"runs:/{run}", room_for(logged, number), refresh=True).path / "big").read_bytes()
                assert len(got) == BIG_BYTES
                if len(set(got)) > 1:
                    torn.append((began, time.monotonic()))
    pauses = [pair for pair in itertools.pairwise(writes) if pair[1] - pair[0] > PAUSE_SECONDS]
    for began, ended in torn:
        assert any(before < ended and began < after for before, after in pauses)
    until(lambda: f"runs:/{run}" in held(caller), daemon.read_log)
    until(lambda: (caller.fetch(f"runs:/{run}").path / "big").read_bytes() == path.read_bytes(), daemon.read_log)


@contextlib.contextmanager
def rewritten(path: Path) -> Iterator[list[float]]:
    """A file is written again and again, from one end to the other, for as long as this lasts. In pieces: the kernel
    notes the time of each write(2) at its beginning, and one that lasts longer than the copy would not show. Gives the
    times when they began."""
    over, writes = threading.Event(), list[float]()

    def write() -> None:
        for number in itertools.count(1):
            with path.open("r+b", buffering=0) as file:
                for _ in range(PIECES):
                    writes.append(time.monotonic())
                    file.write(str(number % 10).encode() * (BIG_BYTES // PIECES))
            if over.wait(0.03 if number % 3 == 0 else 0):
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield writes
    finally:
        over.set()
        writer.join()


def room_for(logged: Logged, number: int) -> Path:
    """A destination."""
    return logged.root.parent / f"copy-{number}"


@pytest.mark.parametrize(
    "what", slow_but(["a run", "an experiment", "a model's folder"], lambda what: what != "an experiment")
)
def test_what_is_renamed_into_place(start_daemon: StartDaemon, logged: Logged, asks: Asks, what: str) -> None:
    """As rsync and a restore do it: its own times are old, and only its name is new."""
    if what == "a model's folder":
        name = logged.model({"a": b"1"})
        moved, uri = logged.root / logged.name / "models", f"models:/{name}"
    else:
        run = logged.run({"a": b"1"})
        uri = f"runs:/{run}"
        moved = logged.root / logged.name / (run if what == "a run" else "")
    aside = logged.root.parent / "aside"
    moved.rename(aside)
    other = Logged(logged.server, logged.root)
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    caller = asks(daemon)
    until_held(caller, daemon, f"runs:/{other.run({'b': b'2'})}")
    aside.rename(moved)
    until_held(caller, daemon, uri)


def test_a_burst_of_runs(start_daemon: StartDaemon, mlflow_file: MlflowServer, asks: Asks, shown: Shown) -> None:
    """Three hundred finish within seconds: all are brought, among whatever other tests have logged there."""
    daemon = start_daemon(mlflow_file.uri, more=section(mlflow_file.artifacts) + shown.section)
    caller = asks(daemon)
    uris = {f"runs:/{mlflow_file.run({f'{number}': os.urandom(100)})}" for number in range(300)}
    until(
        lambda: uris <= set(held(caller)),
        lambda: f"{len(uris - set(held(caller)))} are missing\n{shown.all()}\n{daemon.read_log()[-3000:]}",
        120,
    )


@pytest.fixture
def shown() -> Shown:
    """Where a daemon shows its metrics."""
    return Shown()


def test_a_restart_brings_what_came_meanwhile_and_nothing_twice(
    start_daemon: StartDaemon, logged: Logged, asks: Asks, shown: Shown
) -> None:
    """What is held is the memory of what was done."""
    first = logged.run({"a": b"1"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root) + shown.section)
    caller = asks(daemon)
    until_held(caller, daemon, f"runs:/{first}")
    daemon.stop()
    second = logged.run({"b": b"22"})
    daemon.start()
    until_held(caller, daemon, f"runs:/{second}")
    until(lambda: shown.value("ingest_waiting") == 0, daemon.read_log)
    assert daemon.read_log().count(f"ingested uri=runs:/{first} ") == 1
    assert shown.value("ingested_bytes_total") == 2


def test_a_tracking_server_that_is_away_is_asked_later(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """It is told once, and what has finished meanwhile comes when it is back."""
    proxy = CountingProxy(logged.server.uri)
    run = logged.run({"a": b"1"})
    with proxy.down():
        daemon = start_daemon(proxy.uri, more=section(logged.root))
        until(lambda: "nothing is ingested until" in daemon.read_log(), daemon.read_log)
        logged.run({"b": b"1"})
        assert not held(asks(daemon))
    until_held(asks(daemon), daemon, f"runs:/{run}")
    assert daemon.read_log().count("nothing is ingested until") == 1
    proxy.disconnect()


def test_a_run_that_is_deleted_before_is_left(start_daemon: StartDaemon, logged: Logged, asks: Asks) -> None:
    """Be it that only the tracking server has deleted it, that its folder has gone too, or that nobody knows it."""
    deleted, gone = logged.run({"a": b"1"}), logged.run({"a": b"1"})
    for run in (deleted, gone):
        logged.server.client.delete_run(run)
    trees.plant(logged.root / logged.name / ("0" * 32) / "artifacts", {"a": b"1"})
    (logged.folder(gone) / "a").unlink()
    other = logged.run({"b": b"2"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root))
    until_held(asks(daemon), daemon, f"runs:/{other}")
    assert set(held(asks(daemon))) == {f"runs:/{other}"}


def test_a_folder_is_a_hint_and_no_more(
    start_daemon: StartDaemon, mlflow_file: MlflowServer, logged: Logged, asks: Asks, shown: Shown
) -> None:
    """Whoever may write there cannot have the daemon bring what lies elsewhere, by a folder of its name."""
    elsewhere = mlflow_file.run({"a": os.urandom(1000)})
    trees.plant(logged.root / logged.name / elsewhere / "artifacts", {"a": b"1"})
    daemon = start_daemon(mlflow_file.uri, more=section(logged.root) + shown.section)
    until(lambda: shown.value("ingested_artifacts_total", result="elsewhere") == 1, daemon.read_log)
    assert not held(asks(daemon))


def test_what_a_rule_drops_at_once_is_not_brought(
    start_daemon: StartDaemon, logged: Logged, asks: Asks, shown: Shown
) -> None:
    """By what the tracking server says of it; the others are."""
    scratch, kept = logged.run({"a": b"1"}, tags={"scratch": "yes"}), logged.run({"b": b"2"})
    rule = '[[retention]]\nname = "scratch"\ntag = { scratch = "yes" }\ndrop = "0s"\n'
    daemon = start_daemon(logged.server.uri, more=section(logged.root) + shown.section + rule)
    until_held(asks(daemon), daemon, f"runs:/{kept}")
    until(lambda: shown.value("ingested_artifacts_total", result="dropped") == 1, daemon.read_log)
    assert f"runs:/{scratch}" not in held(asks(daemon)) and scratch not in daemon.read_log()


def test_a_full_store_is_left_to_those_who_fetch(
    start_daemon: StartDaemon, logged: Logged, asks: Asks, shown: Shown
) -> None:
    """Nothing is evicted for what nobody has asked for, one line says so, and whoever fetches it has room made."""
    mine, late = logged.run({"a": os.urandom(800_000)}), logged.run({"b": os.urandom(300_000)})
    logged.hide(late)
    daemon = start_daemon(logged.server.uri, capacity="1MiB", grace=0.0, more=section(logged.root) + shown.section)
    caller = asks(daemon)
    caller.fetch(f"runs:/{mine}")
    logged.show(late)
    until(lambda: "the store has no room to ingest more" in daemon.read_log(), daemon.read_log)
    assert set(held(caller)) == {f"runs:/{mine}"} and shown.value("evicted_trees_total", why="room") == 0
    assert caller.fetch(f"runs:/{late}").size_bytes == 300_000
    assert daemon.read_log().count("no room to ingest") == 1
    assert set(held(caller)) == {f"runs:/{late}"}


def test_the_configuration_may_change(start_daemon: StartDaemon, logged: Logged, asks: Asks, shown: Shown) -> None:
    """A folder that is added is looked at; one that is taken out is watched no more."""
    other = Logged(logged.server, logged.root.parent / "other")
    first, second = logged.run({"a": b"1"}), other.run({"b": b"2"})
    daemon = start_daemon(logged.server.uri, more=section(logged.root) + shown.section)
    caller, path = asks(daemon), daemon.folder / "config.toml"
    until_held(caller, daemon, f"runs:/{first}")
    path.write_text(path.read_text().replace(json.dumps([str(logged.root)]), json.dumps([str(other.root)])))
    until_held(caller, daemon, f"runs:/{second}")
    late, third = logged.run({"c": b"3"}), other.run({"d": b"4"})
    until_held(caller, daemon, f"runs:/{third}")
    assert f"runs:/{late}" not in held(caller)
    path.write_text(path.read_text().replace(json.dumps([str(other.root)]), "[]"))
    until(lambda: shown.value("ingest_watched_folders") == 0, daemon.read_log)
    assert call(caller, "stats")["artifact_count"] == 3
