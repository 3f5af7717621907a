"""Azure Blob Storage: a reader's part of it by its documentation, which can lie, and Azurite, Microsoft's own emulator.

Both are asked through a connection string, the one way in which MLflow can be told of another endpoint than Azure's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

from tests.rig.lying import Answer, LyingOrigin, Reply
from tests.rig.lying_s3 import object_of
from tests.rig.process import free_port, stop_group
from tests.rig.until import until

ACCOUNT, KEY = "tests", "c2VjcmV0LW9mLXRoZS10ZXN0cy13aGljaC1uby1sb2ctaGFz"
START_SECONDS_MAX = 60.0
_TOP = Path(__file__).resolve().parent.parent.parent

_numbers = itertools.count(1)


def connection(uri: str, credential: str = f"AccountKey={KEY}") -> dict[str, str]:
    """What a client has to have in its environment."""
    parts = ("DefaultEndpointsProtocol=http", f"AccountName={ACCOUNT}", credential, f"BlobEndpoint={uri}")
    return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(filter(None, parts))}


class Container(Protocol):
    """One that blobs can be put into."""

    uri: str

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Store blobs below a prefix."""


# -- the tests' own ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Blob:
    """A blob, and what is told about it. `more` is what its properties have beside size and tag."""

    content: bytes
    size: object
    tag: str
    is_folder: bool = False
    encoding: str = ""
    answer: Answer | None = None


@dataclasses.dataclass
class LyingContainer:
    """Blobs by name. `page` is how many it lists at a time."""

    name: str
    blobs: dict[str, Blob] = dataclasses.field(default_factory=dict)
    page: int = 5000
    listing: Answer | None = None

    @property
    def uri(self) -> str:
        """Its URI for MLflow."""
        return f"wasbs://{self.name}@{ACCOUNT}.blob.core.windows.net"

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Store blobs below a prefix."""
        for name, content in files.items():
            self.blobs[f"{prefix}/{name}"] = Blob(content, len(content), f"0x8D{next(_numbers):014X}")

    def lie(self, key: str, answer: Answer, size: object = 10, tag: str = "0x1") -> str:
        """Have a blob answered for in this way; returns the URI of its folder."""
        self.blobs[key] = Blob(b"", size, tag, answer=answer)
        return f"{self.uri}/{key.rpartition('/')[0]}"


def blob_of(content: bytes, tag: str = "0x1", **how: Any) -> Answer:
    """A blob as the service answers for it, with ranges and If-Match."""
    if not content:  # Azure's own client asks for its first bytes, and then for all of it
        whole = object_of(content, f'"{tag}"', **how)
        none = refuses(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
        return lambda reply: (none if reply.header("x-ms-range") else whole)(reply)
    return object_of(content, f'"{tag}"', X_Ms_Blob_Type="BlockBlob", **how)


def refuses(status: int, code: str, message: str, more: str = "") -> Answer:
    """An error as the service tells it: in a header, and in XML."""
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{more}</Error>"

    def answer(reply: Reply) -> None:
        body = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
        reply.head(status, Content_Length=len(body), Content_Type="application/xml", X_Ms_Error_Code=code)
        reply.write(body)

    return answer


class LyingAzure(LyingOrigin):
    """The endpoint; `uri` is its URL. `seen` has the If-Match and the Authorization header of each request for a blob,
    and its signature."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"{self.uri}/{ACCOUNT}"
        self.containers: dict[str, LyingContainer] = {}
        self.seen: list[tuple[str, str, str]] = []

    def container(self, **what: Any) -> LyingContainer:
        """A new container."""
        found = LyingContainer(f"c-{next(_numbers)}", **what)
        self.containers[found.name] = found
        return found

    def answer(self, reply: Reply, path: str, query: dict[str, list[str]]) -> None:
        """One GET request."""
        self.request_count += 1
        name, _, key = path.removeprefix(f"/{ACCOUNT}/").partition("/")
        if name not in self.containers:
            return refuses(404, "ContainerNotFound", "The specified container does not exist.")(reply)
        container = self.containers[name]
        if not key:
            self.listing_count += 1
            return (container.listing or _lists(container, query))(reply)
        self.download_count += 1
        signature = query.get("sig", [""])[0]
        self.seen.append((reply.header("if-match"), reply.header("authorization"), signature))
        found = container.blobs.get(key)
        if not found:
            return refuses(404, "BlobNotFound", "The specified blob does not exist.")(reply)
        encoding = {"Content_Encoding": found.encoding} if found.encoding else {}
        return (found.answer or blob_of(found.content, found.tag, **encoding))(reply)


def _lists(container: LyingContainer, query: dict[str, list[str]]) -> Answer:
    prefix, after = query.get("prefix", [""])[0], query.get("marker", [""])[0]
    most = min(container.page, int(query.get("maxresults", ["5000"])[0]))
    keys = [key for key in sorted(container.blobs) if key.startswith(prefix) and key > after]
    text = "".join(_entry(key, container.blobs[key]) for key in keys[:most])
    following = f"<NextMarker>{escape(keys[most - 1])}</NextMarker>" if len(keys) > most else "<NextMarker />"
    return lists(f"<Blobs>{text}</Blobs>{following}")


def _entry(key: str, blob: Blob) -> str:
    encoding = f"<Content-Encoding>{blob.encoding}</Content-Encoding>" if blob.encoding else "<Content-Encoding />"
    folder = "<hdi_isfolder>true</hdi_isfolder>" if blob.is_folder else ""
    return (
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>Mon, 23 Nov 2020 09:51:46 GMT</Last-Modified>"
        f"<Etag>{blob.tag}</Etag><Content-Length>{blob.size}</Content-Length>{encoding}"
        f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{folder}</Metadata></Blob>"
    )


def lists(text: str) -> Answer:
    """A page of a listing, with this in it."""
    whole = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="c">{text}</EnumerationResults>'

    def answer(reply: Reply) -> None:
        body = whole.encode()
        reply.head(200, Content_Length=len(body), Content_Type="application/xml")
        reply.write(body)

    return answer


@contextlib.contextmanager
def lying_azure() -> Iterator[LyingAzure]:
    """An endpoint for the length of a block."""
    server = LyingAzure()
    try:
        yield server
    finally:
        server.close()


# -- Azurite ----------------------------------------------------------------------------------------------------------


def azurite_program() -> str | None:
    """Where Azurite is: on the path, or where `.ci/run` puts it."""
    here = _TOP / ".venv-azurite" / "node_modules" / ".bin" / "azurite-blob"
    return shutil.which("azurite-blob") or (str(here) if here.exists() else None)


def reason_not_to_start() -> str | None:
    """Why there cannot be an Azurite here; None where there can."""
    if azurite_program() and shutil.which("node"):
        return None
    return "Azurite is not installed: npm install --prefix .venv-azurite azurite@3.37.0"


class AzuriteContainer:
    """One that Azurite has; `client` is Azure's own for it."""

    def __init__(self, service: Any, access: str | None = None) -> None:
        self.name = f"c-{next(_numbers)}"
        self.uri = f"wasbs://{self.name}@{ACCOUNT}.blob.core.windows.net"
        self.client = service.create_container(self.name, public_access=access)

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Store blobs below a prefix."""
        for name, content in files.items():
            self.client.upload_blob(f"{prefix}/{name}", content, overwrite=True)


class Azurite:
    """A running one; `uri` is its URL."""

    def __init__(self, uri: str) -> None:
        from azure.storage.blob import BlobServiceClient

        self.uri = uri
        self.service = BlobServiceClient.from_connection_string(*connection(uri).values())

    def container(self, access: str | None = None) -> AzuriteContainer:
        """A new container."""
        return AzuriteContainer(self.service, access)

    def answers(self) -> bool:
        """Whether it is there."""
        from azure.core.exceptions import AzureError

        try:
            self.service.get_service_properties(retry_total=0)
        except AzureError:
            return False
        return True


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """One with nothing in it, which keeps everything in memory."""
    folder.mkdir()
    port, program = free_port(), azurite_program()
    assert program is not None
    options = (
        "--inMemoryPersistence",
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--blobPort",
        str(port),
    )
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            (program, *options),
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=folder,
            env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        )
    try:
        found = Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}")
        until(found.answers, lambda: f"Azurite\n{(folder / 'log').read_text()[-2000:]}", START_SECONDS_MAX)
        yield found
    finally:
        stop_group(process)
