"""The page in a real browser: what it shows, that it moves, by keyboard, on narrow screens, and what it never does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CallerOf, StartDaemon
from tests.rig import browser as browsers
from tests.rig.browser import Browser
from tests.rig.caller import Caller
from tests.rig.counting import CountingProxy
from tests.rig.daemon import Daemon
from tests.rig.mlflow_server import MlflowServer
from tests.rig.process import free_port
from tests.rig.upkeep import call, new_artifact, sweep_all

HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def port() -> int:
    """Where the module's daemon shows its page."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, origin: CountingProxy, port: int) -> Daemon:
    """One with a page."""
    return module_start(origin.uri, grace=0.0, more=f'[page]\nlisten = "127.0.0.1:{port}"\n')


@pytest.fixture(scope="module")
def tab(module_room: Path) -> Iterator[Browser]:
    """A browser."""
    if reason := browsers.reason_not_to_browse():
        pytest.skip(reason)
    with browsers.browsing(module_room / "browser") as browser:
        yield browser


@pytest.fixture
def operator(daemon: Daemon, room: Path, caller_of: CallerOf) -> Caller:
    """Root."""
    return caller_of(daemon, room, "root")


def enter(tab: Browser, caller: Caller) -> str:
    """Open the page as somebody; the address."""
    url, _ = call(caller, "page")
    tab.go("about:blank")
    tab.resize(*browsers.WIDE)
    tab.console()
    tab.requested()
    tab.go(url)
    tab.until(lambda: tab.text("#state") == "live", "the page to be live")
    return str(url)


def held(tab: Browser) -> set[str]:
    """The artifacts of the treemap."""
    found = tab.script("return [...document.querySelectorAll('.cell')].map(one => one.dataset.version)")
    return {one for one in found if one}


def test_the_treemap_shows_what_is_held(tab: Browser, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """What was fetched, each with an area of its size; what was evicted is gone from it without another look."""
    sweep_all(operator)
    sizes = {f"runs:/{mlflow_proxied.run({'f': os.urandom(size)})}": size for size in (90_000, 30_000)}
    for uri in sizes:
        call(operator, "warm", uri)
    enter(tab, operator)
    tab.until(lambda: held(tab) == set(sizes), "both runs")
    areas = tab.script(
        "return Object.fromEntries([...document.querySelectorAll('.frame')].map(one =>"
        " [one.querySelector('.cell').dataset.version, one.offsetWidth * one.offsetHeight]))"
    )
    large, small = sorted(sizes, key=lambda uri: -sizes[uri])
    assert 2.6 < areas[large] / areas[small] < 3.4
    assert tab.text("#held-count") == "2 artifacts" and tab.text("#store") == "117.2 KiB"
    sweep_all(operator)
    tab.until(lambda: held(tab) == set(), "nothing any more")
    assert tab.console() == []


def test_a_download_moves(tab: Browser, operator: Caller, origin: CountingProxy, mlflow_proxied: MlflowServer) -> None:
    """Its bar stands where the download is, goes on when that does, and leaves with it."""
    uri = f"runs:/{mlflow_proxied.run({'one': os.urandom(3_000_000), 'two': os.urandom(3_000_000)})}"
    enter(tab, operator)
    with operator.start("import artifactcache\nresult = artifactcache.fetch(uri).origin_bytes", uri=uri) as job:
        with origin.stalling(1_000_000):
            tab.until(lambda: tab.texts("#downloads .head") == [uri], "the download")
            value = "return document.querySelector('#downloads progress').value"
            first = tab.until(lambda: tab.script(value) if (tab.script(value) or 0) > 100_000 else 0, "its bytes")
            assert 100_000 < first < 6_000_000 and "of 5.7 MiB" in tab.text("#downloads .note")
        assert job.result() == 6_000_000
    tab.until(lambda: not tab.texts("#downloads .head"), "its end")
    tab.until(lambda: uri in held(tab), "the artifact")
    assert tab.console() == []


def test_the_keyboard_reaches_everything(tab: Browser, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """Tab goes to each part, and to the treemap once; there arrows go from one artifact to the next, and say what it
    is. What is shown anew takes nobody's place away."""
    uris = {new_artifact(mlflow_proxied) for _ in range(4)}
    for uri in uris:
        call(operator, "warm", uri)
    enter(tab, operator)
    tab.until(lambda: uris <= held(tab), "the runs")
    active = "const one = document.activeElement; return [one.tagName, one.id || one.className, one.innerText]"
    stops = []
    for _ in range(30):
        tab.press("Tab")
        stops.append(tab.script(active))
        if stops[-1][0] == "BODY":
            break
    names = [one[1] for one in stops]
    assert names[0] == "skip" and sum(name.startswith("cell") for name in names) == 1
    assert [one[2] for one in stops if one[0] == "BUTTON" and one[1] == ""] == ["10 min", "1 h", "6 h", "24 h"]
    assert sum(one[0] == "SUMMARY" for one in stops) >= 2
    tab.script("document.querySelector('.cell[tabindex=\"0\"]').focus()")
    seen = set()
    for key in (*["ArrowRight"] * 6, *["ArrowDown"] * 6, *["ArrowLeft"] * 6, *["ArrowUp"] * 6, "End", "Home"):
        seen.add(tab.script("return document.activeElement.dataset.key"))
        assert tab.text("#detail") == tab.script("return document.activeElement.getAttribute('aria-label')")
        tab.press(key)
    assert len(seen) >= 4
    at = tab.script("return document.activeElement.dataset.key")
    call(operator, "warm", another := new_artifact(mlflow_proxied))
    tab.until(lambda: another in held(tab), "another run")
    assert tab.script("return document.activeElement.dataset.key") == at
    tab.script("document.querySelector('#held-details summary').focus()")
    tab.press("Enter")
    tab.until(lambda: any(another in row for row in tab.texts("#held-table td")), "the table")
    tab.script("document.querySelector('#ranges button:last-child').focus()")
    tab.press(" ")
    assert tab.script("return document.querySelector('[aria-pressed=true]').innerText") == "24 h"
    assert "last 24 h" in tab.script("return document.querySelector('#chart-hits svg').getAttribute('aria-label')")
    assert tab.console() == []


def test_a_narrow_screen(tab: Browser, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """360 pixels: nothing has to be scrolled to the side, with names that have no place to break, and tables open; and
    what is a millionth of the largest stands inside of the treemap, too."""
    call(operator, "warm", f"runs:/{mlflow_proxied.run({'large': os.urandom(3_000_000)})}")
    call(operator, "warm", f"runs:/{mlflow_proxied.run({'x' * 200: b'1'})}/{'x' * 200}")
    enter(tab, operator)
    outside = (
        "const map = document.getElementById('map').getBoundingClientRect();"
        "return [...document.querySelectorAll('.cell')].map(one => one.getBoundingClientRect())"
        ".filter(one => one.right > map.right + 1 || one.bottom > map.bottom + 1).length"
    )
    for width, height in (browsers.NARROW, (320, 600), browsers.WIDE):
        tab.resize(width, height)
        tab.script("document.querySelectorAll('details').forEach(one => one.open = true)")
        tab.until(lambda: tab.texts("#held-table td"), "the table")
        assert tab.script("return document.documentElement.scrollWidth") <= width
        tab.until(lambda: tab.script(outside) == 0, "all of the treemap inside of it")


def test_it_asks_nobody_else(tab: Browser, operator: Caller, port: int, mlflow_proxied: MlflowServer) -> None:
    """Every request goes to the page's own address; none has the ticket or the key in it, and the tab's address
    neither; nothing is stored beyond the tab."""
    call(operator, "warm", new_artifact(mlflow_proxied))
    url = enter(tab, operator)
    tab.until(lambda: tab.texts(".cell"), "the treemap")
    asked = tab.requested()
    assert {"/page.js", "/page.css", "/enter"} <= {one.removeprefix(f"http://127.0.0.1:{port}") for one in asked}
    assert {one for one in asked if not one.startswith(f"http://127.0.0.1:{port}/")} <= {"about:blank"}
    ticket, key = url.partition("#")[2], tab.script("return sessionStorage.getItem('artifactcache-key')")
    assert ticket and key and not [one for one in asked if key in one or (ticket in one and one != url)]
    assert tab.script("return location.href") == f"http://127.0.0.1:{port}/"
    assert tab.script("return [document.cookie, localStorage.length]") == ["", 0]
    assert tab.console() == []


def test_hostile_names_do_nothing(tab: Browser, operator: Caller, mlflow_proxied: MlflowServer) -> None:
    """The name of a file and of a pattern, in the treemap, its words, the table and the queue: shown as they are."""
    uri = f"runs:/{mlflow_proxied.run({f'{HOSTILE}.txt': b'1' * 50_000})}"
    call(operator, "warm", uri, include=[f"{HOSTILE}*"])
    enter(tab, operator)
    tab.script("document.querySelectorAll('details').forEach(one => one.open = true)")
    words = "return [...document.querySelectorAll('.cell')].map(one => one.getAttribute('aria-label')).join()"
    tab.until(lambda: HOSTILE in tab.script(words), "its name")
    tab.until(lambda: HOSTILE in tab.text("#held-table"), "the table")
    assert tab.script("return [document.images.length, document.title]") == [0, "artifactcache"]
    made = "document.body.insertAdjacentHTML('beforeend', arguments[0])"
    with pytest.raises(AssertionError, match="TrustedHTML"):  # and if it were made one, it would still do nothing
        tab.script(made, HOSTILE)


def test_only_an_address_of_ones_own_lets_in(tab: Browser, operator: Caller, alice: Caller, port: int) -> None:
    """Without one, with one that was opened already, and with another's: everybody sees the door, or what they may."""
    tab.go("about:blank")
    tab.go(f"http://127.0.0.1:{port}/")
    tab.script("sessionStorage.clear(); location.reload()")
    tab.until(lambda: "artifactcache page" in tab.text("#door"), "the door")
    assert tab.texts("main") == [""] and not tab.texts(".cell")
    url = enter(tab, operator)
    assert tab.text("#who").startswith("root, operator and administrator")
    tab.script("sessionStorage.clear()")
    tab.go("about:blank")
    tab.go(url)
    tab.until(lambda: "opened already" in tab.text("#door"), "the door again")
    enter(tab, alice)
    tab.until(lambda: ", reader" in tab.text("#who"), "alice's page")


def test_it_comes_back_by_itself(
    tab: Browser,
    operator: Caller,
    start_daemon: StartDaemon,
    room: Path,
    caller_of: CallerOf,
    mlflow_proxied: MlflowServer,
) -> None:
    """A daemon that is away is said to be; one that was started again has no key of before, and shows the door."""
    port = free_port()
    daemon = start_daemon(mlflow_proxied.uri, more=f'[page]\nlisten = "127.0.0.1:{port}"\n')
    enter(tab, caller_of(daemon, room, "root"))
    daemon.stop()
    tab.until(lambda: "away" in tab.text("#state"), "that it is away")
    daemon.start()
    tab.until(lambda: "artifactcache page" in tab.text("#door"), "the door", 40)
    assert tab.texts("main") == [""]
