"""Which keys have changed, and which of them wait for a restart."""

from __future__ import annotations

from dataclasses import fields

from cacheserver.changes import RESTART, changed, show, waiting
from cacheserver.config import keys, parse
from cacheserver.settings import Config
from tests.unit.test_config import FULL


def test_every_key_is_compared() -> None:
    """A configuration that sets all of them differs from none in all."""
    found = changed(Config(), parse(FULL, "c.toml"))
    assert found == [(section, key) for section, key, _ in keys()]
    assert changed(Config(), Config()) == [] and changed(parse(FULL, "a"), parse(FULL, "b")) == []


def test_what_there_may_be_several_of_is_compared_as_a_whole() -> None:
    """Rules, things kept warm, quotas: all of them may change while the daemon serves."""
    text = '[[warm]]\nuri = "models:/a@b"\n[[retention]]\nkeep = "1d"\n[quotas.user."*"]\ndownloads = 1\n'
    found = changed(Config(), parse(text, "c.toml"))
    assert set(found) == {("warm", ""), ("retention", ""), ("quotas", "")}
    assert waiting(found) == [] and show(found) == "[[retention]], [[warm]], [quotas]"


def test_what_waits_for_a_restart_is_a_key() -> None:
    """Each name in the table is one, and each section of the configuration is a section of its own."""
    known = {(section, key) for section, key, _ in keys()}
    assert {(section, key) for section, some in RESTART.items() for key in some} <= known
    found = changed(Config(), parse(FULL, "c.toml"))
    assert set(waiting(found)) == {(section, key) for section, some in RESTART.items() for key in some}
    assert show([("store", "root"), ("grant", "")]) == "[store] root, [[grant]]"
    assert {field.name for field in fields(Config)} >= set(RESTART)
