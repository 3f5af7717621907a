"""gs: URIs, from an endpoint of the tests' own that can lie."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Iterator

import pytest

from artifactcache import errors
from tests.conftest import StartDaemon
from tests.rig import trees
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.lying import Answer, Reply
from tests.rig.lying_gcs import Bucket, LyingGcs, lying_gcs, no_such_key, stored
from tests.rig.lying_s3 import refuses
from tests.rig.slow import slow_but
from tests.test_s3 import FILES, NAMES

BIG = (16 << 20) + 5  # downloaded in parts
TRACKING = "http://127.0.0.1:9"  # no tracking server is needed for bare URIs


@pytest.fixture(scope="module")
def gcs() -> Iterator[LyingGcs]:
    """One endpoint for all tests of this module."""
    with lying_gcs() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, gcs: LyingGcs) -> Daemon:
    """A daemon that asks it without credentials, as MLflow's client asks an emulator."""
    return module_start(TRACKING, env=gcs.env, unreachable_after=3.0)


@pytest.fixture
def bucket(gcs: LyingGcs) -> Bucket:
    """An empty bucket of the test's own."""
    return gcs.bucket()


def served(bucket: Bucket, answer: Answer, size: object = 10) -> str:
    """The URI of a folder with one object."""
    bucket.lie("run/weights", answer, size)
    return f"gs://{bucket.name}/run"


def by_turns(*answers: Answer) -> Answer:
    """One answer after the other, and then the last one again and again."""
    left = list(answers)

    def answer(reply: Reply) -> None:
        following = left.pop(0) if len(left) > 1 else left[0]
        following(reply)

    return answer


# -- what an honest one has -------------------------------------------------------------------------------------------


def test_a_folder_and_a_file(alice: Caller, gcs: LyingGcs, bucket: Bucket) -> None:
    """A prefix is a folder, a name is a file; every request is for the generation that was listed."""
    bucket.put("resnet", FILES)
    bucket.put("resnet-2", {"x": b"x"})
    since = len(gcs.seen)
    first = alice.fetch(f"gs://{bucket.name}/resnet", alice.cwd / "resnet")
    assert trees.read(first.path) == FILES and (first.hit, first.origin_bytes) == (False, trees.size(FILES))
    assert first.transport == "gcs" and len(gcs.seen) - since > len(FILES)  # one comes in parts
    assert {generation for generation, _ in gcs.seen[since:]} == {
        found.generation for key, found in bucket.objects.items() if key.startswith("resnet/")
    }
    assert not gcs.json_downloads
    part = alice.fetch(f"gs://{bucket.name}/resnet/weights/a.bin")
    assert part.path.read_bytes() == FILES["weights/a.bin"] and part.hit
    bucket.put("single", {"a": b"a", "a-b": b"ab", "a.b/c": b"abc"})
    assert alice.fetch(f"gs://{bucket.name}/single/a").path.read_bytes() == b"a"


def test_many_files_in_pages(alice: Caller, gcs: LyingGcs) -> None:
    """All of them."""
    bucket = gcs.bucket(page=70)
    files = {f"{i:03}/{j}": f"{i}-{j}".encode() for i in range(50) for j in range(6)}
    bucket.put("run", files)
    assert trees.read(alice.fetch(f"gs://{bucket.name}/run").path) == files


@pytest.mark.parametrize("uri", ["gs://{}/nothing", "gs://{}/resn", "gs://no-such-bucket/x"])
def test_what_is_not_there(alice: Caller, bucket: Bucket, uri: str) -> None:
    """A missing name, the beginning of one, and a missing bucket are NotFound."""
    bucket.put("resnet", {"x": b"x"})
    with pytest.raises(errors.NotFound):
        alice.fetch(uri.format(bucket.name))


def test_odd_names(alice: Caller, bucket: Bucket) -> None:
    """Whatever a name is made of."""
    files: trees.Files = {name: f"content of {name}".encode() for name in NAMES}
    bucket.put("odd names", files)
    assert trees.read(alice.fetch(f"gs://{bucket.name}/odd names").path) == files


def test_names_that_end_with_a_slash_are_folders(alice: Caller, bucket: Bucket) -> None:
    """As consoles make them: empty ones are there, filled ones are nothing beside what fills them."""
    bucket.put("marked", {"": b"", "bare/": b"", "filled/": b"", "filled/x": b"x", "empty": b""})
    found = alice.fetch(f"gs://{bucket.name}/marked").path
    assert sorted(str(p.relative_to(found)) for p in found.rglob("*")) == ["bare", "empty", "filled", "filled/x"]


def test_only_what_was_written_again_is_downloaded_again(alice: Caller, gcs: LyingGcs, bucket: Bucket) -> None:
    """Generations are the evidence: also for a file of as many bytes."""
    bucket.put("again", {"a": b"one", "b": b"same"})
    assert trees.read(alice.fetch(f"gs://{bucket.name}/again").path) == {"a": b"one", "b": b"same"}
    bucket.put("again", {"a": b"two"})
    since = len(gcs.seen)
    found = alice.fetch(f"gs://{bucket.name}/again", refresh=True)
    assert trees.read(found.path) == {"a": b"two", "b": b"same"} and found.origin_bytes == 3
    assert len(gcs.seen) == since + 1


def test_what_is_stored_with_an_encoding_is_left_to_mlflow(alice: Caller, gcs: LyingGcs, bucket: Bucket) -> None:
    """Google's client decodes it; its size is not the listed one."""
    bucket.put("run", {"plain": b"p", "packed": gzip.compress(b"packed content")})
    bucket.objects["run/packed"].encoding = "gzip"
    found = alice.fetch(f"gs://{bucket.name}/run")
    assert trees.read(found.path) == {"plain": b"p", "packed": b"packed content"} and found.transport == "gcs"
    assert gcs.json_downloads[-1:] == ["run/packed"]


# -- what a lying one does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, BIG])
def test_an_object_that_changed_after_it_was_listed(alice: Caller, bucket: Bucket, size: int) -> None:
    """What is there now is brought, from its beginning."""
    content = os.urandom(size)
    found = alice.fetch(served(bucket, by_turns(no_such_key, stored(content, "7")), size))
    assert trees.read(found.path) == {"weights": content}


def test_an_object_that_changes_while_it_is_brought(alice: Caller, bucket: Bucket) -> None:
    """Parts of one and of another would be bytes that never were."""
    old, new = os.urandom(BIG), os.urandom(BIG)
    listed = bucket.lie("run/weights", no_such_key, BIG)
    numbers = itertools.count(1)

    def replaced(reply: Reply) -> None:
        if next(numbers) == 2:
            bucket.put("run", {"weights": new})
        stored(old, listed)(reply)

    bucket.objects["run/weights"].answer = replaced
    found = alice.fetch(f"gs://{bucket.name}/run")
    assert trees.read(found.path) == {"weights": new}


def test_a_bucket_that_keeps_old_generations(alice: Caller, gcs: LyingGcs) -> None:
    """What was listed is brought, though another one is there by now."""
    bucket = gcs.bucket(keeps=True)
    old, new = os.urandom(BIG), os.urandom(BIG)
    bucket.put("run", {"weights": old, "first": b"x"})

    def replaced(reply: Reply) -> None:
        bucket.put("run", {"weights": new})
        stored(b"x", bucket.objects["run/first"].generation)(reply)

    bucket.objects["run/first"].answer = replaced
    found = trees.read(alice.fetch(f"gs://{bucket.name}/run").path)
    assert found["weights"] in (old, new)
    assert trees.read(alice.fetch(f"gs://{bucket.name}/run", refresh=True).path)["weights"] == new


def test_an_endpoint_that_ignores_generations(alice: Caller, bucket: Bucket) -> None:
    """Its answers' generations are looked at: what is another one each time cannot be brought in parts."""
    numbers = itertools.count(2)

    def ignorant(reply: Reply) -> None:
        stored(bytes(BIG), str(next(numbers)))(reply)

    with pytest.raises(errors.Corrupted, match="changes while"):
        alice.fetch(served(bucket, ignorant, BIG))


@pytest.mark.parametrize("size", [3 << 20, BIG])
def test_what_breaks_off_goes_on(alice: Caller, bucket: Bucket, size: int) -> None:
    """A connection that is reset in the middle costs a moment, not the file; where it always is, there is an end."""
    content = os.urandom(size)
    listed = bucket.lie("run/weights", no_such_key, size)
    broken = stored(content, listed, sent_bytes_max=700_000)
    bucket.objects["run/weights"].answer = by_turns(broken, broken, stored(content, listed))
    assert trees.read(alice.fetch(f"gs://{bucket.name}/run").path) == {"weights": content}
    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(served(bucket, stored(content, "9", sent_bytes_max=1), size), refresh=True)


@pytest.mark.parametrize("listed", [5, 11, -1, "many"])
def test_a_size_that_is_not_the_listed_one(alice: Caller, bucket: Bucket, listed: object) -> None:
    """More or fewer bytes than were listed are not taken for the object."""
    with pytest.raises(errors.Corrupted):
        alice.fetch(served(bucket, stored(b"0123456789", "3"), listed))


@pytest.mark.parametrize(
    ("status", "code"),
    slow_but(((503, "ServiceUnavailable"), (429, "TooManyRequests")), lambda case: case[0] == 503),
)
def test_an_endpoint_that_asks_for_patience(alice: Caller, bucket: Bucket, status: int, code: str) -> None:
    """It is asked again after a while; if it never gets better, that is said with its words."""
    busy = refuses(status, code, "Please reduce your request rate")
    found = alice.fetch(served(bucket, by_turns(busy, busy, stored(b"0123456789", "4"))))
    assert trees.read(found.path) == {"weights": b"0123456789"}
    with pytest.raises(errors.OriginUnavailable, match=f"{status}.*{code}.*reduce your request rate"):
        alice.fetch(served(bucket, busy), refresh=True)
    bucket.listing = by_turns(busy, lambda reply: reply.json({"items": []}))
    with pytest.raises(errors.NotFound):
        alice.fetch(f"gs://{bucket.name}/nothing")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", errors.PermissionDenied),
        (403, "Whatever", errors.PermissionDenied),
        (401, "AuthenticationRequired", errors.Unauthenticated),
        (404, "NoSuchKey", errors.NotFound),
        (400, "Whatever", errors.OriginUnavailable),
    ],
)
def test_refusals_in_words(
    alice: Caller, bucket: Bucket, status: int, code: str, expected: type[errors.CacheError]
) -> None:
    """Each says whose move it is."""
    with pytest.raises(expected):
        alice.fetch(served(bucket, refuses(status, code, "You may not")))


@pytest.mark.parametrize("status", [401, 403, 503])
def test_listings_that_are_refused(alice: Caller, bucket: Bucket, status: int) -> None:
    """By the JSON API, in its words."""
    bucket.listing = lambda reply: reply.json({"error": {"code": status, "message": "not today"}}, status)
    kinds = {401: errors.Unauthenticated, 403: errors.PermissionDenied, 503: errors.OriginUnavailable}
    with pytest.raises(kinds[status]):
        alice.fetch(f"gs://{bucket.name}/run")


@pytest.mark.parametrize(
    "page",
    [
        {"items": [{"name": "elsewhere", "size": "1", "generation": "1"}]},
        {"items": [{"name": "run/x/", "size": "7", "generation": "1"}]},
        {"items": [{"size": "7", "generation": "1"}]},
        {"items": [{"name": "run/x", "generation": "1"}]},
        {"items": [{"name": "run/../x", "size": "1", "generation": "1"}]},
        {"items": [], "nextPageToken": "x"},
    ],
)
def test_listings_that_make_no_sense(alice: Caller, bucket: Bucket, page: dict[str, object]) -> None:
    """They are Corrupted."""
    bucket.listing = lambda reply: reply.json(page)
    with pytest.raises(errors.Corrupted):
        alice.fetch(f"gs://{bucket.name}/run")
