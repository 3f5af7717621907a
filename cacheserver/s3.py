"""S3 buckets: listed by boto3 as MLflow sets it up, and asked with obstore as boto3 has asked.

Law of this file: where a bucket is and how its requests are signed is read off a request that boto3 has sent. botocore
has too many rules for that to follow them here.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from cacheserver.buckets import (
    LONG_AGO,
    RETRIES_MAX,
    Bucket,
    Buckets,
    Listed,
    Page,
    Unfit,
    client_options,
    entity_tag,
    retry_config,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential, S3Store

# The first is a header that obstore would send without signing it. The others obstore would heed, MLflow's client not.
_UNFIT = (
    *("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "AWS_SERVER_SIDE_ENCRYPTION"),
    *("AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SSE_KMS_KEY_ID"),
)

# The one way that obstore has: <access key>/<date>/<region>/<service>/aws4_request. A key may have slashes in it.
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=.*/\d{8}/([\w-]+)/s3/aws4_request,")


class Place(NamedTuple):
    """Where and how the objects of a bucket are asked for.

    Attributes:
        endpoint: scheme and host, with the bucket in it where `is_virtual`.
        region: what requests are signed for.
        is_signed: whether they are.
        verify: whether the endpoint's certificate is checked; a path checks it against the certificates there, too.
    """

    bucket: str
    endpoint: str
    region: str
    is_virtual: bool
    is_signed: bool
    verify: bool | str


class S3Buckets(Buckets):
    """How buckets of S3 are asked."""

    scheme = transport = "s3"

    def __init__(self, patience: float, forget: Callable[[], None]) -> None:
        super().__init__(patience, forget)
        self._client: Any = None
        self._making = threading.Lock()

    def page(self, repository: Any, name: str, prefix: str, after: str, most: int | None) -> Page:
        """By the client of boto3 that MLflow makes."""
        client = self._kept(repository._get_s3_client)
        question = {"Bucket": name, "Prefix": prefix, **getattr(repository, "_bucket_owner_params", {})}
        question |= {"ContinuationToken": after} if after else {}
        question |= {"MaxKeys": most} if most else {}
        page, sent = list_page(client, question)
        self._learn(name, lambda: place(client, name, sent, os.environ), self._opened)
        found = [
            Listed(str(found.get("Key", "")), int(found.get("Size", -1)), entity_tag(found.get("ETag")))
            for found in page.get("Contents", ())
        ]
        return Page(found, page.get("NextContinuationToken", "") if page.get("IsTruncated") else None)

    def _kept(self, make: Callable[[], Any]) -> Any:
        """MLflow's own client. Kept, for each costs 15 MB at first: MLflow makes one for every thread that comes at
        once, and another one every five minutes. Raises what making one raises."""
        with self._making:
            if self._client is None:
                self._client = make()
            return self._client

    def _opened(self, at: Place, retries_max: int) -> Bucket:
        import boto3

        if not at.is_signed:
            return Bucket(at, open_store(at, self._patience, _no_keys, retries_max))
        keys = boto3.DEFAULT_SESSION.get_credentials().get_frozen_credentials

        def secrets() -> tuple[str, ...]:
            frozen = keys()
            return (frozen.secret_key, frozen.token or "")

        return Bucket(at, open_store(at, self._patience, keys, retries_max), keys, secrets)

    def _renewed(self) -> None:
        import boto3

        boto3.setup_default_session()
        self._client = None


def _no_keys() -> Any:
    raise AssertionError("nothing is signed without credentials")


class Sent(NamedTuple):
    """A request as it left: its URL, and its Authorization header (empty where it was not signed)."""

    url: str
    authorization: str


_sent = threading.local()


def list_page(client: Any, question: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sent]:
    """One page of a listing by a client of boto3, and the request that it was the answer to. Raises what the client
    raises."""
    client.meta.events.register("before-send.s3.ListObjectsV2", _note, unique_id=__name__)
    page: Mapping[str, Any] = client.list_objects_v2(**question)
    return page, _sent.last


def _note(request: Any, **_: Any) -> None:
    signed = request.headers.get("Authorization", "")
    _sent.last = Sent(request.url, signed.decode() if isinstance(signed, bytes) else signed)


def place(client: Any, bucket: str, sent: Sent, environment: Mapping[str, str]) -> Place:
    """Where a client of boto3 asks for the objects of a bucket, by the request that it has listed it with.

    botocore has many rules for that (regions, partitions, FIPS, dual stack, addressing styles, buckets that are in
    another region than was thought). Only what it does shows them all: URLs that it makes without asking are others.

    Raises Unfit.
    """
    for name in _UNFIT:
        if environment.get(name):
            raise Unfit(f"{name} is set")
    try:
        session = client._endpoint.http_session  # botocore.httpsession.URLLib3Session
        verify, certificate, proxies = session._verify, session._cert_file, session._proxy_config
        proxy = proxies.proxy_url_for(sent.url)
    except AttributeError:
        raise Unfit("this version of botocore does not say which certificates and proxies it uses") from None
    if certificate:
        raise Unfit("it has a certificate of its own")
    if proxy:
        raise Unfit("it is asked through a proxy")
    parts = urlsplit(sent.url)
    is_virtual = parts.path in ("", "/") and parts.netloc.startswith(f"{bucket}.")
    if (not is_virtual and parts.path != f"/{bucket}") or ":" in bucket:
        raise Unfit("its URLs are of a kind that obstore does not have")
    region = str(client.meta.region_name)
    if sent.authorization:
        signed = _SIGNED.match(sent.authorization)
        if not signed:
            raise Unfit("its requests are signed in a way that obstore does not have")
        region = signed[1]
    endpoint = f"{parts.scheme}://{parts.netloc}"
    return Place(bucket, endpoint, region, is_virtual, bool(sent.authorization), True if verify is None else verify)


def open_store(
    at: Place,
    patience: float,
    keys: Callable[[], Any],
    retries_max: int = RETRIES_MAX,
    *,
    prefix: str = "",
    options: ClientConfig | None = None,
) -> S3Store:
    """A client for the bucket: its connections, and how it tries again.

    Args:
        patience: seconds for a connection, for the next part of an answer, and for all that is tried again.
        keys: the credentials for a request, as botocore's `get_frozen_credentials` gives them.
        retries_max: how often a request is made again where what went wrong may pass.
        prefix: what all keys are below.
        options: how it connects, where that is not `client_options` of the place.
    """
    from obstore.store import S3Store

    def credential() -> S3Credential:
        frozen = keys()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": LONG_AGO,
        }

    return S3Store(
        at.bucket,
        prefix=prefix or None,
        config={
            "endpoint": at.endpoint,
            "aws_endpoint_url_s3": at.endpoint,
            "region": at.region,
            "virtual_hosted_style_request": at.is_virtual,
            "skip_signature": not at.is_signed,
            "request_payer": False,
            "s3_express": False,
        },
        client_options=options or client_options(at.endpoint, at.verify, patience),
        retry_config=retry_config(patience, retries_max),
        credential_provider=credential if at.is_signed else None,
    )
