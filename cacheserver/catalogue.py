"""What the tracking server says of what is held, for the retention rules: asked in batches, and only what rules need.

Law of this file: an answer that does not come, is refused or makes no sense leaves things not known. Deleted is only
what the server itself says has been deleted, or does not exist, to a question about just that; for what a search does
not find, its user may lack the permission to see.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeVar

from artifactcache.errors import CacheError, OriginUnavailable
from cacheserver import uris
from cacheserver.bounded import Bounded
from cacheserver.refusals import NO_ENDPOINT
from cacheserver.retention import ALIASES, DELETED, EXPERIMENT, RUN, TAG, VERSIONS, Facts
from cacheserver.uris import Artifact, Kind

IDS_MAX = 100  # runs, or logged models, in one question
LOGGED_PAGE_MAX = 50  # more of them at a time MLflow does not give
FEW = 3  # runs, or logged models, that are asked for one by one
EXPERIMENTS_MAX = 1000  # in one question; databases take a bounded number of values
PAGE_MAX = 1000  # experiments, or versions of a model, in one answer
PAGES_MAX = 100  # of one question; a server that has more than that to say makes no sense
LOOKS_MAX = 100  # questions about one thing each, of one `describe`
FAILURES_MAX = 3  # questions without an answer, after which a server is away
LOOKED_MAX = 100_000  # things of which it is remembered when they were last asked about by themselves
VIEW_ALL = 3  # mlflow.entities.ViewType.ALL: deleted ones too

_ID = re.compile(r"[A-Za-z0-9_\-]{1,256}")
_GONE = "RESOURCE_DOES_NOT_EXIST"
_READY = frozenset({"", "READY", "None"})

T = TypeVar("T")
K = TypeVar("K")


class Question(Protocol):
    """One answer of the tracking server. Raises errors of ours only."""

    def __call__(self, what: str, question: Callable[[], T]) -> T: ...


class Run(NamedTuple):
    """A run, so far as rules ask; one that is gone is deleted and has nothing."""

    experiment_id: str = ""
    status: str = ""
    owner: str = ""
    ended_at: float = 0.0
    tags: Mapping[str, str | None] = {}
    is_deleted: bool = True


class Made(NamedTuple):
    """What a logged model, or a version of a registered model, was made by; one that is gone by nothing."""

    run_id: str = ""
    model_id: str = ""
    experiment_id: str = ""
    owner: str = ""
    is_ready: bool = False
    is_deleted: bool = True


class Catalogue:
    """The tracking server, as rules see it.

    Args:
        client: MLflow's own.
        tracking_uri: without credentials.
    """

    def __init__(self, client: Any, tracking_uri: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri.rstrip("/")
        self._looked = Bounded[str, int](LOOKED_MAX)
        self._count = 0

    def describe(self, versions: Iterable[str], needs: frozenset[str], question: Question) -> dict[str, Facts]:
        """The facts of each canonical version, or bare artifact URI; without needs, what the names say.

        Raises OriginUnavailable where the tracking server is away.

        Args:
            needs: of `retention.needs`.
            question: asks, and ends in time.
        """
        artifacts = {version: uris.parse(version) for version in versions}
        facts = {version: Facts.of(artifact, self._tracking_uri) for version, artifact in artifacts.items()}
        self._count += 1
        found = _Inquiry(self._client, question, needs, self._looked, self._count).about(artifacts.values())
        return {version: found.told(facts[version], artifact) for version, artifact in artifacts.items()}


@dataclass
class _Inquiry:
    """The questions of one `describe`, and what came of them. What is in no map is not known."""

    client: Any
    question: Question
    needs: frozenset[str]
    looked: Bounded[str, int]
    count: int
    looks: int = 0
    answers: int = 0
    failures: int = 0
    experiments: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)
    ready: dict[str, list[int]] = field(default_factory=dict)
    versions: dict[tuple[str, int], Made] = field(default_factory=dict)
    logged: dict[str, Made] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)

    def about(self, artifacts: Iterable[Artifact]) -> _Inquiry:
        """Asks. What made a version is asked for after the version, so each kind comes after what leads to it."""
        names: dict[Kind, set[tuple[str, str]]] = defaultdict(set)
        for artifact in artifacts:
            names[artifact.kind].add((artifact.name, artifact.selector))
        wants_runs = bool(self.needs & {RUN, EXPERIMENT})
        held: dict[str, set[int]] = defaultdict(set)
        for name, number in names[Kind.MODEL_VERSION]:
            held[name].add(int(number))
        self._ask_models(held)
        logged = {name for name, _ in names[Kind.LOGGED_MODEL]} if wants_runs or DELETED in self.needs else set()
        runs = {name for name, _ in names[Kind.RUN]} if wants_runs or DELETED in self.needs else set()
        if wants_runs:
            logged |= {made.model_id for made in self.versions.values() if made.model_id and not made.run_id}
        self._ask_logged({one for one in logged if _ID.fullmatch(one)})
        if wants_runs:
            runs |= {made.run_id for made in (*self.versions.values(), *self.logged.values())}
        self._ask_runs({one for one in runs if _ID.fullmatch(one)})
        if EXPERIMENT in self.needs:
            of_runs = {run.experiment_id for run in self.runs.values()}
            self._ask_names((of_runs | {made.experiment_id for made in self.logged.values()}) - {""})
        return self

    def told(self, facts: Facts, artifact: Artifact) -> Facts:
        """The facts of an artifact, with what was found out of it."""
        match artifact.kind:
            case Kind.RUN:
                run = self.runs.get(artifact.name)
                return replace(self._of_run(facts, artifact.name), is_deleted=run.is_deleted if run else None)
            case Kind.LOGGED_MODEL:
                made = self.logged.get(artifact.name)
                return self._of_made(facts, made) if made else facts
            case Kind.MODEL_VERSION:
                return self._of_version(facts, artifact.name, int(artifact.selector))
            case _:
                return facts

    def _of_version(self, facts: Facts, name: str, number: int) -> Facts:
        made, aliases = self.versions.get((name, number)), self.aliases.get(name)
        if made and made.is_deleted:
            return self._of_made(replace(facts, aliases=frozenset(), newer_count=0), made)
        if aliases is not None:
            facts = replace(facts, aliases=frozenset(a for a, of in aliases.items() if of == number))
        if name in self.ready:
            facts = replace(facts, newer_count=sum(other > number for other in self.ready[name]))
        return self._of_made(facts, made) if made else facts

    def _of_made(self, facts: Facts, made: Made) -> Facts:
        """Of what was made by a run, or by a run's logged model."""
        facts = replace(facts, is_deleted=made.is_deleted)
        if made.run_id:
            return self._of_run(facts, made.run_id)
        if made.model_id:
            by = self.logged.get(made.model_id)
            return replace(self._of_made(facts, by), is_deleted=made.is_deleted) if by else facts
        experiment = self.experiments.get(made.experiment_id) if made.experiment_id else ""
        return replace(facts, run_id="", experiment=experiment, status="", owner=made.owner, ended_at=0.0)

    def _of_run(self, facts: Facts, run_id: str) -> Facts:
        facts, run = replace(facts, run_id=run_id), self.runs.get(run_id)
        if run is None:
            return facts
        return replace(
            facts,
            experiment=self.experiments.get(run.experiment_id) if run.experiment_id else "",
            status=run.status,
            owner=run.owner,
            ended_at=run.ended_at,
            tags=run.tags,
        )

    # -- questions, each kind in as few as it takes ------------------------------------------------------------------

    def _ask_models(self, held: Mapping[str, set[int]]) -> None:
        """The aliases and the versions of each registered model: one question for each of the two."""
        missing: list[tuple[str, int]] = []
        for name in sorted(held):
            if ALIASES in self.needs:
                none: dict[str, int] = {}  # has a model that does not exist
                if (found := self._look(name, partial(_aliases, self.client, name), none)) is not None:
                    self.aliases[name] = found
                if found is none:  # then none of its versions exists either, whoever asks for what
                    self.versions.update({(name, number): Made() for number in held[name]})
            if self.needs & {VERSIONS, DELETED, RUN, EXPERIMENT}:
                rows = [row for row in self._versions(name) or () if row[0][0] == name]
                self.versions.update(rows)
                if rows:  # where there are none, that may be what may not be seen
                    self.ready[name] = [number for (_, number), made in rows if made.is_ready]
                missing += [(name, number) for number in held[name] if (name, number) not in self.versions]
        get = self.client.get_model_version
        self._look_each("version", missing, lambda one: _version(get(one[0], str(one[1]))), self.versions, Made())

    def _versions(self, name: str) -> list[tuple[tuple[str, int], Made]] | None:
        quote = '"' if "'" in name else "'"
        if quote in name:  # no text of a filter can say such a name
            return None

        def page(token: str | None) -> Any:
            return self.client.search_model_versions(
                f"name = {quote}{name}{quote}", PAGE_MAX, ["version_number DESC"], token
            )

        return self._pages(name, page, _version)

    @cached_property
    def _all_experiments(self) -> list[str]:
        """The IDs of all experiments, deleted ones too: MLflow searches runs only in those that it is told."""

        def page(token: str | None) -> Any:
            return self.client.search_experiments(view_type=VIEW_ALL, max_results=PAGE_MAX, page_token=token)

        self.experiments.update(self._pages("the experiments", page, _experiment) or ())
        return list(self.experiments)

    def _ask_names(self, ids: set[str]) -> None:
        """The names of those experiments that are not known yet."""
        missing = sorted(ids - self.experiments.keys())
        get = self.client.get_experiment
        self._look_each("experiment", missing, lambda one: _experiment(get(one)), self.experiments, "")

    def _ask_logged(self, ids: set[str]) -> None:
        def page(ids: Sequence[str], experiments: list[str], token: str | None) -> Any:
            filter_string = f"model_id IN ({_quoted(ids)})"
            return self.client.search_logged_models(experiments, filter_string, max_results=len(ids), page_token=token)

        self._search("logged models", ids, LOGGED_PAGE_MAX, page, _logged, self.logged)
        missing = sorted(ids - self.logged.keys())
        self._look_each("logged", missing, lambda one: _logged(self.client.get_logged_model(one)), self.logged, Made())

    def _ask_runs(self, ids: set[str]) -> None:
        keys = [need.removeprefix(TAG) for need in self.needs if need.startswith(TAG)]

        def page(ids: Sequence[str], experiments: list[str], token: str | None) -> Any:
            filter_string = f"attributes.run_id IN ({_quoted(ids)})"
            return self.client.search_runs(experiments, filter_string, VIEW_ALL, len(ids), page_token=token)

        self._search("runs", ids, IDS_MAX, page, lambda run: _run(run, keys), self.runs)
        gone = Run(tags=dict.fromkeys(keys))
        missing = sorted(ids - self.runs.keys())
        self._look_each("run", missing, lambda one: _run(self.client.get_run(one), keys), self.runs, gone)

    def _search(
        self,
        what: str,
        ids: set[str],
        count: int,
        page: Callable[[Sequence[str], list[str], str | None], Any],
        read: Callable[[Any], tuple[str, T]],
        into: dict[str, T],
    ) -> None:
        """Looks for these IDs in all experiments; for a few it takes fewer questions to ask for each."""
        if len(ids) <= FEW:
            return
        for experiments in _batches(self._all_experiments, EXPERIMENTS_MAX):
            for some in _batches(sorted(ids - into.keys()), count):
                rows = self._pages(what, partial(page, some, experiments), read)
                into.update((one, found) for one, found in rows or () if one in ids)

    def _pages(self, what: str, page: Callable[[str | None], Any], read: Callable[[Any], T]) -> list[T] | None:
        """All pages of one answer; None where they are not known."""
        found: list[T] = []
        token: str | None = None

        def ask() -> tuple[list[T], str | None]:
            answer = page(token)
            return [read(one) for one in answer], answer.token

        for _ in range(PAGES_MAX):
            if (answer := self._ask(what, ask)) is None:
                return None
            rows, token = answer
            found += rows
            if not token:
                return found
        return None

    def _look_each(
        self, kind: str, which: Iterable[K], ask: Callable[[K], tuple[K, T]], into: dict[K, T], gone: T
    ) -> None:
        """Asks about things one by one, those first that were asked about longest ago: not all may have their turn."""
        names = {one: f"{kind} {one}" for one in which}
        for one in sorted(names, key=lambda one: self.looked.get(names[one]) or 0)[: LOOKS_MAX - self.looks]:
            self.looks += 1
            self.looked.put(names[one], self.count)
            found = self._look(names[one], partial(ask, one), (one, gone))
            if found and found[0] == one:  # else the answer is about something else
                into[one] = found[1]

    def _look(self, what: str, ask: Callable[[], T], gone: T | None) -> T | None:
        """One thing; `gone` where the server says that it does not exist, None where that is not known."""

        def told() -> T | None:
            try:
                return ask()
            except Exception as error:
                code = getattr(error, "error_code", "")
                if code == _GONE:  # a proxy's 404 has another
                    return gone
                if code == NO_ENDPOINT and self.answers:  # a server without logged models, before MLflow 3.0, says more
                    return None
                raise

        return self._ask(what, told)

    def _ask(self, what: str, question: Callable[[], T]) -> T | None:
        """One answer; None where there is none that says anything.

        A server that is away is not asked on; one that only stumbles over some run of its own is.
        """
        try:
            answer = self.question(what, question)
            self.answers += 1
            return answer
        except OriginUnavailable:
            self.failures += 1
            if not self.answers or self.failures >= FAILURES_MAX:
                raise
        except CacheError:  # refused, or nonsense
            self.answers += 1
        return None


def _experiment(found: Any) -> tuple[str, str]:
    return str(found.experiment_id), str(found.name)


def _run(found: Any, keys: Iterable[str]) -> tuple[str, Run]:
    info, tags = found.info, found.data.tags
    return str(info.run_id), Run(
        str(info.experiment_id),
        str(info.status),
        str(tags.get("mlflow.user") or info.user_id or ""),
        float(info.end_time or 0) / 1000,
        {key: None if tags.get(key) is None else str(tags[key]) for key in keys},
        info.lifecycle_stage == "deleted",
    )


def _version(found: Any) -> tuple[tuple[str, int], Made]:
    ready = str(found.status) in _READY
    model_id = str(getattr(found, "model_id", None) or "")
    return (str(found.name), int(found.version)), Made(
        str(found.run_id or ""), model_id, owner=str(found.user_id or ""), is_ready=ready, is_deleted=False
    )


def _logged(found: Any) -> tuple[str, Made]:
    run_id, experiment_id = str(found.source_run_id or ""), str(found.experiment_id or "")
    return str(found.model_id), Made(run_id, experiment_id=experiment_id, is_deleted=False)


def _aliases(client: Any, name: str) -> dict[str, int]:
    found = client.get_registered_model(name)
    if found.name != name:
        raise ValueError("the answer is about another model")
    return {str(alias): int(number) for alias, number in found.aliases.items()}


def _batches(all_of_them: list[str], count: int) -> Iterator[list[str]]:
    for start in range(0, len(all_of_them), count):
        yield all_of_them[start : start + count]


def _quoted(ids: Iterable[str]) -> str:
    return ",".join(f"'{one}'" for one in ids)
