"""Where MLflow's own client would ask, as botocore tells it, and what obstore can be told of that."""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError

from artifactcache.errors import OriginUnavailable, PermissionDenied, Unauthenticated
from cacheserver.buckets import Changed, Unfit, entity_tag, sayable, told
from cacheserver.refusals import translated
from cacheserver.s3 import Place, list_page, place


class Listed:
    """A client as MLflow makes it, and what it sends when it lists the bucket; nobody hears of it."""

    def __init__(self, region: str = "eu-west-1", endpoint: str | None = None, **config: Any) -> None:
        self.region, self.endpoint, self.config = region, endpoint, {"signature_version": "s3v4"} | config
        self.verify = self.config.pop("verify", None)

    def place(self, environment: dict[str, str], bucket: str = "b1-x") -> Place:
        """What is made of it."""
        client = boto3.client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            verify=self.verify,
            config=Config(**self.config),
            aws_access_key_id="A/K",
            aws_secret_access_key="secret",
        )
        answer = AWSResponse("", 200, {}, BytesIO(b"<ListBucketResult/>"))
        answer._content = b"<ListBucketResult/>"  # what `before-send` answers is not sent
        client.meta.events.register_last("before-send.s3", lambda **_: answer)
        return place(client, bucket, list_page(client, {"Bucket": bucket})[1], environment)


def at(
    endpoint: str,
    region: str = "eu-west-1",
    *,
    is_virtual: bool = True,
    is_signed: bool = True,
    verify: bool | str = True,
) -> Place:
    """The place of the bucket `b1-x`."""
    return Place("b1-x", endpoint, region, is_virtual, is_signed, verify)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has set for clients of S3 is not set."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.upper().endswith(("_PROXY", "CA_BUNDLE")):
            monkeypatch.delenv(name)


PATH = {"addressing_style": "path"}
AWS = "https://b1-x.s3.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (Listed(), at(AWS)),
        (Listed(s3=PATH), at("https://s3.eu-west-1.amazonaws.com", is_virtual=False)),
        (Listed("aws-global"), at("https://b1-x.s3.amazonaws.com", "us-east-1")),
        (Listed("cn-north-1"), at("https://b1-x.s3.cn-north-1.amazonaws.com.cn", "cn-north-1")),
        (Listed(use_fips_endpoint=True), at("https://b1-x.s3-fips.eu-west-1.amazonaws.com")),
        (Listed(use_dualstack_endpoint=True), at("https://b1-x.s3.dualstack.eu-west-1.amazonaws.com")),
        (Listed(s3={"use_accelerate_endpoint": True}), at("https://b1-x.s3-accelerate.amazonaws.com")),
        (Listed(endpoint="http://127.0.0.1:9000"), at("http://127.0.0.1:9000", is_virtual=False)),
        (Listed(endpoint="https://minio.example:9000", s3=PATH), at("https://minio.example:9000", is_virtual=False)),
        (Listed(endpoint="https://s.example", s3={"addressing_style": "virtual"}), at("https://b1-x.s.example")),
        (Listed(signature_version=UNSIGNED), at(AWS, is_signed=False)),
        (Listed(verify=False), at(AWS, verify=False)),
        (Listed(verify="/some.pem"), at(AWS, verify="/some.pem")),
    ],
)
def test_a_place_is_where_botocore_asks(listed: Listed, expected: Place) -> None:
    """Host, region, style, signature and certificates, by botocore's own rules."""
    assert listed.place({}) == expected


@pytest.mark.parametrize(
    ("listed", "bucket", "environment", "why"),
    [
        (Listed(signature_version="s3"), "b1-x", {}, "signed in a way"),
        (Listed(endpoint="http://127.0.0.1:9/deep/down"), "b1-x", {}, "of a kind"),
        (Listed(), "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine", {}, "of a kind"),
        (Listed(), "b1-x", {"AWS_SERVER_SIDE_ENCRYPTION": "sse-c"}, "AWS_SERVER_SIDE_ENCRYPTION"),
        (Listed(), "b1-x", {"MLFLOW_S3_EXPECTED_BUCKET_OWNER": "123456789012"}, "EXPECTED_BUCKET_OWNER"),
        (Listed(proxies={"https": "http://proxy.example:3128"}), "b1-x", {}, "proxy"),
        (Listed(client_cert="/mine.pem"), "b1-x", {}, "certificate"),
    ],
)
def test_what_obstore_does_not_have_is_left_to_mlflow(
    listed: Listed, bucket: str, environment: dict[str, str], why: str
) -> None:
    """Nothing is guessed."""
    with pytest.raises(Unfit, match=why):
        listed.place(environment, bucket)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        *((key, True) for key in ("a", "a/b c", "a#b?c%20", "ä/ö", "..a", "a..", "a/...", ".a/b.")),
        *((key, False) for key in ("", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "./a", "a\nb", "a\x7f")),
    ],
)
def test_which_keys_obstore_has_a_name_for(key: str, expected: bool) -> None:
    """As obstore itself says."""
    from obstore.store import MemoryStore

    assert sayable(key) is expected
    store = MemoryStore()
    try:
        store.put(key, b"x")
        same = [found["path"] for found in store.list().collect()] == [key]
    except ValueError:
        same = False
    assert same is expected or key == ""


@pytest.mark.parametrize(("found", "expected"), [('"a-2"', '"a-2"'), ("a", '"a"'), ('W/"a"', ""), ("", ""), (None, "")])
def test_entity_tags_are_spelt_one_way(found: str | None, expected: str) -> None:
    """With their quotes; one that proves nothing is none."""
    assert entity_tag(found) == expected


def _error(status: str, body: str) -> str:
    return (
        f"Generic S3 error: Error performing GET http://127.0.0.1:1/b/k in 3ms - Server returned non-2xx status code:"
        f" {status}: {body}\n\nDebug source:\nGeneric {{ TOKEN }}"
    )


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (GenericError(_error("503 Service Unavailable", "<Error><Code>SlowDown</Code><Message>Wait</Message>")),
         OriginUnavailable, "k: HTTP 503: SlowDown: Wait"),
        (PermissionDeniedError(_error("403 Forbidden", "<html>TOKEN</html>")), PermissionDenied, "k: HTTP 403"),
        (PermissionDeniedError(_error("403 Forbidden", "<Code>InvalidAccessKeyId</Code><X>TOKEN</X>")),
         Unauthenticated, "k: HTTP 403: InvalidAccessKeyId"),
        (GenericError("no way TOKEN\n\nDebug source: TOKEN"), OriginUnavailable, "k: no way …"),
        (FileNotFoundError("gone"), None, "k: gone"),
    ],
)  # fmt: skip
def test_errors_in_short(error: Exception, expected: type[Exception] | None, text: str) -> None:
    """Code and message, and nothing else of an answer."""
    with pytest.raises(OSError) as found, told(lambda: ("TOKEN",)):
        raise error
    ours = translated(found.value, "k")
    assert str(ours) == text and (expected is None or type(ours) is expected)


def test_a_condition_that_does_not_hold_is_no_error_of_the_way() -> None:
    """The object is another one."""
    with pytest.raises(Changed), told(tuple):
        raise PreconditionError("412")
