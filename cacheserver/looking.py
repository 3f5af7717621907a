"""A look at the tracking server: whether it answers, what its clock says, and whether it takes a login.

Law of this file: any answer is an answer, whatever its status; and a look ends within its time, what its credentials
take included: a plugin of MLflow's that is asked for them may hang as well as the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from artifactcache.errors import CacheError, DaemonUnavailable
from cacheserver.caller import API
from cacheserver.http import Access, Http, StatusError
from cacheserver.refusals import without_secrets

STATUS_OK = 200
_ANSWER = "it answers nothing within {patience:g} s"
_CREDENTIALS = "what has to go with a question is not to be had within {patience:g} s"
# What stands in the way, by the names of urllib3's errors, the special ones first; the others say it themselves.
_WORDS = {
    "NameResolutionError": "its name cannot be resolved on this host",
    "NewConnectionError": "no connection: {last}",  # some of urllib3's versions count it among the next ones
    "ConnectTimeoutError": "nobody takes the connection within {patience:g} s",
    "ReadTimeoutError": "it takes the connection, and answers nothing within {patience:g} s",
    "TimeoutError": _ANSWER,
    "SSLError": "TLS fails: {last}",
    "ProxyError": "the proxy does not lead there: {last}",
}


class Looked(NamedTuple):
    """What came of it.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        date: the server's clock as it says it; empty where it does not.
        trouble: why there was no answer, in words.
        unasked: why it was not asked at all, which says nothing of the server; empty where it was.
    """

    status: int
    date: str = ""
    trouble: str = ""
    unasked: str = ""


def look(
    http: Http,
    base: str,
    path: str,
    anew: Callable[[str], Access],
    patience: float,
    ask: Callable[[Callable[[], Any]], Any],
) -> Looked:
    """Asks the tracking server for a path, and reads no more than the head of the answer.

    Args:
        anew: what goes beside a URL, as it is now. Outside of its API no credentials go; certificates are one for all.
        ask: has the question asked by a thread that nobody waits for any longer once its time is over.

    Raises DaemonUnavailable where the daemon ends meanwhile.
    """
    waits_for = ""

    def asked() -> Looked:
        nonlocal waits_for
        waits_for = _CREDENTIALS
        try:
            # Of this very question, for it may be a signature.
            access = anew(base + path) if path.startswith(API) else anew(base + API)._replace(headers={})
        except Exception as error:  # noqa: BLE001 - MLflow, and its plugins, raise anything
            said = without_secrets(str(error)) or type(error).__name__
            return Looked(0, trouble=f"it cannot be asked, for what has to go with a question cannot be had: {said}")
        waits_for = _ANSWER
        return _head(http, base + path, access, patience)

    try:
        found: Looked = ask(asked)
        return found
    except DaemonUnavailable:
        raise
    except CacheError as error:  # its time is over, be it in the crowd of other questions
        if not waits_for:
            return Looked(0, unasked=str(error))
        return Looked(0, trouble=waits_for.format(patience=patience))


def _head(http: Http, url: str, access: Access, patience: float) -> Looked:
    try:
        with http.get(url, access, patience) as answer:
            return Looked(STATUS_OK, answer.headers.get("Date", ""))
    except StatusError as error:
        return Looked(error.code, error.date)
    except Exception as error:  # noqa: BLE001 - urllib3, requests and what they use raise anything
        kinds = {kind.__name__ for kind in type(error).__mro__}
        said = without_secrets(str(error)) or type(error).__name__
        words = next((_WORDS[name] for name in _WORDS if name in kinds), "{said}")
        return Looked(0, trouble=words.format(patience=patience, said=said, last=said.rpartition(": ")[2]))
