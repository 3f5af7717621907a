"""What the page's address answers, to whom, and whom it sends away."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from artifactcache.errors import PermissionDenied
from artifactcache.v1 import cache_pb2 as pb
from cacheserver.entrance import Entrance
from cacheserver.page import ASSETS, Site, plain
from cacheserver.sessions import Peer

ALICE = Peer(1, 1, 1)
ADDRESS = "127.0.0.1:9465"


class Visit:
    """A site, and somebody who asks."""

    def __init__(self, address: str = ADDRESS) -> None:
        self.entrance = Entrance(address, lambda: 0.0)
        self.asked: list[tuple[Peer, float]] = []
        self.refused = ""
        self.site = Site(self.entrance, self._overview, self._admit)

    def _overview(self, peer: Peer, since: float) -> pb.OverviewReply:
        if since < 0:
            raise OSError("broken")
        self.asked.append((peer, since))
        return pb.OverviewReply(user=f"uid {peer.uid}", now=1.5)

    def _admit(self, peer: Peer) -> None:
        if self.refused:
            raise PermissionDenied(self.refused)

    def ask(self, method: str, target: str, *headers: str, host: str = ADDRESS) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        lines = [f"{method} {target} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers, "", ""]
        head, _, body = self.site.answer("\r\n".join(lines).encode("latin-1"), 0.0).partition(b"\r\n\r\n")
        first, *rest = head.decode("ascii").split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body

    def key(self) -> str:
        """Alice's key."""
        ticket = self.entrance.ticket(ALICE)[0].partition("#")[2]
        status, _, body = self.ask("POST", "/enter", f"Authorization: Ticket {ticket}", "Content-Length: 0")
        assert status == 200
        return str(json.loads(body)["key"])


@pytest.fixture
def visit() -> Visit:
    """One of the test's own."""
    return Visit()


def test_its_own_files_are_for_all(visit: Visit) -> None:
    """With headers that let a browser take nothing from elsewhere, and give nothing away."""
    for path in ASSETS:
        status, headers, body = visit.ask("GET", path)
        assert status == 200 and len(body) == int(headers["Content-Length"]) > 100
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
        assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers and "Set-Cookie" not in headers
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"") and b"innerHTML" not in body
        assert visit.ask("HEAD", path)[2] == b""
    assert b"<style" not in visit.ask("GET", "/")[2] and b"onclick" not in visit.ask("GET", "/")[2]


def test_a_key_shows_what_its_user_may_see(visit: Visit) -> None:
    """Since a time; the numbers are numbers."""
    bearer = f"Authorization: Bearer {visit.key()}"
    status, headers, body = visit.ask("GET", "/overview?since=12.5", bearer, f"Origin: http://{ADDRESS}")
    told = json.loads(body)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert (told["user"], told["now"], told["stats"]["blob_bytes"], told["groups"]) == ("uid 1", 1.5, 0, [])
    assert visit.asked == [(ALICE, 12.5)]


def test_without_a_key_nothing_is_shown(visit: Visit) -> None:
    """Nor with a wrong one, a ticket, or where its user is not served any more."""
    key = visit.key()
    for header in (
        "X: y",
        "Authorization: Bearer ",
        "Authorization: Bearer x",
        f"Authorization: Ticket {key}",
        f"Cookie: key={key}",
    ):
        status, _, body = visit.ask("GET", "/overview", header)
        assert (status, json.loads(body)["error"]) == (401, "Unauthenticated")
    visit.refused = "deny names you"
    status, _, body = visit.ask("GET", "/overview", f"Authorization: Bearer {key}")
    assert (status, json.loads(body)) == (403, {"error": "PermissionDenied", "message": "deny names you"})
    assert visit.asked == []


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1", "127.0.0.1:80", "evil.example:9465", "127.0.0.1:9465.evil"]
)
def test_a_name_that_only_leads_here_is_refused(visit: Visit, host: str) -> None:
    """Whatever is asked for, also with a key: so a site whose name is bound anew to this host is shown nothing."""
    bearer = f"Authorization: Bearer {visit.key()}"
    for method, target in (("GET", "/"), ("GET", "/overview"), ("POST", "/enter"), ("GET", "/nothing")):
        assert visit.ask(method, target, bearer, host=host)[0] == 421
    assert visit.asked == []


@pytest.mark.parametrize("address", [ADDRESS, "localhost:9465", "[::1]:9465", "127.8.8.8:9465"])
def test_its_own_names_are_not(address: str) -> None:
    """Those of this host, at its port."""
    visit = Visit(address)
    for host in {address, "localhost:9465", "127.0.0.1:9465", "[::1]:9465"}:
        assert visit.ask("GET", "/", host=host)[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: http://127.0.0.1:1",
        "Origin: https://127.0.0.1:9465",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: cross-site",
    ],
)
def test_another_sites_script_is_refused(visit: Visit, header: str) -> None:
    """Also that of another port of this host; and no ticket is used up by it."""
    bearer = f"Authorization: Bearer {visit.key()}"
    ticket = visit.entrance.ticket(ALICE)[0].partition("#")[2]
    assert visit.ask("GET", "/overview", bearer, header)[0] == 403
    assert visit.ask("POST", "/enter", f"Authorization: Ticket {ticket}", header)[0] == 403
    assert visit.asked == [] and visit.ask("POST", "/enter", f"Authorization: Ticket {ticket}")[0] == 200


def test_what_is_no_request_of_ours(visit: Visit) -> None:
    """Each has its status, and none ends the thread."""
    bearer = f"Authorization: Bearer {visit.key()}"
    assert visit.ask("GET", "/../etc/passwd")[0] == 404 == visit.ask("GET", "/page.py")[0]
    assert visit.ask("GET", "/enter")[0] == 405 == visit.ask("POST", "/overview", bearer)[0]
    assert visit.ask("POST", "/")[1]["Allow"] == "GET"
    assert visit.ask("GET", "/", "Host: evil.example")[0] == 400  # twice
    assert visit.ask("GET", "/overview?since=soon", bearer)[0] == 400
    assert visit.ask("GET", "/overview?since=-1", bearer)[0] == 500
    assert b"HTTP/1.1 421" in visit.site.answer(b"\xff\xfe\r\n\r\n", 0.0)


def test_messages_become_json() -> None:
    """Large numbers are numbers, what has no end is a word, and messages in messages are objects."""
    part = pb.HeldPart(version='<"é', share_bytes=2**60, pinned_until=math.inf, users=["a"])
    told: Any = json.loads(json.dumps(plain(pb.HeldGroup(name="g", parts=[part]))))
    assert told["parts"][0]["share_bytes"] == 2**60 and told["parts"][0]["pinned_until"] == "Infinity"
    assert (told["parts"][0]["version"], told["parts"][0]["users"], told["used_at"]) == ('<"é', ["a"], 0.0)
