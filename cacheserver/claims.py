"""Claims: which host brings a location from the origin for all hosts that share a tier.

Law of this file: a claim saves work and protects nothing. Where two hosts have one, both bring the same bytes, and no
host waits for ever for another: a claim that its host does not renew counts for nothing, and of several that follow
each other only some are waited for.

Whether a claim is renewed is seen by whether it changes while one looks, by the looker's own clock. Only one that is
very old by the object store's clock is not looked at so long: a host whose clock is that wrong waits for nobody.

Where the object store has conditional writes, the first who writes has it; where it has none, or takes no notice of
conditions, whoever still finds his own after a pause that is longer than a write takes (Fischer's algorithm, in Lamport
1987, A fast mutual exclusion algorithm, section 3).
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cacheserver.tierstore import Got, TierError, TierStore, TooLarge, Unsupported

CLAIM_SECONDS = 15.0  # so long a claim counts that nobody renews
RENEW_SECONDS = 4.0
STALE_SECONDS = 600.0  # one that was written so long ago, by the object store's clock, is not waited for at all
SETTLE_SECONDS = 0.3  # without conditional writes: longer than a write takes to be seen
UNWRITABLE_SECONDS = 30.0  # for which none is written after one could not be
PAUSE_SECONDS = 0.1  # between two looks, at first
PAUSE_SECONDS_MAX = 1.0
WAIT_SECONDS_MAX = 3600.0  # for whoever is so slow, or has so much, that the origin may be quicker
OWNERS_MAX = 3  # claims of so many hosts are waited for, one after the other
CLAIM_BYTES_MAX = 4096

T = TypeVar("T")


@dataclass(eq=False)
class Claim:
    """A claim of this host, until it is released."""

    key: str
    owner: str
    renewals: int = 0
    is_lost: bool = False

    def encode(self) -> bytes:
        """The object: JSON, for people too."""
        return json.dumps({"owner": self.owner, "renewals": self.renewals}).encode()


@dataclass
class _Watch:
    """What somebody who waits has seen of others' claims: the last one, since when, and whose there were."""

    data: bytes = b""
    since: float = 0.0
    owners: set[str] = field(default_factory=set)


class Claims:
    """The claims of one host.

    Args:
        host: its name, for people.
        clock: seconds since the epoch.
        ticks: seconds of a clock that never jumps.
        wait: waits so many seconds; returns whether the daemon stops meanwhile.
    """

    def __init__(
        self,
        objects: TierStore,
        host: str,
        clock: Callable[[], float],
        ticks: Callable[[], float],
        wait: Callable[[float], bool],
    ) -> None:
        self._objects = objects
        self._host = host
        self._clock = clock
        self._ticks = ticks
        self._wait = wait
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._unwritable_until = -math.inf
        self.trouble = ""  # why none could be written, when that was tried last
        self._is_conditional = True  # until the object store says that it has no conditional writes, or shows it
        self._proven = set[bool]()  # that it heeds conditions: of a write over another one, of one where there is none

    def take(
        self, key: str, look: Callable[[], T | None], is_wanted: Callable[[], bool]
    ) -> tuple[T | None, Claim | None]:
        """Waits for what another host brings, or takes the claim.

        Args:
            look: what has been brought by now; None for nothing yet.
            is_wanted: whether anybody waits for it still.

        Returns what `look` has found, or the claim, which has to be released; neither where it is not worth waiting.
        Raises TierError.
        """
        seen, pause, began = _Watch(), PAUSE_SECONDS, self._ticks()
        while is_wanted() and self._ticks() - began < WAIT_SECONDS_MAX:
            if (found := look()) is not None:
                return found, None
            try:
                got = self._objects.get(key, CLAIM_BYTES_MAX)
            except TooLarge:  # whatever it is, nobody renews it
                break
            if got and self._is_own(got):  # what this host brings already is shared without the tier, and sooner
                break
            if got is None or self._is_dead(got, seen):
                if self._is_writable() and (claim := self._write(key, got)):
                    return self._unless(look, claim)
                if not self._is_writable():
                    break
            if len(seen.owners) > OWNERS_MAX or self._wait(pause):
                break
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        return None, None

    def _unless(self, look: Callable[[], T | None], claim: Claim) -> tuple[T | None, Claim | None]:
        """The claim, unless what it is for has come between the last look and it."""
        found = None
        try:
            found = look()
        except BaseException:
            self.release(claim)
            raise
        if found is None:
            return None, claim
        self.release(claim)
        return found, None

    def renew(self) -> None:
        """Says of all claims that their host is there still. What fails is tried again with the next round."""
        with self._lock:
            held = [claim for claim in self._held if not claim.is_lost]
        for claim in held:
            claim.renewals += 1
            with contextlib.suppress(TierError):
                claim.is_lost = not self._renewed(claim)

    def holds(self, claim: Claim) -> bool:
        """Whether nobody has taken a claim over, by asking. Raises TierError."""
        return not claim.is_lost and self._is_mine(claim)

    def release(self, claim: Claim) -> None:
        """Ends a claim."""
        self._release([claim])

    def release_all(self) -> None:
        """Ends all of them: others need not wait for a host that stops."""
        with self._lock:
            held = list(self._held)
        self._release(held)

    def count(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._held)

    def _release(self, claims: list[Claim]) -> None:
        with self._lock:
            self._held.difference_update(claims)
        with contextlib.suppress(TierError):  # it ends by itself
            self._objects.delete([claim.key for claim in claims if not claim.is_lost])

    def _is_writable(self) -> bool:
        return self._ticks() >= self._unwritable_until

    def _is_own(self, got: Got) -> bool:
        owner = owner_of(got.data)
        with self._lock:
            return any(claim.owner == owner for claim in self._held)

    def _is_dead(self, got: Got, seen: _Watch) -> bool:
        """Whether nobody renews a claim."""
        now = self._ticks()
        if got.data != seen.data:
            seen.data, seen.since = got.data, now
            seen.owners.add(owner_of(got.data))
        return now - seen.since >= CLAIM_SECONDS or self._clock() - got.written_at >= STALE_SECONDS

    def _write(self, key: str, over: Got | None) -> Claim | None:
        """Writes a claim where there is none, or over a dead one; None where another host was faster, or where nothing
        can be written: what can be read is of use all the same."""
        claim = Claim(key, f"{self._host} {secrets.token_hex(8)}")
        try:
            if not self._written(claim, over):
                return None
        except TierError as error:
            self._unwritable_until, self.trouble = self._ticks() + UNWRITABLE_SECONDS, str(error)
            return None
        with self._lock:
            self._held.add(claim)
        return claim

    def _written(self, claim: Claim, over: Got | None) -> bool:
        if self._is_conditional:
            try:
                return self._written_if(claim, over)
            except Unsupported:
                self._is_conditional = False
        self._objects.put(claim.key, claim.encode())
        return not self._wait(SETTLE_SECONDS) and self._is_mine(claim)

    def _written_if(self, claim: Claim, over: Got | None) -> bool:
        """Writes a claim on condition that no other host has. Raises Unsupported where that has no effect."""

        def write() -> bool:
            if over:
                return self._objects.replace(claim.key, claim.encode(), over.tag)
            return self._objects.create(claim.key, claim.encode())

        is_written, kind = write(), over is not None
        if is_written and kind not in self._proven:  # some stores take no notice, and say nothing
            with contextlib.suppress(TierError):  # then it stays unproven
                if write():  # though what it was on condition of has changed by that
                    raise Unsupported
                self._proven.add(kind)
        return is_written

    def _renewed(self, claim: Claim) -> bool:
        got = self._objects.get(claim.key, CLAIM_BYTES_MAX)
        if got is None or owner_of(got.data) != claim.owner:
            return False
        if not self._is_conditional:
            self._objects.put(claim.key, claim.encode())
        elif not self._objects.replace(claim.key, claim.encode(), got.tag):
            return False
        with self._lock:
            is_held = claim in self._held
        if not is_held and self._is_mine(claim):  # released between the look and the write, which has brought it back
            self._objects.delete([claim.key])
        return True

    def _is_mine(self, claim: Claim) -> bool:
        got = self._objects.get(claim.key, CLAIM_BYTES_MAX)
        return got is not None and owner_of(got.data) == claim.owner


def owner_of(data: bytes) -> str:
    """Who has written a claim; what cannot be read is an owner of its own."""
    try:
        return str(json.loads(data)["owner"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return repr(data)
