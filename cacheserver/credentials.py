"""A caller's credentials: the HTTP headers that MLflow's own client would send to the tracking server.

Law of this file: they say who somebody is, and nothing else. What says how a request travels, what is asked for, or by
whom a proxy has let it in, is refused: the daemon stands elsewhere than the caller, and what one caller is answered may
be handed to others.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from artifactcache.errors import InvalidRequest

HEADERS_MAX = 32
BYTES_MAX = 32_768  # of one session: a packet has 64 KiB
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # a token of RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_NONE_OF_THEIRS = re.compile(
    r"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|content-.*|proxy-.*|expect|range|accept.*|if-.*"
    r"|user-agent|forwarded|via|remote-.*|x-(?:forwarded|original|rewrite|remote|real|http|host|script|method|scheme|accel|envoy).*"
    r"|x-mlflow-.*"  # the workspace above all: a registered model's name means another one there
)

_OF_CONNECTIONS = re.compile(r"\s*(?:negotiate|ntlm|kerberos)\b", re.I)


@dataclass(frozen=True)
class Credentials:
    """What a caller has presented.

    Attributes:
        key: tells them from others, and is no secret.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    key: str = ""


def read(headers: Mapping[str, str], secret: bytes) -> Credentials:
    """Takes what a client presents. Raises InvalidRequest.

    Args:
        secret: makes the key; without it nobody can try passwords on one.
    """
    if len(headers) > HEADERS_MAX or sum(len(name) + len(value) for name, value in headers.items()) > BYTES_MAX:
        raise InvalidRequest(
            f"Credentials are at most {HEADERS_MAX} headers and {BYTES_MAX} bytes, and these are more."
        )
    if len({_plain(name) for name in headers}) < len(headers):
        raise InvalidRequest("One of the headers is presented twice.")
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or _NONE_OF_THEIRS.fullmatch(_plain(name)):
            raise InvalidRequest(f"{name[:80]!a} is no header that says who you are: it is not sent on for you.")
        if not _VALUE.fullmatch(value):
            raise InvalidRequest(f"The header {name} has a value that no header can have.")
        if _OF_CONNECTIONS.match(value):
            raise InvalidRequest("Negotiate and NTLM log in a connection, and the daemon's are everybody's.")
    told = repr(sorted((name.lower(), value) for name, value in headers.items())).encode()
    return Credentials(dict(headers), hmac.digest(secret, told, "sha256").hex())


def _plain(name: str) -> str:
    """A header's name as servers compare it: WSGI knows no difference between "-" and "_"."""
    return name.lower().replace("_", "-")
