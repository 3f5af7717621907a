"""Bytes that are almost messages. All chance is that of the generator passed, so a seed makes the same again."""

from __future__ import annotations

import random
from collections.abc import Sequence

TEXTS_MAX = 60_000
_NUMBERS = (0, 1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    *(b"", b"\0", b".", b"..", b"/", b"../../etc/passwd", b"/etc/passwd", b"*", b"**", b"[", b"a" * 300, b"\xff\xfe"),
    *(
        "ünïcödé".encode(),
        b"\xed\xa0\x80",
        b"runs:/",
        b"runs:/x/../y",
        b"models:/a/1",
        b"models:/a@b",
        b"file:///nothing",
    ),
    *(b"mlflow-artifacts:/x", b"Bearer x", b"Authorization", b"Host", b"%00", b"%s%n", b"\r\nX: y", b"-1", b"nan"),
)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def text(dice: random.Random, known: Sequence[bytes]) -> bytes:
    """Something for a field of text or bytes: known to mean something, or not."""
    sort = dice.random()
    if sort < 0.45 and known:
        return dice.choice(known)
    if sort < 0.85:
        return dice.choice(_TEXTS)
    if sort < 0.99:
        return dice.randbytes(dice.randint(0, 40))
    return dice.choice(_TEXTS) * dice.randint(1, 200) + b"x" * dice.choice((0, 5000, TEXTS_MAX))


def fields(dice: random.Random, known: Sequence[bytes], depth: int = 3) -> bytes:
    """A message of protobuf with random fields: low numbers mostly, for those are there."""
    out = bytearray()
    for _ in range(dice.randint(0, 5)):
        number = dice.randint(1, 8) if dice.random() < 0.95 else dice.choice((0, 15, 16, 19_000, 2**29 - 1))
        kind = dice.choices((0, 1, 2, 3, 5, 7), (30, 5, 60, 1, 3, 1))[0]
        out += varint(number << 3 | kind)
        if kind == 0:
            out += varint(dice.choice(_NUMBERS))
        elif kind == 2:
            nested = depth and dice.random() < 0.5
            value = fields(dice, known, depth - 1) if nested else text(dice, known)
            out += varint(len(value)) + value
        else:
            out += dice.randbytes({1: 8, 5: 4}.get(kind, 0))
    return bytes(out)


def mutated(dice: random.Random, valid: bytes) -> bytes:
    """A message with one to four things done to it."""
    out = bytearray(valid)
    for _ in range(dice.randint(1, 4)):
        place, length = dice.randint(0, len(out)), dice.randint(1, 8)
        what = dice.randrange(6)
        if what == 0 and place < len(out):
            out[place] ^= 1 << dice.randrange(8)
        elif what == 1:
            del out[place : place + length]
        elif what == 2:
            out[place:place] = dice.randbytes(length)
        elif what == 3:
            out[place:place] = out[place : place + length] * dice.randint(1, 20)
        elif what == 4:
            out[place : place + 1] = varint(dice.choice(_NUMBERS))
        else:
            del out[place:]
    return bytes(out)


def message(dice: random.Random, valid: Sequence[bytes], known: Sequence[bytes]) -> bytes:
    """Any of these: noise, random fields, a valid message, or what was one."""
    sort = dice.random()
    if sort < 0.1:
        return dice.randbytes(dice.randint(0, 200))
    if sort < 0.45:
        return fields(dice, known)
    return dice.choice(valid) if sort < 0.55 else mutated(dice, dice.choice(valid))
