"""Proofs, at both ends of a page: the client's writes them, the daemon's takes them."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from artifactcache import proofs as client
from artifactcache.deadline import Deadline
from artifactcache.errors import DaemonUnavailable, DeadlineExceeded
from cacheserver import proofs as daemon

NEVER = Deadline(None)
Ends = tuple[daemon.Page, client.Page]


def _ends() -> Ends:
    page, descriptor = daemon.new_page()
    try:
        return page, client.Page(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of one page."""
    yield _ends()


def _mapped() -> int:
    """How many pages this process has mapped."""
    return Path("/proc/self/maps").read_text().count("artifactcache-proofs")


def test_both_ends_speak_of_the_same() -> None:
    """Their pages have the same slots."""
    assert (daemon.SLOTS, daemon.PROOF_BYTES) == (client.SLOTS, client.PROOF_BYTES)


def test_a_proof_is_good_once(ends: Ends) -> None:
    """Each call has another one; a second time it is worth nothing, neither at once nor after the call."""
    page, mine = ends
    seen = set()
    for _ in range(600):
        with mine.proof(NEVER) as proof:
            assert page.take(proof)
            assert not page.take(proof)
        assert not page.take(proof)
        seen.add(proof)
    assert len(seen) == 600


def test_what_is_no_proof(ends: Ends) -> None:
    """What was not written is no proof, an empty slot least of all; the real one is as good as before."""
    page, mine = ends
    with mine.proof(NEVER) as proof:
        slot, _, told = proof.partition(":")
        nothing = "0" * 32
        others = [f"{n}:{nothing}" for n in range(daemon.SLOTS)] + [f"{n}:{told}" for n in range(256) if n != int(slot)]
        malformed = ["", ":", slot, told, f"{slot}:", f"0{proof}", f"{proof}0", f"{slot}:{told[:-1]}", f" {proof}"]
        beyond = [f"256:{told}", f"999:{told}", f"-1:{told}", f"99999999999999999999:{told}", f"{slot}:{told.upper()}x"]
        flipped = [f"{slot}:{told[:n]}{int(told[n], 16) ^ 1:x}{told[n + 1 :]}" for n in range(32)]
        for each in others + malformed + beyond + flipped:
            assert not page.take(each), each
        assert page.take(proof)


def test_a_call_that_never_arrives_leaves_nothing(ends: Ends) -> None:
    """After it has ended its proof is worth nothing, and its slot is free: more such calls than there are slots."""
    page, mine = ends
    for _ in range(3 * client.SLOTS):
        with mine.proof(NEVER) as proof:
            pass
        assert not page.take(proof)
    with pytest.raises(KeyError), mine.proof(NEVER):
        raise KeyError
    with ExitStack() as calls:
        assert len({calls.enter_context(mine.proof(NEVER)) for _ in range(client.SLOTS)}) == client.SLOTS


def test_more_calls_than_slots(ends: Ends) -> None:
    """A call waits for a slot as long as it may; what the daemon has seen is free, though its calls go on. No call
    loses its proof to another."""
    page, mine = ends
    with ExitStack() as calls:
        waiting = [calls.enter_context(mine.proof(NEVER)) for _ in range(client.SLOTS)]
        with pytest.raises(DeadlineExceeded), mine.proof(Deadline(0.05)):
            pass
        assert page.take(waiting[7])
        late = calls.enter_context(mine.proof(Deadline(30)))
        assert late.split(":")[0] == waiting[7].split(":")[0]
        assert page.take(late)
    with ExitStack() as calls:
        first = [calls.enter_context(mine.proof(NEVER)) for _ in range(client.SLOTS)]
        assert all(page.take(proof) for proof in first)
        second = [calls.enter_context(mine.proof(Deadline(30))) for _ in range(client.SLOTS)]
        assert all(page.take(proof) for proof in second)


def _slowly(one: bytes, other: bytes) -> bool:
    """Compare, and let the other threads in before it is acted upon."""
    time.sleep(0)
    return one == other


def test_of_two_who_show_one_proof_one_is_believed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same moment, too."""
    page, mine = ends
    monkeypatch.setattr("cacheserver.proofs.hmac.compare_digest", _slowly)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(300):
            barrier = threading.Barrier(4)

            def show(proof: str, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return page.take(proof)

            with mine.proof(NEVER) as proof:
                assert sum(pool.map(show, [proof] * 4)) == 1


def test_threads_share_a_page(ends: Ends) -> None:
    """Each of their calls is believed, however many call at once."""
    page, mine = ends

    def call(_: int) -> bool:
        with mine.proof(Deadline(60)) as proof:
            return page.take(proof)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(8000)))
    assert sorted(mine._free) == list(range(client.SLOTS)) and not mine._given


def test_nobody_takes_the_page_from_under_the_daemon() -> None:
    """Whoever has the descriptor cannot cut it, nor let it grow; a hole in it is an empty slot."""
    page, descriptor = daemon.new_page()
    try:
        for size in (0, 1, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 1 << 20)
        mine = client.Page(descriptor)
        with mine.proof(NEVER) as proof:
            os.pwrite(descriptor, bytes(daemon.PAGE_BYTES), 0)
            assert not page.take(proof)
    finally:
        os.close(descriptor)


def test_a_descriptor_that_cannot_be_mapped() -> None:
    """Is an error that says so."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(DaemonUnavailable, match="cannot be mapped"):
            client.Page(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_nothing_is_left() -> None:
    """A page costs no descriptor, and its memory goes with the last who has it; so it does at the other end."""
    mapped, descriptors = _mapped(), len(os.listdir("/proc/self/fd"))
    pages = [_ends() for _ in range(200)]  # each end is mapped
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert _mapped() > mapped  # neighbours may show as one
    for page, _ in pages:
        page.close()
        page.close()
        assert not page.take("0:" + "ab" * 16)
    del pages, page, _
    assert (_mapped(), len(os.listdir("/proc/self/fd"))) == (mapped, descriptors)


def test_a_child_has_no_page() -> None:
    """A forked child has neither the parent's page nor anything to fear from the end of its objects, nor has the
    parent: its calls go on. A call that was under way in the parent ends in the child without a word."""
    mapped = _mapped()
    page, mine = _ends()
    with ExitStack() as calls:
        proof = calls.enter_context(mine.proof(NEVER))
        pid = os.fork()
        if pid == 0:
            calls.close()
            del mine, calls
            os._exit(0 if _mapped() == mapped + 1 else 1)  # the daemon's end, which is in this process too
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert page.take(proof)
    with mine.proof(NEVER) as proof:
        assert page.take(proof)


def test_a_child_proves_its_calls_by_others(ends: Ends) -> None:
    """What it sends is nothing that its parent has sent or will send, though both were one process a moment ago."""
    page, mine = ends
    reader, writer = os.pipe()
    with mine.proof(NEVER) as before:
        pass
    pid = os.fork()
    if pid == 0:
        its_page, its = _ends()
        with its.proof(NEVER) as proof:
            os.write(writer, proof.encode() if its_page.take(proof) else b"refused")
        os._exit(0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with os.fdopen(reader) as pipe:
        its_proof = pipe.read()
    with mine.proof(NEVER) as after:
        assert not page.take(its_proof) and page.take(after)
    assert len({before, its_proof, after}) == 3


class Between:
    """Does something in the middle of what is done inside, as another thread or a signal's handler would: before the
    `at`-th instruction of the client's page."""

    def __init__(self, at: int, what: Callable[[], None]) -> None:
        self._left, self._what = at, what
        self._before: Any = None

    @property
    def is_done(self) -> bool:
        """Whether there were so many instructions."""
        return self._left <= 0

    def __enter__(self) -> Between:
        self._before = sys.gettrace()
        sys.settrace(self._entered)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _entered(self, frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code.co_filename != client.__file__:
            return None
        frame.f_trace_opcodes = True
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, value: Any) -> Any:
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self._what()
        return self._instruction


class Looks(Deadline):
    """Lets a call look twice for a slot, and no more."""

    def __init__(self) -> None:
        super().__init__(None)
        self._left = 2

    def remaining(self) -> float | None:
        """None, as often as it may look."""
        self._left -= 1
        if self._left < 0:
            raise self.exceeded()
        return None

    def exceeded(self) -> DeadlineExceeded:
        """There was none."""
        return DeadlineExceeded("no slot")


@pytest.mark.parametrize("is_seen", [False, True], ids=["not seen", "seen"])
@pytest.mark.parametrize("others", [0, 2])
def test_two_calls_at_any_moment(monkeypatch: pytest.MonkeyPatch, others: int, is_seen: bool) -> None:
    """One begins between any two instructions of another one, from its beginning to its end, be it that the daemon has
    seen that one's proof or not. There is one slot, which is free, or which has to be taken back from a call that the
    daemon has seen: never do both have it, neither loses its proof by the other, and no slot is lost, or there twice.
    """
    monkeypatch.setattr(client, "SLOTS", others or 1)
    monkeypatch.setattr(client, "LOOK_AGAIN_SECONDS", 0.0)
    served = 0
    for at in itertools.count(1):
        page, mine = _ends()
        second: list[str] = []
        with ExitStack() as later, ExitStack() as going_on:
            first = [going_on.enter_context(mine.proof(NEVER)) for _ in range(others)]
            assert all(page.take(proof) for proof in first[:1])

            def begin(mine: client.Page = mine, second: list[str] = second, later: ExitStack = later) -> None:
                with suppress(DeadlineExceeded):
                    second.append(later.enter_context(mine.proof(Looks())))

            proved = False
            with Between(at, begin) as between, suppress(DeadlineExceeded), mine.proof(Looks()) as proof:
                proved = True
                assert not is_seen or page.take(proof), at
            assert proved or second, f"{at}: neither had the slot"
            going_on.close()  # those calls end, and leave the others' proofs alone
            assert all(page.take(one) for one in second), f"{at}: a proof that was lost"
            served += len(second)
        assert sorted(mine._free) == list(range(client.SLOTS)) and not mine._given, at
        if not between.is_done:
            break
    assert served > 20 and at > 100, "it was in the middle of it"
