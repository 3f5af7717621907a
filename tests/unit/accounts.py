"""Houses with quotas, and the people who fetch there on their accounts."""

from __future__ import annotations

import grp
from collections.abc import Mapping
from pathlib import Path

from cacheserver import uris
from cacheserver.allowances import Allowance
from cacheserver.errands import Ask
from cacheserver.flights import Flight
from cacheserver.selection import Selection
from cacheserver.settings import QuotasConfig
from cacheserver.space import Amount
from cacheserver.words import Brought, Payer
from tests.unit.house import PATIENCE_SECONDS, ROOMY, House
from tests.unit.sweeping import offer

# The host knows none of these numbers, so that each is a name of its own.
ALICE, BOB, CAROL = (Payer(number, (number,)) for number in (4_000_001, 4_000_002, 4_000_003))
TEAM, OTHER_TEAM = grp.getgrall()[:2]  # every host has a few


def name(payer: Payer) -> str:
    """As the configuration names a user."""
    return str(payer.uid)


def in_team(payer: Payer) -> Payer:
    """The same user, as a member of TEAM."""
    return payer._replace(groups=(*payer.groups, TEAM.gr_gid))


def held(count: float) -> Allowance:
    """So many bytes on an account, and nothing else that is limited."""
    return Allowance(held=Amount(count))


class Homes:
    """Houses in which nothing is young, with quotas by names of users and groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.houses: list[House] = []

    def house(
        self,
        users: Mapping[str, Allowance] | None = None,
        groups: Mapping[str, Allowance] | None = None,
        *,
        kind: type[House] = House,
        policy: str = "lru",
    ) -> House:
        """One house."""
        quotas = QuotasConfig(users or {}, groups or {})
        root = self.root / f"store{len(self.houses)}"
        house = kind(root, ROOMY, grace_seconds=0.0, policy=policy, quotas=quotas)
        self.houses.append(house)
        return house


def start(house: House, uri: str, payer: Payer | None) -> Flight[Brought]:
    """Begins to bring an artifact on somebody's account."""
    return house.cache.bring(uris.parse(uri), Selection(), Ask.WHAT_IS_DUE, payer)[0]


def fetch(house: House, uri: str, payer: Payer) -> Brought:
    """Fetches as the service does: what is held is handed out, else it is brought on the payer's account."""
    house.now += 1
    found = house.cache.find(uris.parse(uri), Selection(), view=False)
    if found is None:
        flight = start(house, uri, payer)
        try:
            found = flight.future.result(timeout=PATIENCE_SECONDS)
        finally:
            house.cache.leave(flight)
    house.cache.used(found.held, payer, is_hit=found.origin_bytes == 0)
    return found


def give(house: House, which: str, size: int, payer: Payer, *, shared: bytes = b"") -> Brought:
    """Offers an artifact of so many bytes, and what it shares with others, and fetches it."""
    return fetch(house, offer(house, which, size, shared=shared), payer)


def account(house: House, payer: Payer) -> float:
    """What is on somebody's account now."""
    house.cache.record_uses()
    return house.index.ledger.of_user(payer.uid)
