"""What it costs that everything survives a power cut: the store's steps with their syncs, and with none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from cacheserver.database import Tables
from cacheserver.words import Held
from tests.bench.cases import Ground
from tests.bench.figures import Figure, in_turn, milliseconds
from tests.rig import mounts
from tests.unit.house import Shelf

ROUNDS = 9
EVICTED_TREES = 32  # one step of a sweep


def durability(ground: Ground) -> Iterator[Figure]:
    """Taking in one small file and 2,000 of 4 KiB, and evicting a step of trees; on each filesystem."""
    for kind in (k for k in mounts.KINDS if k.mkfs):
        if why := mounts.reason_not_to_mount(kind):
            yield Figure(f"syncs, {kind.name}", f"not measured: {why}", "", "", "")
            continue
        mounted = mounts.mount(kind, ground.folder / f"{kind.name}.img", ground.folder / kind.name)
        shelf = Shelf(mounted.root / "store")
        try:
            yield from _of(shelf, kind.name)
        finally:
            shelf.close()
            mounts.unmount_below(mounted.root)


def _of(shelf: Shelf, where: str) -> Iterator[Figure]:
    numbers = iter(range(10**9))

    def take(count: int) -> Held:
        number = next(numbers)
        return shelf.put({f"d{n % 20}/{n}": os.urandom(4096) for n in range(count)}, f"s3://bucket/{number}")

    def evict() -> None:
        gone = shelf.store.departures.evict(waiting.pop(), now=1e9, young_since=1e9)
        assert len(gone.trees) == EVICTED_TREES

    waiting = [[take(1).tree for _ in range(EVICTED_TREES)] for _ in range(2 * ROUNDS)]
    for what, step in (
        ("taking in a file of 4 KiB", lambda: take(1)),
        ("taking in 2,000 files of 4 KiB", lambda: take(2_000)),
        (f"evicting {EVICTED_TREES} trees", evict),
    ):

        def without(step: Any = step) -> None:
            with _no_syncs():
                step()

        ours, bare, ratio = in_turn(step, without, ROUNDS, os.sync)
        yield Figure(
            f"{what}, {where}", milliseconds(ours), f"without syncs {milliseconds(bare)}", f"{ratio:.2f} ×", ""
        )


@contextlib.contextmanager
def _no_syncs() -> Iterator[None]:
    """As if nobody ever pulled the plug."""
    transaction = Tables.transaction

    def plain(tables: Tables, *, durable: bool = False) -> contextlib.AbstractContextManager[None]:
        return transaction(tables)

    with (
        mock.patch("cacheserver.disk.os.fsync"),
        mock.patch("cacheserver.disk.syncfs"),
        mock.patch.object(Tables, "transaction", plain),
    ):
        yield
