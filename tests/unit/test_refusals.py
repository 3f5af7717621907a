"""Errors of others in our words: real errors of the real clients, and what must not be repeated of them."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest
import requests
import urllib3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    ParamValidationError,
    ProfileNotFound,
    SSOTokenLoadError,
    UnauthorizedSSOTokenError,
)
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.rest_utils import MlflowHostCreds, http_request, verify_rest_response

from artifactcache.errors import (
    CacheError,
    Corrupted,
    InvalidRequest,
    NoSpace,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    Unauthenticated,
)
from cacheserver.refusals import MESSAGE_LENGTH_MAX, translated, without_credentials, without_secrets

SECRET = "hunter2-SECRET/with+odd=chars"


def caught(action: Callable[[], object]) -> BaseException:
    """The error that it ends in."""
    with pytest.raises(Exception) as found:
        action()
    return found.value


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    """A server that gives every request this answer; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Not to standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL at which nobody listens, for as long as the test."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def of_requests(url: str) -> Any:
    """One request as MLflow's HTTP artifact store makes it."""
    reply = requests.get(f"{url}/x", timeout=5)
    reply.raise_for_status()
    return reply.json()


def of_mlflow(url: str) -> Any:
    """One call of MLflow's REST interface."""
    creds = MlflowHostCreds(url)
    reply = http_request(creds, "/api/x", "GET", max_retries=0, backoff_factor=0, timeout=5)
    return verify_rest_response(reply, "/api/x").json()


def boto_of(url: str) -> Any:
    """A client of S3."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="id",
        aws_secret_access_key="key",
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=5),
    )


def of_boto(url: str) -> Any:
    """One call of S3."""
    return boto_of(url).list_objects_v2(Bucket="bucket")


CLIENTS = {"requests": of_requests, "mlflow": of_mlflow, "boto": of_boto}


@pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS)
def test_an_origin_that_nobody_answers_for(ask: Callable[[str], Any], nobody: str) -> None:
    """OriginUnavailable, whichever client asked."""
    assert type(translated(caught(lambda: ask(nobody)), "x")) is OriginUnavailable


@pytest.mark.parametrize("ask", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_an_origin_that_fails(ask: Callable[[str], Any], status: int) -> None:
    """A status that says "not now" is OriginUnavailable."""
    with answering(status, b"") as url:
        assert type(translated(caught(lambda: ask(url)), "x")) is OriginUnavailable


@pytest.mark.parametrize("ask", [of_requests, of_mlflow])
@pytest.mark.parametrize(("status", "kind"), [(401, Unauthenticated), (403, PermissionDenied), (400, InvalidRequest)])
def test_an_origin_that_refuses(ask: Callable[[str], Any], status: int, kind: type[CacheError]) -> None:
    """Each status says whose move it is, whether MLflow or requests saw it."""
    with answering(status, b"no") as url:
        assert type(translated(caught(lambda: ask(url)), "x")) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CredentialRetrievalError(provider="container-role", error_msg="503"), OriginUnavailable),
        (MetadataRetrievalError(error_msg="timed out"), OriginUnavailable),
        (UnauthorizedSSOTokenError(), Unauthenticated),
        (SSOTokenLoadError(error_msg="no token"), Unauthenticated),
        (ProfileNotFound(profile="work"), Unauthenticated),
        (ParamValidationError(report="Invalid bucket name"), InvalidRequest),
    ],
    ids=lambda one: type(one).__name__,
)
def test_credentials_of_s3_that_cannot_be_had(error: Exception, kind: type[CacheError]) -> None:
    """Also in the middle of a listing: what passes is not taken for a wrong answer, so that what is held is served."""
    assert type(translated(error, "s3://bucket", of_answer=True)) is kind


@pytest.mark.parametrize("ask", [of_requests, of_mlflow])
def test_an_answer_that_is_no_json(ask: Callable[[str], Any]) -> None:
    """A proxy's page instead of an answer: the origin cannot be had."""
    with answering(200, b"<html>log in</html>") as url:
        assert type(translated(caught(lambda: ask(url)), "x")) is OriginUnavailable


S3_CODES = {
    "AccessDenied": PermissionDenied,
    "NoSuchBucket": NotFound,
    "InvalidAccessKeyId": Unauthenticated,
    "ExpiredToken": Unauthenticated,
    "SlowDown": OriginUnavailable,
}


@pytest.mark.parametrize(("code", "kind"), S3_CODES.items())
def test_codes_of_s3(code: str, kind: type[CacheError]) -> None:
    """As a real client reads them from an answer."""
    body = f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()
    with answering(400, body) as url:
        error = caught(lambda: of_boto(url))
    assert isinstance(error, ClientError) and type(translated(error, "x")) is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RESOURCE_DOES_NOT_EXIST", NotFound),
        ("PERMISSION_DENIED", PermissionDenied),
        ("INVALID_PARAMETER_VALUE", InvalidRequest),
        ("INTERNAL_ERROR", OriginUnavailable),
        ("TEMPORARILY_UNAVAILABLE", OriginUnavailable),
        ("REQUEST_LIMIT_EXCEEDED", OriginUnavailable),
    ],
)
def test_codes_of_mlflow(code: str, kind: type[CacheError]) -> None:
    """As they come in its answers."""
    assert type(translated(RestException({"error_code": code, "message": "m"}), "x")) is kind


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("slow"),
        ConnectionResetError("gone"),
        OSError(errno.EIO, "I/O"),
        EOFError(),
        http.client.IncompleteRead(b""),
        urllib3.exceptions.ProtocolError("broken"),
        urllib3.exceptions.ReadTimeoutError(urllib3.HTTPConnectionPool("h"), "/", "slow"),
        requests.exceptions.ChunkedEncodingError("broken"),
        requests.exceptions.ContentDecodingError("broken"),
        MlflowException("something"),
    ],
    ids=repr,
)
def test_io_that_fails_is_an_origin_that_is_unavailable(error: Exception) -> None:
    """Even where only a cause of the error was I/O."""
    assert type(translated(error, "x")) is OriginUnavailable
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert type(translated(outer, "x")) is OriginUnavailable


@pytest.mark.parametrize(
    "error", [KeyError("files"), TypeError("no"), AssertionError(), RuntimeError("x"), BotoCoreError()], ids=repr
)
def test_what_nobody_has_foreseen_is_a_defect(error: Exception) -> None:
    """CacheError itself, with the class in the message: not an origin to wait for. Read from an answer, it is that."""
    found = translated(error, "runs:/1/x")
    assert type(found) is CacheError
    assert "runs:/1/x" in str(found) and type(error).__name__ in str(found)
    assert type(translated(error, "x", of_answer=True)) is Corrupted
    assert type(translated(TimeoutError(), "x", of_answer=True)) is OriginUnavailable


def test_errors_of_ours_and_full_disks_stay_what_they_are() -> None:
    """The disk that is full is the store's, however deep below MLflow's error it is."""
    ours = NotFound("here")
    assert translated(ours, "x") is ours
    outer = MlflowException("download failed")
    outer.__cause__ = OSError(errno.ENOSPC, "full")
    assert type(translated(outer, "x")) is NoSpace


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("boto3", "pip install 'cacheserver[s3]'"),
        ("google.cloud.storage", "pip install 'cacheserver[gcs]'"),
        ("azure.storage.blob", "pip install 'cacheserver[azure]'"),
        ("no_such.module", "no_such"),
        ("google.no_such", "google.no_such"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, advice: str) -> None:
    """InvalidRequest, with what to install where the daemon runs."""
    monkeypatch.setitem(sys.modules, module, None)
    found = translated(caught(lambda: __import__(module)), "s3://bucket/x")
    assert type(found) is InvalidRequest
    assert advice in str(found) and "where the daemon runs" in str(found) and "s3://bucket/x" in str(found)


def test_a_missing_package_for_which_mlflow_has_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which, but not as a name; the error that it has caught does."""
    from mlflow.store.artifact.azure_blob_artifact_repo import AzureBlobArtifactRepository

    monkeypatch.setitem(sys.modules, "azure.identity", None)
    uri = "wasbs://box@acc.blob.core.windows.net/x"
    found = translated(caught(lambda: AzureBlobArtifactRepository(uri)), uri)
    assert type(found) is InvalidRequest and str(found).startswith(f"{uri}: the daemon lacks the Python module azure.")
    assert "pip install 'cacheserver[azure]'" in str(found)


_BASIC = base64.b64encode(b"user:" + SECRET.encode()).decode()


@pytest.mark.parametrize(
    ("text", "secret", "kept"),
    [
        (f"no route to https://user:{'pass'}@host/x", "pass", "host/x"),
        ("no route to http://user:p@ss:w0rd@host:80/x", "w0rd", "host:80/x"),
        ("ftp://u:ftppw@host/x refused", "ftppw", "refused"),
        ("GET https://b.s3/x?abc123 failed", "abc123", "failed"),
        ("GET https://b.s3/x?X-Amz-Signature=abc123 failed", "abc123", "failed"),
        ("Max retries exceeded with url: /c/x?sv=1&sig=abc%2B123 (Caused by E)", "abc%2B123", "Caused by"),
        (f"sent Authorization: Bearer {SECRET}, got 500", SECRET, "got 500"),
        (f"sent {{'Authorization': 'Basic {_BASIC}', 'Host': 'h'}}", _BASIC, "Host"),
        (f"sent {{'Authorization': b'Basic {_BASIC}'}} here", _BASIC, "here"),
        (json.dumps({"authorization": f"bearer {SECRET}", "host": "h"}), SECRET, "host"),
        (f"header value: 'Bearer {SECRET}:!;${SECRET}'", SECRET, "header value"),
        (f"authorization=Negotiate {SECRET}", SECRET, "authorization"),
        (f"bad header: Bearer {SECRET}", SECRET, "bad header"),
        ("AWS4-HMAC-SHA256 Credential=AKIAX/2026/us, SignedHeaders=host, Signature=feed", "feed", "SignedHeaders"),
        ("AWS4-HMAC-SHA256 Credential=AKIAX/2026/us, Signature=feed", "AKIAX", "AWS4"),
        (f'{{"access_token": "{SECRET}", "n": 1}}', SECRET, '"n": 1'),
        (f"x-amz-security-token: {SECRET}; more", SECRET, "more"),
        (f"aws_secret_access_key = {SECRET}", SECRET, "aws_secret"),
        (f"api-key: {SECRET}", SECRET, "api-key"),
        (f"AccountName=acc;AccountKey={SECRET}", SECRET, "acc;"),
        (f"Authorization: SharedKey acc:{SECRET}", SECRET, "Authorization"),
        ("SharedAccessSignature=sv=1&sp=rl&sig=abc%2B123 is wrong", "abc%2B123", "is wrong"),
        (f"MLFLOW_TRACKING_PASSWORD={SECRET} is wrong", SECRET, "is wrong"),
    ],
)
def test_no_secret_gets_out(text: str, secret: str, kept: str) -> None:
    """Passwords, tokens, signatures and headers are cut, wherever a message has them; the rest is kept."""
    for error in (RuntimeError(text), MlflowException(text), OSError(text)):
        message = str(translated(error, "x"))
        assert secret not in message and kept in message, message
    assert secret not in without_secrets(text.upper().replace(secret.upper(), secret))


@pytest.mark.parametrize(
    "text",
    [
        "No such artifact: 'a?b/c d'",
        "Run '0123' not found",
        "models:/doubler@champion has no version",
        "The following failures occurred while downloading s3://bucket/model/a@b",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A message that has none is told as it is."""
    assert without_secrets(text) == text


def test_the_subject_of_a_message_has_no_credentials_either() -> None:
    """A tracking server may name a root with a password in it."""
    assert "pw" not in str(translated(OSError("x"), "ftp://u:pw@host/models"))
    assert without_credentials("https://u:p@h/x?sig=1") == "https://h/x"
    assert without_credentials("wasbs://box@acc.blob.core.windows.net/x") == "wasbs://box@acc.blob.core.windows.net/x"
    assert without_credentials("wasbs://u:p@acc/x wasbs://u@p@acc/x") == "wasbs://acc/x wasbs://acc/x"


@pytest.mark.parametrize("text", ["x" * 5_000_000, "a-" * 2_000_000, "token " * 500_000, "://" * 1_000_000])
def test_a_message_without_end_is_cut(text: str) -> None:
    """Within the time of a test, and to a line."""
    assert len(str(translated(OSError(text), "x"))) < MESSAGE_LENGTH_MAX + 10
