"""s3: URIs, from two endpoints of the tests' own: a quick one, and a real store that checks signatures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import s3, trees
from tests.rig.daemon import Daemon

BUCKET = "models"
FILES: trees.Files = {
    "MLmodel": b"flavors",
    "weights/a.bin": os.urandom(70_000),
    "weights/b c#d.bin": b"b",
    "weights/parts.bin": os.urandom((20 << 20) + 1),
    "empty": b"",
}
TRACKING = "http://127.0.0.1:9"  # no tracking server is needed for bare URIs


@pytest.fixture(scope="module", params=["moto", "swift"])
def endpoint(request: pytest.FixtureRequest, base: Path) -> Iterator[s3.Endpoint]:
    """An endpoint with a bucket and a model in it."""
    if why := s3.reason_not_to_start(request.param):
        pytest.skip(why)
    with s3.endpoint(request.param, base / f"s3-{request.param}") as found:
        found.client.create_bucket(Bucket=BUCKET)
        found.put(BUCKET, "resnet", FILES)
        yield found


@pytest.fixture(scope="module")
def s3_daemon(module_start: StartDaemon, endpoint: s3.Endpoint) -> Daemon:
    """A daemon with credentials for the endpoint."""
    return module_start(TRACKING, env=endpoint.env, unreachable_after=10.0)


def test_a_folder_and_a_file(s3_daemon: Daemon, caller_of: CallerOf, room: Path) -> None:
    """A prefix is a folder, a key is a file; both are held after the first fetch."""
    alice = caller_of(s3_daemon, room)
    first = alice.fetch(f"s3://{BUCKET}/resnet", alice.cwd / "resnet")
    assert trees.read(first.path) == FILES and (first.hit, first.origin_bytes) == (False, trees.size(FILES))
    assert first.transport == "s3"
    part = alice.fetch(f"s3://{BUCKET}/resnet/weights/a.bin")
    assert part.path.read_bytes() == FILES["weights/a.bin"] and part.hit
    assert alice.fetch(f"s3://{BUCKET}/resnet").hit


def test_one_file_that_is_not_held(s3_daemon: Daemon, caller_of: CallerOf, room: Path, endpoint: s3.Endpoint) -> None:
    """It is found beside others whose names begin with its own."""
    endpoint.put(BUCKET, "single", {"a": b"a", "a-b": b"ab", "a.b/c": b"abc"})
    alice = caller_of(s3_daemon, room)
    found = alice.fetch(f"s3://{BUCKET}/single/a")
    assert found.path.read_bytes() == b"a" and found.transport == "s3"


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}/nothing", f"s3://{BUCKET}/resn", "s3://no-such-bucket/x"])
def test_what_is_not_there(s3_daemon: Daemon, caller_of: CallerOf, room: Path, uri: str) -> None:
    """A missing key, the beginning of one, and a missing bucket are NotFound."""
    with pytest.raises(errors.NotFound):
        caller_of(s3_daemon, room).fetch(uri)


NAMES = [
    *("a b", "a%20b", "a#b", "a?b=c&d", "ä/ö", "+", "a;b", "%", "sub/%2e%2e", "~t", "[x]", "a\\b", "a|b", "{x}*"),
    *("'q'\"", "=,:@$!()", "😀", " lead", "trail ", "<&>", "tab\there"),
]


def test_names_are_what_mlflow_makes_of_them(
    s3_daemon: Daemon, caller_of: CallerOf, room: Path, endpoint: s3.Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a key is made of: the same names and bytes as MLflow's own repository gives, for roots as well."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    files: trees.Files = {name: f"content of {name}".encode() for name in NAMES}
    endpoint.put(BUCKET, "odd names", files)
    alice = caller_of(s3_daemon, room)
    assert trees.read(alice.fetch(f"s3://{BUCKET}/odd names").path) == files
    for name, value in endpoint.env.items():
        monkeypatch.setenv(name, value)
    keys = endpoint.env["AWS_ACCESS_KEY_ID"], endpoint.env["AWS_SECRET_ACCESS_KEY"]
    repository = S3ArtifactRepository(f"s3://{BUCKET}/odd names", *keys)
    theirs: trees.Files = {}
    folders: list[str | None] = [None]
    while folders:
        for info in repository.list_artifacts(folders.pop()):
            if info.is_dir:
                folders.append(info.path)
            else:
                repository._download_file(info.path, str(room / "theirs"))
                theirs[info.path] = (room / "theirs").read_bytes()
    assert theirs == files
    endpoint.put(BUCKET, "ro#ot?a=b%20", {"x/y": b"z"})
    assert trees.read(alice.fetch(f"s3://{BUCKET}/ro#ot?a=b%20/x").path) == {"y": b"z"}


def test_names_that_end_with_a_slash_are_folders(
    s3_daemon: Daemon, caller_of: CallerOf, room: Path, endpoint: s3.Endpoint
) -> None:
    """As consoles make them: empty ones are there, filled ones are nothing beside what fills them."""
    endpoint.put(BUCKET, "marked", {"": b"", "bare/": b"", "filled/": b"", "filled/x": b"x", "f/": b"", "f/g/": b""})
    endpoint.put(BUCKET, "only", {"": b""})
    alice = caller_of(s3_daemon, room)
    found = alice.fetch(f"s3://{BUCKET}/marked").path
    assert sorted(str(p.relative_to(found)) for p in found.rglob("*")) == ["bare", "f", "f/g", "filled", "filled/x"]
    assert list(alice.fetch(f"s3://{BUCKET}/only").path.iterdir()) == []


@pytest.mark.parametrize(
    "keys",
    [("x//y",), ("../x",), ("a/./b",), ("/x",), ("both", "both/x"), ("n" * 256,)],
    ids=lambda keys: keys[0][:20],
)
def test_keys_that_cannot_be_files(
    s3_daemon: Daemon,
    caller_of: CallerOf,
    room: Path,
    endpoint: s3.Endpoint,
    keys: tuple[str, ...],
    request: pytest.FixtureRequest,
) -> None:
    """The whole is refused, and says which."""
    prefix = f"bad-{request.node.callspec.id}".replace("/", "_").replace(".", "_")
    endpoint.put(BUCKET, prefix, {"good": b"", **dict.fromkeys(keys, b"x")})
    listed = endpoint.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert {found["Key"] for found in listed} == {f"{prefix}/{key}" for key in ("good", *keys)}
    with pytest.raises(errors.Corrupted):
        caller_of(s3_daemon, room).fetch(f"s3://{BUCKET}/{prefix}")


def test_an_object_uploaded_in_parts(s3_daemon: Daemon, caller_of: CallerOf, room: Path, endpoint: s3.Endpoint) -> None:
    """Its entity tag is of another kind; it is the condition all the same."""
    content, client = os.urandom(11 << 20), endpoint.client
    at = {"Bucket": BUCKET, "Key": "uploaded/parts"}
    upload = at | {"UploadId": client.create_multipart_upload(**at)["UploadId"]}
    pieces = [content[: 6 << 20], content[6 << 20 :]]
    done = [
        {"PartNumber": i, "ETag": client.upload_part(**upload, PartNumber=i, Body=piece)["ETag"]}
        for i, piece in enumerate(pieces, 1)
    ]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
    found = caller_of(s3_daemon, room).fetch(f"s3://{BUCKET}/uploaded")
    assert trees.read(found.path) == {"parts": content} and found.origin_bytes == len(content)


def test_an_object_that_was_written_again(
    s3_daemon: Daemon, caller_of: CallerOf, room: Path, endpoint: s3.Endpoint
) -> None:
    """`refresh` brings what is there now."""
    alice = caller_of(s3_daemon, room)
    endpoint.put(BUCKET, "again", {"x": b"one"})
    assert alice.fetch(f"s3://{BUCKET}/again/x").path.read_bytes() == b"one"
    endpoint.put(BUCKET, "again", {"x": b"two"})
    assert alice.fetch(f"s3://{BUCKET}/again/x", refresh=True).path.read_bytes() == b"two"


def test_secrets_stay_secret(
    start_daemon: StartDaemon, endpoint: s3.Endpoint, s3_daemon: Daemon, caller_of: CallerOf, room: Path
) -> None:
    """Without credentials the error is typed; with them no log has the secret."""
    caller_of(s3_daemon, room).fetch(f"s3://{BUCKET}/resnet/MLmodel")
    assert endpoint.env["AWS_SECRET_ACCESS_KEY"] not in s3_daemon.read_log()
    nobody = {"MLFLOW_S3_ENDPOINT_URL": endpoint.uri, "AWS_EC2_METADATA_DISABLED": "true"}
    bare = start_daemon(TRACKING, env=nobody, unreachable_after=10.0)
    with pytest.raises(errors.Unauthenticated):
        caller_of(bare, room, "bob").fetch(f"s3://{BUCKET}/resnet")


@pytest.mark.parametrize("endpoint", ["swift"], indirect=True)  # moto checks no signatures
def test_credentials_that_are_replaced(
    start_daemon: StartDaemon, endpoint: s3.Endpoint, caller_of: CallerOf, room: Path
) -> None:
    """A file of credentials that somebody writes anew is read anew when the old ones are refused."""
    file = room / "credentials"

    def write(secret: str) -> None:
        access = endpoint.env["AWS_ACCESS_KEY_ID"]
        file.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")

    write("an-old-secret-that-is-wrong")
    env = {
        "MLFLOW_S3_ENDPOINT_URL": endpoint.uri,
        "AWS_DEFAULT_REGION": s3.REGION,
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
    }
    daemon = start_daemon(TRACKING, env=env, unreachable_after=10.0)
    alice = caller_of(daemon, room)
    with pytest.raises(errors.Unauthenticated) as refused:
        alice.fetch(f"s3://{BUCKET}/resnet")
    assert "old-secret" not in f"{refused.value}{daemon.read_log()}"
    write(endpoint.env["AWS_SECRET_ACCESS_KEY"])
    assert trees.read(alice.fetch(f"s3://{BUCKET}/resnet").path) == FILES


def test_whose_the_bucket_must_be_is_left_to_mlflow(
    start_daemon: StartDaemon, endpoint: s3.Endpoint, caller_of: CallerOf, room: Path
) -> None:
    """A setting that obstore does not have is kept: MLflow's own client brings the bytes, and the result says so."""
    env = endpoint.env | {"MLFLOW_S3_EXPECTED_BUCKET_OWNER": "123456789012"}
    daemon = start_daemon(TRACKING, env=env, unreachable_after=10.0)
    found = caller_of(daemon, room).fetch(f"s3://{BUCKET}/resnet")
    assert trees.read(found.path) == FILES and found.transport == "mlflow"
