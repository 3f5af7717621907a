"""Metrics over HTTP, for Prometheus.

Law of this file: it computes once a second at most, however many ask; prometheus_client's own server does so for each.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from cacheserver.visitors import reply

# Whoever asks sooner gets the same again: a loop of scrapes is not to take the interpreter from those who fetch.
PAGE_SECONDS = 1.0

_FORMATS: dict[bool, tuple[str, Callable[[CollectorRegistry], bytes]]] = {  # by whether the client takes OpenMetrics
    False: (CONTENT_TYPE_LATEST, generate_latest),
    True: (openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest),
}


class Page:
    """What is served: metrics of a registry of its own, and those of the process."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._kept: dict[bool, tuple[float, bytes]] = {}

    def answer(self, head: bytes, now: float) -> bytes:
        """What a request gets, of which all lines but those of a body are here."""
        first, *lines = head.split(b"\r\n")
        method, _, rest = first.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return reply("405 Method Not Allowed", "text/plain", b"Metrics can be read only.\n")
        if path != b"/metrics":
            return reply("404 Not Found", "text/plain", b"Metrics are at /metrics.\n")
        kind = any(line.lower().startswith(b"accept:") and b"application/openmetrics-text" in line for line in lines)
        found = reply("200 OK", _FORMATS[kind][0], self._text(kind, now))
        return found if method == b"GET" else found[: found.index(b"\r\n\r\n") + 4]

    def _text(self, kind: bool, now: float) -> bytes:
        at, text = self._kept.get(kind, (0.0, b""))
        if not text or now - at >= PAGE_SECONDS:
            text = _FORMATS[kind][1](self._registry)
            self._kept[kind] = now, text
        return text
