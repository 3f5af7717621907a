"""What of an artifact's source a caller is shown: its run or logged model, in whose folder the bytes have to lie."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from artifactcache.errors import CacheError, NotFound, PermissionDenied
from cacheserver import uris
from cacheserver.sources import CANDIDATES_MAX, Sources

HERE = "http://mlflow.example:5000"
MINE, HIS, NONE = "a" * 32, "b" * 32, "c" * 32
MODEL = "m-" + "d" * 32
ROOTS = {MINE: f"s3://bucket/1/{MINE}/artifacts", HIS: f"s3://bucket/2/{HIS}/artifacts"}


class Shown:
    """A tracking server that shows one run and one logged model, and refuses the others that exist."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], tuple[str, str, str]] = {}
        self.outputs: list[str] = []
        self.models = {MODEL: f"s3://bucket/1/models/{MODEL}/artifacts"}
        self.shows: dict[str, tuple[str, str, int]] = {}  # name, source and time of a logged model
        self.listed: list[str] = []
        self.asked: list[str] = []

    def get_run(self, run_id: str) -> Any:
        self.asked.append(run_id)
        if run_id == HIS:
            raise PermissionDenied(run_id)
        if run_id not in ROOTS:
            raise NotFound(run_id)
        outputs = SimpleNamespace(model_outputs=[SimpleNamespace(model_id=one) for one in self.outputs])
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=ROOTS[run_id]), outputs=outputs)

    def get_logged_model(self, model_id: str) -> Any:
        self.asked.append(model_id)
        if model_id not in self.models:
            raise NotFound(model_id)
        if not self.models[model_id]:
            raise PermissionDenied(model_id)
        name, source, at = self.shows.get(model_id, ("model", MINE, 1))
        return SimpleNamespace(
            model_id=model_id,
            name=name,
            source_run_id=source,
            creation_timestamp=at,
            artifact_location=self.models[model_id],
        )

    def get_model_version(self, name: str, version: str) -> Any:
        run_id, model_id, _ = self.versions[name, version]
        return SimpleNamespace(run_id=run_id, model_id=model_id)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return self.versions[name, version][2]

    def list_artifacts(self, path: str) -> None:
        self.listed.append(path)
        if not path.startswith("1/"):
            raise PermissionDenied(path)


def plainly(what: str, question: Callable[[], Any]) -> Any:
    """Asks at once."""
    return question()


@pytest.fixture
def shown() -> Shown:
    """The tracking server."""
    return Shown()


def prove(shown: Shown, uri: str) -> str:
    """What says that the bytes may be read."""
    return Sources(shown, plainly, HERE).prove(uris.parse(uri)).reason


def refused(shown: Shown, uri: str, kind: type[CacheError] = PermissionDenied) -> None:
    """It is refused."""
    with pytest.raises(kind):
        prove(shown, uri)


def test_runs_and_logged_models_are_asked_for(shown: Shown) -> None:
    """Each by its name, and what it says decides."""
    assert MINE in prove(shown, f"runs:/{MINE}/model") and MODEL in prove(shown, f"models:/{MODEL}")
    refused(shown, f"runs:/{HIS}")
    refused(shown, f"runs:/{NONE}", NotFound)
    refused(shown, f"models:/m-{'e' * 32}", NotFound)


@pytest.mark.parametrize(("location", "is_shown"), [("s3://elsewhere/x", True), ("", False)])
def test_the_logged_models_of_a_run_count_with_it(shown: Shown, location: str, is_shown: bool) -> None:
    """They are folders of it: one that is not shown makes the run unreadable, one that was deleted does not show."""
    other = "m-" + "f" * 32
    shown.models[other] = location
    shown.outputs = [MODEL, other, "m-" + "0" * 32]
    if is_shown:
        prove(shown, f"runs:/{MINE}")
    else:
        refused(shown, f"runs:/{MINE}")


@pytest.mark.parametrize(
    ("run_id", "model_id", "root", "is_shown"),
    [
        (MINE, "", f"{ROOTS[MINE]}/model", True),
        ("", MODEL, f"s3://bucket/1/models/{MODEL}/artifacts", True),
        (HIS, "", f"{ROOTS[HIS]}/model", False),
        (MINE, "", f"{ROOTS[HIS]}/model", False),
        ("", MODEL, f"{ROOTS[HIS]}/model", False),
        (MINE, MODEL, "s3://bucket/secret", False),
        (MINE, "", f"{ROOTS[MINE]}-of-somebody-else", False),
        (MINE, "", f"{ROOTS[MINE]}/../../../2/{HIS}/artifacts", False),
        (MINE, "", f"{ROOTS[MINE]}/%2E%2e/secret", False),
        ("", "", f"{ROOTS[MINE]}/model", True),
        ("", "", "s3://bucket/secret", False),
        (MINE, "", f"mlflow-artifacts:/1/{MINE}/artifacts", False),
    ],
)
def test_a_version_is_what_its_bytes_are(shown: Shown, run_id: str, model_id: str, root: str, is_shown: bool) -> None:
    """Whatever run it names: who registers a version can name any, and any place. It has to lie in that run's own
    folder, or in that of the one whose ID stands in it."""
    shown.versions["resnet", "3"] = (run_id, model_id, root)
    if is_shown:
        prove(shown, "models:/resnet/3")
    else:
        refused(shown, "models:/resnet/3")


@pytest.mark.parametrize(
    ("uri", "is_shown"),
    [
        (f"{ROOTS[MINE]}/model/weights", True),
        (ROOTS[MINE], True),
        (f"s3://bucket/1/models/{MODEL}/artifacts/x", True),
        (f"{ROOTS[HIS]}/model", False),
        (f"s3://another/1/{MINE}/artifacts/model", False),
        (f"s3://bucket/1/{MINE}/artifacts-of-others", False),
        (f"{ROOTS[HIS]}/{MINE}", False),
        ("s3://bucket/key", False),
        ("file:///etc/shadow", False),
        (f"file:///srv/{MINE}/artifacts", False),
        ("mlflow-artifacts:/1/plain/file", True),
        (f"mlflow-artifacts:/1/{HIS}/artifacts", False),
        ("mlflow-artifacts:/2/plain/file", False),
        ("mlflow-artifacts://elsewhere.example/1/plain", False),
        (f"{HERE}/api/2.0/mlflow-artifacts/artifacts/1/plain", True),
        ("http://elsewhere.example/api/2.0/mlflow-artifacts/artifacts/1/plain", False),
        (f"{HERE}/metrics", False),
    ],
)
def test_a_bare_uri_is_that_of_a_run(shown: Shown, uri: str, is_shown: bool) -> None:
    """One in whose folder it lies; or of the tracking server's own artifacts those that it lists to the caller, but
    not where a run is refused: some versions of MLflow list to everybody."""
    if is_shown:
        prove(shown, uri)
    else:
        refused(shown, uri)


def test_not_everything_that_looks_like_an_id_is_asked_for(shown: Shown) -> None:
    """A URI may be made of them: there is an end to the questions of one call."""
    refused(shown, "s3://bucket/" + "/".join(f"{n:032x}" for n in range(100)))
    assert len(shown.asked) == CANDIDATES_MAX


def test_what_was_shown_of_a_run_is_said(shown: Shown) -> None:
    """Where its logged models lie that show as folders of it: what is held of others is none of the caller's. One that
    was deleted does not show, nor one of another run, nor of several of one name any but the newest."""
    older, newest, foreign, named = others = [f"m-{n}" + "0" * 31 for n in range(4)]
    shown.models |= {one: f"s3://bucket/1/models/{one}" for one in others}
    shown.shows = {older: ("one", MINE, 2), newest: ("one", MINE, 3), foreign: ("two", HIS, 4)}
    shown.shows[named] = ("three", MINE, 5)
    shown.outputs = [MODEL, "m-" + "f" * 32, newest, older, foreign, named]
    proof = Sources(shown, plainly, HERE).prove(uris.parse(f"runs:/{MINE}"))
    assert proof.parts is not None and set(proof.parts) == {shown.models[one] for one in (MODEL, newest, named)}
