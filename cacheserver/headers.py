"""What requests to a host need beside their URL, remembered for a moment.

Law of this file: credentials may be replaced at any time. What is remembered is a few seconds old at most, what was
refused is asked for again, and a signature is for one request.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from cacheserver.http import Access

SECONDS = 5.0  # to ask MLflow costs as much as to download several small files


class Accesses:
    """For any thread.

    Args:
        find: what MLflow's own client would send beside a URL.
        is_own: whether a URL is the tracking server's: what is for that is for nothing else on its host.
        ticks: seconds of a clock that never jumps.
    """

    def __init__(
        self, find: Callable[[str], Access], is_own: Callable[[str], bool], ticks: Callable[[], float]
    ) -> None:
        self._find = find
        self._is_own = is_own
        self._ticks = ticks
        self._known: dict[tuple[str, bool], tuple[float, Access]] = {}
        self._renewing = threading.Lock()

    def of(self, url: str) -> Access:
        """What a request of this URL needs."""
        at, found = self._known.get(self._server(url), (0.0, None))
        age = self._ticks() - at
        if found is None or age >= 2 * SECONDS:
            return self.anew(url)
        if age >= SECONDS and self._renewing.acquire(blocking=False):  # the others go on with this until it is here
            try:
                return self.anew(url)
            finally:
                self._renewing.release()
        return found

    def anew(self, url: str) -> Access:
        """The same, as it is now."""
        at, found = self._ticks(), self._find(url)
        server = self._server(url)
        if not found.is_signed and at >= self._known.get(server, (at, None))[0]:
            self._known[server] = (at, found)
        return found

    def _server(self, url: str) -> tuple[str, bool]:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}", self._is_own(url)


def basic(login: tuple[str, str]) -> str:
    """The Authorization header of a user and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(":".join(login).encode()).decode("ascii")
