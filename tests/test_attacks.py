"""Mallory, a user of the host, against what alice has in the cache: the attacks of `tests/rig/attacks.py`, all refused.

They run one after the other in one process of mallory's user, beside one of alice's that uses what is attacked.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from artifactcache import errors
from tests.rig.attacker import FILES, HIS, Siege, at_work
from tests.rig.attacks import ATTACKS, BY_MALLORY, Attack
from tests.rig.trees import read
from tests.rig.until import until

TOP = Path(__file__).resolve().parent.parent
ATTACKS_MIN = 60
CODE = """
from tests.rig import intruder
result = intruder.attempts(attacks, values)
"""


@dataclass(frozen=True)
class Outcome:
    """What came of all attempts: the error of each, the process that tried, and what alice's told of itself."""

    told: dict[str, tuple[str, str]]
    pid: int
    known: dict[str, Any]
    lines_of_alice: int
    alice_cmdline: bytes


@pytest.fixture(scope="module")
def outcome(siege: Siege, module_room: Path) -> Iterator[Outcome]:
    """All of them, tried while alice's process is at work."""
    open_folder = module_room / "hers"
    open_folder.mkdir()
    os.chown(open_folder, siege.alice.uid, -1)
    open_folder.chmod(0o777)
    attacks = [(attack.name, attack.how) for attack in BY_MALLORY]
    with at_work(siege) as (alice, known):
        values = siege.values | known | {"open_folder": str(open_folder)}
        with siege.mallory.start(CODE, attacks=attacks, values=values, env=siege.login("mallory")) as job:
            told = job.result()
        cmdline = Path(f"/proc/{alice.pid}/cmdline").read_bytes()
        alice.say("go on")
        yield Outcome(told, job.pid, known, alice.result(), cmdline)


@pytest.mark.parametrize("attack", BY_MALLORY, ids=lambda attack: attack.name)
def test_attack(outcome: Outcome, siege: Siege, attack: Attack) -> None:
    """What should refuse it does, in words without a secret; a call about an artifact is in the audit log."""
    error, words = outcome.told[attack.name]
    assert error, f"{attack.name} has succeeded"
    assert error in attack.refusal.split("|"), (error, words)
    assert not any(secret in words for secret in [*siege.secrets, outcome.known["alice_token"]])
    if not attack.verb:
        return

    def logged() -> bool:
        lines = siege.audit(pid=outcome.pid, uid=siege.mallory.uid, verb=attack.verb)
        return any(line["reason"].startswith(error) and line["decision"] in ("refused", "failed") for line in lines)

    until(logged, f"a {attack.verb} that was no {error} in the audit log")


def test_nothing_was_granted(outcome: Outcome, siege: Siege) -> None:
    """Of all that mallory's process has asked for, the audit log has his own run as granted, and nothing of hers."""
    granted = {line["artifact"] for line in siege.audit(pid=outcome.pid, decision="granted")}
    assert granted == {f"runs:/{siege.values['mine']}"}
    refused = siege.audit(pid=outcome.pid, decision="refused")
    assert len(refused) > ATTACKS_MIN / 2 and not any(line["tree"] or line["bytes"] for line in refused)


def test_nothing_was_changed(outcome: Outcome, siege: Siege) -> None:
    """Alice's lease and view, and mallory's own, are what they were; and she is served."""
    assert outcome.lines_of_alice == len(FILES)
    assert read(Path(outcome.known["view"])) == FILES
    assert siege.alice.fetch(f"runs:/{siege.values['run']}", env=siege.login("alice")).hit
    assert read(siege.mallory.fetch(f"runs:/{siege.values['mine']}", "after", env=siege.login("mallory")).path) == HIS


def test_her_token_in_another_process_of_hers(siege: Siege) -> None:
    """A token is its process's, not its user's: a program that was told it is nobody."""
    code = """
        from artifactcache import errors
        from artifactcache.v1 import cache_pb2 as pb
        from tests.rig.wire import Handoff
        with Handoff(sockets) as other:
            failure = other.ask(hello=pb.Hello(token=token))[0].failure
        raise errors.BY_NAME[failure.error](failure.message)
    """
    with at_work(siege) as (_, known), pytest.raises(errors.Unauthenticated, match="another process"):
        siege.alice.run(code, token=known["alice_token"], sockets=siege.values["sockets"])


def test_no_secret_is_written_down(outcome: Outcome, siege: Siege) -> None:
    """Neither passwords nor tokens are in the daemon's log, the audit log or a command line."""
    audit = siege.daemon.root / "audit.jsonl"
    written = [siege.daemon.read_log().encode(), audit.read_bytes(), outcome.alice_cmdline]
    for secret in [*siege.secrets, "guessed", outcome.known["alice_token"]]:
        assert not any(secret.encode() in text for text in written)


# -- the table, and SECURITY.md ---------------------------------------------------------------------------------------


@cache
def _tests_in(path: Path) -> frozenset[str]:
    """The names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and "test_" in node.name[:5])


def exists(test: str) -> bool:
    """Whether there is a test of this name, as in `tests/test_this.py::test_that`."""
    path, _, name = test.partition("::")
    return (TOP / path).is_file() and name in _tests_in(TOP / path)


def test_the_table_is_whole() -> None:
    """So many attacks, each once; each is tried here, or by a test that exists."""
    assert len(ATTACKS) >= ATTACKS_MIN and len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    for attack in ATTACKS:
        assert attack.by and bool(attack.how) != bool(attack.held_by), attack
        assert attack.how or exists(attack.held_by), attack.held_by


def test_what_is_said_to_be_defended_is_held_by_tests() -> None:
    """Each sentence about it in SECURITY.md names tests, and they exist."""
    text = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    defended = text.partition("## What is defended")[2].partition("\n## ")[0]
    items = [item for item in defended.split("\n- ")[1:] if item.strip()]
    assert len(items) > 10
    for item in items:
        named = re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", item)
        assert named, f"no test holds: {item}"
        assert all(map(exists, named)), [test for test in named if not exists(test)]
