"""What has become of runs and logged models: have they finished, where are their bytes? Asked by ID, many at a time.

Law of this file: an answer that does not come, or is about something else, says nothing. Gone is only what the server
itself says was deleted, or does not exist, to a question about just that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol, TypeVar

from artifactcache.errors import CacheError, NotFound, OriginUnavailable, Unauthenticated
from cacheserver import roots

IDS_MAX = {"run": 100, "model": 50}  # in one question; more logged models at a time MLflow does not give
PLACES_MAX = 1000  # folders of which is remembered which experiment's they are
FEW = 3  # that are asked for one by one
VIEW_ALL = 3  # mlflow.entities.ViewType.ALL: deleted ones too
_ENDED = frozenset({"FAILED", "KILLED"})

T = TypeVar("T")


class State(Enum):
    """How far a run, or a logged model, has come."""

    OPEN = auto()  # it is still being written
    DONE = auto()  # the run has FINISHED, the logged model is READY
    ENDED = auto()  # it has failed, was killed or deleted, or does not exist
    REFUSED = auto()  # the daemon's account is not shown it, or the answer makes no sense


class Outcome(NamedTuple):
    """What the tracking server says: how far it has come, the bare artifact URI of its bytes, and why it does not."""

    state: State
    root: str = ""
    why: str = ""


class Question(Protocol):
    """One answer of the tracking server. Raises errors of ours only."""

    def __call__(self, what: str, question: Callable[[], T]) -> T: ...


class Outcomes:
    """Of one tracking server.

    Args:
        client: MLflow's own.
        question: asks, and ends in time.
        searches: whether many can be asked for in one question. A store of files reads all runs of an experiment for
            that.
    """

    def __init__(self, client: Any, question: Question, *, searches: bool) -> None:
        self._client = client
        self._question = question
        self._searches = searches
        self._places: dict[str, str] = {}  # by what a folder says, where its runs were

    def of(self, asked: Iterable[tuple[str, str]]) -> dict[str, Outcome]:
        """What has become of each (experiment, ID of a run or of a logged model); the experiment is a hint only.

        Raises OriginUnavailable, and Unauthenticated, for then no other answer comes either.
        """
        by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
        for experiment, one in asked:
            by_place[experiment, "model" if one.startswith("m-") else "run"].append(one)
        found: dict[str, Outcome] = {}
        for (experiment, kind), ids in by_place.items():
            place, searched, left = self._places.get(experiment, experiment), set[str](), ids
            while left:
                if self._searches and len(left) > FEW and place not in searched:
                    searched.add(place)
                    for some in _batches(left, IDS_MAX[kind]):
                        found.update(self._search(kind, place, some))
                    left = [one for one in left if one not in found]
                else:  # those in another experiment than their folder says, too
                    found[left[0]], at = self._one(kind, left[0])
                    left = left[1:]
                    if at and at != place and len(left) > FEW:
                        place = at
                        self._remember(experiment, place)
        return found

    def _remember(self, experiment: str, place: str) -> None:
        self._places.pop(experiment, None)
        self._places[experiment] = place
        if len(self._places) > PLACES_MAX:
            del self._places[next(iter(self._places))]

    def _search(self, kind: str, experiment: str, ids: Sequence[str]) -> dict[str, Outcome]:
        names = ",".join(f"'{one}'" for one in ids)
        search = self._client.search_runs if kind == "run" else self._client.search_logged_models

        def ask() -> dict[str, Outcome]:
            if kind == "run":
                answer = search([experiment], f"attributes.run_id IN ({names})", VIEW_ALL, len(ids))
            else:
                answer = search([experiment], f"model_id IN ({names})", max_results=len(ids))
            return dict(_told(kind, one) for one in answer)

        try:
            told = self._question(f"the {kind}s of the experiment {experiment}", ask)
        except (OriginUnavailable, Unauthenticated):
            raise
        except CacheError:  # a folder that is no experiment's, say
            return {}
        return {one: outcome for one, outcome in told.items() if one in ids}

    def _one(self, kind: str, one: str) -> tuple[Outcome, str]:
        """Of one, and the experiment that it is in, where that is told."""
        get = self._client.get_run if kind == "run" else self._client.get_logged_model

        def ask() -> tuple[str, Outcome, str]:
            found = get(one)
            return *_told(kind, found), str(found.info.experiment_id if kind == "run" else found.experiment_id)

        try:
            name, outcome, experiment = self._question(one, ask)
        except NotFound:
            return Outcome(State.ENDED), ""
        except (OriginUnavailable, Unauthenticated):
            raise
        except CacheError as error:
            return Outcome(State.REFUSED, why=str(error)), ""
        if name != one:
            return Outcome(State.REFUSED, why=f"{one}: the answer is about something else."), ""
        return outcome, experiment


def _told(kind: str, found: Any) -> tuple[str, Outcome]:
    """One answer: the ID, and what it says of it."""
    if kind == "model":
        is_done, is_over = str(found.status) == "READY", str(found.status) == "FAILED"
        name, root = str(found.model_id), found.artifact_location
    else:
        info = found.info
        is_done, is_over = info.status == "FINISHED", info.status in _ENDED or info.lifecycle_stage == "deleted"
        name, root = str(info.run_id), info.artifact_uri
    if is_over:
        return name, Outcome(State.ENDED)
    return name, Outcome(State.DONE if is_done else State.OPEN, roots.root(name, root))


def _batches(all_of_them: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(all_of_them), count):
        yield all_of_them[start : start + count]
