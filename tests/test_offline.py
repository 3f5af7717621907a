"""A tracking server that refuses, or takes questions and answers none: what is held is served, the rest fails soon."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from artifactcache import errors
from cacheserver.questions import QUESTIONS_MAX
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.lying_s3 import Objects, lying_s3, object_of
from tests.rig.mlflow_server import MlflowServer
from tests.rig.slow import slow_but
from tests.rig.until import until

UNREACHABLE_AFTER = 3.0
# A call that would wait for MLflow's own retries, 247 s, ends with DeadlineExceeded instead of what is expected.
CALL_SECONDS_MAX = 20.0
STUCK = QUESTIONS_MAX + 8
FILES: trees.Files = {"model/weights": b"weights", "model/config": b"config", "notes": b"notes"}


@pytest.fixture
def daemon(start_daemon: StartDaemon, proxy: CountingProxy) -> Daemon:
    """A daemon of this origin that lists what is finished again by every fetch."""
    return start_daemon(proxy.uri, unreachable_after=UNREACHABLE_AFTER, relist_after=0.0, stale_after=2.0)


@pytest.fixture
def run_id(mlflow_proxied: MlflowServer) -> str:
    """A run whose model is version 1 of `offline-<run>`, which `champion` points to."""
    run_id = mlflow_proxied.run(FILES)
    version = mlflow_proxied.add_version(f"offline-{run_id}", run_id, "model")
    mlflow_proxied.client.set_registered_model_alias(f"offline-{run_id}", "champion", version)
    return run_id


Dead = Callable[[CountingProxy], AbstractContextManager[None]]
DEAD: dict[str, Dead] = {"refuses": CountingProxy.down, "hangs": CountingProxy.hanging}


@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD.keys())
def test_what_is_held_is_served(daemon: Daemon, alice: Caller, proxy: CountingProxy, run_id: str, dead: Dead) -> None:
    """By its alias, its version, its run and in part, stale where the origin should have been asked, after a restart
    of the daemon as well; and no longer stale when the origin is back."""
    model = f"models:/offline-{run_id}"
    held = (f"{model}@champion", f"{model}/1", f"runs:/{run_id}")
    for uri in held:
        assert not alice.fetch(uri).stale
    with dead(proxy):
        for _ in range(2):
            for uri in (*held, f"runs:/{run_id}/notes"):
                handed = alice.fetch(uri, timeout=CALL_SECONDS_MAX)
                assert (handed.stale, handed.hit) == (True, True), uri
            daemon.restart()
        assert alice.fetch(f"{model}@champion/weights", timeout=CALL_SECONDS_MAX).path.read_bytes() == b"weights"
        assert alice.fetch(f"{model}@champion", exclude="config", timeout=CALL_SECONDS_MAX).file_count == 1
    until(lambda: not alice.fetch(f"{model}@champion").stale, "the origin to be asked again")


@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD.keys())
def test_what_is_not_held_fails_soon(alice: Caller, proxy: CountingProxy, run_id: str, dead: Dead) -> None:
    """A hundred calls ask a server that is away no more often than one does, and each is OriginUnavailable."""
    code = """
        import artifactcache
        result = []
        for _ in range(100):
            for uri in uris:
                try:
                    artifactcache.fetch(uri, timeout=seconds)
                except artifactcache.CacheError as error:
                    result.append(type(error).__name__)
    """
    uris = [f"runs:/{run_id}", f"models:/offline-{run_id}@champion", f"models:/offline-{run_id}/1"]
    with dead(proxy):
        before = proxy.request_count
        names = alice.run(code, uris=uris, seconds=CALL_SECONDS_MAX)
        asked = proxy.request_count - before
    assert names == ["OriginUnavailable"] * 300
    assert asked < 30, "looks at the server, one a second, and the first question with its retries"
    until(lambda: _had(alice, f"runs:/{run_id}") == FILES, "the origin to be asked again")


WAYS: dict[str, Callable[[str], bool]] = {
    "everywhere": lambda path: True,
    "for questions": lambda path: "/mlflow/" in path,
    "for listings": lambda path: path.endswith("/mlflow-artifacts/artifacts"),
    "for entity tags": lambda path: "/mlflow-artifacts/artifacts/" in path,
}


@pytest.mark.parametrize("where", slow_but(WAYS, lambda where: where == "everywhere"))
def test_a_bare_404_is_no_word_about_what_is_held(
    daemon: Daemon, alice: Caller, proxy: CountingProxy, run_id: str, where: str
) -> None:
    """A proxy that answers 404 for the server says nothing of runs, aliases and files: what is held is served, stale
    where that answer was in the way, and nothing of it is forgotten; nobody is sent away when the server is back."""
    model = f"models:/offline-{run_id}"
    held = (f"{model}@champion", f"{model}/1", f"runs:/{run_id}")
    for uri in held:
        assert not alice.fetch(uri).stale
    with proxy.misrouting(WAYS[where]):
        for _ in range(2):
            for uri in held:
                handed = alice.fetch(uri)
                assert (handed.hit, handed.file_count) == (True, 3 if uri == held[2] else 2)
                assert handed.stale or where == "for entity tags", uri
    with proxy.down():
        assert {alice.fetch(uri).stale for uri in held} == {True}, "nothing was forgotten"
    until(lambda: not alice.fetch(held[0]).stale, "the origin to be asked again")


@pytest.mark.parametrize("uri", ["runs:/{0}", "models:/offline-{0}@champion", "models:/offline-{0}/1", "models:/m-{0}"])
def test_a_bare_404_of_what_is_not_held(alice: Caller, proxy: CountingProxy, run_id: str, uri: str) -> None:
    """OriginUnavailable, which says who did not answer and where to look; at once NotFound, or the files, when the
    server itself answers."""
    with proxy.misrouting(), pytest.raises(errors.OriginUnavailable, match=r"404.*tracking URI.*proxy"):
        alice.fetch(uri.format(run_id))
    if uri.startswith("models:/m-"):
        with pytest.raises(errors.NotFound):
            alice.fetch(uri.format(run_id))
    else:
        assert not alice.fetch(uri.format(run_id)).stale


def test_what_mlflow_itself_says_is_gone_is_forgotten(
    alice: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer, run_id: str
) -> None:
    """A real server's own words for an alias, a version and a file that are gone: NotFound, without the server too."""
    name, client = f"offline-{run_id}", mlflow_proxied.client
    gone = (f"models:/{name}@champion", f"models:/{name}/1", f"runs:/{run_id}/notes")
    for uri in gone:
        alice.fetch(uri)
    client.delete_registered_model_alias(name, "champion")
    client.delete_model_version(name, "1")
    (mlflow_proxied.folder(run_id) / "notes").unlink()
    for uri in gone:
        with pytest.raises(errors.NotFound):
            alice.fetch(uri)
    with proxy.misrouting():
        for uri in gone:
            with pytest.raises(errors.OriginUnavailable):
                alice.fetch(uri)


def _had(alice: Caller, uri: str) -> trees.Files | None:
    try:
        return trees.read(alice.fetch(uri, timeout=CALL_SECONDS_MAX).path)
    except errors.OriginUnavailable:
        return None


def test_a_refresh_is_not_answered_from_the_store(alice: Caller, proxy: CountingProxy, run_id: str) -> None:
    """Who asks for what the origin has now is told that nobody can say."""
    alice.fetch(f"runs:/{run_id}")
    with proxy.hanging(), pytest.raises(errors.OriginUnavailable):
        alice.fetch(f"runs:/{run_id}", refresh=True, timeout=CALL_SECONDS_MAX)


def test_one_question_that_hangs_is_not_a_dead_server(
    alice: Caller, proxy: CountingProxy, mlflow_proxied: MlflowServer, run_id: str
) -> None:
    """A download that gets no answer fails by itself; everything else is asked and served as ever."""
    others = [mlflow_proxied.run(FILES) for _ in range(3)]
    with proxy.holding():
        with pytest.raises(errors.OriginUnavailable):
            alice.fetch(f"runs:/{run_id}", timeout=CALL_SECONDS_MAX)
        with pytest.raises(errors.NotFound):
            alice.fetch(f"runs:/{'0' * 32}", timeout=CALL_SECONDS_MAX)
    for other in others:
        assert trees.read(alice.fetch(f"runs:/{other}").path) == FILES


def test_a_store_that_hangs_keeps_nobody_else_waiting(
    start_daemon: StartDaemon, caller_of: CallerOf, room: Path, mlflow_proxied: MlflowServer
) -> None:
    """However many ask for what lies there: the tracking server, and what it hands out, is there for the others."""
    run_id = mlflow_proxied.run(FILES)
    with lying_s3() as liar:
        silent = liar.bucket(Objects({}, lambda key: object_of(b""), listing=lambda reply: reply.hang()))
        alice = caller_of(start_daemon(mlflow_proxied.uri, unreachable_after=UNREACHABLE_AFTER, env=liar.env), room)
        code = f"""
            import artifactcache, threading
            def fetch(number):
                try:
                    artifactcache.fetch(f"{silent}/{{number}}")
                except artifactcache.OriginUnavailable:
                    pass
            threads = [threading.Thread(target=fetch, args=(n,)) for n in range({STUCK})]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            """
        with alice.start(code):
            until(lambda: liar.listing_count >= QUESTIONS_MAX // 2, "as many as can be asked at a time to be asked")
            assert trees.read(alice.fetch(f"runs:/{run_id}", timeout=CALL_SECONDS_MAX).path) == FILES
