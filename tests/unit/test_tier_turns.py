"""A sweep of the shared tier and a host that publishes, in every order that two of them can take turns in: whoever is
stopped before one of his calls, and for however long, no record names what is not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheserver import outgoing, tiersweep
from cacheserver.retention import Rule
from cacheserver.tierplan import How
from cacheserver.treerecords import TREES, TreeRecord
from tests.rig.tier import lacking
from tests.unit.house import House
from tests.unit.tiers import PATIENCE_SECONDS, Broom, Street, publish_due

URI = "s3://bucket/model"
LARGE = os.urandom((1 << 20) + 1)
FILES = {"small": b"small", "large": LARGE}
OTHERS = {"small": b"another", "large": LARGE}
ALL = Rule("all", tracking_uri="*", drop=0.0)
TO_ITS_END = 1_000_000

Do = Callable[[], object]


@pytest.fixture
def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Street]:
    """Hosts that ask for one thing after the other."""
    monkeypatch.setattr(outgoing, "UPLOADS_MAX", 1)
    monkeypatch.setattr(tiersweep, "READERS", 1)
    monkeypatch.setattr(tiersweep, "RENEW_SECONDS", 1000.0)
    street = Street(tmp_path)
    yield street
    street.close()


class Turns:
    """Two who take turns: the one that begins stops before one of his calls, the other goes on from there up to one of
    his, and then each goes on to his end."""

    def __init__(self, street: Street, begins: Do, other: Do, first_stop: int, second_stop: int) -> None:
        self._street, self._begins, self._other = street, begins, other
        self._stops = [first_stop, second_stop]
        self._counts, self._turn = [0, 0], 0
        self._handed_over, self._goes_on = threading.Event(), threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run_other)

    def play(self) -> tuple[bool, bool]:
        """Has both come to their end. Returns who came to his stop."""
        self._street.cupboard.step = self._step
        try:
            self._begins()
            self._turn = 1
            self._goes_on.set()
            if self._thread.ident is not None:
                self._thread.join(PATIENCE_SECONDS)
                assert not self._thread.is_alive()
        finally:
            self._goes_on.set()
            self._street.cupboard.step = lambda: None
        assert not self._errors, self._errors
        return self._counts[0] >= self._stops[0], self._counts[1] >= self._stops[1]

    def _step(self) -> None:
        turn = self._turn
        self._counts[turn] += 1
        if self._counts[turn] != self._stops[turn]:
            return
        if turn == 0:
            self._turn = 1
            self._thread.start()
            assert self._handed_over.wait(PATIENCE_SECONDS)
            self._turn = 0
        else:
            self._handed_over.set()
            assert self._goes_on.wait(PATIENCE_SECONDS)

    def _run_other(self) -> None:
        try:
            self._other()
        except BaseException as error:  # noqa: BLE001 - told by who waits
            self._errors.append(error)
        finally:
            self._handed_over.set()


def sweep(street: Street, *rules: Rule) -> None:
    """A sweep that waits for nobody."""
    Broom(street.cupboard).sweep(How(rules, grace=0.0, settle=0.0))


def publish(house: House) -> None:
    """What a house holds, as far as that is due."""
    assert house.sharing and house.sharing.publishing
    house.sharing.publishing.want(URI, "")
    publish_due(house.sharing.publishing)


def again(house: House) -> None:
    """What had to be put off is published in the end."""
    assert house.sharing and house.sharing.publishing
    house.ticks += 10_000
    publish_due(house.sharing.publishing)
    assert house.sharing.publishing.count() == 0


class Scene:
    """What there is before, and who does what then."""

    def __init__(self, street: Street) -> None:
        self.street = street
        self.one, self.two = street.house(), street.house()
        self.one.put(FILES, URI)
        self.two.put(OTHERS, URI)
        publish(self.two)
        self.other = self._all()
        publish(self.one)
        self.all = self._all()

    def _all(self) -> dict[str, bytes]:
        keys = self.street.cupboard.keys()
        return {key: self.street.cupboard.bytes_of(key) for key in keys}

    def begin(self, objects: dict[str, bytes]) -> None:
        """Has these in the tier and nothing else, and both houses have yet to publish."""
        cupboard = self.street.cupboard
        cupboard.delete(cupboard.keys())
        for key, data in objects.items():
            cupboard.put(key, data)

    def without_record(self) -> dict[str, bytes]:
        """All blobs, which no record needs."""
        return {key: data for key, data in self.all.items() if not key.startswith(TREES)}

    def older(self) -> dict[str, bytes]:
        """The record that house one would write, but that it was listed earlier."""
        return {key: earlier(key, data) if key.startswith(TREES) else data for key, data in self.all.items()}


def earlier(key: str, data: bytes) -> bytes:
    """A record of the same tree, listed before."""
    record = TreeRecord.decode(key, data, None)
    return TreeRecord(**{**record.__dict__, "checked_at": record.checked_at / 2}).encode(None)


def _swept_beside_another(scene: Scene) -> None:
    publish(scene.two)  # has another tree at the same place
    sweep(scene.street)


SCENES: dict[str, tuple[Callable[[Scene], dict[str, bytes]], Callable[[Scene], None]]] = {
    "what no record needs is there already": (Scene.without_record, lambda scene: sweep(scene.street)),
    "the record is there, and a rule drops it": (Scene.older, lambda scene: sweep(scene.street, ALL)),
    "another host has another tree there meanwhile": (Scene.older, _swept_beside_another),
    "another host's tree is there": (lambda scene: scene.other, lambda scene: sweep(scene.street)),
}


@pytest.mark.parametrize("sweep_begins", [False, True], ids=["the host begins", "the sweep begins"])
@pytest.mark.parametrize("name", SCENES)
def test_no_record_names_what_has_gone(street: Street, name: str, sweep_begins: bool) -> None:
    """Neither when both have ended, nor after what was put off is published."""
    scene, (before, swept) = Scene(street), SCENES[name]
    cases = 0

    def play(first_stop: int, second_stop: int) -> tuple[bool, bool]:
        nonlocal cases
        cases += 1
        scene.begin(before(scene))
        both: tuple[Do, Do] = (lambda: publish(scene.one)), (lambda: swept(scene))
        begins, other = reversed(both) if sweep_begins else both
        found = Turns(street, begins, other, first_stop, second_stop).play()
        assert lacking(street.cupboard) == [], f"{first_stop}, {second_stop}"
        again(scene.one)
        again(scene.two)
        assert lacking(street.cupboard) == [], f"{first_stop}, {second_stop}, then again"
        assert not street.cupboard.keys("v1/claims/")
        return found

    first_stop = 1
    while play(first_stop, TO_ITS_END)[0]:
        second_stop = 1
        while play(first_stop, second_stop)[1]:
            second_stop += 1
        first_stop += 1
    print(f"{cases} cases")
    assert cases > 50
