"""What an artifact URI stands for, and where its bytes are: what the tracking server says, to whom it says it.

Law of this file: an answer is taken apart here and nowhere else; what makes no sense in it is Corrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from artifactcache.errors import NotFound
from cacheserver import roots
from cacheserver.refusals import translated
from cacheserver.uris import Artifact, Kind
from cacheserver.words import Resolved

_SETTLED_RUN = frozenset({"FINISHED", "FAILED", "KILLED"})
_SETTLED_MODEL = frozenset({"READY", "FAILED"})
_SETTLED_VERSION = frozenset({"READY", "FAILED_REGISTRATION"})
_NO_ALIAS = "INVALID_PARAMETER_VALUE"  # MLflow's answer to an alias that does not exist; a proxy's 400 has another

T = TypeVar("T")


Several = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


class Question(Protocol):
    """One answer of the tracking server, within its time. Raises errors of ours only."""

    def __call__(self, what: str, question: Callable[[], T], *, patience: float | None = None) -> T: ...


class Resolving:
    """What one client of the tracking server is told.

    Args:
        client: MLflow's, or `AsCaller`.
        ask: gets one answer.
        several: asks several things at a time.
    """

    def __init__(self, client: Any, ask: Question, several: Several) -> None:
        self._client = client
        self._ask = ask
        self._several = several

    def version_of(self, artifact: Artifact, patience: float | None = None) -> tuple[Artifact, str]:
        """Which version an alias, a stage or `latest` stands for now, and when that was made (`Resolved.stamp`).

        Args:
            patience: seconds that the answer may take, where that is not `unreachable_after`.
        """
        client, name, selector = self._client, artifact.name, artifact.selector
        if artifact.kind is Kind.MODEL_ALIAS:
            found = self._moving(artifact, lambda: client.get_model_version_by_alias(name, selector), patience)
            return artifact.at_version(str(roots.number(artifact, found))), roots.stamp(found)
        stages = None if artifact.kind is Kind.MODEL_LATEST else [selector]
        versions = self._moving(artifact, lambda: client.get_latest_versions(name, stages), patience)
        if not versions:
            raise NotFound(f"{artifact.base}: the model {name} has no such version.")
        newest = max(versions, key=lambda version: roots.number(artifact, version))
        return artifact.at_version(str(roots.number(artifact, newest))), roots.stamp(newest)

    def _moving(self, artifact: Artifact, question: Callable[[], T], patience: float | None) -> T:
        """What an alias, a stage or `latest` is. Raises NotFound where MLflow says that there is none."""

        def ask() -> T:
            try:
                return question()
            except Exception as error:
                if getattr(error, "error_code", "") == _NO_ALIAS:
                    raise NotFound(str(translated(error, artifact.base))) from None
                raise

        return self._ask(artifact.base, ask, patience=patience)

    def resolve(self, artifact: Artifact, patience: float | None = None) -> Resolved:
        """Where the bytes of a run, a logged model or a version of a registered model are.

        Args:
            patience: seconds that the first answer may take, where that is not `unreachable_after`.
        """
        base, name = artifact.base, artifact.name
        match artifact.kind:
            case Kind.RUN:
                run = self._ask(base, lambda: self._client.get_run(name), patience=patience)
                models = self._logged_models(run)
                return Resolved(base, roots.root(base, run.info.artifact_uri), models, run.info.status in _SETTLED_RUN)
            case Kind.LOGGED_MODEL:
                model = self._ask(base, lambda: self._client.get_logged_model(name), patience=patience)
                return Resolved(
                    base, roots.root(base, model.artifact_location), (), str(model.status) in _SETTLED_MODEL
                )
            case Kind.MODEL_VERSION:
                number = artifact.selector
                version = self._ask(base, lambda: self._client.get_model_version(name, number), patience=patience)
                root = self._ask(base, lambda: self._client.get_model_version_download_uri(name, number))
                settled = str(version.status) in _SETTLED_VERSION
                return Resolved(base, roots.root(base, root), (), settled, roots.stamp(version))
        raise AssertionError(f"{base} is no version")

    def _logged_models(self, run: Any) -> tuple[tuple[str, str], ...]:
        """The logged models that show as folders of a run: their names and locations."""
        outputs = getattr(run, "outputs", None)
        ids = [output.model_id for output in (outputs.model_outputs if outputs else ())]
        found = self._several(self._logged_model, ids)
        return roots.folders(run.info.run_id, [model for model in found if model is not None])

    def _logged_model(self, model_id: str) -> Any:
        """A logged model; None where it was deleted: the run still names it."""
        try:
            return self._ask(model_id, lambda: self._client.get_logged_model(model_id))
        except NotFound:
            return None
