"""Metrics: what the daemon counts anyway, in Prometheus' words, when somebody asks.

Law of this file: it only reads. No metric costs more where the store holds more: what would have to be added up is kept
added up, or is added up by a thread of its own. Labels have few values, and none that a client chooses; users are named
only where the administrator has said so.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cacheserver import __version__
from cacheserver.assembly import Parts
from cacheserver.budgets import Budgets, Usage
from cacheserver.tallies import BOUNDS, Labels, Spread

PREFIX = "cacheserver_"
ACCOUNTS_MAX = 100  # named; the others are added up
OTHERS = "(others)"

_log = logging.getLogger(__name__)


class Accounts:
    """What is on users' accounts, as it was when somebody looked last.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, budgets: Budgets, clock: Callable[[], float]) -> None:
        self._budgets = budgets
        self._clock = clock
        self.at = 0.0
        self.fullest: list[Usage] = []
        self.others_bytes = 0

    def look(self) -> None:
        """Adds up all of them."""
        found = self._budgets.usage(None)
        self.fullest, self.others_bytes = found[:ACCOUNTS_MAX], sum(one.held_bytes for one in found[ACCOUNTS_MAX:])
        self.at = self._clock()


class Metrics(Collector):
    """The metrics of one daemon.

    Args:
        accounts: None where they are not to be shown.
        clock: seconds since the epoch.
    """

    def __init__(self, parts: Parts, accounts: Accounts | None, clock: Callable[[], float]) -> None:
        self._parts = parts
        self._clock = clock
        self._accounts = accounts
        self._groups: tuple[Callable[[], Iterator[Metric]], ...] = (
            self._build,
            self._calls,
            self._fetches,
            self._origin,
            self._shared,
            self._held,
            self._room,
            self._evictions,
            self._holders,
            self._audit,
            self._health,
            self._ingest,
            self._users,
        )

    def describe(self) -> list[Metric]:
        """Nothing: else the registry would read all of it once more to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them. What cannot be read now, in a damaged index, say, is left out, and counted."""
        failed = 0
        for group in self._groups:
            try:
                yield from list(group())
            except Exception as error:  # noqa: BLE001 - the others count all the same, and now most of all
                failed += 1
                _log.debug("some metrics cannot be read: %s", error)
        yield _gauge("scrape_failed_groups", "Groups of metrics that could not be read for this answer.", failed)

    def _build(self) -> Iterator[Metric]:
        about = {"version": __version__, "python": platform.python_version(), "grpcio": version("grpcio")}
        yield _gauges("build_info", "What this daemon is made of; always 1.", tuple(about), {tuple(about.values()): 1})

    def _calls(self) -> Iterator[Metric]:
        parts = self._parts
        labels = ("method", "code", "error")
        yield _counters(
            "requests", "gRPC calls that have ended, by status and error.", labels, parts.service.answered.counts()
        )
        yield _gauge("requests_under_way", "gRPC calls that are being answered.", parts.stopping.call_count())
        yield _histogram(
            "handoff_seconds", "Time that handoff.sock took for a reply.", "reply", parts.handoff.reply_seconds
        )
        yield _counters(
            "handoff_errors", "Requests on handoff.sock that failed.", ("error",), parts.handoff.failed.counts()
        )

    def _fetches(self) -> Iterator[Metric]:
        fetching, served = self._parts.fetching, self._parts.fetching.served()
        yield _counters("fetches", "Artifacts that were handed out.", ("result", "mode"), fetching.given.counts())
        yield _histogram(
            "fetch_seconds", "Time of a fetch, to the end of its answer.", "result", self._parts.audit.fetch_seconds
        )
        yield _counter("served_bytes", "Bytes of the artifacts that were handed out.", served.get("served_bytes", 0))
        yield _counter("saved_bytes", "Of these, bytes that the origin did not send for it.", fetching.saved_bytes())

    def _origin(self) -> Iterator[Metric]:
        cache = self._parts.cache
        begun, joined = cache.flight_counts()
        yield _counter("flights", "Times that an artifact was brought, or looked for at the origin.", begun)
        yield _counter("flights_joined", "Times that somebody waited for another's flight instead.", joined)
        yield _counter(
            "origin_bytes", "Bytes of files that came from the origin.", sum(cache.from_origin.amounts().values())
        )
        yield _histogram(
            "bring_seconds", "Time of a flight, at the origin and beside it.", "outcome", cache.bring_seconds
        )
        yield _gauge("downloads", "Flights that are under way.", cache.download_count())
        yield _gauge(
            "origin_up", "0 while the tracking server is known not to answer.", int(not cache.is_origin_away())
        )

    def _shared(self) -> Iterator[Metric]:
        sharing = self._parts.sharing
        if sharing is None:
            return
        publishing = sharing.publishing
        yield _counter("shared_bytes", "Bytes of files that came from the shared tier.", sharing.taken_bytes())
        yield _counters("shared_records", "Questions to the shared tier.", ("result",), sharing.tier.records.counts())
        yield _gauge("shared_up", "0 while the shared tier, having failed, is not asked.", not sharing.tier.is_away())
        if publishing:
            counts, amounts = publishing.counts.counts(), publishing.counts.amounts()
            yield _counters("shared_published", "Trees written into the shared tier.", ("result",), counts)
            yield _counter("shared_published_bytes", "Bytes of these trees.", sum(amounts.values()))
            yield _gauge("shared_waiting", "Trees that are to be written into the shared tier.", publishing.count())

    def _held(self) -> Iterator[Metric]:
        totals = self._parts.store.index.totals()
        yield _gauge("store_artifacts", "Artifacts that are held.", totals["artifact_count"])
        yield _gauge("store_trees", "Trees that are held.", totals["tree_count"])
        yield _gauge("store_blobs", "Blobs that are held.", totals["blob_count"])
        yield _gauge(
            "store_logical_bytes", "Bytes of all artifacts held, each counted whole.", totals["artifact_bytes"]
        )
        yield _gauge("store_physical_bytes", "Bytes of all blobs held, each once.", totals["blob_bytes"])

    def _room(self) -> Iterator[Metric]:
        reservations = self._parts.sweeper.reservations
        fill, limits = reservations.fill(), reservations.limits
        yield _gauge("store_capacity_bytes", "What the store may hold.", limits.capacity.of(fill.total))
        yield _gauge("store_min_free_bytes", "What stays free on its filesystem.", limits.min_free.of(fill.total))
        yield _gauge("filesystem_free_bytes", "What is free on the store's filesystem.", fill.free)
        yield _gauge("filesystem_size_bytes", "The size of the store's filesystem.", fill.total)
        yield _gauge("reserved_bytes", "Promised to downloads, and no blobs yet.", fill.coming)

    def _evictions(self) -> Iterator[Metric]:
        evicted = self._parts.sweeper.evicted
        yield _counters("evicted_trees", "Trees that were evicted.", ("why",), evicted.counts())
        yield _counters("evicted_bytes", "What that gave back to the disk.", ("why",), evicted.amounts())

    def _holders(self) -> Iterator[Metric]:
        parts = self._parts
        yield _gauge("sessions", "Clients that are connected.", parts.sessions.count())
        yield _gauge("leases", "Promises to clients not to evict a tree.", parts.sweeper.leases.total())
        yield _gauge("pins", "Artifacts that are pinned or kept warm.", parts.store.index.pins.count(self._clock()))

    def _audit(self) -> Iterator[Metric]:
        audit = self._parts.audit
        yield _counter("refusals", "Attempts that were refused for want of rights.", audit.refused_count())
        yield _counters("alarms", "Warnings that one user has unusually many.", ("of",), audit.alarms.counts())
        yield _counter("audit_lost", "Attempts that are missing in the audit log.", audit.lost_count())

    def _health(self) -> Iterator[Metric]:
        parts = self._parts
        scrub = parts.store.index.scrubs.last()
        yield _gauge("scrub_blobs", "Blobs that this pass, or the last one, has looked at.", scrub.blob_count)
        yield _gauge("scrub_bytes", "Bytes of these.", scrub.byte_count)
        yield _gauge("scrub_wrong_blobs", "Of these blobs, wrong or gone.", scrub.wrong_count)
        yield _gauge("scrub_began_timestamp_seconds", "When that pass began; 0: never.", scrub.began_at)
        yield _gauge("scrub_ended_timestamp_seconds", "When the last whole pass ended; 0: never.", scrub.ended_at)
        yield _gauge("damaged_artifacts", "Artifacts that lack bytes, and are being mended.", parts.healing.count())
        yield _gauge("quarantined_files", "Files in quarantine.", parts.store.quarantine_count())

    def _ingest(self) -> Iterator[Metric]:
        ingesting = self._parts.ingesting
        counts, amounts = ingesting.counts.counts(), ingesting.counts.amounts()
        yield _counters("ingested_artifacts", "What became of what finished runs logged here.", ("result",), counts)
        yield _counter("ingested_bytes", "Bytes that were brought before anybody asked.", sum(amounts.values()))
        yield _gauge("ingest_waiting", "Runs and logged models that are looked at again.", ingesting.waiting_count())
        yield _gauge("ingest_watched_folders", "Folders that are watched for it.", ingesting.watch_count())

    def _users(self) -> Iterator[Metric]:
        if self._accounts is None or not self._accounts.at:
            return
        found = self._accounts.fullest
        held: dict[Labels, float] = {(one.user,): one.held_bytes for one in found}
        limits: dict[Labels, float] = {(o.user,): o.held_bytes_max for o in found if o.held_bytes_max is not None}
        if self._accounts.others_bytes:
            held[OTHERS,] = self._accounts.others_bytes
        yield _gauges("account_held_bytes", "Bytes on a user's account.", ("user",), held)
        yield _gauges("account_limit_bytes", "What the user's quota lets them hold.", ("user",), limits)
        yield _gauge("accounts_timestamp_seconds", "When accounts were added up last.", self._accounts.at)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, words, value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, words, value)


def _gauges(name: str, words: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    found = GaugeMetricFamily(PREFIX + name, words, labels=labels)
    for key, value in values.items():
        found.add_metric(key, value)
    return found


def _counters(name: str, words: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    found = CounterMetricFamily(PREFIX + name, words, labels=labels)
    for key, value in values.items():
        found.add_metric(key, value)
    return found


def _histogram(name: str, words: str, label: str, spread: Spread) -> Metric:
    found = HistogramMetricFamily(PREFIX + name, words, labels=(label,))
    bounds = (*map(str, BOUNDS), "+Inf")
    for key, (counts, seconds) in spread.values().items():
        found.add_metric((key,), list(zip(bounds, map(float, accumulate(counts)), strict=True)), seconds)
    return found
