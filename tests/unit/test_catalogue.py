"""The catalogue over a server that obeys the test: what a real one does not do on command."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from artifactcache.errors import Corrupted, OriginUnavailable, PermissionDenied
from cacheserver import catalogue
from cacheserver.catalogue import FAILURES_MAX, IDS_MAX, LOOKS_MAX, PAGES_MAX, Catalogue
from cacheserver.refusals import translated
from cacheserver.retention import ALIASES, DELETED, EXPERIMENT, RUN, TAG, VERSIONS

T = TypeVar("T")

SERVER = "http://mlflow"


class MlflowException(Exception):
    """An error as MLflow's client raises it: it is known by its name."""

    def __init__(self, error_code: str) -> None:
        super().__init__(error_code)
        self.error_code = error_code


class Page(list[Any]):
    """One page of an answer."""

    token: str | None = None


class Server:
    """MLflow's client, over what the test puts here; `refused` are searches and things that it must not see."""

    def __init__(self) -> None:
        self.experiments = {"1": "prod", "2": "scratch"}
        self.runs: dict[str, SimpleNamespace] = {}
        self.models: dict[str, dict[int, SimpleNamespace]] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.logged: dict[str, SimpleNamespace] = {}
        self.refused: dict[str, str] = {}
        self.asked = Counter[str]()
        self.page_size = 1_000_000
        self.questions: list[str] = []
        self.away_after = 1_000_000

    def question(self, what: str, question: Callable[[], T]) -> T:
        """One answer, as `MlflowOrigin` gives it."""
        self.questions.append(what)
        if len(self.questions) > self.away_after:
            raise OriginUnavailable("away")
        try:
            return question()
        except Exception as error:  # noqa: BLE001 - as there
            raise translated(error, what, of_answer=True) from None

    def add_run(self, run_id: str, experiment_id: str = "1", **tags: str) -> str:
        """A finished run; returns its version."""
        info = SimpleNamespace(
            run_id=run_id,
            experiment_id=experiment_id,
            status="FINISHED",
            user_id="carol",
            end_time=5000,
            lifecycle_stage="active",
        )
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))
        return f"runs:/{run_id}"

    def add_version(self, name: str, number: int, run_id: str = "", status: str = "READY", model_id: str = "") -> str:
        """A version of a registered model; returns its version."""
        self.models.setdefault(name, {})[number] = SimpleNamespace(
            name=name, version=str(number), run_id=run_id, user_id="dave", status=status, model_id=model_id
        )
        return f"models:/{name}/{number}"

    def _say(self, kind: str, of: Any, key: Any) -> Any:
        self.asked[kind] += 1
        for name in (kind, str(key)):
            if name in self.refused:
                raise MlflowException(self.refused[name])
        if key not in of:
            raise MlflowException("RESOURCE_DOES_NOT_EXIST")
        return of[key]

    def _page(self, kind: str, rows: list[Any], token: str | None) -> Page:
        self.asked[kind] += 1
        if kind in self.refused:
            raise MlflowException(self.refused[kind])
        start = int(token or 0)
        page = Page(rows[start : start + self.page_size])
        page.token = str(start + self.page_size) if start + self.page_size < len(rows) else None
        return page

    def get_run(self, run_id: str) -> Any:
        """As MLflow's client."""
        return self._say("run", self.runs, run_id)

    def get_experiment(self, experiment_id: str) -> Any:
        """As MLflow's client."""
        name = self._say("experiment", self.experiments, experiment_id)
        return SimpleNamespace(experiment_id=experiment_id, name=name)

    def get_registered_model(self, name: str) -> Any:
        """As MLflow's client."""
        versions = self._say("model", self.models, name)
        return SimpleNamespace(name=next(iter(versions.values())).name, aliases=self.aliases.get(name, {}))

    def get_model_version(self, name: str, number: str) -> Any:
        """As MLflow's client."""
        return self._say("version", self.models.get(name, {}), int(number))

    def get_logged_model(self, model_id: str) -> Any:
        """As MLflow's client."""
        return self._say("logged", self.logged, model_id)

    def search_experiments(self, *, view_type: int, max_results: int, page_token: str | None) -> Page:
        """As MLflow's client."""
        assert view_type == catalogue.VIEW_ALL and max_results <= 1000
        rows = [SimpleNamespace(experiment_id=one, name=name) for one, name in self.experiments.items()]
        return self._page("search_experiments", rows, page_token)

    def search_runs(
        self, experiments: list[str], filter_string: str, view: int, max_results: int, page_token: str | None
    ) -> Page:
        """As MLflow's client."""
        ids = re.findall(r"'([^']*)'", filter_string)
        assert view == catalogue.VIEW_ALL and len(ids) == max_results <= IDS_MAX
        assert filter_string == "attributes.run_id IN (" + ",".join(f"'{one}'" for one in ids) + ")"
        found = [self.runs[one] for one in ids if one in self.runs and one not in self.refused]
        return self._page("search_runs", [run for run in found if run.info.experiment_id in experiments], page_token)

    def search_logged_models(
        self, experiments: list[str], filter_string: str, *, max_results: int, page_token: str | None
    ) -> Page:
        """As MLflow's client."""
        ids = re.findall(r"'([^']*)'", filter_string)
        assert len(ids) == max_results <= 50 and filter_string.startswith("model_id IN ('")
        return self._page("search_logged", [self.logged[one] for one in ids if one in self.logged], page_token)

    def search_model_versions(
        self, filter_string: str, max_results: int, order_by: list[str], page_token: str | None
    ) -> Page:
        """As MLflow's client."""
        quote = filter_string.removeprefix("name = ")[0]
        name = filter_string.removeprefix(f"name = {quote}").removesuffix(quote)
        assert quote in "'\"" and quote not in name and order_by == ["version_number DESC"]
        rows = [] if name in self.refused else sorted(self.models.get(name, {}).items(), reverse=True)
        return self._page("search_versions", [version for _, version in rows], page_token)


@pytest.fixture
def server() -> Server:
    """A server with nothing in it but two experiments."""
    return Server()


@pytest.fixture
def asking(server: Server) -> Catalogue:
    """The catalogue over it."""
    return Catalogue(server, SERVER + "/")


def test_nothing_is_asked_that_no_rule_needs(server: Server, asking: Catalogue) -> None:
    """Without needs nothing; for aliases no versions; of runs only what asks about runs."""
    server.add_version("m", 1, "r")
    versions = ["models:/m/1", server.add_run("r"), "s3://b/x", "models:/m-1"]
    assert asking.describe(versions, frozenset(), server.question)["models:/m/1"].tracking_uri == SERVER
    assert not server.asked
    asking.describe(versions, frozenset({ALIASES}), server.question)
    assert server.asked == {"model": 1}
    asking.describe(versions, frozenset({VERSIONS}), server.question)
    assert server.asked == {"model": 1, "search_versions": 1}
    asking.describe(["s3://b/x"], frozenset({RUN, EXPERIMENT, DELETED, ALIASES, VERSIONS}), server.question)
    assert server.asked.total() == 2


def test_many_runs_are_asked_for_in_batches(server: Server, asking: Catalogue) -> None:
    """Page after page; each run is where it was put."""
    versions = [server.add_run(f"r{n}", "12"[n % 2], team=f"t{n}") for n in range(2 * IDS_MAX + 50)]
    server.page_size = 40
    told = asking.describe(versions, frozenset({RUN, EXPERIMENT, TAG + "team", TAG + "none"}), server.question)
    assert server.asked == {"search_experiments": 1, "search_runs": 3 + 3 + 2}
    for number, version in enumerate(versions):
        facts = told[version]
        assert facts.experiment == ("prod", "scratch")[number % 2] and facts.tags == {
            "team": f"t{number}",
            "none": None,
        }
        assert (facts.owner, facts.ended_at, facts.status, facts.is_deleted) == ("carol", 5.0, "FINISHED", False)


def test_what_a_search_does_not_find_is_not_deleted(server: Server, asking: Catalogue) -> None:
    """A search leaves out what may not be seen: only the answer to a question about the very thing counts."""
    versions = [server.add_run(f"r{number}") for number in range(6)] + ["runs:/gone"]
    server.refused |= {"r1": "PERMISSION_DENIED", "r2": "ENDPOINT_NOT_FOUND"}
    server.runs["r3"].info.lifecycle_stage = "deleted"
    told = asking.describe(versions, frozenset({DELETED}), server.question)
    assert [told[version].is_deleted for version in versions] == [False, None, None, True, False, False, True]
    assert asking.describe(["runs:/gone"], frozenset({RUN, TAG + "x"}), server.question)["runs:/gone"].tags == {
        "x": None
    }


def test_a_model_that_may_not_be_seen_is_not_deleted(server: Server, asking: Catalogue) -> None:
    """Nor are its versions; one that is gone takes its aliases along."""
    server.add_version("secret", 1, "r")
    server.refused |= {"secret": "PERMISSION_DENIED", "1": "PERMISSION_DENIED"}
    told = asking.describe(
        ["models:/secret/1", "models:/gone/2"], frozenset({ALIASES, VERSIONS, DELETED, RUN}), server.question
    )
    secret, gone = told.values()
    assert (secret.is_deleted, secret.aliases, secret.newer_count, secret.run_id) == (None, None, None, None)
    assert (gone.is_deleted, gone.aliases, gone.owner) == (True, frozenset(), "")
    aliases = asking.describe(["models:/secret/1", "models:/gone/2"], frozenset({ALIASES}), server.question)
    assert [facts.aliases for facts in aliases.values()] == [None, frozenset()]
    # Also where no rule asks whether it was deleted: a server that has lost its memory is known by it.
    assert [facts.is_deleted for facts in aliases.values()] == [None, True]
    gone = asking.describe(["models:/gone/2"], frozenset({DELETED}), server.question)["models:/gone/2"]
    assert (gone.aliases, gone.newer_count) == (frozenset(), 0)


def test_newer_versions_are_counted(server: Server, asking: Catalogue) -> None:
    """All pages of them; what could not be registered is not one that others make way for."""
    for number in range(1, 21):
        server.add_version("m", number, status="FAILED_REGISTRATION" if number == 20 else "READY")
    server.page_size = 3
    told = asking.describe(["models:/m/20", "models:/m/19", "models:/m/1"], frozenset({VERSIONS}), server.question)
    assert [facts.newer_count for facts in told.values()] == [0, 0, 18]
    assert server.asked["search_versions"] == 7


def test_pages_without_an_end(server: Server, asking: Catalogue) -> None:
    """Are nonsense, and nothing is known of it."""
    for number in range(PAGES_MAX + 1):
        server.add_version("m", number)
    server.page_size = 1
    facts = asking.describe(["models:/m/5"], frozenset({VERSIONS}), server.question)["models:/m/5"]
    assert (facts.newer_count, facts.is_deleted) == (None, False)
    assert server.asked == {"search_versions": PAGES_MAX, "version": 1}


@pytest.mark.parametrize("name", ["it's", 'say "x"', "both '\"", "back\\slash", "%_"])
def test_names_with_quotes(server: Server, asking: Catalogue, name: str) -> None:
    """Those that no filter can say are asked for one by one, and how many newer ones there are is not known."""
    server.add_run("r")
    version = server.add_version(name, 1, "r")
    server.add_version(name, 2, "r")
    facts = asking.describe([version], frozenset({VERSIONS, RUN}), server.question)[version]
    assert facts.newer_count == (None if name.startswith("both") else 1)
    assert (facts.run_id, facts.owner, facts.is_deleted) == ("r", "carol", False)


def test_what_made_a_version(server: Server, asking: Catalogue) -> None:
    """A run, or a logged model of a run, or of none; a run that is gone, or that no question can name."""
    server.add_run("r", "2")
    server.logged["m-1"] = SimpleNamespace(model_id="m-1", source_run_id="r", experiment_id="2")
    server.logged["m-2"] = SimpleNamespace(model_id="m-2", source_run_id="", experiment_id="1")
    server.add_version("m", 1, "r", model_id="m-unasked")
    server.add_version("m", 2, model_id="m-1")
    server.add_version("m", 3, model_id="m-2")
    server.add_version("m", 4, model_id="m-gone")
    server.add_version("m", 5, "gone")
    server.add_version("m", 6, "') OR 1=1 --")
    server.add_version("m", 7)
    asked = [f"models:/m/{number}" for number in range(1, 8)]
    told = asking.describe(asked, frozenset({RUN, EXPERIMENT, DELETED}), server.question)
    assert [(f.run_id, f.experiment, f.status, f.owner, f.is_deleted) for f in told.values()] == [
        ("r", "scratch", "FINISHED", "carol", False),
        ("r", "scratch", "FINISHED", "carol", False),
        ("", "prod", "", "", False),
        ("", "", "", "", False),
        ("gone", "", "", "", False),
        ("') OR 1=1 --", None, None, None, False),
        ("", "", "", "dave", False),
    ]
    assert server.asked["logged"] == 3
    assert (
        asking.describe(["models:/m-1", "models:/m-gone"], frozenset({DELETED}), server.question)[
            "models:/m-gone"
        ].is_deleted
        is True
    )


def test_questions_about_one_thing_are_bounded_and_everything_has_its_turn(server: Server, asking: Catalogue) -> None:
    """What is not asked now is not known now; those that had to wait come first the next time."""
    versions = [f"runs:/gone{number:03}" for number in range(2 * LOOKS_MAX + 50)]
    seen = Counter[str]()
    for count in (1, 2, 3):
        told = asking.describe(versions, frozenset({DELETED}), server.question)
        assert server.asked["run"] == count * LOOKS_MAX
        seen.update(version for version, facts in told.items() if facts.is_deleted)
    assert set(seen) == set(versions) and set(seen.values()) == {1, 2}


@pytest.mark.parametrize("refused", ["search_experiments", "search_runs"])
def test_a_search_that_is_refused(server: Server, asking: Catalogue, refused: str) -> None:
    """As by a server that is too old for it: each is asked for by itself."""
    server.refused[refused] = "INVALID_PARAMETER_VALUE"
    versions = [server.add_run(f"r{number}") for number in range(5)]
    told = asking.describe(versions, frozenset({RUN, EXPERIMENT}), server.question)
    assert {(facts.status, facts.experiment) for facts in told.values()} == {("FINISHED", "prod")}
    assert server.asked["run"] == 5


def test_an_experiment_that_may_not_be_seen(server: Server, asking: Catalogue) -> None:
    """Its name is not known; all else is."""
    server.refused["experiment"] = "PERMISSION_DENIED"
    facts = asking.describe([server.add_run("r")], frozenset({RUN, EXPERIMENT}), server.question)["runs:/r"]
    assert (facts.experiment, facts.status) == (None, "FINISHED")


@pytest.mark.parametrize("away_after", range(6))
def test_a_server_that_goes_away_in_the_middle(server: Server, asking: Catalogue, away_after: int) -> None:
    """After a few questions without an answer, or the very first, none is asked any more."""
    server.away_after = away_after
    server.add_version("m", 1, "r")
    versions = ["models:/m/1", "models:/m/2", "models:/m-x", *(server.add_run(f"r{number}") for number in range(5))]
    with pytest.raises(OriginUnavailable):
        asking.describe(versions, frozenset({RUN, EXPERIMENT, ALIASES, VERSIONS, DELETED}), server.question)
    assert len(server.questions) == away_after + (FAILURES_MAX if away_after else 1)


def test_a_server_that_stumbles_over_some_run(server: Server, asking: Catalogue) -> None:
    """A search with it fails, and so does each question about it; all others are answered."""
    versions = [server.add_run(f"r{number}") for number in range(5)]
    server.refused |= {"search_runs": "INTERNAL_ERROR", "r2": "INTERNAL_ERROR"}
    told = asking.describe(versions, frozenset({RUN}), server.question)
    assert [facts.status for facts in told.values()] == ["FINISHED", "FINISHED", None, "FINISHED", "FINISHED"]


@pytest.mark.parametrize("error", [PermissionDenied("no"), Corrupted("nonsense")])
def test_answers_that_are_none(asking: Catalogue, server: Server, error: Exception) -> None:
    """Everything that they were about is not known."""

    def question(what: str, question: Callable[[], T]) -> T:
        raise error

    asking = Catalogue(server, SERVER)
    asked = ["runs:/r", "models:/m/1", "models:/m-1", *(f"runs:/r{number}" for number in range(5))]
    told = asking.describe(asked, frozenset({RUN, EXPERIMENT, ALIASES, VERSIONS, DELETED}), question)
    assert told == asking.describe(asked, frozenset(), question)


def test_an_answer_about_something_else(server: Server, asking: Catalogue) -> None:
    """Is not one: as from a server behind which things are mixed up."""
    server.add_run("other")
    server.runs["r"] = server.runs["other"]
    server.models["m"] = {1: SimpleNamespace(name="other", version="1", run_id="other", user_id="", status="READY")}
    told = asking.describe(["runs:/r", "models:/m/1"], frozenset({RUN, DELETED, VERSIONS, ALIASES}), server.question)
    assert [(facts.is_deleted, facts.owner) for facts in told.values()] == [(None, None), (None, None)]
    assert (told["models:/m/1"].newer_count, told["models:/m/1"].aliases) == (None, None)


def test_paths_do_not_matter(server: Server, asking: Catalogue) -> None:
    """What is held at a path of a run is asked about as the run, once."""
    server.add_run("r")
    told = asking.describe(["runs:/r/model", "runs:/r/data/x"], frozenset({RUN}), server.question)
    assert [facts.status for facts in told.values()] == ["FINISHED", "FINISHED"] and server.asked == {"run": 1}
