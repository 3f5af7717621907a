"""What a user or a group may use up: values only."""

from __future__ import annotations

from dataclasses import dataclass

from cacheserver.space import Amount

EVERYBODY = "*"  # stands for each user without an entry of their own


@dataclass(frozen=True)
class Allowance:
    """How much of the store, and of the origin, one user or group gets; None for as much as there is.

    Attributes:
        held: bytes of what the store holds, or per cent of its filesystem.
        downloads: how many at a time.
        rate: bytes per second from the origin.
    """

    held: Amount | None = None
    downloads: int | None = None
    rate: int | None = None
