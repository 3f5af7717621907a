"""The tracking server's own artifacts over HTTP: what is broken off goes on, what leads astray is not followed."""

from __future__ import annotations

import base64
import gzip
import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import lying, trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.lying import Lie, LyingOrigin, Reply, file, flat

SIZE = 8 << 20  # more than one read


@pytest.fixture(scope="module")
def liar() -> Iterator[LyingOrigin]:
    """One origin for all tests of this module."""
    with lying.lying_origin() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, liar: LyingOrigin) -> Daemon:
    """A daemon that has credentials for it."""
    return module_start(
        liar.uri,
        unreachable_after=2.0,
        env={"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "s3cret"},
    )


class Broken:
    """A download that hangs up again and again, and goes on where it is asked to, if the bytes are still the same."""

    def __init__(self, content: bytes, *, part_bytes: int, etag: str = '"v1"') -> None:
        self.content = content
        self.etag = etag
        self.sent_bytes = 0
        self.starts: list[int] = []
        self._part_bytes = part_bytes

    def __call__(self, reply: Reply) -> None:
        """One answer: a part of what is left."""
        start = 0
        if reply.header("range") and reply.header("if-range") == self.etag:
            start = int(reply.header("range").removeprefix("bytes=").rstrip("-"))
        self.starts.append(start)
        size = len(self.content)
        if start:
            part = f"bytes {start}-{size - 1}/{size}"
            reply.head(206, Content_Length=size - start, Content_Range=part, ETag=self.etag)
        else:
            reply.head(200, Content_Length=size, **({"ETag": self.etag} if self.etag else {}))
        sent = self.content[start : start + self._part_bytes]
        self.sent_bytes += len(sent)
        reply.write(sent)
        reply.hang_up()


def served(liar: LyingOrigin, answer: lying.Answer, size: int = SIZE) -> str:
    """The URI of a run of one file."""
    return f"runs:/{liar.run(Lie(flat(file('weights', size)), lambda path: answer))}"


def test_a_download_that_breaks_off_goes_on_where_it_ended(alice: Caller, liar: LyingOrigin) -> None:
    """With the same entity tag nothing is sent twice, however often it breaks."""
    broken = Broken(os.urandom(SIZE), part_bytes=SIZE // 5)
    handed = alice.fetch(served(liar, broken))
    assert (handed.path / "weights").read_bytes() == broken.content
    assert broken.sent_bytes == SIZE and broken.starts == sorted(set(broken.starts)) and len(broken.starts) >= 5


def test_a_file_that_changes_while_it_is_brought_begins_anew(alice: Caller, liar: LyingOrigin) -> None:
    """A part of one and a rest of the other would be bytes that never were."""
    broken = Broken(os.urandom(SIZE), part_bytes=SIZE // 2)

    def answer(reply: Reply) -> None:
        if len(broken.starts) == 1:
            broken.content, broken.etag = os.urandom(SIZE), '"v2"'
        broken(reply)

    handed = alice.fetch(served(liar, answer))
    assert (handed.path / "weights").read_bytes() == broken.content


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_proof_nothing_is_put_together(alice: Caller, liar: LyingOrigin, etag: str) -> None:
    """A server that gives no strong entity tag is asked for all of it again; if it never sends that, it fails."""
    broken = Broken(os.urandom(SIZE), part_bytes=SIZE // 2, etag=etag)
    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(served(liar, broken))
    assert set(broken.starts) == {0}


def test_more_than_is_listed_is_not_taken(alice: Caller, liar: LyingOrigin) -> None:
    """The rest is not read: a server cannot fill the disk."""
    taken = Counter[str]()

    def endless(reply: Reply) -> None:
        reply.head(Connection="close")
        for _ in range(4096):  # 256 MiB, if it is taken
            reply.write(bytes(1 << 16))
            taken["bytes"] += 1 << 16

    with pytest.raises(errors.Corrupted, match="sends more"):
        alice.fetch(served(liar, endless, size=10))
    assert taken["bytes"] < 64 << 20


def test_what_is_compressed_on_the_way_arrives_as_it_was(alice: Caller, liar: LyingOrigin) -> None:
    """It is asked for as it is; a server that compresses all the same is understood."""
    content = b"compressible " * 10_000
    asked = []

    def squeezed(reply: Reply) -> None:
        asked.append(reply.header("accept-encoding"))
        body = gzip.compress(content)
        reply.head(Content_Length=len(body), Content_Encoding="gzip", ETag='"x"')
        reply.write(body)

    handed = alice.fetch(served(liar, squeezed, size=len(content)))
    assert (handed.path / "weights").read_bytes() == content and asked == ["identity"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_patience_gets_it(alice: Caller, liar: LyingOrigin, status: int) -> None:
    """As long as it says, if that is not longer than the origin may take."""
    statuses = iter([status, 200])

    def busy_once(reply: Reply) -> None:
        if next(statuses) == 200:
            reply.sized(b"0123456789")
        else:
            busy(reply, status, "1")

    handed = alice.fetch(served(liar, busy_once, size=10))
    assert (handed.path / "weights").read_bytes() == b"0123456789"
    with pytest.raises(errors.OriginUnavailable, match=str(status)):
        alice.fetch(served(liar, lambda reply: busy(reply, status, "3600"), size=10))


def busy(reply: Reply, status: int, seconds: str) -> None:
    """A refusal for the moment."""
    reply.head(status, Content_Length=0, Retry_After=seconds)


def test_credentials_go_where_they_are_meant_to_and_no_redirect_takes_them_elsewhere(
    alice: Caller, daemon: Daemon, liar: LyingOrigin
) -> None:
    """A redirect on the same host is followed, one to another host is not: nobody there hears of it."""
    seen: list[str] = []
    with lying.lying_origin() as stranger:
        port = stranger.uri.rpartition(":")[2]

        def answer(path: str) -> lying.Answer:
            def reply_to(reply: Reply) -> None:
                seen.append(reply.header("authorization"))
                if path == "here":
                    reply.head(307, Location="there", Content_Length=0)
                elif path == "there":
                    reply.sized(b"0123456789")
                else:
                    reply.head(307, Location=f"http://localhost:{port}/anything", Content_Length=0)

            return reply_to

        near = f"runs:/{liar.run(Lie(flat(file('here')), answer))}"
        assert trees.read(alice.fetch(near).path) == {"here": b"0123456789"}
        with pytest.raises(errors.OriginUnavailable, match="another host"):
            alice.fetch(f"runs:/{liar.run(Lie(flat(file('away')), answer))}")
        assert stranger.request_count == 0
    assert set(seen) == {"Basic " + base64.b64encode(b"ada:s3cret").decode()}
    assert "s3cret" not in daemon.read_log()


def test_another_host_that_a_run_names_gets_no_credentials(
    start_daemon: StartDaemon, room: Path, caller_of: CallerOf
) -> None:
    """Whoever may create a run names its root; the daemon's own login is for its tracking server."""
    seen: set[str] = set()

    def answer(reply: Reply) -> None:
        seen.add(reply.header("authorization"))
        reply.sized(b"0123456789")

    with lying.lying_origin() as here, lying.lying_origin() as stranger:
        lie = stranger.run(Lie(flat(file("one")), lambda path: answer))
        run = lying.run_info(lie) | {"artifact_uri": f"mlflow-artifacts://{stranger.uri.rpartition('/')[2]}/{lie}"}
        here.answers["runs/get"] = {"run": {"info": run, "data": {}, "inputs": {}, "outputs": {}}}
        env = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "s3cret"}
        alice = caller_of(start_daemon(here.uri, env=env), room)
        assert alice.fetch(f"runs:/{lie}").file_count == 1
    assert seen == {""}


def test_credentials_that_are_replaced_while_they_are_in_use(
    start_daemon: StartDaemon, liar: LyingOrigin, room: Path, caller_of: CallerOf
) -> None:
    """Those that are refused are read anew: passwords that change in the middle of a download cost no error."""
    (room / ".mlflow").mkdir(mode=0o755)
    valid: list[str] = []

    def change(password: str) -> None:
        text = f"[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = {password}\n"
        (room / ".mlflow" / "credentials").write_text(text)
        valid[:] = ["Basic " + base64.b64encode(f"ada:{password}".encode()).decode()]

    def answer(path: str) -> lying.Answer:
        def reply_to(reply: Reply) -> None:
            if path == "3" and len(refused) == 0:
                change("other")
            if [reply.header("authorization")] == valid:
                return reply.sized(b"0123456789")
            refused.append(path)
            return reply.json({"message": "wrong password"}, 401)

        return reply_to

    refused: list[str] = []
    change("first")
    alice = caller_of(start_daemon(liar.uri, env={"HOME": str(room)}), room)
    assert alice.fetch(f"runs:/{liar.run(Lie(flat(*(file(str(n)) for n in range(9))), answer))}").file_count == 9
    assert "3" in refused
    valid[:] = ["nobody's"]
    with pytest.raises(errors.Unauthenticated):
        alice.fetch(f"runs:/{liar.run(Lie(flat(file('x')), answer))}")


NAMES = ["a b", "a%20b", "a#b", "a?b=c&d", "ä/ö", "+", "a;b", "%", "sub/%2e%2e"]


def test_names_are_quoted_once(alice: Caller, liar: LyingOrigin) -> None:
    """Whatever a name is made of, the request is for that name; MLflow's own client asks for others."""
    asked: list[str] = []

    def listing(path: str) -> lying.Listing:
        below = [name for name in NAMES if os.path.dirname(name) == path]
        folders = {os.path.dirname(name) for name in NAMES if "/" in name} if not path else set()
        return [file(os.path.basename(name)) for name in below] + [lying.folder(name) for name in folders]

    def download(path: str) -> lying.Answer:
        asked.append(path)
        return lying.sends(b"0123456789")

    handed = alice.fetch(f"runs:/{liar.run(Lie(listing, download))}")
    assert sorted(asked) == sorted(NAMES) and set(trees.read(handed.path)) == set(NAMES)


def test_a_proxy_of_the_environment_is_used(start_daemon: StartDaemon, room: Path, caller_of: CallerOf) -> None:
    """As MLflow's own client would: HTTP_PROXY, with its login, told by each request which server it is for."""
    asked: set[tuple[str, str, str]] = set()

    def note(reply: Reply) -> None:
        asked.add((reply.target.partition("/api/")[0], reply.header("host"), reply.header("proxy-authorization")))
        reply.sized(b"0123456789")

    with lying.lying_origin() as proxy:  # it answers whatever host the request is for
        uri = f"runs:/{proxy.run(Lie(flat(file('one')), lambda path: note))}"
        way = proxy.uri.replace("//", "//ada:pass@")
        daemon = start_daemon("http://mlflow.example:5000", env={"HTTP_PROXY": way, "http_proxy": way})
        assert caller_of(daemon, room).fetch(uri).file_count == 1
    login = "Basic " + base64.b64encode(b"ada:pass").decode()
    assert asked == {("http://mlflow.example:5000", "mlflow.example:5000", login)}


@pytest.mark.parametrize("where", ["the URL", "netrc"])
def test_a_login_that_only_requests_knows(
    start_daemon: StartDaemon, liar: LyingOrigin, room: Path, caller_of: CallerOf, where: str
) -> None:
    """MLflow's own client sends the one in the tracking URI, or in ~/.netrc: so must whoever downloads for it."""
    seen: set[str] = set()

    def answer(reply: Reply) -> None:
        seen.add(reply.header("authorization"))
        reply.sized(b"0123456789")

    tracking_uri, env = liar.uri, {}
    if where == "netrc":
        (room / "netrc").write_text("machine 127.0.0.1 login ada password s3:cr@t")
        env = {"NETRC": str(room / "netrc")}
    else:
        tracking_uri = liar.uri.replace("//", "//ada:s3%3Acr%40t@")
    daemon = start_daemon(tracking_uri, env=env)
    alice, uri = caller_of(daemon, room), f"runs:/{liar.run(Lie(flat(file('one')), lambda path: answer))}"
    assert alice.fetch(uri).file_count == 1
    assert seen == {"Basic " + base64.b64encode(b"ada:s3:cr@t").decode()}
    with pytest.raises(errors.CacheError) as refused:
        alice.fetch(served(liar, lying.fails(401)))
    assert "cr" not in str(refused.value).replace("Corrupted", "") and "cr@t" not in daemon.read_log()


@pytest.mark.parametrize("target", ["http://127.0.0.1:99999/", "http://[::1", "http://127.0.0.1:x/", "file:///etc/x"])
def test_a_redirect_to_no_url(alice: Caller, liar: LyingOrigin, target: str) -> None:
    """It is the server that is wrong, not the daemon."""
    with pytest.raises(errors.OriginUnavailable, match="redirects"):
        alice.fetch(served(liar, lambda reply: reply.head(302, Location=target, Content_Length=0)))


def test_a_part_that_begins_nowhere(alice: Caller, liar: LyingOrigin) -> None:
    """A number of thousands of digits is no place in a file."""
    broken = Broken(os.urandom(SIZE), part_bytes=SIZE // 2)

    def answer(reply: Reply) -> None:
        if not reply.header("range"):
            return broken(reply)
        reply.head(206, Content_Length=5, ETag=broken.etag, Content_Range=f"bytes {'9' * 5000}-/*")
        return reply.write(b"56789")

    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(served(liar, answer))


def test_an_answer_that_is_not_read_spoils_no_connection(alice: Caller, liar: LyingOrigin) -> None:
    """Of a server that ignores ranges and sends in chunks, only the head is wanted where it is asked for a tag."""
    tags = itertools.count()

    def answer(reply: Reply) -> None:
        reply.head(Transfer_Encoding="chunked", ETag=f'"{next(tags)}"')
        threading.Event().wait(0.05)  # so that the body comes after the head
        reply.write(b"a\r\n0123456789\r\n0\r\n\r\n")

    files = [file(str(number)) for number in range(10)]
    uri = f"runs:/{liar.run(Lie(flat(*files), lambda path: answer))}"
    alice.fetch(uri)
    alice.fetch(uri, refresh=True)
    assert next(tags) == 4 * len(files)  # to bring it; for its tag, to bring it again, and for that tag
