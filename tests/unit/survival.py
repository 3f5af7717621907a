"""One verb, one fault, and whether all is well afterwards.

Law of this file: after an error the same daemon goes on, after a death another one; both have what was held before, owe
nobody anything, and do the same verb without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EIO
from pathlib import Path

from tests.rig.seam import AFTER, BEFORE, HALF, KILL, Fault, Killed, Seam, Step
from tests.unit.house import ROOT
from tests.unit.mortal import Place, assert_ours
from tests.unit.scenes import OTHER, hold
from tests.unit.verbs import Verb

_READS = frozenset({"open", "read", "fstat", "stat", "preadv"})
_HALVES = frozenset({"write", "pwrite"})


def faults(steps: list[Step]) -> Iterator[Fault]:
    """All that can go wrong at some steps: the daemon is killed before each of them, and in the middle of a write; each
    errno that a step can give comes before and after it was done.

    Killed after a step is killed before the next one, where nothing else was done in between.
    """
    for number, step in enumerate(steps):
        yield Fault(number, BEFORE, KILL)
        if step.name in _HALVES:
            yield from (Fault(number, HALF, errno) for errno in (KILL, *step.errnos[:1]))
        for errno in step.errnos:
            yield from (Fault(number, when, errno) for when in (BEFORE, AFTER))


def steps_of(verb: Verb, folder: Path, seam: Seam) -> list[Step]:
    """The steps that a verb takes where nothing fails."""
    steps: list[Step] = []
    _live(verb, None, folder, seam, steps)
    return steps


def survive(verb: Verb, fault: Fault, folder: Path, seam: Seam) -> None:
    """Has a verb fail, and looks whether all is well afterwards. AssertionError where it is not."""
    steps: list[Step] = []
    try:
        _live(verb, fault, folder, seam, steps)
        assert len(steps) > fault.step, f"it took {len(steps)} steps this time"
    except Exception as error:
        step = steps[fault.step] if fault.step < len(steps) else "no step"
        raise AssertionError(f"{verb}, {fault}, at {step}: {error}") from error


def _live(verb: Verb, fault: Fault | None, folder: Path, seam: Seam, steps: list[Step]) -> None:
    place = Place(folder, seam)
    try:
        place.open()
        hold(place, OTHER)
        before = place.kept()
        verb.prepare(place)
        if place.is_open:
            before |= place.kept()
        was_open, fds = place.is_open, _open_now()
        error = _attempt(verb, place, fault)
        steps += seam.steps
        assert error is None or isinstance(error, (Killed, *verb.answers)) or _is_ours(error)
        goes_on = was_open and place.is_open and not seam.is_dead
        error = None
        if goes_on:
            assert _open_now() <= fds, "a descriptor was left open"
        else:
            place.die()
            place.open()
        place.assert_held(before, _losses(verb, fault, steps))
        place.assert_sound(stuck=1 if fault and goes_on else 0)
        again = _attempt(verb, place, None)
        assert again is None or isinstance(again, verb.answers), f"the second time: {again!r}"
        if not place.is_open:
            place.open()
        verb.then(place)
        before = place.kept()
        place.close()
        place.open()
        place.assert_held(before, frozenset())
        place.assert_sound()
        place.assert_tidy()
        if not goes_on:
            place.assert_checked()
    finally:
        again = error = None
        place.end()


def _losses(verb: Verb, fault: Fault | None, steps: list[Step]) -> frozenset[str] | None:
    """What may be another or gone. Where the disk says that it has lost the bytes of a blob or a manifest, it has; what
    the daemon may not open is somebody else's. All that a verb reads may be gone then, and is fetched again."""
    if fault and fault.errno in (EIO, EACCES) and steps[fault.step].name in _READS:
        return None if verb.ends or verb.lost or verb.reads_all else verb.lost | {ROOT}
    return verb.lost


def _open_now() -> int:
    return len(os.listdir("/proc/self/fd"))


def _attempt(verb: Verb, place: Place, fault: Fault | None) -> BaseException | None:
    try:
        with place.seam.watching(fault):
            verb.act(place)
    except (Exception, Killed) as error:  # noqa: BLE001 - whatever it is, it is looked at
        return error.with_traceback(None)
    return None


def _is_ours(error: BaseException) -> bool:
    assert_ours(error)
    return True
