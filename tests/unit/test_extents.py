"""How much of the store each model and run has."""

from __future__ import annotations

import pytest

from cacheserver.extents import Extent, Group
from tests.unit.house import Shelf

ALL = {"groups_max": 100, "parts_max": 100}


def shares(found: Extent) -> dict[str, tuple[int, float]]:
    """Artifacts and bytes of each group."""
    return {one.name: (one.artifact_count, one.share_bytes) for one in found.groups}


@pytest.mark.parametrize(
    ("uri", "group"),
    [
        ("models:/resnet/3", "models:/resnet"),
        ("models:/resnet/3/data/x", "models:/resnet"),
        ("models:/a name, with 'quotes'/1", "models:/a name, with 'quotes'"),
        ("models:/m-1234", "models:/m-1234"),
        ("runs:/abc", "runs:/abc"),
        ("runs:/abc/model/data", "runs:/abc"),
        ("s3://bucket/a/b", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("mlflow-artifacts:/1/abc/artifacts", "mlflow-artifacts:/1"),
        ("file:/srv/mlruns/1", "file:/srv"),
    ],
)
def test_artifacts_are_grouped_by_what_they_begin_with(shelf: Shelf, uri: str, group: str) -> None:
    """The model, the run, the logged model; of a bare URI the bucket, or the first folder."""
    shelf.put({"a": b"12345"}, uri)
    found = shelf.index.extents.of(None, **ALL)
    assert shares(found) == {group: (1, 5)} and found.group_count == 1
    assert [(one.group, one.uri, one.size_bytes, one.file_count) for one in found.parts] == [(group, uri, 5, 1)]


def test_all_of_it_together_is_what_the_disk_has(shelf: Shelf) -> None:
    """What is held by two names is divided among them; what does not come out is in the sums all the same."""
    same = {"a": b"x" * 100}
    for uri in ("models:/m/1", "runs:/r/model", "runs:/r/other"):
        shelf.put(same, uri)
    for number in range(5):
        shelf.put({"a": b"y" * 10 * (number + 1) + b"%d" % number}, f"models:/m/{number + 2}")
    found = shelf.index.extents.of(None, groups_max=1, parts_max=2)
    assert found.held.artifact_count == 8 and found.group_count == 2
    assert found.held.share_bytes == pytest.approx(shelf.index.totals()["blob_bytes"])
    assert [one.name for one in found.groups] == ["models:/m"]
    assert [one.uri for one in found.parts] == ["models:/m/6", "models:/m/5"]


def test_somebody_sees_what_is_on_their_account(shelf: Shelf) -> None:
    """And nothing of the others', not even in the sums."""
    mine = shelf.put({"a": b"x" * 7}, "runs:/mine")
    shelf.put({"a": b"y" * 90}, "runs:/others")
    shelf.index.ledger.charge({(mine.tree, 7): 1.0})
    found = shelf.index.extents.of(7, **ALL)
    assert shares(found) == {"runs:/mine": (1, 7)} and found.held.share_bytes == 7
    assert shelf.index.extents.of(8, **ALL) == Extent(Group("", 0, 0.0, 0.0), 0, [], [])
    assert shelf.index.ledger.users_of([mine.tree, "none"]) == {mine.tree: [7]}
