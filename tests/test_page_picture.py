"""The page with a store as one finds it on a shared host; and its picture in the documentation, from the same.

`make picture` saves docs/page.png anew. With ARTIFACTCACHE_PICTURES set to another folder there are also page-dark.png
and page-narrow.png in it, to look at.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import browser as browsers
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.trees import Files
from tests.rig.until import until
from tests.rig.upkeep import call
from tests.test_page_browser import enter, held

PICTURES = "ARTIFACTCACHE_PICTURES"
MODELS = ("resnet50", "llama-adapter", "segmenter", "whisper", "detector", "bert-large", "clip", "forecast", "churn")
MEDIUM = (1100, 900)
BARS = "return document.querySelectorAll('#chart-bytes rect').length"
LARGEST_BYTES = 24_000_000  # the others are smaller by Zipf's law
PICTURE_BYTES_MAX = 300_000
_FETCHES = """
import artifactcache
with artifactcache.Client() as client:
    for uri in uris:
        client.warm(uri)
result = True
"""


def _register(server: MlflowServer, seed: random.Random) -> list[str]:
    """Thirty models' versions and runs; their URIs, the largest first."""
    found = []
    for rank in range(1, 31):
        size = round(LARGEST_BYTES / rank)
        files: Files = {"MLmodel": b"flavors: {}\n", "model.safetensors": os.urandom(size)}
        if rank % 3 == 0:
            run_id = server.run({f"checkpoints/{name}": data for name, data in files.items()})
            found.append(f"runs:/{run_id}/checkpoints")
            continue
        run_id = server.run({f"model/{name}": data for name, data in files.items()})
        name = seed.choice(MODELS)
        found.append(f"models:/{name}/{server.add_version(name, run_id, 'model')}")
    return found


def test_a_store_as_one_finds_it(
    start_daemon: StartDaemon,
    caller_of: CallerOf,
    room: Path,
    proxy: CountingProxy,
    mlflow_proxied: MlflowServer,
) -> None:
    """Thirty models and runs of Zipf's sizes, three users, hits, a pin and a download under way: all of it is shown,
    and nothing has to be scrolled to the side."""
    if reason := browsers.reason_not_to_browse():
        pytest.skip(reason)
    port, seed = free_port(), random.Random(7)
    more = f'[page]\nlisten = "127.0.0.1:{port}"\n[quotas.user."*"]\nheld = "120MB"\n'
    daemon = start_daemon(proxy.uri, capacity="140MB", grace=0, more=more)
    root, alice, bob = (caller_of(daemon, room, role) for role in ("root", "alice", "bob"))
    uris = _register(mlflow_proxied, seed)
    with browsers.browsing(room / "browser") as tab:
        enter(tab, root)
        some_of_them = ((alice, uris[::2]), (bob, uris[1::2]), (root, uris), (alice, uris[:6]), (bob, uris[:9] * 3))
        # For the picture with some minutes between them, as the charts show them; there is a sample each 10 s.
        for caller, some in some_of_them * (3 if PICTURES in os.environ else 1):
            caller.run(_FETCHES, uris=some)
            if PICTURES in os.environ:
                _wait_for_sample(root)
        call(root, "pin", uris[3])
        coming = mlflow_proxied.run({f"data/part-{n}.parquet": os.urandom(5_000_000) for n in range(3)})
        with bob.start("import artifactcache\nresult = artifactcache.fetch(uri).hit", uri=f"runs:/{coming}") as job:
            with proxy.stalling(1_500_000):
                tab.until(lambda: tab.text("#downloads .note"), "the download")
                tab.until(lambda: len(held(tab)) == 30, "all of them")
                tab.until(lambda: tab.texts("#queue li"), "the queue")
                tab.until(lambda: tab.script(BARS), "the chart")
                _save(tab, "page.png", *MEDIUM, dark=False)
                if os.environ.get(PICTURES) != "docs":
                    _save(tab, "page-dark.png", *browsers.WIDE, dark=True)
                    _save(tab, "page-narrow.png", *browsers.NARROW, dark=False)
            assert job.result() is False
        assert tab.console() == []


def _wait_for_sample(caller: Caller) -> None:
    def last() -> float:
        history = call(caller, "overview")["history"]
        return float(history[-1]["at"]) if history else 0.0

    at = last()
    until(lambda: last() > at, "the next sample of the history", 30)


def _save(tab: browsers.Browser, name: str, width: int, height: int, *, dark: bool) -> None:
    tab.cdp(
        "Emulation.setEmulatedMedia",
        features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ],
    )
    tab.resize(width, height)
    assert tab.script("return document.documentElement.scrollWidth") <= width
    fits = "return document.getElementById('map').clientWidth >= Math.max(...[...document.querySelectorAll('.frame')]"
    tab.until(lambda: tab.script(f"{fits}.map(one => one.offsetLeft + one.offsetWidth))"), "the treemap's new size")
    if folder := os.environ.get(PICTURES):
        tab.picture(Path(folder) / name)
        assert (Path(folder) / name).stat().st_size <= PICTURE_BYTES_MAX
