"""Mallory against a daemon that goes by grants, and asks the tracking server with an account of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.attacker import FILES, HIS, PATIENCE_SECONDS, Siege, read, take_over
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.guarded_server import ADMIN
from tests.rig.until import until

KEPT_SECONDS = 3

FORMS = (
    "runs:/{run}",
    "runs:/{run}/notes",
    "models:/{model}/{version}",
    "models:/{model}@champion",
    "models:/{model}/latest",
    "models:/{logged}",
    "mlflow-artifacts:/{inside}",
    "mlflow-artifacts:/{inside}/notes",
    "mlflow-artifacts:/{experiment}",
    "{server}/api/2.0/mlflow-artifacts/artifacts/{inside}",
)


@pytest.fixture(scope="module")
def daemon(siege: Siege, module_start: StartDaemon) -> Daemon:
    """Alice may read her experiment, and everybody mallory's."""
    grants = "".join(
        f"[[grant]]\nname = {json.dumps(name)}\nto = [{json.dumps(to)}]\nexperiment = {json.dumps(experiment)}\n"
        for name, to, experiment in (
            ("hers", siege.alice.user.name if siege.alice.user else "", "hers"),
            ("his", "*", "his"),
        )
    )
    return module_start(
        siege.server.uri,
        check="rules",
        env=siege.server.login(ADMIN),
        unreachable_after=PATIENCE_SECONDS,
        stale_after=PATIENCE_SECONDS,
        more=f"decisions_kept = {KEPT_SECONDS}\n{grants}",
    )


@pytest.fixture
def mallory(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Who needs no login here: the daemon has one."""
    return caller_of(daemon, room, "bob")


def test_what_no_grant_names(alice: Caller, mallory: Caller, siege: Siege, daemon: Daemon) -> None:
    """Hits by all forms of a URI are refused, and each stands in the audit log with mallory's name."""
    uris = [form.format(**siege.values) for form in FORMS]
    hers = uris[:-2]  # what no run is seen in is nobody's
    alice.run("import artifactcache\nfor uri in uris:\n    artifactcache.fetch(uri)", uris=hers)
    code = """
        import artifactcache
        result = []
        for uri in uris:
            try:
                result.append(artifactcache.fetch(uri).digest)
            except artifactcache.PermissionDenied as error:
                result.append("")
    """
    with mallory.start(code, uris=uris) as job:
        assert job.result() == [""] * len(uris)
        pid = job.pid
    lines = [json.loads(line) for line in (daemon.root / "audit.jsonl").read_bytes().splitlines()]
    mine = [line for line in lines if line["pid"] == pid and line["artifact"] in uris]
    assert {line["artifact"] for line in mine} == set(uris)
    assert {(line["uid"], line["decision"], line["tree"]) for line in mine} == {(mallory.uid, "refused", "")}


def test_a_name_that_was_hers(alice: Caller, mallory: Caller, siege: Siege) -> None:
    """A grant by an experiment goes by where the bytes lie now, and what is handed out lies there."""
    number = siege.server.add_version("orb", siege.values["run"], "model")
    uri = f"models:/orb/{number}"
    assert read(alice, uri, {})[0] == FILES["model/weights"]
    with pytest.raises(errors.PermissionDenied):
        read(mallory, uri, {})
    take_over(siege, "orb")

    def granted() -> bool:  # what the daemon was told of the name counts for a while
        try:
            return read(mallory, uri, {})[0] == HIS["model/weights"]
        except errors.PermissionDenied:
            return False

    until(granted, "the grant of what is his")
