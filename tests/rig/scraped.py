"""A daemon's metrics, as Prometheus reads them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.rig.until import until


def page(port: int, accept: str = "") -> str:
    """The page, as it is served."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def names(text: str) -> set[str]:
    """The names of all metrics, as they are documented: without what histograms add to theirs."""
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


class Scrape:
    """One look at all metrics."""

    def __init__(self, text: str) -> None:
        self._found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where it has no such labels yet."""
        found: float = self._found.get((f"cacheserver_{name}", frozenset(labels.items())), 0.0)
        return found

    def labels(self, name: str, label: str) -> set[str]:
        """The values of a label."""
        return {dict(labels)[label] for found, labels in self._found if found == f"cacheserver_{name}"}


def until_counted(port: int, expected: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> Scrape:
    """Waits until the metrics are these: what is counted after an answer may be a moment late, the page is a second
    old at most."""
    seen: dict[Any, float] = {}

    def are_there() -> Scrape | None:
        found = Scrape(page(port))
        seen.update({key: found.value(key[0], **dict(key[1])) for key in expected})
        return found if seen == dict(expected) else None

    found = until(are_there, lambda: f"{expected}, and not {seen}", 15)
    assert found is not None
    return found


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """A metric with its labels, as a key of `until_counted`."""
    return name, frozenset(labels.items())
