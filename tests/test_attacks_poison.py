"""Mallory names what is his and wants alice's, or has alice read what is his."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf
from tests.rig.attacker import FILES, HIS, Siege, read, take_over


def test_a_name_that_was_hers(siege: Siege) -> None:
    """A registered model that is renamed leaves its name to whoever takes it: the cache then gives what the name
    stands for now, and nothing of what it stood for before; by no verb."""
    number = siege.server.add_version("crown", siege.values["run"], "model")
    siege.server.permit_model("crown", "alice")
    uri = f"models:/crown/{number}"
    assert read(siege.alice, uri, siege.login("alice"))[0] == FILES["model/weights"]
    take_over(siege, "crown")
    for verb in ("inspect", "verify", "explain"):
        with pytest.raises(errors.NotFound, match="another one that had its name"):
            siege.mallory.run(
                f"import artifactcache\nwith artifactcache.Client() as client:\n    client.{verb}(uri)",
                uri=uri,
                env=siege.login("mallory"),
            )
    assert read(siege.mallory, uri, siege.login("mallory")) == (HIS["model/weights"], False)
    assert read(siege.mallory, uri, siege.login("mallory")) == (HIS["model/weights"], True)
    siege.server.client.delete_registered_model("crown")
    siege.server.client.rename_registered_model("crown-of-alice", "crown")
    # Mallory was let in a moment ago, and what he had fetched is held: neither counts for what has the name now.
    assert read(siege.alice, uri, siege.login("alice"))[0] == FILES["model/weights"]
    with pytest.raises(errors.PermissionDenied):
        read(siege.mallory, uri, siege.login("mallory"))


def test_a_name_that_was_hers_and_is_pinned(siege: Siege, room: Path, caller_of: CallerOf) -> None:
    """What was pinned stays held, and is by no verb what the name stands for now; nor when that cannot be had."""
    number = siege.server.add_version("sceptre", siege.values["run"], "model")
    siege.server.permit_model("sceptre", "alice")
    uri, code = (
        f"models:/sceptre/{number}",
        "import artifactcache\nwith artifactcache.Client() as client:\n    client.{}(uri)",
    )
    root = caller_of(siege.daemon, room, "root")
    root.run(code.format("pin"), uri=uri, env=siege.login("alice"))
    take_over(siege, "sceptre")
    with pytest.raises(errors.NotFound):  # there is no such file in his; hers is forgotten, but for the pin
        siege.mallory.fetch(f"{uri}/no-such-file", env=siege.login("mallory"))
    for verb in ("inspect", "verify", "explain"):
        with pytest.raises(errors.NotFound, match="another one that had its name"):
            siege.mallory.run(code.format(verb), uri=uri, env=siege.login("mallory"))
    assert read(siege.mallory, uri, siege.login("mallory"))[0] == HIS["model/weights"]


def test_what_the_tracking_server_refuses(siege: Siege, room: Path) -> None:
    """Mallory can neither write into her run, nor register what lies in it, nor name it as the output of his."""
    from mlflow.exceptions import MlflowException

    run, mine = siege.values["run"], siege.values["mine"]
    (room / "weights").write_bytes(b"poisoned")
    siege.client.create_registered_model("trap")
    attempts: list[Callable[[], object]] = [
        lambda: siege.client.log_artifact(run, str(room / "weights"), "model"),
        lambda: siege.client.set_tag(run, "team", "mallory"),
        lambda: siege.client.create_model_version("trap", f"{siege.server.artifact_uri(run)}/model", run),
        lambda: siege.client.log_outputs(run, []),
    ]
    for attempt in attempts:
        with pytest.raises(MlflowException):
            attempt()
    made = ""
    with contextlib.suppress(MlflowException):  # her folder, his run: where the server takes it, the gate does not
        made = siege.client.create_model_version("trap", f"{siege.server.artifact_uri(run)}/model", mine).version
    if made:
        with pytest.raises(errors.PermissionDenied):
            siege.mallory.fetch(f"models:/trap/{made}", env=siege.login("mallory"))
