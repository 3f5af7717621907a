"""An S3 endpoint that speaks just enough to lie about objects: each bucket is one `Objects`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from tests.rig.lying import Answer, LyingOrigin, Reply

LAST_MODIFIED = "Mon, 23 Nov 2020 09:51:46 GMT"


@dataclasses.dataclass
class Objects:
    """What a bucket claims to hold: keys with sizes, and how it answers for each. `page` is how many keys it lists at a
    time."""

    sizes: dict[str, object]
    answer: Callable[[str], Answer]
    page: int = 1000
    tag: str = '"v1"'
    listing: Answer | None = None


def object_of(
    content: bytes,
    tag: str = '"v1"',
    *,
    sent_bytes_max: int | None = None,
    heeds_conditions: bool = True,
    **more: object,
) -> Answer:
    """An object as S3 answers for it, with ranges and If-Match; it hangs up after `sent_bytes_max`.

    Args:
        more: headers, with `_` for `-`.
    """

    def answer(reply: Reply) -> None:
        wanted = reply.header("if-match")
        if wanted and wanted != tag and heeds_conditions:
            return refuses(412, "PreconditionFailed", "At least one of the pre-conditions did not hold")(reply)
        begin, end, headers = 0, len(content), dict(more)
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", reply.header("range") or reply.header("x-ms-range")):
            begin, end = int(found[1]), min(int(found[2]) + 1 if found[2] else end, end)
            headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        size = end - begin
        reply.head(206 if found else 200, Content_Length=size, ETag=tag, Last_Modified=LAST_MODIFIED, **headers)
        reply.write(content[begin : end if sent_bytes_max is None else min(end, begin + sent_bytes_max)])
        if sent_bytes_max is not None and size > sent_bytes_max:
            reply.hang_up()
        return None

    return answer


def refuses(status: int, code: str, message: str, more: str = "") -> Answer:
    """An error as S3 tells it."""
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{more}</Error>"
    return lambda reply: reply.sized(f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), status)


class LyingS3(LyingOrigin):
    """The endpoint; `uri` is its URL. `seen` has the Authorization header of each request for an object."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets: dict[str, Objects] = {}
        self.seen: list[str] = []

    @property
    def env(self) -> dict[str, str]:
        """What a client of it has to have in its environment."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.uri,
            "AWS_ACCESS_KEY_ID": "liar",
            "AWS_SECRET_ACCESS_KEY": "s3cret-of-the-liar",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, objects: Objects) -> str:
        """A bucket of these objects, named for what it is; returns its URI."""
        name = f"b-{hashlib.sha256(str(id(objects)).encode()).hexdigest()[:16]}"
        self.buckets[name] = objects
        return f"s3://{name}"

    def answer(self, reply: Reply, path: str, query: dict[str, list[str]]) -> None:
        """One GET request."""
        self.request_count += 1
        name, _, key = path.lstrip("/").partition("/")
        if name not in self.buckets:
            return refuses(404, "NoSuchBucket", "The specified bucket does not exist")(reply)
        bucket = self.buckets[name]
        if not key:
            self.listing_count += 1
            return (bucket.listing or _lists(bucket, query))(reply)
        self.seen.append(reply.header("authorization"))
        self.download_count += 1
        return bucket.answer(key)(reply)


def _lists(bucket: Objects, query: dict[str, list[str]]) -> Answer:
    prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
    most = min(bucket.page, int(query.get("max-keys", ["1000"])[0]))
    keys = [key for key in sorted(bucket.sizes) if key.startswith(prefix) and key > after]
    more = len(keys) > most
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2020-11-23T09:51:46.000Z</LastModified>"
        f"<ETag>{escape(bucket.tag)}</ETag><Size>{bucket.sizes[key]}</Size></Contents>"
        for key in keys[:most]
    )
    token = f"<NextContinuationToken>{escape(keys[most - 1])}</NextContinuationToken>" if more else ""
    text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
    return lambda reply: reply.sized(f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode())


@contextlib.contextmanager
def lying_s3() -> Iterator[LyingS3]:
    """An endpoint for the length of a block."""
    server = LyingS3()
    try:
        yield server
    finally:
        server.close()


def make_certificate(folder: Path, *, self_signed: bool) -> tuple[Path, Path, Path]:
    """Files for a server on 127.0.0.1: the certificate to trust, the server's own, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool) -> bytes:
        made = x509.CertificateBuilder(name("authority" if by is authority else subject), name(subject))
        made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(days=1))
        made = made.not_valid_after(now + datetime.timedelta(days=1))
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = made.add_extension(x509.SubjectAlternativeName([address]), False)
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    own = certificate("server", key, key if self_signed else authority, self_signed)
    plain = serialization.NoEncryption()
    files = {
        "trusted.pem": own if self_signed else certificate("authority", authority, authority, True),
        "server.pem": own,
        "key.pem": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    }
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder / "trusted.pem", folder / "server.pem", folder / "key.pem"
