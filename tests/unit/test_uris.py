"""Artifact URIs: every form of MLflow's, taken literally."""

from __future__ import annotations

import random

import pytest

from artifactcache.errors import InvalidRequest
from cacheserver import uris
from cacheserver.uris import MOVING, URI_LENGTH_MAX, Artifact, Kind, parse

RUN = "0123456789abcdef0123456789abcdef"
MODEL = "m-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("uri", "artifact", "canonical"),
    [
        (f"runs:/{RUN}", Artifact(Kind.RUN, RUN), f"runs:/{RUN}"),
        (f"runs:/{RUN}/", Artifact(Kind.RUN, RUN), f"runs:/{RUN}"),
        (f"runs:/{RUN}/model", Artifact(Kind.RUN, RUN, path="model"), f"runs:/{RUN}/model"),
        (f"runs:/{RUN}/model/", Artifact(Kind.RUN, RUN, path="model"), f"runs:/{RUN}/model"),
        (f"RUNS:/{RUN}/a/b.txt", Artifact(Kind.RUN, RUN, path="a/b.txt"), f"runs:/{RUN}/a/b.txt"),
        ("runs:/my-run_1/x", Artifact(Kind.RUN, "my-run_1", path="x"), "runs:/my-run_1/x"),
        ("models:/resnet/3", Artifact(Kind.MODEL_VERSION, "resnet", "3"), "models:/resnet/3"),
        ("models:/resnet/3/", Artifact(Kind.MODEL_VERSION, "resnet", "3"), "models:/resnet/3"),
        ("models:/resnet/003", Artifact(Kind.MODEL_VERSION, "resnet", "3"), "models:/resnet/3"),
        ("models:/resnet/3/a/b", Artifact(Kind.MODEL_VERSION, "resnet", "3", "a/b"), "models:/resnet/3/a/b"),
        ("models:/resnet@champion", Artifact(Kind.MODEL_ALIAS, "resnet", "champion"), "models:/resnet@champion"),
        ("models:/resnet@c/MLmodel", Artifact(Kind.MODEL_ALIAS, "resnet", "c", "MLmodel"), "models:/resnet@c/MLmodel"),
        ("models:/a@b@c", Artifact(Kind.MODEL_ALIAS, "a@b", "c"), "models:/a@b@c"),
        ("models:/resnet/latest", Artifact(Kind.MODEL_LATEST, "resnet", "latest"), "models:/resnet/latest"),
        ("models:/resnet/LATEST/x", Artifact(Kind.MODEL_LATEST, "resnet", "latest", "x"), "models:/resnet/latest/x"),
        ("models:/resnet/Production", Artifact(Kind.MODEL_STAGE, "resnet", "Production"), "models:/resnet/Production"),
        ("models:/res net/1", Artifact(Kind.MODEL_VERSION, "res net", "1"), "models:/res net/1"),
        (f"models:/{MODEL}", Artifact(Kind.LOGGED_MODEL, MODEL), f"models:/{MODEL}"),
        (f"models:/{MODEL}/data/x", Artifact(Kind.LOGGED_MODEL, MODEL, path="data/x"), f"models:/{MODEL}/data/x"),
        ("models:/m-mine/1", Artifact(Kind.MODEL_VERSION, "m-mine", "1"), "models:/m-mine/1"),
        ("s3://bucket/a/b", Artifact(Kind.BARE, "s3://bucket/a/b"), "s3://bucket/a/b"),
        ("s3://bucket/a/b/", Artifact(Kind.BARE, "s3://bucket/a/b"), "s3://bucket/a/b"),
        ("S3://Bucket/A", Artifact(Kind.BARE, "s3://Bucket/A"), "s3://Bucket/A"),
        ("file:///srv/x", Artifact(Kind.BARE, "file:///srv/x"), "file:///srv/x"),
        ("file:/srv/x", Artifact(Kind.BARE, "file:/srv/x"), "file:/srv/x"),
        ("mlflow-artifacts:/1/r/artifacts/m", Artifact(Kind.BARE, "mlflow-artifacts:/1/r/artifacts/m"), ""),
        ("mlflow-artifacts://host:5000/1/r", Artifact(Kind.BARE, "mlflow-artifacts://host:5000/1/r"), ""),
        (
            "abfss://c@account.dfs.core.windows.net/p",
            Artifact(Kind.BARE, "abfss://c@account.dfs.core.windows.net/p"),
            "",
        ),
    ],
)
def test_every_form_is_read(uri: str, artifact: Artifact, canonical: str) -> None:
    """Each form gives its parts, and the canonical URI, which gives the same parts again."""
    assert parse(uri) == artifact
    assert parse(uri).uri == (canonical or uri)
    assert parse(parse(uri).uri) == artifact


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "a b", "a\nb", "a\\b", "#", "?", "%", "café", "a;b", "a&b=c"])
@pytest.mark.parametrize(
    "head", [f"runs:/{RUN}/", "models:/m/1/", "models:/m@champion/", "s3://bucket/", "mlflow-artifacts:/1/"]
)
def test_a_name_is_taken_literally(head: str, name: str) -> None:
    """`#`, `?` and `%20` are characters of a name like any other: no two names make one artifact."""
    assert parse(f"{head}{name}").uri == f"{head}{name}"
    assert parse(f"{head}{name}/x#y").uri == f"{head}{name}/x#y"


@pytest.mark.parametrize("head", ["file:///srv/", "file:/srv/", "file://host/srv/"])
@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a b", "a b"),
        ("a%20b", "a b"),
        ("a%2520b", "a%20b"),
        ("a%23b", "a#b"),
        ("a#b", "a#b"),
        ("a%3Fb", "a?b"),
        ("a?b", "a?b"),
        ("%", "%"),
        ("a%zz", "a%zz"),
        ("caf%C3%A9", "café"),
        ("a%2Fb", "a/b"),
        ("a+b", "a+b"),
    ],
)
def test_the_escapes_of_a_file_uri_are_decoded_once(head: str, written: str, name: str) -> None:
    """As in MLflow, in folders and in files alike, so that a path's own `as_uri()` names it; `#` and `?` are names."""
    for inside, meant in (("", ""), ("x/", "x/"), ("a%20b/", "a b/")):
        assert parse(f"{head}{inside}{written}").uri == f"{head}{meant}{name}"
        assert parse(f"{head}{written}/{inside}y").uri == f"{head}{name}/{meant}y"


@pytest.mark.parametrize(
    "path", ["a/%2e%2e/b", "%2Fetc", "a%2F", "a%2F%2Fb", "a%00b", ".%2E", "%C3", "%ff", "%2E", "x%2f.."]
)
def test_escapes_of_a_file_uri_lead_nowhere(path: str) -> None:
    """What they stand for is a path like any other, without `..`, NUL bytes and empty components; and it is text."""
    with pytest.raises(InvalidRequest):
        parse(f"file:///srv/{path}" if path != "%2Fetc" else "file:///%2Fetc")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "resnet",
        "/srv/models",
        "./models",
        "://x",
        "1s3://bucket/x",
        "s3://bucket/a\0b",
        "runs:",
        "runs:/",
        "runs://",
        f"runs:{RUN}",
        f"runs://{RUN}/model",
        f"runs://profile@server/{RUN}/model",
        "runs:/-starts-with-a-dash",
        "runs:/with space/model",
        "runs:/dot.dot/model",
        "runs:/é/model",
        "runs:/" + "x" * 257,
        f"runs:/{RUN}//model",
        f"runs:/{RUN}/model//",
        f"runs:/{RUN}/../other",
        f"runs:/{RUN}/a/../b",
        f"runs:/{RUN}/./b",
        f"runs:/{RUN}/a//b",
        f"runs:/{RUN}/" + "x" * 256,
        f"runs:/{RUN}/" + "é" * 128,
        f"runs:/{RUN}/" + "/".join("d" * 101),
        "models:",
        "models:/",
        "models:/resnet",
        "models:/resnet/",
        "models:/resnet/ ",
        "models://resnet/3",
        "models:// /3",
        "models:/ /3",
        "models:/@champion",
        "models:/resnet@",
        "models:/resnet@/x",
        "models:/resnet/3/../4",
        "models:/resnet@champion/../x",
        f"models:/{MODEL}/../x",
        "s3:",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/../other",
        "s3://bucket/a/./b",
        "s3://bucket/a//b",
        "s3://bucket/a/%2e%2e/b",
        "s3://bucket/a/.%2E/b",
        "https://user:secret@host/x",
        "s3://bucket/" + "x" * URI_LENGTH_MAX,
    ],
)
def test_what_is_no_artifact_uri_is_refused(uri: str) -> None:
    """Whatever is malformed, or could name two things, is InvalidRequest, with words a log can hold."""
    with pytest.raises(InvalidRequest) as refused:
        parse(uri)
    assert 10 < len(str(refused.value)) < 1200 and "\0" not in str(refused.value)


def test_a_password_is_not_repeated() -> None:
    """The message about a password in a URI does not hold it."""
    with pytest.raises(InvalidRequest) as refused:
        parse("https://user:hunter2@host/x")
    assert "hunter2" not in str(refused.value)


def test_a_run_and_a_path_are_the_same_artifact_as_their_uri() -> None:
    """`run_id` and `artifact_path` are another spelling of `runs:/…`."""
    assert uris.run(RUN, "a/b") == parse(f"runs:/{RUN}/a/b")
    assert uris.run(RUN, "") == parse(f"runs:/{RUN}")
    for run_id, path in (("", ""), ("a/b", ""), (RUN, "../x"), (RUN, "/x"), (RUN, "a\0b"), (RUN + "\n", "")):
        with pytest.raises(InvalidRequest):
            uris.run(run_id, path)


def test_an_alias_becomes_a_version_and_keeps_its_path() -> None:
    """Only aliases, stages and `latest` move; what they stand for does not."""
    for uri in ("models:/m@a/x", "models:/m/latest/x", "models:/m/Staging/x"):
        assert parse(uri).kind in MOVING
        assert parse(uri).at_version("7").uri == "models:/m/7/x"
    assert parse("models:/m/7/x").kind not in MOVING and parse(f"models:/{MODEL}").kind not in MOVING


def test_a_canonical_uri_is_stable(dice: random.Random) -> None:
    """Whatever is accepted has a canonical URI that is read as the same artifact; nothing else is ever raised."""
    accepted = 0
    heads = [
        f"runs:/{RUN}",
        "runs:/",
        "models:/m/1",
        "models:/m@a",
        "models:/m",
        f"models:/{MODEL}",
        "s3://b",
        "file:",
        "x:",
    ]
    for _ in range(5000):
        uri = dice.choice(heads) + "".join(
            dice.choices(["/", "/", "a", ".", "..", "@", ":", "%2e", "#", " ", "é", "1"], k=6)
        )
        try:
            artifact = parse(uri)
        except InvalidRequest:
            continue
        accepted += 1
        assert parse(artifact.uri) == artifact, uri
        assert parse(artifact.uri).uri == artifact.uri, uri
        assert not artifact.path.startswith("/") and ".." not in artifact.path.split("/"), uri
    assert accepted > 100
