"""Tokens that fell into other hands: a call is good from the process whose session it is, and once."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from artifactcache.v1 import cache_pb2 as pb
from tests.conftest import CallerOf
from tests.rig.caller import Caller, Job
from tests.rig.daemon import Daemon
from tests.rig.until import until
from tests.rig.wire import Handoff, bearer, error_name, stub

# The session of alice's client, and what one of its calls carried, told to whoever wants to know.
VICTIM = """
import artifactcache
from artifactcache.deadline import Deadline
from artifactcache.v1 import cache_pb2 as pb

client = artifactcache.Client()
client.fetch(uri)
connection = client._calls().session.connection(Deadline(None))
with connection._inside(Deadline(None)) as metadata:
    assert connection._stub.WhoAmI(pb.WhoAmIRequest(), metadata=metadata).pid == os.getpid()
say(metadata)
while hear() != "end":
    say([client.whoami().pid == os.getpid(), client.fetch(uri).hit])
client.close()
"""
THIEF = """
import grpc
from artifactcache.v1 import cache_pb2 as pb
from tests.rig.wire import error_name, stub

result = []
with stub(socket_dir) as cache:
    artifact = pb.ArtifactSelection(uri=uri)
    for proof in proofs:
        metadata = [("authorization", authorization)] + ([] if proof is None else [("artifactcache-proof", proof)])
        for call in (
            lambda **more: cache.WhoAmI(pb.WhoAmIRequest(), **more),
            lambda **more: list(cache.Fetch(pb.FetchRequest(artifact=artifact), **more)),
            lambda **more: list(cache.List(pb.ListRequest(), **more)),
            lambda **more: cache.Release(pb.ReleaseRequest(lease=1), **more),
        ):
            try:
                call(metadata=metadata, timeout=20)
                result.append("served")
            except grpc.RpcError as error:
                result.append(error_name(error))
"""
NOTHING = "0" * 32


@pytest.fixture
def victim(alice: Caller, uri: str) -> Iterator[Job]:
    """Alice's client, whose token and one used proof can be heard."""
    with alice.start(VICTIM, uri=uri) as job:
        yield job


def _goes_on(victim: Job) -> bool:
    victim.say("go on")
    return bool(victim.hear() == [True, True])


@pytest.mark.parametrize("who", ["alice", "bob", "root"])
def test_a_stolen_token(victim: Job, daemon: Daemon, room: Path, uri: str, caller_of: CallerOf, who: str) -> None:
    """Another process, be it of the same user, can do nothing with a token: without a proof, with one that was used, or
    with one that it makes up. Whose token it is notices nothing."""
    (_, authorization), (_, used) = victim.hear()
    slot = used.split(":")[0]
    proofs = [None, "", used, f"{slot}:{NOTHING}", f"200:{NOTHING}", f"{slot}:{'ab' * 16}", "nonsense", "9" * 1000]
    thief = caller_of(daemon, room, who)
    tried = thief.run(THIEF, socket_dir=str(daemon.socket_dir), uri=uri, authorization=authorization, proofs=proofs)
    assert tried == ["Unauthenticated"] * (4 * len(proofs))
    assert _goes_on(victim)


def test_a_call_is_good_once(alice: Caller, daemon: Daemon, uri: str) -> None:
    """The process itself cannot make it a second time either, and is told why; its next call is served."""
    code = """
        import grpc
        import artifactcache
        from artifactcache.deadline import Deadline
        from artifactcache.v1 import cache_pb2 as pb
        client = artifactcache.Client()
        client.ping()
        connection = client._calls().session.connection(Deadline(None))
        with connection._inside(Deadline(None)) as metadata:
            for _ in range(2):
                try:
                    connection._stub.WhoAmI(pb.WhoAmIRequest(), metadata=metadata)
                except grpc.RpcError as error:
                    told = [error.code().name, error.details()]
        result = [told, client.whoami().pid == os.getpid()]
    """
    (code_name, details), works = alice.run(code)
    assert code_name == "UNAUTHENTICATED" and "used already" in details
    assert works


def test_who_does_not_prove_calls_by_the_token(daemon: Daemon, alice: Caller, uri: str) -> None:
    """A client by hand that has not promised proofs calls by its token alone, and is passed no descriptor; one that
    has gets a page, and its token alone is worth nothing from then on. Ping needs neither."""
    with Handoff(daemon.socket_dir) as plain, Handoff(daemon.socket_dir) as proving, stub(daemon.socket_dir) as cache:
        token = plain.hello()
        assert cache.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(token)).pid == os.getpid()
        reply, (descriptor,) = proving.ask(hello=pb.Hello(proves_calls=True))
        os.close(descriptor)
        assert reply.welcome.wants_proofs
        with pytest.raises(grpc.RpcError) as caught:
            cache.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(reply.welcome.token))
        assert error_name(caught.value) == "Unauthenticated"
        assert cache.Ping(pb.PingRequest(), metadata=bearer(reply.welcome.token)).pid == daemon.pid
        with Handoff(daemon.socket_dir) as joined:  # a hand-over is attested by the kernel
            again, beside = joined.ask(hello=pb.Hello(token=reply.welcome.token, proves_calls=True))
            assert (again.welcome.wants_proofs, beside) == (False, [])


def test_threads_of_one_session(alice: Caller, uri: str) -> None:
    """Eight threads that make 200 calls each through one client are served, every time."""
    code = """
        import artifactcache
        from concurrent.futures import ThreadPoolExecutor
        with artifactcache.Client() as client, ThreadPoolExecutor(8) as pool:
            client.fetch(uri)
            def work(number):
                for turn in range(200):
                    if turn % 10 == 0:
                        assert client.fetch(uri).hit
                    else:
                        assert client.whoami().pid == os.getpid()
                return True
            result = list(pool.map(work, range(8)))
    """
    assert alice.run(code, uri=uri) == [True] * 8


def test_a_child_of_a_fork(alice: Caller, uri: str) -> None:
    """It has none of the parent's page, proves the calls of a session of its own, and the parent's goes on."""
    code = """
        import artifactcache
        def pages():
            with open("/proc/self/maps") as maps:
                return maps.read().count("artifactcache-proofs")
        client = artifactcache.Client()
        client.fetch(uri)
        before = pages()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                found = [pages(), client.whoami().pid == os.getpid(), client.fetch(uri).hit, pages()]
            except BaseException as error:
                found = repr(error)
            os.write(writer, repr(found).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            theirs = pipe.read()
        os.waitpid(pid, 0)
        result = [before, theirs, client.whoami().pid == os.getpid(), client.fetch(uri).hit, pages()]
    """
    assert alice.run(code, uri=uri) == [1, "[0, True, True, 1]", True, True, 1]


def _pages(daemon: Daemon) -> int:
    """How many pages of memory the daemon has mapped for proofs; neighbours may show as one mapping."""
    total = 0
    for line in Path(f"/proc/{daemon.pid}/maps").read_text().splitlines():
        if "artifactcache-proofs" in line:
            begin, _, end = line.split()[0].partition("-")
            total += (int(end, 16) - int(begin, 16)) // resource.getpagesize()
    return total


def _descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_a_client_that_is_killed(victim: Job, daemon: Daemon) -> None:
    """The daemon lets its page go."""
    victim.hear()
    assert _pages(daemon) == 1
    victim.kill()
    until(lambda: _pages(daemon) == 0, "the page to go")


def test_thousands_of_sessions(daemon: Daemon) -> None:
    """Each costs the daemon one descriptor, its connection, and one page; both go when it ends, be it that its client
    never read what came with Welcome."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 1500 if hard == resource.RLIM_INFINITY or hard > 4096 else 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    packet = pb.HandoffRequest(hello=pb.Hello(proves_calls=True)).SerializeToString()
    try:
        until(lambda: _pages(daemon) == 0, "earlier sessions to end")
        before = _descriptors(daemon)
        for reads in (True, False):
            with ExitStack() as sessions:
                for _ in range(count):
                    session = sessions.enter_context(Handoff(daemon.socket_dir))
                    session.send_bytes(packet)
                    if reads:
                        os.close(session.receive()[1][0])
                until(lambda: _pages(daemon) == count, "all sessions to be open")
                until(lambda: _descriptors(daemon) <= before + count, "no descriptor more than the connections'")
            until(lambda: _pages(daemon) == 0, "the pages to go")
            until(lambda: _descriptors(daemon) <= before, "the connections to end")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert daemon.is_alive()
