"""What a 404 means: there is no such thing where MLflow, or its store, says so in its own words, and else nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ResourceNotFoundError
from google.api_core.exceptions import NotFound as _GcsNotFound

from artifactcache.errors import CacheError, NotFound, OriginUnavailable
from cacheserver.buckets import ObjectError
from cacheserver.http import Access, Http
from cacheserver.refusals import translated
from tests.unit.test_refusals import CLIENTS, answering, boto_of, caught, of_mlflow


def of_ours(url: str) -> Any:
    """One request of our own."""
    with Http(time.monotonic).get(f"{url}/x", Access({}, True, None), 5.0) as answer:
        return answer.read()


BARE = {"nothing": b"", "a page": b"<html>not here</html>", "a number": b"404"}


@pytest.mark.parametrize("ask", [*CLIENTS.values(), of_ours], ids=[*CLIENTS, "ours"])
@pytest.mark.parametrize("body", BARE.values(), ids=BARE.keys())
def test_a_bare_404(ask: Callable[[str], Any], body: bytes) -> None:
    """Is of something in between: nobody has said that there is no such thing, and the message says where to look."""
    with answering(404, body) as url:
        found = translated(caught(lambda: ask(url)), "x", of_answer=True)
    assert type(found) is OriginUnavailable and "404" in str(found) and "Check the tracking URI" in str(found)


JSON = {
    "another service": ({"detail": "Not Found"}, OriginUnavailable),
    "a route": ({"error_code": "ENDPOINT_NOT_FOUND", "message": "m"}, OriginUnavailable),
    "the status": ({"error_code": 404, "message": "m"}, OriginUnavailable),
    "no such thing": ({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "m"}, NotFound),
}


@pytest.mark.parametrize("ask", [of_mlflow, of_ours])
@pytest.mark.parametrize(("body", "kind"), JSON.values(), ids=JSON.keys())
def test_a_404_in_words(ask: Callable[[str], Any], body: dict[str, Any], kind: type[CacheError]) -> None:
    """Only MLflow's own word for what it does not have is believed."""
    with answering(404, json.dumps(body).encode()) as url:
        assert type(translated(caught(lambda: ask(url)), "x")) is kind


def of_boto_head(url: str) -> Any:
    """A question of S3's whose answer has no body."""
    return boto_of(url).head_object(Bucket="bucket", Key="key")


GcsNotFound: Callable[..., Exception] = _GcsNotFound


def azure_error(code: str) -> Exception:
    """Azure's error for a 404, as its client makes it of a header."""
    response = SimpleNamespace(status_code=404, reason="Not Found", headers={}, content_type="", text=lambda: "")
    error: Exception = ResourceNotFoundError("not found", response=response)
    error.error_code = code or None  # type: ignore[attr-defined]
    return error


STORES: dict[str, tuple[Exception, type[CacheError]]] = {
    "Azure, a blob": (azure_error("BlobNotFound"), NotFound),
    "Azure, a container": (azure_error("ContainerNotFound"), NotFound),
    "Azure, bare": (azure_error(""), OriginUnavailable),
    "GCS, a bucket": (GcsNotFound("no", errors=[{"reason": "notFound"}]), NotFound),
    "GCS, a download": (GcsNotFound("GET https://x: No such object: bucket/key"), NotFound),
    "GCS, bare": (GcsNotFound("GET https://x: <html>"), OriginUnavailable),
    "obstore, a key": (ObjectError("NoSuchKey", "404", "gone"), NotFound),
    "obstore, a blob": (ObjectError("BlobNotFound", "404", "gone"), NotFound),
    "obstore, bare": (ObjectError("404", "404", "gone"), OriginUnavailable),
}


@pytest.mark.parametrize(("error", "kind"), STORES.values(), ids=STORES.keys())
def test_a_404_of_a_store(error: Exception, kind: type[CacheError]) -> None:
    """The same: a store says in words of its own what there is not."""
    assert type(translated(error, "x", of_answer=True)) is kind


def test_a_404_to_a_head_of_s3() -> None:
    """Has no body that could have words, and counts as it is."""
    with answering(404) as url:
        assert type(translated(caught(lambda: of_boto_head(url)), "x")) is NotFound
