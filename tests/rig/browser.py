"""A real browser: Debian's Chromium without a window, driven by its chromedriver.

What is needed of W3C WebDriver (https://www.w3.org/TR/webdriver2/) is a handful of JSON documents over HTTP; a package
for it would bring a dozen others along. `goog/cdp/execute` and `se/log` are chromedriver's own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.rig.process import free_port, stop_group
from tests.rig.until import until

T = TypeVar("T")
FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests' own user is root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=direct://",
    "--hide-scrollbars",
)
KEYS = {
    "Tab": "\ue004",
    "Enter": "\ue007",
    "End": "\ue010",
    "Home": "\ue011",
    "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
    " ": " ",
}
WIDE, NARROW = (1280, 900), (360, 740)


def reason_not_to_browse() -> str | None:
    """Why there is no browser here, or None where there is."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not here: Debian has chromium and chromium-driver" if missing else None


class Browser:
    """One tab."""

    def __init__(self, driver: str, folder: Path) -> None:
        self._driver = driver
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={folder}", f"--window-size={WIDE[0]},{WIDE[1]}"],
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        self.resize(*WIDE)

    def close(self) -> None:
        """End it."""
        self._ask("DELETE", self._session)

    def go(self, url: str) -> None:
        """Open an address in the tab."""
        self._tell("/url", {"url": url})

    def script(self, code: str, *arguments: Any) -> Any:
        """Run the body of a function in the page; what it returns."""
        return self._tell("/execute/sync", {"script": code, "args": arguments})

    def texts(self, selector: str) -> list[str]:
        """The text of each element that is chosen by CSS, as a person sees it: nothing of what is hidden."""
        found: list[str] = self.script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(one => one.checkVisibility() ? one.innerText.trim() : '')",
            selector,
        )
        return found

    def text(self, selector: str) -> str:
        """That of the first; empty where there is none."""
        return next(iter(self.texts(selector)), "")

    def until(self, look: Callable[[], T], what: str, seconds: float = 20.0) -> T:
        """Wait for something; what it is at last."""
        return until(look, lambda: f"{what}; the page says: {self.text('body')}; {self.console()}", seconds)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        actions = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self._tell("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def resize(self, width: int, height: int) -> None:
        """Make the window so large, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Save a PNG of the page."""
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def console(self) -> list[str]:
        """What the page has complained of since the last time."""
        return [f"{each['level']}: {each['message']}" for each in self._tell("/se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """The addresses that the page has asked for since the last time."""
        events = [json.loads(each["message"])["message"] for each in self._tell("/se/log", {"type": "performance"})]
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools Protocol."""
        return self._tell("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _tell(self, path: str, value: Any) -> Any:
        return self._ask("POST", f"{self._session}{path}", value)

    def _ask(self, method: str, path: str, value: Any = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._driver}{path}", data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own below a folder, as long as this lasts."""
    folder.mkdir()
    port = free_port()
    with (folder / "chromedriver.log").open("wb") as log:
        process = subprocess.Popen(
            ("chromedriver", f"--port={port}", "--allowed-ips="), stdout=log, stderr=log, start_new_session=True
        )
    try:
        driver = f"http://127.0.0.1:{port}"
        until(lambda: _is_ready(driver), "chromedriver")
        browser = Browser(driver, folder / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        stop_group(process)


def _is_ready(driver: str) -> bool:
    try:
        with urllib.request.urlopen(f"{driver}/status", timeout=5) as answer:
            return bool(json.load(answer)["value"]["ready"])
    except OSError:
        return False
