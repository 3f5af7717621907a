"""Google Cloud Storage, as much of it as a reader needs, by its documentation: the JSON API lists and downloads, the
XML API downloads, generations are never used twice. It can lie about every object.

The tests' own, for there is no emulator to install that has generations in the XML API.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.rig.lying import Answer, LyingOrigin, Reply
from tests.rig.lying_s3 import object_of, refuses

_generations = itertools.count(1_700_000_000_000_000)


@dataclasses.dataclass
class Stored:
    """An object, and what is told about it."""

    content: bytes
    size: object
    generation: str
    encoding: str = ""
    answer: Answer | None = None


@dataclasses.dataclass
class Bucket:
    """Objects by name. `page` is how many it lists at a time; where it `keeps` old generations, they can be had."""

    name: str
    objects: dict[str, Stored] = dataclasses.field(default_factory=dict)
    old: dict[tuple[str, str], Stored] = dataclasses.field(default_factory=dict)
    page: int = 1000
    keeps: bool = False
    listing: Answer | None = None

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Store objects below a prefix."""
        for name, content in files.items():
            key = f"{prefix}/{name}"
            if self.keeps and key in self.objects:
                self.old[key, self.objects[key].generation] = self.objects[key]
            self.objects[key] = Stored(content, len(content), str(next(_generations)))

    def lie(self, key: str, answer: Answer, size: object = 10) -> str:
        """Have an object answered for in this way; returns the generation that it is listed with."""
        self.objects[key] = Stored(b"", size, str(next(_generations)), answer=answer)
        return self.objects[key].generation


def stored(content: bytes, generation: str, **how: Any) -> Answer:
    """An object as the XML API answers for it. Its ETag is the content's MD5, which no test needs."""
    return object_of(content, '"d41d8"', X_Goog_Generation=generation, **how)


no_such_key = refuses(404, "NoSuchKey", "The specified key does not exist.")


class LyingGcs(LyingOrigin):
    """The endpoint; `uri` is its URL. `seen` has the generation and the Authorization header of each XML request."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets: dict[str, Bucket] = {}
        self.seen: list[tuple[str, str]] = []
        self.json_downloads: list[str] = []
        self.tokens_from: str | None = None  # whose tokens are asked for; None: nobody's
        self.expires_seconds = 3600
        self._numbers = itertools.count(1)

    @property
    def env(self) -> dict[str, str]:
        """What a client of it has to have in its environment that needs no credentials."""
        return {"STORAGE_EMULATOR_HOST": self.uri}

    def env_of(self, file: Path, email: str) -> dict[str, str]:
        """What a client has to have that asks with the credentials of a service account; writes them to a file."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": "tests",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": email,
            "token_uri": f"{self.uri}/token",
        }
        file.write_text(json.dumps(account))
        file.chmod(0o644)
        return {"API_ENDPOINT_OVERRIDE": self.uri, "GOOGLE_APPLICATION_CREDENTIALS": str(file)}

    def bucket(self, **what: Any) -> Bucket:
        """A new bucket."""
        found = Bucket(f"b-{next(self._numbers)}", **what)
        self.buckets[found.name] = found
        return found

    def posted(self, reply: Reply, path: str, body: bytes) -> None:
        """A token for whom an assertion (RFC 7523) is from."""
        claims = parse_qs(body.decode())["assertion"][0].split(".")[1]
        email = json.loads(base64.urlsafe_b64decode(claims + "=="))["iss"]
        token = f"token-of-{email}-{next(self._numbers)}"
        reply.json({"access_token": token, "expires_in": self.expires_seconds, "token_type": "Bearer"})

    def answer(self, reply: Reply, path: str, query: dict[str, list[str]]) -> None:
        """One GET request."""
        self.request_count += 1
        if self.tokens_from and f"Bearer token-of-{self.tokens_from}-" not in reply.header("authorization"):
            if path.startswith("/storage/"):
                return reply.json(_error(401, "Invalid Credentials"), 401)
            return refuses(401, "AuthenticationRequired", "Authentication required.")(reply)
        if path.startswith("/storage/v1/b/"):
            return self._page(reply, path.split("/")[4], query)
        is_json = path.startswith("/download/storage/v1/b/")
        name, _, key = path.removeprefix("/download/storage/v1/b/").lstrip("/").partition("/")
        if is_json:
            key = key.removeprefix("o/")
            self.json_downloads.append(key)
        else:
            self.seen.append((query.get("generation", [""])[0], reply.header("authorization")))
        self.download_count += 1
        return self._find(name, key, query)(reply)

    def _find(self, name: str, key: str, query: dict[str, list[str]]) -> Answer:
        bucket = self.buckets[name]
        found, wanted = bucket.objects.get(key), query.get("generation", [""])[0]
        if found and found.answer:
            return found.answer
        if wanted and (not found or wanted != found.generation):
            found = bucket.old.get((key, wanted))
        if not found:
            return no_such_key
        encoding = {"Content_Encoding": found.encoding} if found.encoding else {}
        return stored(found.content, found.generation, **encoding)

    def _page(self, reply: Reply, name: str, query: dict[str, list[str]]) -> None:
        self.listing_count += 1
        if name not in self.buckets:
            return reply.json(_error(404, "The specified bucket does not exist."), 404)
        bucket = self.buckets[name]
        if bucket.listing:
            return bucket.listing(reply)
        prefix, after = query.get("prefix", [""])[0], query.get("pageToken", [""])[0]
        most = min(bucket.page, int(query.get("maxResults", ["1000"])[0]))
        names = sorted(n for n in bucket.objects if n.startswith(prefix) and n > after)
        items = []
        for key in names[:most]:
            item = {"name": key, "size": str(bucket.objects[key].size), "generation": bucket.objects[key].generation}
            items.append(item | ({"contentEncoding": e} if (e := bucket.objects[key].encoding) else {}))
        more = {"nextPageToken": names[most - 1]} if len(names) > most else {}
        return reply.json({"kind": "storage#objects", "items": items} | more)


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "errors": [{"message": message, "domain": "global"}]}}


@contextlib.contextmanager
def lying_gcs() -> Iterator[LyingGcs]:
    """An endpoint for the length of a block."""
    server = LyingGcs()
    try:
        yield server
    finally:
        server.close()
