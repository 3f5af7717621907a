"""check = "caller": whoever fetches is judged by the tracking server, hit or miss, with the caller's own credentials.

A real MLflow server with its basic-auth app; the daemon has no account there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.guarded_server import GuardedServer, guarded
from tests.rig.until import until

FILES = {"model/MLmodel": b"flavors: {}", "model/weights": b"w" * 10_000, "notes": b"secret"}
PATIENCE = 30.0  # of passwords that are hashed on a busy machine
KEPT_SECONDS = 2

Start = Callable[..., Daemon]


@pytest.fixture(scope="module")
def server(module_room: Path) -> Iterator[GuardedServer]:
    """Alice may read `hers`; bob has an account, and may read nothing of hers."""
    with guarded(module_room / "guarded") as server:
        server.add_user("alice")
        server.add_user("bob")
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, server: GuardedServer) -> Daemon:
    """Asks the tracking server as whoever calls."""
    return module_start(server.uri, check="caller", unreachable_after=PATIENCE, stale_after=PATIENCE)


@pytest.fixture(scope="module")
def hers(server: GuardedServer) -> str:
    """An experiment that alice may read."""
    return server.experiment_of("hers", "alice")


@pytest.fixture
def run_id(server: GuardedServer, hers: str) -> str:
    """A run of hers that nobody has fetched yet."""
    return server.run_in(hers, FILES)


def may_not(caller: Caller, uri: str, login: dict[str, str], kind: type[Exception] = errors.PermissionDenied) -> str:
    """What a caller is told who is refused; nothing of it may be in the way of others."""
    with pytest.raises(kind) as refused:
        caller.fetch(uri, env=login)
    return str(refused.value)


def test_a_hit_is_judged_as_a_miss_is(alice: Caller, bob: Caller, server: GuardedServer, run_id: str) -> None:
    """Who may not read a run does not get it because somebody else has fetched it; who may gets it from the cache."""
    uri = f"runs:/{run_id}/model"
    may_not(bob, uri, server.login("bob"))
    assert not alice.fetch(uri, env=server.login("alice")).hit
    words = may_not(bob, uri, server.login("bob"))
    assert run_id in words and server.passwords["bob"] not in words
    again = alice.fetch(uri, "copy", env=server.login("alice"))
    assert again.hit and (again.path / "weights").read_bytes() == FILES["model/weights"]


def test_without_credentials_it_is_said_which(alice: Caller, server: GuardedServer, run_id: str) -> None:
    """Who has none is told where they would be looked for; who has wrong ones, that they are wrong."""
    uri = f"runs:/{run_id}"
    assert "MLFLOW_TRACKING_USERNAME" in may_not(alice, uri, {}, errors.Unauthenticated)
    wrong = server.login("alice") | {"MLFLOW_TRACKING_PASSWORD": "guessed"}
    words = may_not(alice, uri, wrong, errors.Unauthenticated)
    assert "refuses the credentials" in words and "guessed" not in words


def test_it_is_the_login_that_counts(alice: Caller, bob: Caller, server: GuardedServer, run_id: str) -> None:
    """Of one user of the host with several logins each is judged by itself, and so are several users with one."""
    uri = f"runs:/{run_id}"
    alice.fetch(uri, env=server.login("alice"))
    may_not(alice, uri, server.login("bob"))
    assert bob.fetch(uri, env=server.login("alice")).hit


def test_a_login_in_mlflows_file(alice: Caller, server: GuardedServer, run_id: str) -> None:
    """~/.mlflow/credentials, as MLflow reads it."""
    folder = alice.cwd / ".mlflow"
    folder.mkdir()
    (folder / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = alice\nmlflow_tracking_password = {server.passwords['alice']}\n"
    )
    assert alice.fetch(f"runs:/{run_id}/notes", env={"HOME": str(alice.cwd)}).file_count == 1


@pytest.mark.parametrize("other", ["http://elsewhere.example:5000", "http://127.0.0.1:1"])
def test_credentials_of_another_server_are_not_told(
    alice: Caller, server: GuardedServer, run_id: str, other: str
) -> None:
    """A process whose tracking server is another one has no credentials for this one."""
    login = server.login("alice") | {"MLFLOW_TRACKING_URI": other}
    may_not(alice, f"runs:/{run_id}", login, errors.Unauthenticated)


def test_a_registered_model_is_as_readable_as_what_it_was_made_of(
    alice: Caller, bob: Caller, server: GuardedServer, run_id: str
) -> None:
    """Bob may read the model's entry in the registry, which does not give him its bytes; by any of its names."""
    name = f"model-{run_id[:8]}"
    number = server.add_version(name, run_id, "model")
    server.client.set_registered_model_alias(name, "champion", number)
    server.permit_model(name, "alice", "bob")
    for uri in (f"models:/{name}@champion", f"models:/{name}/{number}", f"models:/{name}/latest"):
        assert alice.fetch(uri, env=server.login("alice")).version == f"models:/{name}/{number}"
        may_not(bob, uri, server.login("bob"))


def test_a_logged_model(alice: Caller, bob: Caller, server: GuardedServer, run_id: str, hers: str) -> None:
    """By its own ID, and as a folder of the run that made it."""
    model = server.client.create_logged_model(hers, "logged", source_run_id=run_id)
    (server._local(model.artifact_location)).mkdir(parents=True)
    (server._local(model.artifact_location) / "MLmodel").write_bytes(b"flavors: {}")
    server.client.finalize_logged_model(model.model_id, "READY")
    uri = f"models:/{model.model_id}"
    may_not(bob, uri, server.login("bob"))
    assert alice.fetch(uri, env=server.login("alice")).file_count == 1
    may_not(bob, uri, server.login("bob"))


def test_a_part_of_a_run_that_is_not_for_everybody(alice: Caller, bob: Caller, server: GuardedServer) -> None:
    """A run that both may read has put out a logged model that only alice may: bob, who was let in before, gets nothing
    of it any more, though what was decided would count still; and she has both."""
    both = server.experiment_of("for both", "alice", "bob")
    run_id = server.run_in(both, {"model/readme": b"of the run"})
    uri = f"runs:/{run_id}/model"
    assert bob.fetch(uri, env=server.login("bob")).file_count == 1
    secret = server.experiment_of("for alice", "alice")
    server.add_logged_model(run_id, "model", {"weights": FILES["notes"]}, secret)
    assert alice.fetch(uri, refresh=True, env=server.login("alice")).file_count == 2
    for _ in range(2):
        may_not(bob, uri, server.login("bob"))
        may_not(bob, f"{uri}/weights", server.login("bob"))
        assert alice.fetch(uri, env=server.login("alice")).hit


def test_bare_uris_are_those_of_a_run(alice: Caller, bob: Caller, server: GuardedServer, run_id: str) -> None:
    """The run whose folder it lies in decides; what lies in none is refused, whoever could read it."""
    uri = f"{server.artifact_uri(run_id)}/model"
    assert alice.fetch(uri, env=server.login("alice")).file_count == 2
    may_not(bob, uri, server.login("bob"))
    for elsewhere in ("s3://bucket/key", "file:///etc/hostname", f"s3://bucket/{run_id}/artifacts/model"):
        assert "nothing says whether you may" in may_not(alice, elsewhere, server.login("alice"))


@pytest.mark.parametrize("verb", ["inspect", "verify", "explain", "warm"])
def test_nothing_is_told_of_it(alice: Caller, bob: Caller, server: GuardedServer, run_id: str, verb: str) -> None:
    """Neither names nor digests nor times of what is held."""
    uri = f"runs:/{run_id}"
    alice.fetch(uri, env=server.login("alice"))
    code = f"import artifactcache\nwith artifactcache.Client() as client:\n    client.{verb}(uri)\nresult = None"
    with pytest.raises(errors.PermissionDenied):
        bob.run(code, uri=uri, env=server.login("bob"))
    alice.run(code, uri=uri, env=server.login("alice"))


def test_a_run_that_does_not_exist(alice: Caller, server: GuardedServer) -> None:
    """It is not told from one that does exist: MLflow's server refuses to say."""
    may_not(alice, f"runs:/{'0' * 32}", server.login("alice"))


def test_two_who_wait_are_judged_each(alice: Caller, bob: Caller, server: GuardedServer, hers: str) -> None:
    """While alice's download is under way bob is refused, and waits for nothing."""
    run_id = server.run_in(hers, {f"{n}": b"x" * 1000 for n in range(400)})
    uri, code = f"runs:/{run_id}", "import artifactcache\nresult = artifactcache.fetch(uri).file_count"
    with alice.start(code, uri=uri, env=server.login("alice")) as job:
        refusals = [may_not(bob, uri, server.login("bob")) for _ in range(2)]
        assert job.result() == 400
    assert all(refusals)


@pytest.fixture
def short_memory(start_daemon: StartDaemon, server: GuardedServer) -> Daemon:
    """A daemon whose decisions count for a moment only."""
    more = f"decisions_kept = {KEPT_SECONDS}\n"
    return start_daemon(server.uri, check="caller", unreachable_after=PATIENCE, stale_after=PATIENCE, more=more)


def test_what_is_withdrawn_is_refused_soon(
    short_memory: Daemon, room: Path, caller_of: CallerOf, server: GuardedServer, run_id: str, hers: str
) -> None:
    """At the latest when the decision is too old; and given back, it is granted again."""
    alice, uri = caller_of(short_memory, room), f"runs:/{run_id}"
    assert alice.fetch(uri, env=server.login("alice")).file_count == 3
    server.forbid(hers, "alice")

    def refused() -> bool:
        try:
            alice.fetch(uri, env=server.login("alice"))
        except errors.PermissionDenied:
            return True
        return False

    try:
        until(refused, "the decision to be asked for again")
    finally:
        server.permit(hers, "alice")
    until(lambda: not refused(), "the refusal to be forgotten")


def test_no_answer_is_no_permission(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf, all_users: dict[str, object], module_room: Path
) -> None:
    """With the tracking server down a decision that is fresh counts, and one that is not leads to OriginUnavailable."""
    with guarded(room / "mortal") as server:
        server.add_user("alice")
        run_id = server.run_in(server.experiment_of("hers", "alice"), FILES)
        daemon = start_daemon(server.uri, check="caller", more=f"decisions_kept = {KEPT_SECONDS * 5}\n")
        alice, uri = caller_of(daemon, room), f"runs:/{run_id}"
        alice.fetch(uri, env=server.login("alice"))
        login = server.login("alice")
    assert alice.fetch(uri, env=login).hit

    def refused() -> bool:
        try:
            alice.fetch(uri, env=login)
        except errors.OriginUnavailable:
            return True
        return False

    until(refused, "the decision to be too old")
    with pytest.raises(errors.OriginUnavailable):  # whoever has none is not let in either
        alice.fetch(uri, env=server.login("alice") | {"MLFLOW_TRACKING_PASSWORD": "another"})
