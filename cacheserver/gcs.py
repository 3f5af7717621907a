"""Buckets of Google Cloud Storage: listed by Google's own client, and asked with obstore through the XML API.

Law of this file: an object is its generation. The listing names it, a request asks for it by it, and the answer has it
in its head: so no answer can be of what was written since.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from cacheserver.buckets import (
    LONG_AGO,
    Bucket,
    Buckets,
    Listed,
    Page,
    Unfit,
    checks_of,
    client_options,
    retry_config,
)

if TYPE_CHECKING:
    from obstore.store import GCSCredential

_FIELDS = "items(name,size,generation,contentEncoding),nextPageToken"  # of all that a listing would say
# What credentials add to a request: the token, which kind they are, and in which regions they may be used. Whatever
# else they add, such as the project that pays, obstore would not send.
_OF_CREDENTIALS = frozenset({"authorization", "x-goog-api-client", "x-allowed-locations"})
_BEARER = "Bearer "


class Place(NamedTuple):
    """Where and how the objects of a bucket are asked for.

    Attributes:
        endpoint: scheme and host.
        is_signed: whether requests have a token; public buckets need none.
        verify: whether the endpoint's certificate is checked; a path checks it against the certificates there, too.
    """

    bucket: str
    endpoint: str
    is_signed: bool
    verify: bool | str


class GcsBuckets(Buckets):
    """How buckets of GCS are asked."""

    scheme, transport = "gs", "gcs"

    def page(self, repository: Any, name: str, prefix: str, after: str, most: int | None) -> Page:
        """By the google.cloud.storage.Client that MLflow has made."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        bucket = repository._get_bucket(name)
        listed = bucket.list_blobs(
            prefix=prefix or None,
            page_token=after or None,
            max_results=most,
            fields=_FIELDS,
            timeout=self._patience,
            retry=DEFAULT_RETRY.with_timeout(self._patience),
        )
        found = [_listed(blob) for blob in next(listed.pages, ())]
        self._learn(name, lambda: place(bucket), partial(self._opened, bucket.client))
        return Page(found, listed.next_page_token or None)

    def condition(self, tag: str) -> dict[str, Any]:
        """By its generation. Where that is gone, the answer is 404; a bucket that keeps old ones still has it."""
        return {"version": tag}

    def tag(self, meta: Any) -> str:
        """The generation; S3 calls such a thing a version."""
        return meta["version"] or ""

    def _opened(self, client: Any, at: Place, retries_max: int) -> Bucket:
        from obstore.store import GCSStore

        tokens = Tokens(client, at.endpoint, self._patience) if at.is_signed else None
        if tokens and (more := tokens.renewed() - _OF_CREDENTIALS):
            raise Unfit(f"its requests have headers that obstore does not send: {', '.join(sorted(more))}")

        def credential() -> GCSCredential:
            return {"token": tokens.last if tokens else "", "expires_at": LONG_AGO}

        store = GCSStore(
            at.bucket,
            config={"base_url": at.endpoint, "skip_signature": not at.is_signed},
            client_options=client_options(at.endpoint, at.verify, self._patience),
            retry_config=retry_config(self._patience, retries_max),
            credential_provider=credential,  # without one, obstore looks for credentials of its own
        )
        return Bucket(at, store, tokens.renewed, lambda: (tokens.last,)) if tokens else Bucket(at, store)


class Tokens:
    """The tokens of a client's own credentials, which google.auth renews; `last` is the one that was given last."""

    def __init__(self, client: Any, endpoint: str, patience: float) -> None:
        from google.auth.transport.requests import Request

        self._credentials = client._credentials
        self._request: Callable[..., Any] = partial(Request(), timeout=patience)
        self._url = f"{endpoint}/"
        self._renewing = threading.Lock()  # one asks for a new one, the others get it
        self.last = ""

    def renewed(self) -> frozenset[str]:
        """Renews it where that is due. Returns the names of the headers that the credentials give to a request. Raises
        what google.auth raises."""
        headers: dict[str, str] = {}
        with self._renewing:
            self._credentials.before_request(self._request, "GET", self._url, headers)
        found = {name.lower(): value for name, value in headers.items()}
        self.last = found.get("authorization", "").removeprefix(_BEARER)
        return frozenset(found)


def place(bucket: Any) -> Place:
    """Where a google.cloud.storage.Bucket is asked for its objects. Raises Unfit."""
    from google.auth.credentials import AnonymousCredentials

    if bucket.user_project:
        raise Unfit("another project pays for its requests")
    client = bucket.client
    try:
        endpoint = str(client._connection.get_api_base_url_for_mtls()).rstrip("/")
        more, credentials, session = client._connection.extra_headers, client._credentials, client._http
        is_mutual = session.is_mtls
    except AttributeError:
        raise Unfit("this version of google-cloud-storage does not say where and how it asks") from None
    parts = urlsplit(endpoint)
    if parts.path or parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unfit("its URLs are of a kind that obstore does not have")
    if more:
        raise Unfit("its client has headers of its own")
    if is_mutual:
        raise Unfit("its client has a certificate of its own")
    return Place(bucket.name, endpoint, not isinstance(credentials, AnonymousCredentials), checks_of(session, endpoint))


def _listed(blob: Any) -> Listed:
    """An object as Google's client lists it. One that is stored with an encoding is decoded where it is downloaded."""
    if blob.content_encoding:
        return Listed(blob.name or "", None, "")
    return Listed(blob.name or "", -1 if blob.size is None else blob.size, str(blob.generation or ""))
