"""S3 buckets for obstore, a client in Rust: where they are and who asks, as MLflow's own client has it.

Law of this file: nothing is decided here. Endpoint, region, certificates and credentials are read off the client that
MLflow itself would ask with; what it has and obstore cannot have is a reason to leave the bucket to MLflow. And nobody
but the endpoint hears of credentials.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential, S3Store

BUCKETS_MAX = 32  # whose clients are kept
RETRIES_MAX = 4
FIRST_PAUSE_SECONDS = 0.2
PAUSE_SECONDS_MAX = 2
_PROBE = "probe"  # a key that nobody asks for
_LONG_AGO = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
# obstore follows redirects to wherever they lead, the session token in its hand. So whatever is not the endpoint goes
# through a proxy that nobody can be: TCP has no port 0.
_NOWHERE = "http://127.0.0.1:0"
# The first is a header that obstore would send without signing it. The others obstore would heed, MLflow's client not.
_UNFIT = (
    *("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "AWS_SERVER_SIDE_ENCRYPTION"),
    *("AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SSE_KMS_KEY_ID"),
)

# The one way that obstore has: <access key>/<date>/<region>/<service>/aws4_request. A key may have slashes in it.
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=.*/\d{8}/([\w-]+)/s3/aws4_request,")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]{1,60})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")
_ILLEGAL = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)(?:\.{0,2})(?:/|$)")

_log = logging.getLogger(__name__)


class ObjectError(OSError):
    """What an endpoint or the way to it says is wrong; `response` is as botocore's errors have it."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.response = {"Error": {"Code": code}}


class Changed(Exception):
    """An object is not the one that was listed."""


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


class Unfit(Exception):
    """Why a bucket has to be left to MLflow's own client."""


class Bucket(NamedTuple):
    """How one bucket is asked; place and store are None where it is left to MLflow. `keys` gives the credentials for a
    request, as botocore's `get_frozen_credentials` does."""

    at: Place | None
    store: S3Store | None
    keys: Callable[[], Any]

    def secrets(self) -> tuple[str, ...]:
        """What must not be in a message."""
        if self.at is None or not self.at.is_signed:
            return ()
        frozen = self.keys()
        return (frozen.secret_key, frozen.token or "")


class Buckets:
    """How buckets are asked, as far as that is known.

    Args:
        patience: seconds without progress after which an endpoint counts as unreachable.
        forget: makes MLflow forget the clients that it keeps.
    """

    def __init__(self, patience: float, forget: Callable[[], None]) -> None:
        self._patience = patience
        self._forget = forget
        self._lock = threading.Lock()
        self._known: dict[str, Bucket] = {}
        self._client: Any = None
        self._making = threading.Lock()

    def client(self, make: Callable[[], Any]) -> Any:
        """MLflow's own client. Kept, for each costs 15 MB at first: MLflow makes one for every thread that comes at
        once, and another one every five minutes. Raises what making one raises."""
        with self._making:
            if self._client is None:
                self._client = make()
            return self._client

    def known(self, name: str) -> Bucket | None:
        """How a bucket is asked, where that is known."""
        return self._known.get(name)

    def learn(self, name: str, client: Any, sent: Sent) -> Bucket:
        """How a bucket is asked, by the request that MLflow's own client has just listed it with."""
        known = self._known.get(name)
        try:
            at = place(client, name, sent, os.environ)
            if known and known.at in (at, None):
                return known
            found = self._open(at)
        except (Unfit, ImportError) as why:
            if known and not known.at:
                return known
            _log.warning("s3://%s is left to MLflow's own client, which is slower: %s", name, why)
            found = Bucket(None, None, _no_keys)
        with self._lock:
            self._known.pop(name, None)
            self._known[name] = found
            if len(self._known) > BUCKETS_MAX:
                del self._known[next(iter(self._known))]
        return found

    def renew(self, seen: Bucket | None) -> None:
        """Reads the credentials anew, from wherever they come, unless that was done since `seen` was got."""
        import boto3

        with self._lock:
            if seen is None or any(bucket is seen for bucket in self._known.values()):
                boto3.setup_default_session()
                self._forget()
                self._known.clear()
                self._client = None

    def _open(self, at: Place) -> Bucket:
        import boto3

        keys = boto3.DEFAULT_SESSION.get_credentials().get_frozen_credentials if at.is_signed else _no_keys
        if isinstance(at.verify, str) and at.endpoint.startswith("https:"):
            _try_certificates(open_store(at, self._patience, keys, retries_max=0))
        return Bucket(at, open_store(at, self._patience, keys), keys)


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


def open_store(at: Place, patience: float, keys: Callable[[], Any], retries_max: int = RETRIES_MAX) -> S3Store:
    """A client for the bucket: its connections, and how it tries again.

    Args:
        patience: seconds for a connection, for the next part of an answer, and for all that is tried again.
        keys: the credentials for a request, as botocore's `get_frozen_credentials` gives them.
        retries_max: how often a request is made again where what went wrong may pass.
    """
    from obstore.store import S3Store

    def credential() -> S3Credential:
        frozen = keys()
        # Out of date as soon as it is told: botocore is asked for each request, for it knows when to get new ones.
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": _LONG_AGO,
        }

    host = urlsplit(at.endpoint)
    seconds = datetime.timedelta(seconds=patience)
    # All that obstore would otherwise read in variables of its own is said here.
    options: ClientConfig = {
        "allow_http": host.scheme == "http",
        "allow_invalid_certificates": not at.verify,
        "connect_timeout": seconds,
        "read_timeout": seconds,
        "timeout": datetime.timedelta(days=7),  # of a whole answer; progress is what counts
        "proxy_url": _NOWHERE,
        "proxy_excludes": host.hostname or "",
    }
    if host.scheme == "https" and at.verify:
        options["root_certificate"] = _certificates(at.verify)
    return S3Store(
        at.bucket,
        config={
            "endpoint": at.endpoint,
            "aws_endpoint_url_s3": at.endpoint,
            "region": at.region,
            "virtual_hosted_style_request": at.is_virtual,
            "skip_signature": not at.is_signed,
            "request_payer": False,
            "s3_express": False,
        },
        client_options=options,
        retry_config={
            "max_retries": retries_max,
            "retry_timeout": seconds,
            "backoff": {
                "init_backoff": datetime.timedelta(seconds=FIRST_PAUSE_SECONDS),
                "max_backoff": datetime.timedelta(seconds=PAUSE_SECONDS_MAX),
                "base": 2,
            },
        },
        credential_provider=credential if at.is_signed else None,
    )


def _certificates(verify: bool | str) -> bytes:
    """The certificates that botocore trusts. obstore adds them to the system's."""
    from botocore.httpsession import get_cert_path

    with open(get_cert_path(verify), "rb") as file:
        return file.read()


def _try_certificates(store: S3Store) -> None:
    """Asks for something. Raises Unfit where obstore refuses a certificate: it takes none that is its own authority."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        obstore.head(store, _PROBE)
    except (BaseError, FileNotFoundError) as error:
        if "certificate" in str(error).lower():
            raise Unfit("obstore does not accept its certificate") from None


def sayable(key: str) -> bool:
    """Whether obstore has a name for an object: none with control characters, empty components, "." and ".."."""
    return not _ILLEGAL.search(key)


def entity_tag(found: str | None) -> str:
    """An entity tag as HTTP spells it; empty where it proves nothing. Some stores list it without its quotes."""
    tag = found or ""
    return "" if not tag or tag.startswith("W/") else '"' + tag.strip('"') + '"'


@contextmanager
def told(secrets: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """Turns errors of obstore's into ObjectError or Changed. Their texts hold whole answers: only code and message
    are taken over, without `secrets`."""
    from obstore.exceptions import BaseError, NotModifiedError, PreconditionError

    try:
        yield
    except (PreconditionError, NotModifiedError):
        raise Changed from None
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise _in_short(error, secrets()) from None


def _in_short(error: Exception, secrets: tuple[str, ...]) -> ObjectError:
    whole = str(error)
    text = whole.partition("\n\nDebug source:")[0]
    status, code, message = (pattern.search(text) for pattern in (_STATUS, _CODE, _MESSAGE))
    if status:
        text = ": ".join(filter(None, (f"HTTP {status[1]}", code and code[1], message and message[1])))
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    kind = _KINDS.get(type(error).__name__, "")
    return ObjectError(code[1] if code else status[1] if status else kind, text)


_KINDS = {"FileNotFoundError": "404", "PermissionDeniedError": "403", "UnauthenticatedError": "401"}
