"""The object store behind the shared tier: the one seam through which it is asked.

Law of this file: every call ends within a time that is known before, and what goes wrong leaves as TierError, without a
secret in it. What comes back is bytes that nobody has looked at.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from cacheserver.buckets import Changed, ObjectError, Unfit, client_options, retry_config, told
from cacheserver.packing import PART_BYTES
from cacheserver.refusals import without_credentials, without_secrets
from cacheserver.s3 import Place, open_store

RETRIES_MAX = 2
# Of what a small question may take as a whole, in units of `patience`: the record of 2,000,000 files has 400 MB.
WHOLE_FACTOR = 5
ENDING_SECONDS = 60  # before their end credentials are not good for a request any more
AMAZON = ".amazonaws.com"
_DEFAULT_REGION = "us-east-1"
_OF_STORES = re.compile(r"(AZURE|GOOGLE|AWS)_.*(KEY|SECRET|TOKEN)$")
_MECHANICS = re.compile(r"^Generic \w+ error: Error performing .*?retry_timeout: \S+ +- ")
_OF_ACCOUNTS = ("client_email", "private_key", "private_key_id")
_NO_RANGE = frozenset({"416", "InvalidRange"})
_NO_RANGE_WORDS = "Invalid range"  # of obstore, by what it was told of the object's size
_CHANGED = "412"
_NOT_IMPLEMENTED = frozenset({"501", "NotImplemented"})  # S3's code, and what stands for it where a store has none

T = TypeVar("T")
Tag = dict[str, str]  # entity tag, and version where the store has such a thing: GCS heeds no other condition
Opened = tuple[Any, Callable[[], tuple[str, ...]]]  # obstore's client, and what must not be in a message


class TierError(Exception):
    """The shared tier, or the way to it, does not do what it should; the message says what, and whose move it is.
    `code` is the endpoint's word for it, or the HTTP status; empty where there is none."""

    def __init__(self, words: str, code: str = "") -> None:
        super().__init__(words)
        self.code = code


class TooLarge(TierError):
    """An object is larger than what it is said to be can be."""


class Unsupported(Exception):
    """The object store has no conditional writes."""


class Object(NamedTuple):
    """An object as the store lists it: its key, its bytes, when it was written, in seconds since the epoch by the
    store's own clock, often in whole seconds, and the tag that changes with its bytes."""

    key: str
    size: int
    written_at: float
    tag: str = ""


class Got(NamedTuple):
    """An object's bytes, what shows that they are still these, and when they were written, by the store's own clock."""

    data: bytes
    tag: Tag
    written_at: float


class TierStore:
    """Objects below one prefix of one bucket.

    Args:
        url: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.
        endpoint: of an S3 store; empty for what the environment, or the profile, says.
        profile: of AWS' configuration files; empty for what the environment says.
        patience: seconds for a connection, for the next part of an answer, and for all that is tried again.
        rate_min: bytes per second; a large object that comes slower is broken off.
    """

    def __init__(self, url: str, endpoint: str, profile: str, patience: float, rate_min: int) -> None:
        self.url = url.rstrip("/")
        self._endpoint = endpoint
        self._profile = profile
        self._patience = patience
        self._small_seconds = patience * WHOLE_FACTOR
        self._large_seconds = patience + PART_BYTES / rate_min
        self._opening = _Slow(self._clients)
        self._opened: tuple[Opened, Opened] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return without_credentials(self.url)

    def get(self, key: str, bytes_max: int) -> Got | None:
        """A small object; None where there is none. Raises TierError; TooLarge where it has more than `bytes_max`."""
        import obstore

        def ask(store: Any) -> Got:
            answer = obstore.get(store, key)
            if answer.meta["size"] > bytes_max:
                raise TooLarge(f"The shared tier {self.name} has {key} with {answer.meta['size']} bytes.")
            return Got(bytes(answer.bytes()), _tag(answer.meta), answer.meta["last_modified"].timestamp())

        found: Got | None = self._if_there(ask)
        return found

    def read(self, key: str, begin: int, length: int) -> memoryview | None:
        """A range of a large object, or less, where it has not so many bytes; None where there is none. Raises
        TierError."""
        import obstore

        def ask(store: Any) -> memoryview:
            return memoryview(obstore.get(store, key, options={"range": (begin, begin + length)}).bytes())

        try:
            found: memoryview | None = self._if_there(ask, is_large=True)
        except TierError as error:
            if error.code in _NO_RANGE or _NO_RANGE_WORDS in str(error):
                return memoryview(b"")
            raise
        return found

    def has(self, key: str, size: int) -> bool:
        """Whether there is an object of this size. Raises TierError."""
        import obstore

        found: int | None = self._if_there(lambda store: obstore.head(store, key)["size"])
        return found == size

    def is_still(self, key: str, tag: Tag) -> bool:
        """Whether an object is what it was when it was got. Raises TierError."""
        import obstore

        found: Tag | None = self._if_there(lambda store: _tag(obstore.head(store, key)))
        return bool(found) and found == tag

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Writes an object, whatever is there. Raises TierError."""
        import obstore

        with self._asked(is_large=True) as store:
            obstore.put(store, key, data, use_multipart=False)

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object where there is none. Returns whether it did. Raises TierError, Unsupported."""
        return self._conditionally(key, data, "create")

    def replace(self, key: str, data: bytes, tag: Tag) -> bool:
        """Writes an object over the one that has this tag. Returns whether it did. Raises TierError, Unsupported."""
        return self._conditionally(key, data, tag)

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; those that are not there count as removed. Raises TierError."""
        import obstore

        def ask(store: Any, some: Sequence[str]) -> bool:
            obstore.delete(store, some)
            return True

        # Where one is not there, GCS and Azure say so, and nobody knows which of the others have gone.
        if keys and not self._if_there(partial(ask, some=list(keys))) and len(keys) > 1:
            for key in keys:
                self._if_there(partial(ask, some=[key]))

    def list(self, prefix: str) -> Iterator[Object]:
        """All objects whose keys begin with a prefix that ends with a slash. Raises TierError."""
        import obstore

        with self._asked() as store:
            pages = iter(obstore.list(store, prefix.rstrip("/"), chunk_size=1000))
        while True:
            with self._asked():
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield Object(meta["path"], meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or "")

    # -- the mechanics ----------------------------------------------------------------------------------------------

    def _conditionally(self, key: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        try:
            with self._asked() as store:
                try:
                    obstore.put(store, key, data, use_multipart=False, mode=mode)
                except NotSupportedError:
                    raise Unsupported from None
                except AlreadyExistsError:
                    return False
        except TierError as error:
            if error.code in _NOT_IMPLEMENTED:
                raise Unsupported from None
            if error.code == _CHANGED:
                return False
            raise
        return True

    def _if_there(self, ask: Callable[[Any], Any], *, is_large: bool = False) -> Any:
        with self._asked(is_large=is_large) as store:
            try:
                return ask(store)
            except FileNotFoundError:
                return None

    @contextmanager
    def _asked(self, *, is_large: bool = False) -> Iterator[Any]:
        """obstore's client. What goes wrong while it is asked leaves as TierError."""
        store, secrets = self._open()[is_large]
        try:
            with told(secrets):
                yield store
        except Changed:  # a condition that was made, or none
            raise TierError(f"The shared tier {self.name} answers what it was not asked.", _CHANGED) from None
        except ObjectError as error:
            said = _MECHANICS.sub("", without_secrets(str(error)))
            raise TierError(f"The shared tier {self.name} cannot be used now: {said}", error.code) from None
        except Unfit as error:
            raise TierError(f"The shared tier {self.name}: {error}.") from None

    def _open(self) -> tuple[Opened, Opened]:
        """Clients for small answers and for large ones, made at the first call."""
        if self._opened is None:
            try:
                return self._opening.get(self._small_seconds)
            except ImportError:
                kind = {"s3": "s3", "gs": "gcs"}.get(urlsplit(self.url).scheme, "azure")
                raise TierError(
                    f"The shared tier {self.name} needs a package that is missing: install cacheserver[{kind}]."
                ) from None
            except Exception as error:  # noqa: BLE001 - whatever a client has to say of its settings
                said = without_secrets(str(error)).rstrip(".")
                raise TierError(f"The shared tier {self.name} cannot be opened: {said}.") from None
        return self._opened

    def _clients(self) -> tuple[Opened, Opened]:
        opened = self._opener()
        self._opened = opened(self._small_seconds), opened(self._large_seconds)
        return self._opened

    def _opener(self) -> Callable[[float], Opened]:
        """Makes clients, by how many seconds a whole answer may take."""
        parts = urlsplit(self.url)
        if parts.scheme == "s3":
            return self._s3(parts.netloc, parts.path.strip("/"))
        from obstore.store import from_url

        def opened(whole: float) -> Opened:
            seconds = datetime.timedelta(seconds=self._patience)
            options: Any = {
                "connect_timeout": seconds,
                "read_timeout": seconds,
                "timeout": datetime.timedelta(seconds=whole),
                "allow_http": True,  # of an emulator: the real ones have https in their names
            }
            retry, config = retry_config(self._patience, RETRIES_MAX), _of_environment(parts.scheme)
            return from_url(self.url, config=config, client_options=options, retry_config=retry), _secrets  # type: ignore[call-overload]

        return opened

    def _s3(self, bucket: str, prefix: str) -> Callable[[float], Opened]:
        """As boto3 would ask, by whatever it reads: variables, profiles, roles."""
        import boto3

        session = boto3.Session(profile_name=self._profile or None)
        credentials = session.get_credentials()
        endpoint = self._endpoint or os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
        client = session.client("s3", endpoint_url=endpoint, region_name=session.region_name or _DEFAULT_REGION)
        url, http = client.meta.endpoint_url, client._endpoint.http_session
        style = (client.meta.config.s3 or {}).get("addressing_style", "auto")
        is_virtual = style == "virtual" or (style == "auto" and (urlsplit(url).hostname or "").endswith(AMAZON))
        parts = urlsplit(url)
        if is_virtual:
            url = f"{parts.scheme}://{bucket}.{parts.netloc}"
        verify = True if http._verify is None else http._verify
        proxy = http._proxy_config.proxy_url_for(url) or ""
        at = Place(bucket, url, client.meta.region_name, is_virtual, credentials is not None, verify)

        keys = _Keys(credentials, self._small_seconds)

        def opened(whole: float) -> Opened:
            options = client_options(url, verify, self._patience, proxy, whole)
            return open_store(at, self._patience, keys.get, RETRIES_MAX, prefix=prefix, options=options), keys.secrets

        return opened


class Late(Exception):
    """What was waited for has not come in time."""


class _Slow(Generic[T]):
    """What a server or a program has to be asked for, which may take its time: one thread makes it, and whoever needs
    it waits for so long only. Who comes after one has waited in vain does not wait, until it has come."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._coming: Future[T] | None = None
        self._is_late = False

    def get(self, seconds: float) -> T:
        """It, made anew. Raises what making it does, and Late."""
        with self._lock:
            if self._coming is None:
                coming = Future[T]()
                threading.Thread(target=self._run, args=(coming,), name="tier-credentials", daemon=True).start()
                self._coming, self._is_late = coming, False
            coming, patience = self._coming, 0.0 if self._is_late else seconds
        try:
            return coming.result(patience)
        except TimeoutError:
            if coming.done():  # whoever makes it has waited in vain himself
                raise
            with self._lock:
                self._is_late = self._coming is coming
            raise Late(f"its credentials have not come within {seconds:g} s") from None

    def _run(self, coming: Future[T]) -> None:
        settle: Callable[[], None]
        try:
            settle = partial(coming.set_result, self._make())
        except Exception as error:  # noqa: BLE001 - for whoever waits
            settle = partial(coming.set_exception, error)
        except BaseException as error:  # noqa: BLE001 - a client's panic, or its exit, is none of theirs
            settle = partial(coming.set_exception, RuntimeError(repr(error)))
        with self._lock:
            self._coming = None
        settle()


class _Keys:
    """botocore's credentials, which it may have to get anew; None where requests are not signed."""

    def __init__(self, credentials: Any, seconds: float) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._anew = _Slow(self._freeze)
        self._last: Any = None

    def get(self) -> Any:
        """Those for a request. Raises Late where they do not come, and those at hand end."""
        is_due = getattr(self._credentials, "refresh_needed", lambda *_: False)
        if not is_due():  # a quarter of an hour before they end
            self._last = self._freeze()
            return self._last
        try:
            self._last = self._anew.get(self._seconds)
        except Late:
            if self._last is None or is_due(ENDING_SECONDS):
                raise
        return self._last

    def _freeze(self) -> Any:
        return self._credentials.get_frozen_credentials()

    def secrets(self) -> tuple[str, ...]:
        """What must not be in a message: of those that were given last, for to ask for others may take its time."""
        return (self._last.secret_key, self._last.token or "") if self._last else ()


def _tag(meta: Any) -> Tag:
    return {name: str(value) for name in ("e_tag", "version") if (value := meta.get(name))}


def _of_environment(scheme: str) -> dict[str, Any]:
    """What Google's and Azure's own clients read in the environment, and obstore does not."""
    if scheme == "gs":
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
        key = {"gcs_base_url": emulator, "disable_oauth": True} | dict.fromkeys(_OF_ACCOUNTS, "")
        return {"service_account_key": json.dumps(key)} if emulator else {}  # skip_signature is not heeded by writes
    parts = (part.partition("=") for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    told = {name: value for name, _, value in parts if value}
    names = {"AccountName": "account_name", "AccountKey": "account_key", "BlobEndpoint": "endpoint"}
    return {key: told[name] for name, key in names.items() if name in told}


def _secrets() -> tuple[str, ...]:
    """What variables of the environment may hold of keys."""
    found = [value for name, value in os.environ.items() if _OF_STORES.match(name) and len(value) > 8]
    return tuple(found) + tuple(_of_environment("az").get("account_key", "").split())
