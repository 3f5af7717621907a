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
FEW = 3  # from so many on that are left, they are asked together
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
        check: raises OriginUnavailable where the server is known to be away, once that was looked at.
        searches: whether many can be asked for in one question. A store of files reads all runs of an experiment for
            that.
    """

    def __init__(self, client: Any, question: Question, check: Callable[[], None], *, searches: bool) -> None:
        self._client = client
        self._question = question
        self._check = check
        self._searches = searches

    def of(self, asked: Iterable[tuple[str, str]]) -> dict[str, Outcome]:
        """What has become of each (folder of an experiment, ID of a run or of a logged model). Those of one folder are
        asked together, as of the experiment that the server says of one of them.

        Raises OriginUnavailable, and Unauthenticated, for then no other answer comes either.
        """
        by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
        for experiment, one in asked:
            by_place[experiment, "model" if one.startswith("m-") else "run"].append(one)
        found: dict[str, Outcome] = {}
        for (_, kind), ids in by_place.items():
            searched = set[str]()
            for number, one in enumerate(ids):
                if one in found:
                    continue
                found[one], experiment = self._one(kind, one)
                rest = [other for other in ids[number + 1 :] if other not in found]
                # By what the server says of the first one: the name of a folder may be anything, and a question about
                # what is no experiment has made servers fail, which looks as if they were away.
                if self._searches and experiment and experiment not in searched and len(rest) >= FEW:
                    searched.add(experiment)
                    for some in _batches(rest, IDS_MAX[kind]):
                        found.update(self._search(kind, experiment, some))
        return found

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
        except Unauthenticated:
            raise
        except OriginUnavailable:
            self._check()
            return {}
        except CacheError:  # a folder that is no experiment's, say
            return {}
        return {one: outcome for one, outcome in told.items() if one in ids}

    def _one(self, kind: str, one: str) -> tuple[Outcome, str]:
        """The answer about one, and the experiment that it is of; empty where that is not said."""
        get = self._client.get_run if kind == "run" else self._client.get_logged_model
        try:
            (name, outcome), experiment = self._question(one, lambda: _whole(kind, get(one)))
        except NotFound:
            return Outcome(State.ENDED), ""
        except Unauthenticated:
            raise
        except OriginUnavailable as error:
            self._check()  # where it answers others, what it cannot say of this one stops nothing
            return Outcome(State.REFUSED, why=str(error)), ""
        except CacheError as error:
            return Outcome(State.REFUSED, why=str(error)), ""
        if name != one:
            return Outcome(State.REFUSED, why=f"{one}: the answer is about something else."), ""
        return outcome, experiment


def _whole(kind: str, found: Any) -> tuple[tuple[str, Outcome], str]:
    """One answer, and the experiment that it is of."""
    return _told(kind, found), str((found if kind == "model" else found.info).experiment_id)


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
