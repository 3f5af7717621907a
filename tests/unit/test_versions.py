"""What the index remembers of the origin's answers."""

from __future__ import annotations

from cacheserver.index import Index
from cacheserver.words import Record, Resolved, Standing
from tests.unit.rows import record, tree


def test_what_the_origin_said_is_remembered(index: Index) -> None:
    """A version's root and logged models survive, and are replaced by what it says next."""
    said = Resolved("runs:/r", "s3://b/r", (("model", "s3://b/m-1"), ("é", "s3://b/m-2")), False)
    assert index.versions.resolved("runs:/r") is None
    index.versions.record(said, 1.0)
    assert index.versions.resolved("runs:/r") == said
    later = Resolved("runs:/r", "s3://b/r", (), True)
    index.versions.record(later, 2.0)
    assert index.versions.resolved("runs:/r") == later


def test_what_a_name_stood_for_is_remembered(index: Index) -> None:
    """An alias and its time survive, are replaced by what it stands for next, and are forgotten."""
    assert index.versions.alias("models:/m@a") is None
    for version, now in (("1", 1.0), ("2", 2.0)):
        index.versions.record_alias("models:/m@a", version, now)
        assert index.versions.alias("models:/m@a") == (version, now)
    index.versions.forget_alias("models:/m@a")
    assert index.versions.alias("models:/m@a") is None


def test_entity_tags_are_remembered(index: Index) -> None:
    """They come back in the manifest's order; with none of them there is nothing to come back."""
    record(index, "s3://b/p", "x", "yy")
    held = index.held("s3://b/p", "")
    assert held is not None and index.etags(held) == ()
    for etags, checked_at in ((('"1"', ""), 7.0), (("", ""), 8.0)):
        index.record_tree(
            tree("x", "yy"), [Record("s3://b/p", "", "", Standing.OPEN, True, checked_at, etags)], (), 9.0
        )
        held = index.held("s3://b/p", "")
        assert held is not None and held.checked_at == checked_at
        assert index.etags(held) == (etags if any(etags) else ())
    index.record_checks([("s3://b/p", "", held.tree), ("s3://b/p", "", "another tree")], 10.0)
    held = index.held("s3://b/p", "")
    assert held is not None and held.checked_at == 10.0


def test_what_the_origin_lost_is_forgotten(index: Index) -> None:
    """With all that is below it, but not its neighbours; bytes stay."""
    for uri in ("runs:/r", "runs:/r/a", "runs:/r/a/b", "runs:/r2", "runs:/r-1"):
        record(index, uri, "x")
    index.versions.record(Resolved("runs:/r", "s3://b/r", (), True), 1.0)
    index.forget("runs:/r/a")
    assert [h.uri for h in index.asked()] == ["runs:/r", "runs:/r-1", "runs:/r2"]
    assert index.versions.resolved("runs:/r") is not None
    index.forget("runs:/r")
    assert [h.uri for h in index.asked()] == ["runs:/r-1", "runs:/r2"] and index.versions.resolved("runs:/r") is None
    assert index.totals()["blob_count"] == 1
