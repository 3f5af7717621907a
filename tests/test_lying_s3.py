"""S3 endpoints that break off, change their minds, hang or lead astray: right bytes or an error in words, in time."""

from __future__ import annotations

import itertools
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.interpreter import Interpreter
from tests.rig.lying import Answer, Reply
from tests.rig.lying_s3 import LyingS3, Objects, lying_s3, make_certificate, object_of, refuses
from tests.rig.slow import slow_but

BIG = (16 << 20) + 5  # downloaded in parts
TRACKING = "http://127.0.0.1:9"
SECRET = "s3cret-of-the-liar"
TOKEN = "token-of-the-liar-FwoGZXIvYXdzEBYaD"


@pytest.fixture(scope="module")
def liar() -> Iterator[LyingS3]:
    """One endpoint for all tests of this module."""
    with lying_s3() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, liar: LyingS3) -> Daemon:
    """A daemon that has credentials for it, with a session token."""
    return module_start(TRACKING, unreachable_after=2.0, env=liar.env | {"AWS_SESSION_TOKEN": TOKEN})


def served(liar: LyingS3, answer: Answer, size: object = 10) -> str:
    """The URI of a bucket's folder with one object."""
    return f"{liar.bucket(Objects({'run/weights': size}, lambda key: answer))}/run"


def by_turns(*answers: Answer) -> Answer:
    """One answer after the other, and then the last one again and again."""
    left = list(answers)

    def answer(reply: Reply) -> None:
        following = left.pop(0) if len(left) > 1 else left[0]
        following(reply)

    return answer


@pytest.mark.parametrize("size", [10, BIG])
def test_the_liar_can_be_honest(alice: Caller, liar: LyingS3, size: int) -> None:
    """What is refused below is refused for what it is."""
    content, conditions = os.urandom(size), []

    def answer(reply: Reply) -> None:
        conditions.append(reply.header("if-match"))
        object_of(content)(reply)

    found = alice.fetch(served(liar, answer, size))
    assert trees.read(found.path) == {"weights": content} and found.transport == "s3"
    assert set(conditions) == {'"v1"'}  # each request is for what was listed


@pytest.mark.parametrize("listed", [5, 11, BIG])
def test_a_size_that_is_not_the_listed_one(alice: Caller, liar: LyingS3, listed: int) -> None:
    """More or fewer bytes than were listed are not taken for the object."""
    with pytest.raises(errors.CacheError) as refused:
        alice.fetch(served(liar, object_of(b"0123456789"), listed))
    assert isinstance(refused.value, errors.Corrupted | errors.OriginUnavailable)


@pytest.mark.parametrize("listed", ["-1", "many", ""])
def test_a_size_that_is_none(alice: Caller, liar: LyingS3, listed: str) -> None:
    """A listing that makes no sense is Corrupted."""
    with pytest.raises(errors.Corrupted):
        alice.fetch(served(liar, object_of(b"0123456789"), listed))


@pytest.mark.parametrize("size", [3 << 20, BIG])
def test_what_breaks_off_goes_on(alice: Caller, liar: LyingS3, size: int) -> None:
    """A connection that is reset in the middle costs a moment, not the file."""
    content = os.urandom(size)
    broken = object_of(content, sent_bytes_max=700_000)
    found = alice.fetch(served(liar, by_turns(broken, broken, object_of(content)), size))
    assert trees.read(found.path) == {"weights": content}


@pytest.mark.parametrize("size", [10, BIG])
def test_what_always_breaks_off(alice: Caller, liar: LyingS3, size: int) -> None:
    """It comes to an end."""
    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(served(liar, object_of(bytes(size), sent_bytes_max=1), size))


@pytest.mark.parametrize("size", [10, BIG])
def test_an_object_that_changed_after_it_was_listed(alice: Caller, liar: LyingS3, size: int) -> None:
    """What is there now is brought, from its beginning."""
    content = os.urandom(size)
    found = alice.fetch(served(liar, object_of(content, '"v2"'), size))
    assert trees.read(found.path) == {"weights": content}


def test_an_object_that_changes_while_it_is_brought(alice: Caller, liar: LyingS3) -> None:
    """Parts of one and of another would be bytes that never were."""
    old, new = os.urandom(BIG), os.urandom(BIG)
    before = object_of(old)
    found = alice.fetch(served(liar, by_turns(before, before, object_of(new, '"v2"')), BIG))
    assert trees.read(found.path) == {"weights": new}


def test_a_store_that_ignores_conditions(alice: Caller, liar: LyingS3) -> None:
    """Its answers' entity tags are looked at: what is another one each time cannot be brought in parts."""
    tags = itertools.count(2)

    def ignorant(reply: Reply) -> None:
        object_of(bytes(BIG), f'"v{next(tags)}"', heeds_conditions=False)(reply)

    with pytest.raises(errors.Corrupted, match="changes while"):
        alice.fetch(served(liar, ignorant, BIG))


@pytest.mark.parametrize(
    ("status", "code"),
    slow_but(((503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")), lambda case: case[0] == 503),
)
def test_a_store_that_asks_for_patience(alice: Caller, liar: LyingS3, status: int, code: str) -> None:
    """It is asked again after a while; if it never gets better, that is said with its words."""
    busy = refuses(status, code, "Please reduce your request rate")
    found = alice.fetch(served(liar, by_turns(busy, busy, object_of(b"0123456789"))))
    assert trees.read(found.path) == {"weights": b"0123456789"}
    with pytest.raises(errors.OriginUnavailable, match=f"{status}.*{code}.*reduce your request rate"):
        alice.fetch(served(liar, busy))


@pytest.mark.parametrize("half", [False, True])
def test_a_store_that_hangs(alice: Caller, liar: LyingS3, half: bool) -> None:
    """Before the answer or in the middle of it: the caller hears of it, and the daemon goes on."""

    def hang(reply: Reply) -> None:
        if half:
            reply.head(Content_Length=10, ETag='"v1"', Last_Modified="Mon, 23 Nov 2020 09:51:46 GMT")
            reply.write(b"012")
        reply.hang()

    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(served(liar, hang), timeout=25.0)
    with pytest.raises(errors.OriginUnavailable):
        silent = Objects({}, lambda key: hang, listing=lambda reply: reply.hang())
        alice.fetch(f"{liar.bucket(silent)}/run", timeout=25.0)


def test_another_store_that_says_nothing(alice: Caller, liar: LyingS3) -> None:
    """Questions to it may hang for ever, in a client that has no timeout: others are asked and answer all the same."""
    code = """
        import artifactcache, concurrent.futures
        def ended(uri):
            try:
                artifactcache.fetch(uri)
            except artifactcache.OriginUnavailable:
                return True
        with concurrent.futures.ThreadPoolExecutor(len(uris)) as pool:
            result = all(pool.map(ended, uris))
    """
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        assert alice.run(code, uris=[f"ftp://{host}/{number}" for number in range(20)])
        found = alice.fetch(served(liar, object_of(b"0123456789")))
    assert trees.read(found.path) == {"weights": b"0123456789"}


def test_a_redirect_to_another_host_is_not_followed(alice: Caller, liar: LyingS3) -> None:
    """The session token goes to the endpoint and to nobody else."""
    with lying_s3() as stranger:
        port = stranger.uri.rpartition(":")[2]
        away: Answer = lambda reply: reply.head(307, Location=f"http://localhost:{port}/x", Content_Length=0)  # noqa: E731
        with pytest.raises(errors.OriginUnavailable):
            alice.fetch(served(liar, away))
        assert stranger.request_count == 0


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", errors.PermissionDenied),
        (403, "SignatureDoesNotMatch", errors.Unauthenticated),
        (400, "ExpiredToken", errors.Unauthenticated),
        (404, "NoSuchKey", errors.NotFound),
        (404, "NoSuchBucket", errors.NotFound),
        (400, "Whatever", errors.OriginUnavailable),
    ],
)
@pytest.mark.parametrize("where", ["listing", "object"])
def test_refusals_in_words(
    alice: Caller,
    daemon: Daemon,
    liar: LyingS3,
    where: str,
    status: int,
    code: str,
    expected: type[errors.CacheError],
) -> None:
    """Each says whose move it is, in short, and repeats no secret that an answer may hold."""
    more = f"<Token-0>{TOKEN}</Token-0><StringToSign>{SECRET}</StringToSign>"
    no = refuses(status, code, f"You, {TOKEN}, may not", more)
    listing = no if where == "listing" else None
    uri = liar.bucket(Objects({"run/weights": 10}, lambda key: no, listing=listing))
    with pytest.raises(expected) as refused:
        alice.fetch(f"{uri}/run")
    said = f"{refused.value}{daemon.read_log()}"
    assert len(str(refused.value)) < 600 and SECRET not in said
    assert where == "listing" or TOKEN not in said


def test_a_listing_in_pages(alice: Caller, liar: LyingS3) -> None:
    """All of them."""
    names = [f"{i:03}/{j}" for i in range(25) for j in range(3)]
    uri = liar.bucket(Objects({f"run/{n}": 10 for n in names}, lambda key: object_of(b"0123456789"), page=7))
    assert trees.read(alice.fetch(f"{uri}/run").path) == dict.fromkeys(names, b"0123456789")


@pytest.mark.parametrize(
    "text",
    [
        "<ListBucketResult><Contents><Key>elsewhere</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>run/x/</Key><Size>7</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        "</ListBucketResult>",
    ],
)
def test_listings_that_make_no_sense(alice: Caller, liar: LyingS3, text: str) -> None:
    """They are Corrupted."""
    silly = Objects({}, lambda key: object_of(b""), listing=lambda reply: reply.sized(text.encode()))
    with pytest.raises(errors.Corrupted):
        alice.fetch(f"{liar.bucket(silly)}/run")


def test_credentials_that_expire_while_files_are_brought(
    start_daemon: StartDaemon, liar: LyingS3, caller_of: CallerOf, room: Path, interpreter: Interpreter
) -> None:
    """New ones are got as botocore gets them, for the next request; nothing fails for it."""
    script, config, count = room / "keys.py", room / "config", room / "count"
    count.write_text("")
    count.chmod(0o666)
    script.write_text(
        "import datetime, json\n"
        f"with open({str(count)!r}, 'a') as file: n = file.write('x') and file.tell()\n"
        "soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'AK{n}', 'SecretAccessKey': 's', 'SessionToken': 't',"
        " 'Expiration': soon.isoformat()}))\n"
    )
    config.write_text(f"[default]\ncredential_process = {interpreter.python} {script}\n")
    env = {"MLFLOW_S3_ENDPOINT_URL": liar.uri, "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(config)}
    daemon = start_daemon(TRACKING, env=env, unreachable_after=10.0)
    uri = liar.bucket(Objects({f"run/{i}": 10 for i in range(4)}, lambda key: object_of(b"0123456789")))
    since = len(liar.seen)
    assert caller_of(daemon, room).fetch(f"{uri}/run").transport == "s3"
    used = {re.search(r"Credential=(AK\d+)/", header)[1] for header in liar.seen[since:]}  # type: ignore[index]
    assert len(used) > 1


def test_public_buckets_are_asked_without_a_signature(
    start_daemon: StartDaemon, liar: LyingS3, caller_of: CallerOf, room: Path
) -> None:
    """As MLflow is told to; no credentials are needed then."""
    env = {
        "MLFLOW_S3_ENDPOINT_URL": liar.uri,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION": "unsigned",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    since = len(liar.seen)
    daemon = start_daemon(TRACKING, env=env)
    assert caller_of(daemon, room).fetch(served(liar, object_of(b"0123456789"))).transport == "s3"
    assert set(liar.seen[since:]) == {""}


def test_a_proxy_is_left_to_mlflow(start_daemon: StartDaemon, liar: LyingS3, caller_of: CallerOf, room: Path) -> None:
    """HTTP_PROXY is used as MLflow uses it; what NO_PROXY names is asked directly, by obstore too."""
    uri = served(liar, object_of(b"0123456789"))
    with lying_s3() as proxy:  # it answers whatever host a request is for
        proxy.buckets = liar.buckets
        env = liar.env | {"HTTP_PROXY": proxy.uri, "http_proxy": proxy.uri}
        through = start_daemon(TRACKING, env=env | {"MLFLOW_S3_ENDPOINT_URL": "http://s3.example"})
        assert caller_of(through, room).fetch(uri).transport == "mlflow"
        assert "through a proxy" in through.read_log()
        asked = proxy.request_count
        direct = start_daemon(TRACKING, env=env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})
        assert caller_of(direct, room).fetch(uri).transport == "s3"
        assert asked and proxy.request_count == asked


def test_variables_that_only_obstore_knows_change_nothing(
    start_daemon: StartDaemon, liar: LyingS3, caller_of: CallerOf, room: Path
) -> None:
    """What MLflow's own client would not heed is not heeded."""
    with lying_s3() as stranger:
        env = liar.env | {
            "AWS_ENDPOINT_URL_S3": stranger.uri,
            "AWS_ENDPOINT": stranger.uri,
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REQUEST_PAYER": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
            "AWS_PROXY_URL": stranger.uri,
            "AWS_REGION": "nowhere",
        }
        daemon = start_daemon(TRACKING, env=env)
        since = len(liar.seen)
        assert caller_of(daemon, room).fetch(served(liar, object_of(b"0123456789"))).transport == "s3"
        assert stranger.request_count == 0 and all("/us-east-1/s3/" in header for header in liar.seen[since:])


@pytest.mark.parametrize(
    ("trusted", "transport"),
    [("authority", "s3"), ("itself", "mlflow"), ("everybody", "s3"), ("nobody", "")],
)
def test_certificates(start_daemon: StartDaemon, caller_of: CallerOf, room: Path, trusted: str, transport: str) -> None:
    """AWS_CA_BUNDLE and MLFLOW_S3_IGNORE_TLS are obeyed; an unknown authority is not trusted without. What obstore
    refuses and MLflow's client accepts, a server's own certificate that is its own authority, is left to MLflow."""
    authority, certificate, key = make_certificate(room, self_signed=trusted == "itself")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bundle = {"AWS_CA_BUNDLE": str(authority)}
    settings = {"authority": bundle, "itself": bundle, "everybody": {"MLFLOW_S3_IGNORE_TLS": "true"}, "nobody": {}}
    with lying_s3() as server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        server.uri = server.uri.replace("http:", "https:")
        alice = caller_of(start_daemon(TRACKING, env=server.env | settings[trusted]), room)
        uri = served(server, object_of(b"0123456789"))
        if transport:
            assert alice.fetch(uri).transport == transport
        else:
            with pytest.raises(errors.OriginUnavailable):
                alice.fetch(uri)
            assert server.download_count == 0
