"""Containers of Azure Blob Storage: listed by Azure's own client, and asked with obstore.

Law of this file: whatever MLflow gave the client to ask with (a key, a signature, a token, nothing), obstore asks with
the same; and where neither the client nor this file knows of a thing, MLflow asks.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import tenacity

from cacheserver.buckets import (
    FIRST_PAUSE_SECONDS,
    LONG_AGO,
    PAUSE_SECONDS_MAX,
    RETRIES_MAX,
    Bucket,
    Buckets,
    Listed,
    Page,
    Unfit,
    checks_of,
    client_options,
    entity_tag,
    retry_config,
)

if TYPE_CHECKING:
    from obstore.store import AzureCredential

_UNFIT = ("AZURE_ENCRYPTION_KEY",)  # obstore would heed it, MLflow's client not
_FOLDER = "hdi_isfolder"  # metadata of a blob that stands for a folder: hierarchical accounts and Hadoop make such
_BEARER = "Bearer "
_BUSY = frozenset({429, 500, 503})

logging.getLogger("azure").setLevel(logging.WARNING)  # each request of theirs is ten lines of information


class Place(NamedTuple):
    """Where and how the blobs of a container are asked for.

    Attributes:
        endpoint: scheme and host, and the account's path where the host is not the account's own.
        credential: "key", "signature", "token", or empty for public containers.
        verify: whether the endpoint's certificate is checked; a path checks it against the certificates there, too.
    """

    container: str
    account: str
    endpoint: str
    credential: str
    verify: bool | str


class AzureBuckets(Buckets):
    """How containers are asked. A bucket's name is that of the container, `@` and the account's host."""

    scheme, transport = "wasbs", "azure"

    def page(self, repository: Any, name: str, prefix: str, after: str, most: int | None) -> Page:
        """By the azure.storage.blob.BlobServiceClient that MLflow has made."""
        container = name.partition("@")[0]
        client = repository.client
        page = tenacity.Retrying(  # Azure's client would wait for 15 s before its second attempt
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=PAUSE_SECONDS_MAX),
            stop=tenacity.stop_after_attempt(RETRIES_MAX + 1) | tenacity.stop_before_delay(self._patience),
            reraise=True,
        )(self._asked, client.get_container_client(container), prefix, after, most)
        self._learn(name, lambda: place(client, container), partial(self._opened, client))
        return page

    def _asked(self, container: Any, prefix: str, after: str, most: int | None) -> Page:
        pages = container.list_blobs(
            name_starts_with=prefix or None,
            include=["metadata"],
            results_per_page=most,
            connection_timeout=self._patience,
            read_timeout=self._patience,
            retry_total=0,
        ).by_page(after or None)
        found = [_blob(blob) for blob in next(pages, ())]
        return Page(found, pages.continuation_token or None)

    def _opened(self, client: Any, at: Place, retries_max: int) -> Bucket:
        from obstore.store import AzureStore

        keys = Keys(client, at)
        keys.ready()
        store = AzureStore(
            at.container,
            config={
                "account_name": at.account,
                "endpoint": at.endpoint,
                "skip_signature": not at.credential,
                "use_emulator": False,
                "use_fabric_endpoint": False,
            },
            client_options=client_options(at.endpoint, at.verify, self._patience),
            retry_config=retry_config(self._patience, retries_max),
            credential_provider=keys.credential,  # without one, obstore looks for credentials of its own
        )
        return Bucket(at, store, keys.ready, keys.secrets)


class Keys:
    """What a client of Azure's puts into its requests, for obstore."""

    def __init__(self, client: Any, at: Place) -> None:
        self._client = client
        self._at = at
        self._renewing = threading.Lock()  # one asks for a new token, the others get it
        self._last = ""

    def ready(self) -> None:
        """Gets a token where one is due, by the client's own policy for requests, which keeps and renews it. Raises
        what azure.identity raises."""
        if self._at.credential != "token":
            return
        from azure.core.pipeline import PipelineContext, PipelineRequest
        from azure.core.rest import HttpRequest

        request = HttpRequest("GET", self._at.endpoint)
        with self._renewing:
            self._client._credential_policy.on_request(PipelineRequest(request, PipelineContext(None)))
        self._last = request.headers["Authorization"].removeprefix(_BEARER)

    def credential(self) -> AzureCredential:
        """The one for a request."""
        match self._at.credential:
            case "key":
                return {"access_key": self._client.credential.account_key, "expires_at": LONG_AGO}
            case "signature":
                return {"sas_token": _pairs(_signature(self._client)), "expires_at": LONG_AGO}
        return {"token": self._last, "expires_at": LONG_AGO}

    def secrets(self) -> tuple[str, ...]:
        """What must not be in a message."""
        if self._at.credential == "key":
            return (self._client.credential.account_key,)
        signed = [value for name, value in _pairs(_signature(self._client)) if name == "sig"]
        return (self._last, *signed, *(quote(value, safe="") for value in signed))


def place(client: Any, container: str) -> Place:
    """Where an azure.storage.blob.BlobServiceClient asks for the blobs of a container. Raises Unfit."""
    for name in _UNFIT:
        if os.environ.get(name):
            raise Unfit(f"{name} is set")
    try:
        endpoint = f"{client.scheme}://{client.primary_hostname}".rstrip("/")
        transport, proxies = client._config.transport, client._config.proxy_policy.proxies
        certificates, session = transport.connection_config, transport.session
        credential = _credential(client)
    except AttributeError:
        raise Unfit("this version of azure-storage-blob does not say where and how it asks") from None
    if proxies:
        raise Unfit("it is asked through a proxy")
    if not client.account_name or client.location_mode != "primary" or urlsplit(endpoint).query:
        raise Unfit("its URLs are of a kind that obstore does not have")
    checks = checks_of(session, endpoint, certificates.verify, certificates.cert)
    return Place(container, client.account_name, endpoint, credential, checks)


def _credential(client: Any) -> str:
    """What kind of credential a client has. Raises Unfit."""
    credential = client.credential
    if hasattr(credential, "account_key"):
        return "key"
    if hasattr(credential, "get_token"):
        return "token"
    if _signature(client):
        return "signature"
    if credential is not None:
        raise Unfit("it has a credential of a kind that obstore does not have")
    return ""


def _signature(client: Any) -> str:
    """The shared access signature that a client has; empty where it has none."""
    return str(getattr(client.credential, "signature", "") or client._query_str).lstrip("?")


def _pairs(signature: str) -> list[tuple[str, str]]:
    """As obstore takes them. A plus is a plus: Azure's base64 has such."""
    parts = (part.partition("=") for part in signature.split("&") if part)
    return [(unquote(name), unquote(value)) for name, _, value in parts]


def _may_pass(error: BaseException) -> bool:
    """Whether what went wrong may go right a moment later."""
    return getattr(error, "status_code", None) in _BUSY


def _blob(blob: Any) -> Listed:
    """A blob as Azure's client lists it. One that is stored with an encoding is decoded where it is downloaded."""
    if (blob.metadata or {}).get(_FOLDER, "").lower() == "true":
        return Listed(blob.name or "", blob.size, "", is_folder=True)
    if blob.content_settings.content_encoding:
        return Listed(blob.name or "", None, "")
    return Listed(blob.name or "", -1 if blob.size is None else blob.size, entity_tag(blob.etag))
