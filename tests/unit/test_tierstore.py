"""The seam to an object store: whatever is answered leaves as what a caller expects, and conditions are heeded."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore

from cacheserver.tierstore import Late, TierError, TierStore, Unsupported, _Keys, _Slow
from tests.rig.until import until

PATIENCE_SECONDS = 10.0
CREDENTIALS = '{"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "secret"}'


class Stub(ThreadingHTTPServer):
    """An endpoint that answers everything with one status; or, where that is 0, as Google's XML API does for one
    object, whose generation grows."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status, self.code, self.generation, self.content = 0, "", 17, b"first"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        found, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, text = found.status, b"<Error><Code>%s</Code></Error>" % found.code.encode()
        if not status:
            status, text = 200, found.content
            if self.command == "PUT":
                if self.headers.get("x-goog-if-generation-match") == str(found.generation):
                    found.generation, found.content = found.generation + 1, body
                else:
                    status, text = 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(text)),
            "ETag": '"md5"',
            "x-goog-generation": str(found.generation),
            "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """An endpoint, and credentials for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    stub = Stub()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", stub.url)
    thread = threading.Thread(target=stub.serve_forever)
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()


CALLS: dict[str, Callable[[TierStore], Any]] = {
    "get": lambda store: store.get("key", 10),
    "read": lambda store: store.read("key", 0, 10),
    "has": lambda store: store.has("key", 1),
    "put": lambda store: store.put("key", b"data"),
    "create": lambda store: store.create("key", b"data"),
    "replace": lambda store: store.replace("key", b"data", {"e_tag": '"tag"'}),
    "delete": lambda store: store.delete(["key"]),
    "list": lambda store: list(store.list("folder/")),
}
OTHERWISE = {("create", 501), ("replace", 501), ("create", 412), ("replace", 412), ("read", 416)}


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (416, "InvalidRange"), (412, ""), (403, "")])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_is_answered_is_an_error_of_the_tiers(stub: Stub, call: str, status: int, code: str) -> None:
    """A fetch that counts on that goes on; unless the answer is one to a condition, or to a range."""
    stub.status, stub.code = status, code
    store = TierStore("s3://bucket/prefix", stub.url, "", PATIENCE_SECONDS, 1 << 20)
    if (call, status) not in OTHERWISE:
        with pytest.raises(TierError):
            CALLS[call](store)
    elif status == 501:
        with pytest.raises(Unsupported):
            CALLS[call](store)
    else:
        assert not CALLS[call](store)


def test_a_condition_of_google_is_a_generation(stub: Stub) -> None:
    """It knows none by entity tag: a claim could not be renewed."""
    store = TierStore("gs://bucket/prefix", "", "", PATIENCE_SECONDS, 1 << 20)
    found = store.get("key", 10)
    assert found and store.replace("key", b"second", found.tag)
    assert stub.content == b"second" and not store.replace("key", b"third", found.tag)


def test_credentials_that_do_not_come_are_waited_for_only_so_long(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program that hangs. When it has answered the next call goes on."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {answer}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = TierStore("s3://bucket/prefix", stub.url, "", 0.1, 1 << 20)
    for _ in range(2):
        with pytest.raises(TierError, match="credentials have not come within"):
            store.get("key", 10)
    answer.write_text(CREDENTIALS)
    assert until(lambda: _got(store), "an answer") == b"first"


def test_credentials_that_have_to_be_got_anew_are_waited_for_only_so_long(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program answers once, with what ends soon, and then it hangs."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    answer, ends = tmp_path / "answer", datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    os.mkfifo(answer)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {answer}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = TierStore("s3://bucket/prefix", stub.url, "", 0.1, 1 << 20)
    text = CREDENTIALS.replace("}", f', "Expiration": "{ends.isoformat()}"}}')
    first = threading.Thread(target=answer.write_text, args=(text,))
    first.start()
    with pytest.raises(TierError, match="credentials have not come within"):
        while True:
            store.get("key", 10)
    first.join()
    with pytest.raises(TierError):  # whose words ask for no credentials: that would never end
        store.get("key", 10)
    with contextlib.suppress(OSError):  # whoever still reads comes to his end
        os.close(os.open(answer, os.O_WRONLY | os.O_NONBLOCK))


class Credentials:
    """botocore's, that end in so many seconds; to get others hangs until it is let go on."""

    def __init__(self) -> None:
        self.left = 1000.0
        self.may_go_on = threading.Event()

    def refresh_needed(self, refresh_in: float = 900.0) -> bool:
        """Whether they end so soon."""
        return self.left < refresh_in

    def get_frozen_credentials(self) -> str:
        """Those that are good."""
        if self.refresh_needed():
            assert self.may_go_on.wait(60)
        return f"good for {self.left:g} s"


def test_credentials_are_good_until_they_end() -> None:
    """botocore wants others a quarter of an hour before; where these do not come, the old ones go on until then."""
    credentials = Credentials()
    keys = _Keys(credentials, 0.05)
    assert keys.get() == "good for 1000 s"
    credentials.left = 700.0
    assert [keys.get() for _ in range(3)] == 3 * ["good for 1000 s"]
    credentials.left = 30.0
    with pytest.raises(Late):
        keys.get()
    credentials.left = 2000.0
    credentials.may_go_on.set()
    assert keys.get() == "good for 2000 s"


def test_a_time_that_has_run_out_elsewhere_is_told_as_that() -> None:
    """It is not who waits here that has waited in vain."""

    def make() -> str:
        raise TimeoutError("the metadata server says nothing")

    with pytest.raises(TimeoutError, match="metadata server"):
        _Slow(make).get(60)


def test_a_client_that_panics_is_an_error_of_the_tiers(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, and the next call tries again."""
    store = TierStore("s3://bucket/prefix", stub.url, "", PATIENCE_SECONDS, 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_opener", lambda: sys.exit("no more"))
        with pytest.raises(TierError, match="no more"):
            store.get("key", 10)
    assert _got(store) == b"first"


def test_of_several_objects_those_that_are_there_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client ends with the first one that is not."""
    store = TierStore("s3://bucket/prefix", "", "", PATIENCE_SECONDS, 1 << 20)
    local = LocalStore(tmp_path)
    monkeypatch.setattr(store, "_opener", lambda: lambda whole: (local, tuple))
    for number in range(40):
        store.put(f"there/{number}", b"x")
    store.delete(["there/absent", *(f"there/{number}" for number in range(40))])
    assert list(store.list("there/")) == []


def _got(store: TierStore) -> bytes:
    with contextlib.suppress(TierError):
        found = store.get("key", 10)
        return found.data if found else b""
    return b""
