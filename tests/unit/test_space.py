"""Whether something fits."""

from __future__ import annotations

import random

import pytest

from cacheserver.space import Amount, Fill, Limits, parse_amount, shortage, show

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
