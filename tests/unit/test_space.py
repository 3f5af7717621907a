"""Whether something fits."""

from __future__ import annotations

import random

import pytest

from cacheserver.space import Amount, Fill, Limits, Need, missing, parse_amount, pressure, shortage, show

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", Amount(0)),
        ("1", Amount(1)),
        ("1B", Amount(1)),
        ("500GiB", Amount(500 * GIB)),
        (" 1.5 KiB ", Amount(1536)),
        ("2MiB", Amount(2 * 2**20)),
        ("1TiB", Amount(2**40)),
        ("1PiB", Amount(2**50)),
        ("1KB", Amount(1000)),
        ("3MB", Amount(3_000_000)),
        ("3GB", Amount(3_000_000_000)),
        ("1TB", Amount(10**12)),
        ("1PB", Amount(10**15)),
        ("10%", Amount(10, percent=True)),
        ("0%", Amount(0, percent=True)),
        ("0.5 %", Amount(0.5, percent=True)),
        ("100%", Amount(100, percent=True)),
    ],
)
def test_an_amount_is_read(text: str, amount: Amount) -> None:
    """Bytes with a unit of 1024 or of 1000, or per cent."""
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "-1", "-5%", "101%", "1e9", "1,5GiB", "5 gib", "5G", "5 GiB x", ".5GiB", "5.", "٣GiB", "1_000"],
)
def test_what_is_no_amount_is_refused_with_the_form_it_has(text: str) -> None:
    """The words finish the sentence "… must be"."""
    with pytest.raises(ValueError, match="bytes as in"):
        parse_amount(text)


def test_per_cent_are_of_the_filesystem() -> None:
    """Bytes are bytes on any disk; per cent depend on it."""
    assert Amount(10, percent=True).of(1000) == 100
    assert Amount(7.5).of(1000) == 7


def fits(
    needed: int, limits: Limits, *, stored: int = 0, coming: int = 0, unwritten: int = 0, free: int = 1000
) -> bool:
    """Whether it fits on a disk of 1000 bytes."""
    return shortage(needed, Fill(stored, coming, unwritten, total=1000, free=free), limits) is None


def test_the_capacity_holds_to_the_byte() -> None:
    """What is held, what is on its way and what is needed together are at most the capacity."""
    rule = Limits(Amount(50, percent=True), Amount(0))
    assert fits(500, rule) and not fits(501, rule)
    assert fits(200, rule, stored=200, coming=100) and not fits(201, rule, stored=200, coming=100)
    assert fits(300, rule, stored=200, unwritten=100)


def test_what_stays_free_holds_to_the_byte() -> None:
    """What is promised is counted as gone, whoever else fills the disk."""
    rule = Limits(Amount(10**9), Amount(100))
    assert fits(100, rule, free=200) and not fits(101, rule, free=200)
    assert fits(100, rule, free=300, unwritten=100) and not fits(101, rule, free=300, unwritten=100)
    assert fits(200, rule, free=300, coming=100)
    why = shortage(150, Fill(0, 0, 0, total=1000, free=200), rule, written=50)
    assert why is None, "what an earlier attempt has left is on the disk already"


def test_the_words_say_how_much_is_missing_and_what_to_change() -> None:
    """An administrator reads which limit it was, the numbers it was made of, and the key to turn."""
    limits = Limits(Amount(10 * GIB), Amount(GIB))
    over = shortage(4 * GIB, Fill(8 * GIB, GIB, 0, total=100 * GIB, free=90 * GIB), limits)
    assert over is not None
    assert all(
        words in over for words in ("4.0 GiB more", "10.0 GiB", "8.0 GiB are held", "3.0 GiB are missing", "capacity")
    )
    under = shortage(2 * GIB, Fill(0, 0, 0, total=100 * GIB, free=2 * GIB), limits)
    assert under is not None and "1.0 GiB are missing" in under and "free some space" in under


def test_what_fits_alone_and_not_together_is_refused_to_the_second(dice: random.Random) -> None:
    """Whatever is promised one after the other never passes a limit."""
    limits = Limits(Amount(600), Amount(300))
    for _ in range(500):
        stored, free, reserved = dice.randint(0, 500), dice.randint(300, 1000), 0
        for needed in dice.choices(range(200), k=8):
            if fits(needed, limits, stored=stored, coming=reserved, unwritten=reserved, free=free):
                reserved += needed
        assert reserved == 0 or (stored + reserved <= 600 and free - reserved >= 300)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * GIB, "5.0 GiB"),
        (3 * 2**60, "3072.0 PiB"),
    ],
)
def test_bytes_are_shown_with_a_unit(count: int, text: str) -> None:
    """A number for a person."""
    assert show(count) == text


def disk(stored: int, *, free: int = 10**6, coming: int = 0, unwritten: int = 0) -> Fill:
    """A store on a disk of 2,000 bytes, or one that others leave enough of."""
    return Fill(stored, coming, unwritten, total=2000, free=free)


@pytest.mark.parametrize(
    ("stored", "above", "need"),
    [
        (949, 95.0, 0),
        (950, 95.0, 0),
        (951, 95.0, 51),
        (951, 90.0, 51),
        (901, 90.0, 1),
        (900, 90.0, 0),
        (2000, 95.0, 1100),
    ],
)
def test_a_store_above_a_watermark_goes_down_to_the_low_one(stored: int, above: float, need: int) -> None:
    """Not to the one that it was above: then each download would begin a sweep. To the byte."""
    limits = Limits(Amount(1000), Amount(0), high=95.0, low=90.0)
    assert pressure(disk(stored), limits, above=above) == Need(0, need)


def test_what_is_on_its_way_is_pressure_too() -> None:
    """It will be held; what of it is not on the disk yet will fill that as well."""
    limits = Limits(Amount(1000), Amount(100), high=95.0, low=90.0)
    assert pressure(disk(800, coming=151), limits, above=95.0) == Need(0, 51)
    assert pressure(disk(0, coming=90, unwritten=90, free=300), limits, above=95.0) == Need(0, 0)
    # 90 are coming, all of them are yet to be written: of 95 that are free beside what stays free, 5 will be left.
    assert pressure(disk(0, coming=90, unwritten=90, free=195), limits, above=90.0) == Need(90 - 85, 0)


def test_a_store_gives_way_to_others_who_fill_the_disk() -> None:
    """What it may hold is what it has and what is free beside what must stay free; below nothing there is nothing."""
    limits = Limits(Amount(10**9), Amount(5, percent=True), high=95.0, low=90.0)
    assert pressure(disk(1000, free=100 + 100), limits, above=95.0) == Need(0, 0)
    assert pressure(disk(1000, free=100 + 50), limits, above=95.0) == Need(1000 - 945, 0)
    assert pressure(disk(1000, free=100), limits, above=95.0) == Need(100, 0)
    assert pressure(disk(1000, free=0), limits, above=95.0) == Need(1000 - 810, 0)
    assert pressure(disk(10, free=0), limits, above=95.0).disk_bytes >= 10


def test_a_store_that_is_empty_has_nothing_to_let_go() -> None:
    """However little it may hold, and however full the disk is of others' bytes."""
    assert not pressure(disk(0, free=100), Limits(Amount(0), Amount(0)), above=95.0)
    assert not pressure(disk(0, free=100), Limits(Amount(1000), Amount(100)), above=95.0)


def test_a_need_is_one_where_either_is(dice: random.Random) -> None:
    """Of the disk, or of the capacity; and none where something fits, to the byte, for any numbers."""
    assert Need(1, 0) and Need(0, 1) and not Need(0, 0)
    for _ in range(500):
        limits = Limits(Amount(dice.randrange(1000)), Amount(dice.randrange(300)))
        fill = disk(
            *[dice.randrange(500)], free=dice.randrange(1000), coming=dice.randrange(200), unwritten=dice.randrange(200)
        )
        needed, written = dice.randrange(1, 300), dice.randrange(50)
        need = missing(needed, fill, limits, written=min(written, needed))
        assert bool(need) == (shortage(needed, fill, limits, written=min(written, needed)) is not None)
        if need.capacity_bytes:
            less = fill._replace(stored=fill.stored - need.capacity_bytes)
            assert missing(needed, less, limits, written=min(written, needed)).capacity_bytes == 0
            assert missing(needed, less._replace(stored=less.stored + 1), limits).capacity_bytes == 1
        if need.disk_bytes:
            more = fill._replace(free=fill.free + need.disk_bytes)
            assert missing(needed, more, limits, written=min(written, needed)).disk_bytes == 0


def test_what_is_missing_is_named_for_both() -> None:
    """A download can be too large for the disk and for the capacity at once: both have to be met."""
    limits = Limits(Amount(1000), Amount(100))
    fill = disk(900, free=150, coming=50, unwritten=30)
    assert missing(200, fill, limits) == Need(100 - (150 - 30 - 200), 900 + 50 + 200 - 1000)
    assert missing(200, fill, limits, written=150) == Need(30, 150)
