"""Buckets for obstore, a client in Rust: what those of S3, GCS and Azure have in common.

Law of this file: nothing is decided here. Endpoint, certificates and credentials are read off the client that MLflow
itself would ask with; what it has and obstore cannot have is a reason to leave the bucket to MLflow. And nobody but the
endpoint hears of credentials.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

BUCKETS_MAX = 32  # whose clients are kept, of one kind of store
RETRIES_MAX = 4
FIRST_PAUSE_SECONDS = 0.2
PAUSE_SECONDS_MAX = 2
# An expiry for credentials that are out of date as soon as they are told: who has them is asked for each request, for
# it knows when to get new ones.
LONG_AGO = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_WHOLE_SECONDS = 7 * 86_400.0  # of a whole answer: progress is what counts
_PROBE = "probe"  # a key that nobody asks for
# obstore follows redirects to wherever they lead, credentials in its hand. So whatever is not the endpoint goes through
# a proxy that nobody can be: TCP has no port 0.
_NOWHERE = "http://127.0.0.1:0"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]{1,60})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")
_LACKING = re.compile(r"\b([A-Z][\w-]+) Header missing from response", re.I)
_ILLEGAL = re.compile(r"[\x00-\x1f\x7f]|(?:^|/)(?:\.{0,2})(?:/|$)")

_log = logging.getLogger(__name__)


class ObjectError(OSError):
    """What an endpoint or the way to it says is wrong; `code` is its word for it, or the HTTP status, `response` is as
    botocore's errors have it, and `is_missing` says that there is no such object."""

    def __init__(self, code: str, status: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.is_missing = status == "404"
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": int(status or 0)}}


class Changed(Exception):
    """An object is not the one that was listed."""


class Unfit(Exception):
    """Why a bucket has to be left to MLflow's own client."""


class Listed(NamedTuple):
    """An object as its store lists it.

    Attributes:
        size: in bytes; None where MLflow's client makes other bytes of it than are stored: then it has to bring them.
        tag: what shows that an answer is of this very object; empty where nothing does.
        is_folder: whether it says no more than that there is a folder of this name.
    """

    key: str
    size: int | None
    tag: str
    is_folder: bool = False


class Page(NamedTuple):
    """Some objects of a bucket, in order, and what asks for those that follow; None where none do."""

    found: list[Listed]
    following: str | None


def _nothing() -> tuple[str, ...]:
    return ()


class Bucket(NamedTuple):
    """How one bucket is asked; place and store are None where it is left to MLflow.

    Attributes:
        at: where and how; it has an `endpoint` and a `verify`.
        ready: sees to it that there are credentials. Where new ones have to be got, the thread that calls it waits, and
            not one of obstore's few.
        secrets: what must not be in a message.
    """

    at: Any
    store: S3Store | GCSStore | AzureStore | None
    ready: Callable[[], object] = _nothing
    secrets: Callable[[], tuple[str, ...]] = _nothing


class Buckets:
    """How the buckets of one kind of store are listed and asked. A child for each kind has `scheme`, `transport` and
    `page`.

    Args:
        patience: seconds without progress after which an endpoint counts as unreachable.
        forget: makes MLflow forget the clients that it keeps.
    """

    scheme: str
    transport: str

    def __init__(self, patience: float, forget: Callable[[], None]) -> None:
        self._patience = patience
        self._forget = forget
        self._lock = threading.Lock()
        self._known: dict[str, Bucket] = {}

    def page(self, repository: Any, name: str, prefix: str, after: str, most: int | None) -> Page:
        """Objects whose keys begin with a prefix, by MLflow's own client: from it is learnt how the bucket is asked.

        Args:
            repository: MLflow's own.
            name: the bucket, as the URI has it.
            after: what the page before said; empty for the first.
            most: how many are wanted.

        Raises what the client raises.
        """
        raise NotImplementedError

    def condition(self, tag: str) -> dict[str, Any]:
        """What makes obstore's request one for the object that was listed with this tag, and for no other."""
        return {"if_match": tag}

    def tag(self, meta: Any) -> str:
        """The tag of the object that an answer of obstore's is of; empty where nothing shows that."""
        return entity_tag(meta["e_tag"])

    def known(self, name: str) -> Bucket | None:
        """How a bucket is asked, where that is known."""
        return self._known.get(name)

    def leave(self, name: str, why: Exception) -> Bucket:
        """Leaves a bucket to MLflow from now on."""
        _log.warning("%s://%s is left to MLflow's own client, which is slower: %s", self.scheme, name, why)
        return self._keep(name, Bucket(None, None))

    def renew(self, seen: Bucket | None) -> None:
        """Reads the credentials anew, from wherever they come, unless that was done since `seen` was got."""
        with self._lock:
            if seen is None or any(bucket is seen for bucket in self._known.values()):
                self._forget()
                self._renewed()
                self._known.clear()

    def _renewed(self) -> None:
        """Forgets what a child knows of credentials."""

    def _learn(self, name: str, place: Callable[[], Any], opened: Callable[[Any, int], Bucket]) -> Bucket:
        """How a bucket is asked.

        Args:
            place: where and how MLflow's own client asks. Raises Unfit.
            opened: a bucket there, by how often a request is made again. Raises Unfit, too.
        """
        known = self._known.get(name)
        try:
            at = place()
            if known and known.at in (at, None):
                return known
            if isinstance(at.verify, str) and at.endpoint.startswith("https:"):
                _try_certificates(opened(at, 0).store)
            return self._keep(name, opened(at, RETRIES_MAX))
        except (Unfit, ImportError) as why:
            return known if known and not known.at else self.leave(name, why)

    def _keep(self, name: str, found: Bucket) -> Bucket:
        with self._lock:
            self._known.pop(name, None)
            self._known[name] = found
            if len(self._known) > BUCKETS_MAX:
                del self._known[next(iter(self._known))]
        return found


# -- how obstore is set up --------------------------------------------------------------------------------------------


def client_options(
    endpoint: str, verify: bool | str, patience: float, proxy: str = "", whole: float = _WHOLE_SECONDS
) -> ClientConfig:
    """How obstore connects: to the endpoint, and to nothing else. All that it would otherwise read in variables of its
    own is said here.

    Args:
        verify: whether the endpoint's certificate is checked; a path checks it against the certificates there, too.
        patience: seconds for a connection, and for the next part of an answer.
        proxy: through which the endpoint is asked; empty for none.
        whole: seconds for a whole answer.
    """
    from certifi import where  # what botocore and requests trust

    host, seconds = urlsplit(endpoint), datetime.timedelta(seconds=patience)
    options: ClientConfig = {
        "allow_http": host.scheme == "http",
        "allow_invalid_certificates": not verify,
        "connect_timeout": seconds,
        "read_timeout": seconds,
        "timeout": datetime.timedelta(seconds=whole),
        "proxy_url": proxy or _NOWHERE,
    }
    if not proxy:
        options["proxy_excludes"] = host.hostname or ""
    if host.scheme == "https" and verify:  # obstore adds these to the system's
        with open(where() if verify is True else verify, "rb") as file:
            options["root_certificate"] = file.read()
    return options


def retry_config(patience: float, retries_max: int) -> RetryConfig:
    """How often, and how long, obstore makes a request again where what went wrong may pass."""
    return {
        "max_retries": retries_max,
        "retry_timeout": datetime.timedelta(seconds=patience),
        "backoff": {
            "init_backoff": datetime.timedelta(seconds=FIRST_PAUSE_SECONDS),
            "max_backoff": datetime.timedelta(seconds=PAUSE_SECONDS_MAX),
            "base": 2,
        },
    }


def checks_of(session: Any, url: str, verify: Any = None, certificate: Any = None) -> bool | str:
    """Whether, or against what, a client that is made of requests checks certificates. Raises Unfit where it goes
    another way than obstore can.

    Args:
        session: its requests.Session.
        verify, certificate: what it tells requests beside the URL.
    """
    from requests.utils import select_proxy

    found = session.merge_environment_settings(url, {}, None, verify, certificate)
    if found["cert"]:
        raise Unfit("it has a certificate of its own")
    if select_proxy(url, found["proxies"]):
        raise Unfit("it is asked through a proxy")
    checks: bool | str = found["verify"]
    if isinstance(checks, str) and os.path.isdir(checks):
        raise Unfit("its certificates are a folder")
    return checks


def _try_certificates(store: Any) -> None:
    """Asks for something. Raises Unfit where obstore refuses a certificate: it takes none that is its own authority."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        obstore.head(store, _PROBE)
    except (BaseError, FileNotFoundError) as error:
        if "certificate" in str(error).lower():
            raise Unfit("obstore does not accept its certificate") from None


# -- what obstore takes and says --------------------------------------------------------------------------------------


def sayable(key: str) -> bool:
    """Whether obstore has a name for an object: none with control characters, empty components, "." and ".."."""
    return not _ILLEGAL.search(key)


def entity_tag(found: str | None) -> str:
    """An entity tag as HTTP spells it; empty where it proves nothing. Some stores list it without its quotes."""
    tag = found or ""
    return "" if not tag or tag.startswith("W/") else '"' + tag.strip('"') + '"'


@contextmanager
def told(secrets: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """Turns errors of obstore's into ObjectError, Changed or Unfit. Their texts hold whole answers: only code and
    message are taken over, without `secrets`."""
    from obstore.exceptions import BaseError, NotModifiedError, PreconditionError

    try:
        yield
    except (PreconditionError, NotModifiedError):
        raise Changed from None
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise _in_short(error, secrets()) from None


def _in_short(error: Exception, secrets: tuple[str, ...]) -> ObjectError | Unfit:
    text = str(error).partition("\n\nDebug source:")[0]
    status, code, message, lacking = (p.search(text) for p in (_STATUS, _CODE, _MESSAGE, _LACKING))
    if lacking:
        return Unfit(f"its answers have no {lacking[1]}, which obstore needs")
    if status:
        text = ": ".join(filter(None, (f"HTTP {status[1]}", code and code[1], message and message[1])))
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    kind = status[1] if status else _STATUSES.get(type(error).__name__, "")
    return ObjectError(code[1] if code else kind, kind, text)


_STATUSES = {"FileNotFoundError": "404", "NotFoundError": "404", "PermissionDeniedError": "403"} | {
    "UnauthenticatedError": "401"
}
