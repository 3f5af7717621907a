"""The part of `requirements.lock` that a distribution needs: what a host installs is what the tests ran with.

Law of this file: it reads what is installed, and asks no index. Requirements are followed from distribution to
distribution, as an installer does, for the Python that runs this; each is then a block of the lock, with its hashes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parent.parent
LOCK = TOP / "requirements.lock"
OWN = {"artifactcache", "cacheserver"}


def needed(name: str, extras: Iterable[str] = ()) -> set[str]:
    """The distributions that one needs, itself included, by their canonical names.

    Raises PackageNotFoundError where one of them is not installed.
    """
    found: set[str] = set()
    waiting = [Requirement(f"{name}[{','.join(extras)}]")]
    asked: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        canonical, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (canonical, wanted) in asked:
            continue
        asked.add((canonical, wanted))
        found.add(canonical)
        for line in distribution(canonical).requires or ():
            each = Requirement(line)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                waiting.append(each)
    return found


def blocks(lock: str) -> dict[str, str]:
    """Each requirement of a lock with its hashes, by its canonical name."""
    parts = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return {canonicalize_name(re.split(r"[=\[ ;]", part)[0]): part for part in parts if part.strip()}


def requirements(name: str, extras: Iterable[str] = ()) -> str:
    """The lines of a requirements file for one of our distributions, without our own.

    Raises LookupError for what is installed but not locked.
    """
    locked = blocks(LOCK.read_text(encoding="utf-8"))
    names = sorted(needed(name, extras) - OWN)
    if missing := [each for each in names if each not in locked]:
        raise LookupError(f"{', '.join(missing)}: not in requirements.lock. Run `make lock`.")
    return "".join(locked[each] for each in names)


if __name__ == "__main__":
    sys.stdout.write(requirements(sys.argv[1], sys.argv[2:]))
