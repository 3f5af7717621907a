"""What changes at a real origin, and when that is noticed: by a listing again, by an alias, by `refresh`."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer

FILES: trees.Files = {"config": b"config", "weights/best": b"x" * 50_000, "weights/last": b"y" * 50_000}
REWRITTEN = b"z" * 50_000  # with as many bytes: no listing shows it
TAG_BYTES_MAX = 2 * len(FILES)  # an entity tag is asked for with the file's first byte


@pytest.fixture
def wary(start_daemon: StartDaemon, proxy: CountingProxy, room: Path, caller_of: CallerOf) -> Caller:
    """A caller whose daemon trusts nothing: it lists again by every fetch."""
    return caller_of(start_daemon(proxy.uri, relist_after=0.0), room)


def test_a_finished_run_that_changes(wary: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """Only what was rewritten or added is downloaded, what was removed is dropped, and the rest costs its tags."""
    run_id = mlflow_proxied.run(FILES)
    wary.fetch(f"runs:/{run_id}")
    again, before = wary.fetch(f"runs:/{run_id}"), proxy.bytes
    assert (again.hit, again.stale) == (True, False)
    folder = mlflow_proxied.folder(run_id)
    trees.plant(folder, {"weights/last": REWRITTEN, "more": b"more"})
    (folder / "config").unlink()
    handed = wary.fetch(f"runs:/{run_id}", "dst")
    assert trees.read(handed.path) == {
        "more": b"more",
        "weights/best": FILES["weights/best"],
        "weights/last": REWRITTEN,
    }
    taken = len(REWRITTEN) + len(b"more")
    assert handed.origin_bytes == taken and taken <= proxy.bytes - before <= taken + TAG_BYTES_MAX


def test_a_local_run_that_changes(
    start_daemon: StartDaemon, mlflow_file: MlflowServer, room: Path, caller_of: CallerOf
) -> None:
    """The same where the artifacts lie in a folder of this host."""
    roots = (str(mlflow_file.artifacts),)
    wary = caller_of(start_daemon(mlflow_file.uri, relist_after=0.0, local_roots=roots), room)
    run_id = mlflow_file.run(FILES)
    wary.fetch(f"runs:/{run_id}")
    assert wary.fetch(f"runs:/{run_id}").hit
    trees.plant(mlflow_file.folder(run_id), {"weights/last": REWRITTEN})
    handed = wary.fetch(f"runs:/{run_id}", "dst")
    assert trees.read(handed.path) == FILES | {"weights/last": REWRITTEN}
    assert (handed.origin_bytes, handed.transport) == (len(REWRITTEN), "file")


def test_a_trusted_run_that_changes(alice: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """Within its time it is served as it was; `refresh` compares everything now, and downloads what differs."""
    run_id = mlflow_proxied.run(FILES)
    alice.fetch(f"runs:/{run_id}")
    trees.plant(mlflow_proxied.folder(run_id), {"weights/last": REWRITTEN})
    before = origin.request_count
    assert trees.read(alice.fetch(f"runs:/{run_id}").path) == FILES and origin.request_count == before
    fresh = alice.fetch(f"runs:/{run_id}", refresh=True)
    assert trees.read(fresh.path) == FILES | {"weights/last": REWRITTEN} and fresh.origin_bytes == len(REWRITTEN)
    again = alice.fetch(f"runs:/{run_id}", refresh=True)
    assert (again.hit, again.digest) == (True, fresh.digest)


def test_a_checkpoint_of_a_running_run(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """It is rewritten again and again with as many bytes: each fetch hands out the one that is there."""
    client = mlflow_proxied.client
    run_id: str = client.create_run(mlflow_proxied.experiment).info.run_id
    for step in (b"1", b"2", b"3"):
        trees.plant(mlflow_proxied.folder(run_id), {"last.ckpt": step * 1000, "log": b"log"})
        assert alice.fetch(f"runs:/{run_id}/last.ckpt").path.read_bytes() == step * 1000
    client.set_terminated(run_id)
    handed = alice.fetch(f"runs:/{run_id}")
    assert trees.read(handed.path) == {"last.ckpt": b"3" * 1000, "log": b"log"}
    assert handed.origin_bytes == len(b"log"), "what the entity tag proves is not downloaded again"


def test_a_rollback(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """An alias that moves back is served at once, and from the store."""
    runs = [mlflow_proxied.run({"model/weights": content}) for content in (b"one", b"two")]
    for run_id in runs:
        mlflow_proxied.add_version("rollback", run_id, "model")
    for number, content, hit in (("1", b"one", False), ("2", b"two", False), ("1", b"one", True)):
        mlflow_proxied.client.set_registered_model_alias("rollback", "champion", number)
        handed = alice.fetch("models:/rollback@champion")
        assert trees.read(handed.path) == {"weights": content}
        assert (handed.hit, handed.version) == (hit, f"models:/rollback/{number}")


def test_a_registered_model_that_was_made_anew(alice: Caller, mlflow_proxied: MlflowServer) -> None:
    """Version 1 is another one now: noticed at once by an alias, by its number too from then on."""
    client = mlflow_proxied.client
    for content in (b"monday", b"tuesday"):
        run_id = mlflow_proxied.run({"model/weights": content})
        mlflow_proxied.add_version("reborn", run_id, "model")
        client.set_registered_model_alias("reborn", "champion", "1")
        assert trees.read(alice.fetch("models:/reborn@champion").path) == {"weights": content}
        assert trees.read(alice.fetch("models:/reborn/1").path) == {"weights": content}
        client.delete_registered_model("reborn")
    with pytest.raises(errors.NotFound):
        alice.fetch("models:/reborn@champion")


def test_a_version_that_was_made_anew(wary: Caller, mlflow_proxied: MlflowServer) -> None:
    """By its number alone it is noticed when the version is asked about again; one that is gone is NotFound."""
    for content in (b"monday", b"tuesday"):
        run_id = mlflow_proxied.run({"model/weights": content})
        mlflow_proxied.add_version("anew", run_id, "model")
        assert trees.read(wary.fetch("models:/anew/1").path) == {"weights": content}
        mlflow_proxied.client.delete_registered_model("anew")
    with pytest.raises(errors.NotFound):
        wary.fetch("models:/anew/1")


def test_an_alias_within_its_time_to_live(
    start_daemon: StartDaemon, proxy: CountingProxy, mlflow_proxied: MlflowServer, room: Path, caller_of: CallerOf
) -> None:
    """It is not asked for again, unless by `refresh`."""
    alice = caller_of(start_daemon(proxy.uri, alias_ttl=3600.0), room)
    for content in (b"one", b"two"):
        mlflow_proxied.add_version("lively", mlflow_proxied.run({"model/x": content}), "model")
    mlflow_proxied.client.set_registered_model_alias("lively", "champion", "1")
    assert alice.fetch("models:/lively@champion").version == "models:/lively/1"
    mlflow_proxied.client.set_registered_model_alias("lively", "champion", "2")
    before = proxy.request_count
    assert alice.fetch("models:/lively@champion").version == "models:/lively/1" and proxy.request_count == before
    assert alice.fetch("models:/lively@champion", refresh=True).version == "models:/lively/2"
    assert alice.fetch("models:/lively@champion").version == "models:/lively/2"
