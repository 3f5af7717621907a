"""Errors of others in our words: MLflow's, those of the object stores' clients, and the operating system's.

Law of this file: whose move it is decides the class, and a message leaves without a secret in it. Classes of others are
known by name, for their packages are not all installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from artifactcache.errors import (
    CacheError,
    Corrupted,
    InvalidRequest,
    NoSpace,
    NotFound,
    OriginUnavailable,
    PermissionDenied,
    Unauthenticated,
)
from cacheserver.faults import FULL_ERRNOS

MESSAGE_LENGTH_MAX = 300
TEXT_LENGTH_MAX = 3000  # of a foreign message that is looked at; an origin may send megabytes
CAUSES_MAX = 10
NO_ENDPOINT = "ENDPOINT_NOT_FOUND"  # what MLflow's client makes of a 404 that is not in MLflow's words

_BY_CODE: dict[str, type[CacheError]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "NOT_FOUND": NotFound,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": Unauthenticated,
    "CUSTOMER_UNAUTHORIZED": Unauthenticated,
    "INVALID_PARAMETER_VALUE": InvalidRequest,
    "BAD_REQUEST": InvalidRequest,
    "AuthenticationFailed": Unauthenticated,  # Azure, with 403
    "BlobNotFound": NotFound,
    "ContainerNotFound": NotFound,
    "ResourceNotFound": NotFound,
}
# Not 404, which is no word about what was asked for: whatever is in between says it too, and a server that is started
# again. MLflow's, and every store's, says in its body, or in a header, what there is not.
_BY_STATUS: dict[int, type[CacheError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: PermissionDenied,
}
_NO_OBJECT = "No such object"
_BARE = (
    "the server answered 404 (not found) without a word of MLflow's, or of its store's, about what was asked for, which"
    " may be there still. Check the tracking URI, and the proxy before the server, if there is one. A server that is"
    " being started, or is too old to know the question, answers so too."
)
_BY_OBJECT_CODE: dict[str, type[CacheError]] = {
    "AccessDenied": PermissionDenied,
    "NoSuchBucket": NotFound,
    "NoSuchKey": NotFound,
    "NoSuchVersion": NotFound,
    "BlobNotFound": NotFound,  # Azure
    "ContainerNotFound": NotFound,
    "403": PermissionDenied,
    "401": Unauthenticated,
    "InvalidAccessKeyId": Unauthenticated,
    "SignatureDoesNotMatch": Unauthenticated,
    "ExpiredToken": Unauthenticated,
    "InvalidToken": Unauthenticated,
    "AuthenticationFailed": Unauthenticated,  # Azure
}
_BY_CLASS: dict[str, type[CacheError]] = {
    "FileNotFoundError": NotFound,
    "NotADirectoryError": NotFound,
    "PermissionError": PermissionDenied,
    "NoCredentialsError": Unauthenticated,  # botocore
    "PartialCredentialsError": Unauthenticated,
    "DefaultCredentialsError": Unauthenticated,  # google.auth
    "RefreshError": Unauthenticated,
    "ClientAuthenticationError": Unauthenticated,  # azure.core
    "ProfileNotFound": Unauthenticated,
    "SSOTokenLoadError": Unauthenticated,
    "TokenRetrievalError": Unauthenticated,
    "UnauthorizedSSOTokenError": Unauthenticated,
    "ParamValidationError": InvalidRequest,
    "ImportError": InvalidRequest,
}
# What else these classes and their children say is that the origin, or the way to it, does not work now. MLflow's own
# is among them: it wraps 5xx, broken connections and answers that are no JSON.
_UNAVAILABLE = frozenset(
    {
        *("OSError", "EOFError", "MlflowException"),  # OSError: timeouts, sockets, TLS, and all of requests
        *("HTTPException", "HTTPError"),  # http.client, urllib3
        *("ClientError", "ConnectionError", "HTTPClientError", "IncompleteReadError"),  # botocore
        *("CredentialRetrievalError", "MetadataRetrievalError"),
        "RetriesExceededError",  # boto3, s3transfer
        *("GoogleAPICallError", "GoogleAuthError", "RetryError", "TransportError", "InvalidResponse"),  # google
        "DataCorruption",
        "AzureError",
        *("SSHException", "error_temp", "error_perm", "error_reply", "error_proto"),  # paramiko, ftplib
    }
)
_EXTRAS = {"boto3": "s3", "botocore": "s3", "google": "gcs", "azure": "azure"}

# Up to the last "@" of the authority: a password may hold one. Azure's URIs have a container there.
_USER = re.compile(r"(://)(?!(?:(?<=wasbs://)|(?<=abfss://))[\w$-]+@[^/\s@]*(?:[/\s]|$))[^/\s]*@")
_QUERY = re.compile(r"(https?://[^\s?]+)\?\S+", re.I)  # signatures of presigned URLs
_SECRETS = (
    (_USER, r"\1"),
    (_QUERY, r"\1"),
    (re.compile(r"\?[\w.%~-]+=[^\s'\")>]*"), ""),  # urllib3 tells a URL without its host
    (
        re.compile(
            r"""([\w-]{0,40}(?:authorization|token|passw(?:or)?d|secret|signature|credential|api[-_]?key|access[-_]?key
                |account[-_]?key)
                [\w-]{0,40}["']?\s*[:=]\s*)
                (?:(?:bearer|basic|digest|negotiate|sharedkey(?:lite)?)\s+)?
                (?:b?"[^"]*"?|b?'[^']*'?|[^\s,;&'"}]+)""",
            re.I | re.X,
        ),
        r"\1…",
    ),
    (re.compile(r"\b(bearer|basic|digest|negotiate)\s+[^\s'\"]+", re.I), r"\1 …"),
    (re.compile(r"\b(sig=)[^\s&;'\"<>]+", re.I), r"\1…"),  # Azure's shared access signatures
)


def translated(error: BaseException, what: str, *, of_answer: bool = False) -> CacheError:
    """Our error for one of MLflow, of requests, of an object store's client or of the operating system.

    What nobody has foreseen is a defect, CacheError itself; I/O that fails in an unknown way is OriginUnavailable.

    Args:
        what: what the question was about, for the message.
        of_answer: whether MLflow's client was only reading an answer: what it stumbles over is the origin's, Corrupted.
    """
    if isinstance(error, CacheError):
        return error
    what, causes = _USER.sub(r"\1", what), list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in FULL_ERRNOS:
            return NoSpace(f"{what}: the store's disk is full. Free some space, or raise its capacity.")
    text = without_secrets(str(error))[:MESSAGE_LENGTH_MAX]
    for cause in causes:
        if kind := _kind(cause):
            return kind(f"{what}: {_missing(causes) if isinstance(cause, ImportError) else text or _name(error)}")
    if any(_is_bare(cause) for cause in causes):
        return OriginUnavailable(f"{what}: {_BARE}")
    if any(_class_names(cause) & _UNAVAILABLE for cause in causes):
        return OriginUnavailable(f"{what}: {text or _name(error)}")
    if of_answer:
        return Corrupted(f"{what}: the origin's answer makes no sense to MLflow's client ({_name(error)}: {text}).")
    return CacheError(f"{what}: failed as nobody has foreseen, please report it ({_name(error)}: {text}).")


def without_credentials(uri: str) -> str:
    """A URI without its user, password and query."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", uri))


def without_users(text: str) -> str:
    """A text without the users and passwords of the URIs in it."""
    return _USER.sub(r"\1", text)


def without_secrets(text: str) -> str:
    """A foreign message on one line, without passwords, tokens, signatures and Authorization headers."""
    if len(text) > TEXT_LENGTH_MAX:
        text = text[:TEXT_LENGTH_MAX].rpartition(" ")[0]  # half a secret could look like none
    text = " ".join(text.split())
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(CAUSES_MAX):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _kind(error: BaseException) -> type[CacheError] | None:
    """The class that an error's own code, status or name stands for."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        if kind := _BY_OBJECT_CODE.get(str(response.get("Error", {}).get("Code"))):
            return kind
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 404 and str(getattr(error, "operation_name", "")).startswith("Head"):
            return NotFound  # of S3's: an answer to HEAD has no body that could say it
        return None if status == 400 else _BY_STATUS.get(status)  # what 400 means, only its code says
    code = getattr(error, "error_code", "")
    if kind := _BY_CODE.get(str(getattr(code, "value", code))):
        return kind
    if getattr(error, "code", None) == 404 and (getattr(error, "errors", None) or _NO_OBJECT in str(error)):
        return NotFound  # of google.api_core: what GCS says as JSON, and to a download
    for status in _statuses(error):
        if status in _BY_STATUS:
            return _BY_STATUS[status]
    return next((_BY_CLASS[c] for c in _lineage(error) if c in _BY_CLASS), None)


def _is_bare(error: BaseException) -> bool:
    """Whether it is a 404 that says nothing of what was asked for."""
    return 404 in _statuses(error) or getattr(error, "error_code", "") == NO_ENDPOINT


def _statuses(error: BaseException) -> list[int]:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        found = [getattr(response, "status_code", None), getattr(error, "code", None)]
    return [status for status in found if isinstance(status, int)]


def _missing(causes: list[BaseException]) -> str:
    """What to install. MLflow has words of its own for some modules; which one it is, is said by what it caught."""
    missing = [cause for cause in causes if isinstance(cause, ImportError)]
    error = next((cause for cause in missing if cause.name), missing[0])
    name = error.name or str(error)
    extra = _EXTRAS.get(name.partition(".")[0])
    install = f"pip install 'cacheserver[{extra}]'" if extra else f"the package that has {name}"
    return (
        f"the daemon lacks the Python module {name}, which such artifacts need. Install it where the daemon runs"
        f" ({install}), and start the daemon again."
    )


def _name(error: BaseException) -> str:
    return type(error).__name__


def _lineage(error: BaseException) -> list[str]:
    return [c.__name__ for c in type(error).__mro__]


def _class_names(error: BaseException) -> frozenset[str]:
    return frozenset(_lineage(error))
