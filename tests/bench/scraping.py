"""What a scrape costs where the store holds 1,000,000 blobs, against an empty one, and what hits beside it cost."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import artifactcache
from tests.bench.cases import Ground
from tests.bench.figures import Figure, milliseconds, seconds
from tests.bench.scale import DEAD, HITS, Hits, artifacts, build, hit
from tests.rig.process import free_port
from tests.rig.scraped import Scrape, page
from tests.rig.until import until

SCRAPES = 15
PAUSE_SECONDS = 1.05  # whoever asks within a second gets the page that there is
ACCOUNTS_SECONDS_MAX = 300


def scraping(ground: Ground) -> Iterator[Figure]:
    """Scrapes of both stores in turn; the time that accounts take to be added up; hits with and without scrapes."""
    full, empty = ground.folder / "scraped-full", ground.folder / "scraped-empty"
    uris = artifacts(ground.folder / "scraped-origin")
    build(full, sweepable=0)
    ports = free_port(), free_port()
    more = [f'[metrics]\nlisten = "127.0.0.1:{port}"\naccounts = true\n' for port in ports]
    with ground.daemon(DEAD, full, more=more[0]) as big, ground.daemon(DEAD, empty, more=more[1]):
        began = time.time()
        at = until(lambda: Scrape(page(ports[0])).value("accounts_timestamp_seconds"), "accounts", ACCOUNTS_SECONDS_MAX)
        yield Figure("100,000 trees of 50 users added up, after the daemon answers", f"{at - began:.1f} s", "", "", "")
        took: list[tuple[float, float]] = []
        for _ in range(SCRAPES):
            time.sleep(PAUSE_SECONDS)
            took.append((seconds(lambda: page(ports[0])), seconds(lambda: page(ports[1]))))
        ours, theirs = map(statistics.median, zip(*took, strict=True))
        yield Figure(
            "a scrape of metrics, 1,000,000 blobs held",
            milliseconds(ours),
            f"empty store {milliseconds(theirs)}",
            f"{ours / theirs:.2f} ×",
            "1 ×",
        )
        with artifactcache.Client(str(big.socket_dir)) as client:
            for uri in uris:
                client.fetch(uri).release()
            alone, beside = Hits(), Hits()
            hit(client, uris, alone, 4 * HITS)
            with ThreadPoolExecutor(1) as pool:
                scrapes = pool.submit(_scrape, ports[0])
                while not scrapes.done():
                    hit(client, uris, beside, 1)
            scrapes.result()
        yield Figure(
            "a view of 10 files there while metrics are scraped each second",
            str(beside),
            f"not scraped {alone}",
            f"{beside.at(50) / alone.at(50):.2f} × at p50",
            "1 ×",
        )
    for folder in (full, empty, ground.folder / "scraped-origin"):
        shutil.rmtree(folder)


def _scrape(port: int) -> None:
    for _ in range(SCRAPES // 2):
        page(port)
        time.sleep(PAUSE_SECONDS)
