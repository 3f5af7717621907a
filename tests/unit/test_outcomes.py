"""What has become of runs and logged models, over a client that answers what a test tells it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from artifactcache.errors import OriginUnavailable, Unauthenticated
from cacheserver.outcomes import FEW, IDS_MAX, Outcome, Outcomes, State
from cacheserver.refusals import translated

T = TypeVar("T")


class MlflowException(Exception):
    """An error as MLflow's client raises it: it is known by its name."""

    def __init__(self, error_code: str) -> None:
        super().__init__(error_code)
        self.error_code = error_code


class Client:
    """MLflow's client: runs by ID, each in an experiment; `refused` has a code for a question, or an ID."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.refused: dict[str, str] = {}
        self.asked = Counter[str]()

    def add(self, run_id: str, experiment: str = "1", status: str = "FINISHED", stage: str = "active") -> str:
        """A run; returns its ID."""
        info = SimpleNamespace(
            run_id=run_id, status=status, lifecycle_stage=stage, artifact_uri=f"/x/{run_id}", experiment_id=experiment
        )
        self.runs[run_id] = SimpleNamespace(info=info)
        return run_id

    def get_run(self, run_id: str) -> Any:
        """As MLflow's client."""
        self.asked["get"] += 1
        if run_id in self.refused:
            raise MlflowException(self.refused[run_id])
        if run_id not in self.runs:
            raise MlflowException("RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def search_runs(self, experiments: list[str], text: str, view: int, count: int) -> list[Any]:
        """As MLflow's client."""
        self.asked["search"] += 1
        if "search" in self.refused:
            raise MlflowException(self.refused["search"])
        if "by-name" in experiments:
            raise MlflowException("INVALID_PARAMETER_VALUE")
        ids = re.findall(r"'([^']*)'", text)
        assert view == 3 and len(ids) == count <= IDS_MAX["run"]
        return [self.runs[one] for one in ids if one in self.runs and self.runs[one].info.experiment_id in experiments]

    def get_logged_model(self, model_id: str) -> Any:
        """As MLflow's client: `m-ready`, `m-pending` and `m-failed`."""
        return SimpleNamespace(
            model_id=model_id, status=model_id[2:].upper(), artifact_location=f"/x/{model_id}", experiment_id="1"
        )

    def search_logged_models(self, experiments: list[str], text: str, max_results: int) -> list[Any]:
        """As MLflow's client."""
        return [self.get_logged_model(one) for one in re.findall(r"'([^']*)'", text)]


def question(what: str, question: Callable[[], T]) -> T:
    """One answer, as `MlflowOrigin` gives it."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - as there
        raise translated(error, what, of_answer=True) from None


@pytest.fixture
def client() -> Client:
    """One that knows of nothing."""
    return Client()


def outcomes(client: Client, *, searches: bool = True, check: Callable[[], None] = lambda: None) -> Outcomes:
    """Asked of it."""
    return Outcomes(client, question, check, searches=searches)


def test_how_far_each_has_come(client: Client) -> None:
    """Finished, running, over without anything to come, or not there."""
    wanted = {
        client.add("done"): Outcome(State.DONE, "/x/done"),
        client.add("running", status="RUNNING"): Outcome(State.OPEN, "/x/running"),
        client.add("failed", status="FAILED"): Outcome(State.ENDED),
        client.add("killed", status="KILLED"): Outcome(State.ENDED),
        client.add("deleted", stage="deleted"): Outcome(State.ENDED),
        "never": Outcome(State.ENDED),
        "m-ready": Outcome(State.DONE, "/x/m-ready"),
        "m-pending": Outcome(State.OPEN, "/x/m-pending"),
        "m-failed": Outcome(State.ENDED),
    }
    for searches in (True, False):
        assert outcomes(client, searches=searches).of([("1", one) for one in wanted]) == wanted


def test_many_are_one_question(client: Client) -> None:
    """Those in another experiment than their folder says are asked for by themselves; and a store of files is not
    searched."""
    ids = [client.add(f"r{number}", "12"[number == 7]) for number in range(IDS_MAX["run"] + 5)]
    found = outcomes(client).of([("1", one) for one in ids])
    assert set(found) == set(ids) and client.asked == {"search": 2, "get": 2}
    client.asked.clear()
    assert outcomes(client).of([("1", one) for one in ids[:FEW]]) and client.asked == {"get": FEW}
    client.asked.clear()
    assert set(outcomes(client, searches=False).of([("1", one) for one in ids])) == set(ids)
    assert client.asked == {"get": len(ids)}


def test_a_folder_that_is_no_experiments(client: Client) -> None:
    """Its name goes to no server: they are searched for in the experiment that the first of them is of. Where the
    server does not understand the question, and where it knows none of them, each is asked for by itself."""
    ids = [client.add(f"r{number}", "7") for number in range(5)]
    place = "9" * 30
    assert len(outcomes(client).of([(place, one) for one in ids])) == 5 and client.asked == {"search": 1, "get": 1}
    client.refused["search"] = "INVALID_PARAMETER_VALUE"
    client.asked.clear()
    assert len(outcomes(client).of([(place, one) for one in ids])) == 5 and client.asked == {"search": 1, "get": 5}
    client.asked.clear()
    assert set(outcomes(client).of([(place, f"x{n}") for n in range(5)]).values()) == {Outcome(State.ENDED)}
    assert client.asked == {"get": 5}


def test_what_is_refused_is_not_gone(client: Client) -> None:
    """It is told why; who is not let in at all ends the questions."""
    client.refused[client.add("r")] = "PERMISSION_DENIED"
    found = outcomes(client).of([("1", "r")])["r"]
    assert found.state is State.REFUSED and "PERMISSION_DENIED" in found.why
    client.refused["search"] = "UNAUTHENTICATED"
    with pytest.raises(Unauthenticated):
        outcomes(client).of([("1", client.add(f"r{number}")) for number in range(5)])


def test_an_answer_about_something_else_says_nothing(client: Client) -> None:
    """Of a proxy that mixes them up, say."""
    client.runs["asked"] = client.runs[client.add("other")]
    assert outcomes(client).of([("1", "asked")])["asked"].state is State.REFUSED


@pytest.mark.parametrize("is_away", [False, True])
def test_one_that_the_server_fails_at_stops_no_other(client: Client, is_away: bool) -> None:
    """Where it answers, though always with an error for this one; where it is away, nothing is said of any."""

    def check() -> None:
        if is_away:
            raise OriginUnavailable("it is away")

    ids = [client.add(one) for one in ("broken", "sound")]
    client.refused["broken"] = "INTERNAL_ERROR"
    asked = outcomes(client, searches=False, check=check)
    if is_away:
        with pytest.raises(OriginUnavailable, match="away"):
            asked.of([("1", one) for one in ids])
    else:
        told = asked.of([("1", one) for one in ids])
        assert [told[one].state for one in ids] == [State.REFUSED, State.DONE]
