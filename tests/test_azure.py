"""wasbs: URIs, from an endpoint of the tests' own that can lie, and from Azurite, which checks signatures."""

from __future__ import annotations

import datetime
import gzip
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactcache import errors
from tests.conftest import CallerOf, StartDaemon
from tests.rig import azure, trees
from tests.rig.azure import ACCOUNT, KEY, Azurite, LyingAzure, LyingContainer, blob_of, connection, lists, refuses
from tests.rig.caller import Caller
from tests.rig.daemon import Daemon
from tests.rig.lying import Answer, Reply
from tests.rig.slow import slow_but
from tests.test_gcs import BIG, TRACKING, by_turns
from tests.test_s3 import FILES, NAMES


@pytest.fixture(scope="module")
def liar() -> Iterator[LyingAzure]:
    """One endpoint for all tests of this module."""
    with azure.lying_azure() as server:
        yield server


@pytest.fixture(scope="module")
def azurite(base: Path) -> Iterator[Azurite]:
    """An Azurite for all tests of this module."""
    if why := azure.reason_not_to_start():
        pytest.skip(why)
    with azure.azurite(base / "azurite") as found:
        yield found


@pytest.fixture(scope="module", params=["own", "azurite"])
def endpoint(request: pytest.FixtureRequest) -> LyingAzure | Azurite:
    """Each of them."""
    found: LyingAzure | Azurite = request.getfixturevalue("liar" if request.param == "own" else "azurite")
    return found


@pytest.fixture(scope="module")
def honest(module_start: StartDaemon, endpoint: LyingAzure | Azurite) -> Daemon:
    """A daemon that has the account's key for it."""
    return module_start(TRACKING, env=connection(endpoint.uri), unreachable_after=10.0)


@pytest.fixture(scope="module")
def daemon(module_start: StartDaemon, liar: LyingAzure) -> Daemon:
    """A daemon that has the account's key for the liar."""
    return module_start(TRACKING, env=connection(liar.uri), unreachable_after=3.0)


@pytest.fixture
def container(liar: LyingAzure) -> LyingContainer:
    """An empty container of the liar's."""
    return liar.container()


# -- what an honest one has -------------------------------------------------------------------------------------------


def test_a_folder_and_a_file(honest: Daemon, caller_of: CallerOf, room: Path, endpoint: LyingAzure | Azurite) -> None:
    """A prefix is a folder, a name is a file; both are held after the first fetch."""
    bucket, alice = endpoint.container(), caller_of(honest, room)
    bucket.put("resnet", FILES)
    bucket.put("resnet-2", {"x": b"x"})
    first = alice.fetch(f"{bucket.uri}/resnet", alice.cwd / "resnet")
    assert trees.read(first.path) == FILES and (first.hit, first.origin_bytes) == (False, trees.size(FILES))
    assert first.transport == "azure"
    part = alice.fetch(f"{bucket.uri}/resnet/weights/a.bin")
    assert part.path.read_bytes() == FILES["weights/a.bin"] and part.hit
    bucket.put("single", {"a": b"a", "a-b": b"ab", "a.b/c": b"abc"})
    assert alice.fetch(f"{bucket.uri}/single/a").path.read_bytes() == b"a"
    assert KEY not in honest.read_log()
    honest.assert_no_traceback()


def test_odd_names(honest: Daemon, caller_of: CallerOf, room: Path, endpoint: LyingAzure | Azurite) -> None:
    """Whatever a name is made of."""
    bucket = endpoint.container()
    files: trees.Files = {name: f"content of {name}".encode() for name in NAMES if "\\" not in name}  # Azure has none
    bucket.put("odd names", files)
    found = caller_of(honest, room).fetch(f"{bucket.uri}/odd names")
    assert trees.read(found.path) == files and found.transport == "azure"


@pytest.mark.parametrize("uri", ["{}/nothing", "{}/resn", f"wasbs://missing@{ACCOUNT}.blob.core.windows.net/x"])
def test_what_is_not_there(
    honest: Daemon, caller_of: CallerOf, room: Path, endpoint: LyingAzure | Azurite, uri: str
) -> None:
    """A missing name, the beginning of one, and a missing container are NotFound."""
    bucket = endpoint.container()
    bucket.put("resnet", {"x": b"x"})
    with pytest.raises(errors.NotFound):
        caller_of(honest, room).fetch(uri.format(bucket.uri))


def test_only_what_was_written_again_is_downloaded_again(
    honest: Daemon, caller_of: CallerOf, room: Path, endpoint: LyingAzure | Azurite
) -> None:
    """Entity tags are the evidence: also for a file of as many bytes."""
    bucket, alice = endpoint.container(), caller_of(honest, room)
    bucket.put("again", {"a": b"one", "b": b"same"})
    assert trees.read(alice.fetch(f"{bucket.uri}/again").path) == {"a": b"one", "b": b"same"}
    bucket.put("again", {"a": b"two"})
    found = alice.fetch(f"{bucket.uri}/again", refresh=True)
    assert trees.read(found.path) == {"a": b"two", "b": b"same"} and found.origin_bytes == 3


def test_a_blob_uploaded_in_blocks(
    azurite: Azurite, start_daemon: StartDaemon, caller_of: CallerOf, room: Path
) -> None:
    """It is one blob; its folder is listed in pages."""
    bucket, content = azurite.container(), os.urandom(11 << 20)
    bucket.client.upload_blob("run/blocks", content, max_concurrency=2)
    files = {f"{i:03}": str(i).encode() for i in range(40)}
    bucket.put("run", files)
    daemon = start_daemon(TRACKING, env=connection(azurite.uri), unreachable_after=10.0)
    found = caller_of(daemon, room).fetch(f"{bucket.uri}/run")
    assert trees.read(found.path) == files | {"blocks": content} and found.transport == "azure"


@pytest.mark.parametrize("credential", ["signature", "nothing", "another key"])
def test_credentials(
    start_daemon: StartDaemon, azurite: Azurite, caller_of: CallerOf, room: Path, credential: str
) -> None:
    """A shared access signature, a public container without any, and a key that is refused: no secret is told."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    bucket = azurite.container("container" if credential == "nothing" else None)
    bucket.put("run", FILES)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    kinds, rights = ResourceTypes(container=True, object=True), AccountSasPermissions(read=True, list=True)
    signature = generate_account_sas(ACCOUNT, KEY, resource_types=kinds, permission=rights, expiry=soon)
    wrong = "d3Jvbmc="
    has = {"signature": f"SharedAccessSignature={signature}", "nothing": "", "another key": f"AccountKey={wrong}"}
    daemon = start_daemon(TRACKING, env=connection(azurite.uri, has[credential]), unreachable_after=10.0)
    alice, said = caller_of(daemon, room), ""
    if credential == "another key":
        with pytest.raises(errors.CacheError) as refused:
            alice.fetch(f"{bucket.uri}/run")
        # Azure says AuthenticationFailed, Azurite AuthorizationFailure.
        assert isinstance(refused.value, errors.Unauthenticated | errors.PermissionDenied)
        said = str(refused.value)
    else:
        found = alice.fetch(f"{bucket.uri}/run")
        assert trees.read(found.path) == FILES and found.transport == "azure"
    said += daemon.read_log()
    assert KEY not in said and wrong not in said and "sig=" not in said and "left to MLflow" not in said


# -- what a lying one does --------------------------------------------------------------------------------------------


def test_the_liar_can_be_honest(alice: Caller, liar: LyingAzure, container: LyingContainer) -> None:
    """Each request is for what was listed, and signed."""
    content = os.urandom(BIG)
    container.put("run", {"weights": content})
    since = len(liar.seen)
    assert trees.read(alice.fetch(f"{container.uri}/run").path) == {"weights": content}
    tags, signed, _ = zip(*liar.seen[since:], strict=True)
    assert set(tags) == {f'"{container.blobs["run/weights"].tag}"'} and len(tags) > 1
    assert all(header.startswith(f"SharedKey {ACCOUNT}:") for header in signed)


def test_many_files_in_pages(alice: Caller, liar: LyingAzure) -> None:
    """All of them."""
    container = liar.container(page=70)
    files = {f"{i:03}/{j}": f"{i}-{j}".encode() for i in range(50) for j in range(6)}
    container.put("run", files)
    assert trees.read(alice.fetch(f"{container.uri}/run").path) == files


def test_folders(alice: Caller, container: LyingContainer) -> None:
    """Names with a slash at their end, and what hierarchical accounts and Hadoop have for folders."""
    container.put(
        "run", {"bare/": b"", "filled": b"", "filled/x": b"x", "empty": b"", "marked": b"", "f/": b"", "f/y": b""}
    )
    for name in ("filled", "marked"):
        container.blobs[f"run/{name}"].is_folder = True
    found = alice.fetch(f"{container.uri}/run").path
    names = sorted(str(p.relative_to(found)) for p in found.rglob("*"))
    assert names == ["bare", "empty", "f", "f/y", "filled", "filled/x", "marked"]
    assert (found / "marked").is_dir() and (found / "empty").is_file()
    assert list(alice.fetch(f"{container.uri}/run/marked").path.iterdir()) == []


def test_what_is_stored_with_an_encoding_is_left_to_mlflow(alice: Caller, container: LyingContainer) -> None:
    """Azure's client decodes it; its size is not the listed one."""
    container.put("run", {"plain": b"p", "packed": gzip.compress(b"packed content")})
    container.blobs["run/packed"].encoding = "gzip"
    found = alice.fetch(f"{container.uri}/run")
    assert trees.read(found.path) == {"plain": b"p", "packed": b"packed content"} and found.transport == "azure"


@pytest.mark.parametrize("size", [10, BIG])
def test_a_blob_that_changed_after_it_was_listed(alice: Caller, container: LyingContainer, size: int) -> None:
    """What is there now is brought, from its beginning."""
    content = os.urandom(size)
    found = alice.fetch(container.lie("run/weights", blob_of(content, "0x2"), size))
    assert trees.read(found.path) == {"weights": content}


def test_a_blob_that_changes_while_it_is_brought(alice: Caller, container: LyingContainer) -> None:
    """Parts of one and of another would be bytes that never were."""
    old, new, numbers = os.urandom(BIG), os.urandom(BIG), itertools.count(1)

    def replaced(reply: Reply) -> None:
        blob_of(*((old, "0x1") if next(numbers) < 3 else (new, "0x2")))(reply)

    assert trees.read(alice.fetch(container.lie("run/weights", replaced, BIG)).path) == {"weights": new}


def test_an_endpoint_that_ignores_conditions(alice: Caller, container: LyingContainer) -> None:
    """Its answers' entity tags are looked at: what is another one each time cannot be brought in parts."""
    tags = itertools.count(2)

    def ignorant(reply: Reply) -> None:
        blob_of(bytes(BIG), f"0x{next(tags)}", heeds_conditions=False)(reply)

    with pytest.raises(errors.Corrupted, match="changes while"):
        alice.fetch(container.lie("run/weights", ignorant, BIG))


@pytest.mark.parametrize("size", [3 << 20, BIG])
def test_what_breaks_off_goes_on(alice: Caller, container: LyingContainer, size: int) -> None:
    """A connection that is reset in the middle costs a moment, not the file; where it always is, there is an end."""
    content = os.urandom(size)
    broken = blob_of(content, sent_bytes_max=700_000)
    found = alice.fetch(container.lie("run/weights", by_turns(broken, broken, blob_of(content)), size))
    assert trees.read(found.path) == {"weights": content}
    with pytest.raises(errors.OriginUnavailable):
        alice.fetch(container.lie("off/weights", blob_of(content, sent_bytes_max=1), size))


@pytest.mark.parametrize("listed", [5, 11, -1, "many"])
def test_a_size_that_is_not_the_listed_one(alice: Caller, container: LyingContainer, listed: object) -> None:
    """More or fewer bytes than were listed are not taken for the blob."""
    with pytest.raises(errors.Corrupted):
        alice.fetch(container.lie("run/weights", blob_of(b"0123456789"), listed))


@pytest.mark.parametrize(
    ("status", "code"),
    slow_but(((503, "ServerBusy"), (429, "TooManyRequests"), (500, "InternalError")), lambda case: case[0] == 503),
)
def test_an_endpoint_that_asks_for_patience(alice: Caller, container: LyingContainer, status: int, code: str) -> None:
    """It is asked again after a while; if it never gets better, that is said with its words."""
    busy = refuses(status, code, "The server is busy.")
    found = alice.fetch(container.lie("run/weights", by_turns(busy, busy, blob_of(b"0123456789"))))
    assert trees.read(found.path) == {"weights": b"0123456789"}
    with pytest.raises(errors.OriginUnavailable, match=f"{status}.*{code}.*server is busy"):
        alice.fetch(container.lie("busy/weights", busy))
    container.listing = by_turns(busy, busy, lists("<Blobs></Blobs><NextMarker />"))
    with pytest.raises(errors.NotFound):
        alice.fetch(f"{container.uri}/nothing")
    container.listing = busy
    with pytest.raises(errors.OriginUnavailable, match="server is busy"):
        alice.fetch(f"{container.uri}/nothing/more")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AuthenticationFailed", errors.Unauthenticated),
        (403, "AuthorizationPermissionMismatch", errors.PermissionDenied),
        (401, "InvalidAuthenticationInfo", errors.Unauthenticated),
        (404, "BlobNotFound", errors.NotFound),
        (409, "BlobArchived", errors.OriginUnavailable),
    ],
)
@pytest.mark.parametrize("where", ["listing", "blob"])
def test_refusals_in_words(
    alice: Caller,
    daemon: Daemon,
    container: LyingContainer,
    where: str,
    status: int,
    code: str,
    expected: type[errors.CacheError],
) -> None:
    """Each says whose move it is, in short, and repeats no secret that an answer may hold."""
    no = refuses(status, code, "You may not", f"<AuthenticationErrorDetail>MAC {KEY}</AuthenticationErrorDetail>")
    uri = container.lie("run/weights", no)
    if where == "listing":
        container.listing = no
    with pytest.raises(expected) as refused:
        alice.fetch(uri)
    assert len(str(refused.value)) < 600
    assert where == "listing" or KEY not in f"{refused.value}{daemon.read_log()}"


@pytest.mark.parametrize(
    "page",
    [
        "<Blobs><Blob><Name>elsewhere</Name><Properties><Content-Length>1</Content-Length></Properties></Blob></Blobs>",
        "<Blobs><Blob><Name>run/x/</Name><Properties><Content-Length>7</Content-Length></Properties></Blob></Blobs>",
        "<Blobs><Blob><Name>run/x</Name><Properties></Properties></Blob></Blobs>",
        "<Blobs><Blob><Name>run/../x</Name><Properties><Content-Length>7</Content-Length></Properties></Blob></Blobs>",
        "<Blobs></Blobs><NextMarker>again</NextMarker>",
    ],
)
def test_listings_that_make_no_sense(alice: Caller, container: LyingContainer, page: str) -> None:
    """They are Corrupted."""
    container.listing = lists(page)
    with pytest.raises(errors.Corrupted):
        alice.fetch(f"{container.uri}/run")


def test_signatures_stay_secret(
    start_daemon: StartDaemon, liar: LyingAzure, container: LyingContainer, caller_of: CallerOf, room: Path
) -> None:
    """A shared access signature goes with each request to the endpoint, to no other host, and into no message."""
    signature = "sv=2024-11-04&ss=b&srt=co&sp=rl&sig=c2lnbmF0dXJl%2Bb2Yv%3D"
    env = connection(liar.uri, f"SharedAccessSignature={signature}")
    daemon = start_daemon(TRACKING, env=env, unreachable_after=3.0)
    alice, since = caller_of(daemon, room), len(liar.seen)
    assert alice.fetch(container.lie("run/weights", blob_of(b"0123456789"))).transport == "azure"
    assert {found[1:] for found in liar.seen[since:]} == {("", "c2lnbmF0dXJl+b2Yv=")}
    said = []
    with azure.lying_azure() as stranger:
        away = f"http://localhost:{stranger.uri.rpartition(':')[2]}/x"
        redirect: Answer = lambda reply: reply.head(307, Location=away, Content_Length=0)  # noqa: E731
        for name, answer in {"a": redirect, "b": lambda reply: reply.hang_up()}.items():
            with pytest.raises(errors.OriginUnavailable) as refused:
                alice.fetch(container.lie(f"{name}/weights", answer))
            said.append(str(refused.value))
        assert stranger.request_count == 0
    text = f"{said}{daemon.read_log()}"
    assert "c2lnbmF0dXJl" not in text and "sig=" not in text


def test_a_proxy_is_left_to_mlflow(
    start_daemon: StartDaemon, liar: LyingAzure, container: LyingContainer, caller_of: CallerOf, room: Path
) -> None:
    """HTTP_PROXY is used as MLflow uses it; what NO_PROXY names is asked directly, by obstore too."""
    container.put("run", FILES)
    with azure.lying_azure() as proxy:  # it answers whatever host a request is for
        proxy.containers = liar.containers
        through = proxy.uri.removesuffix(f"/{ACCOUNT}")
        env = connection(liar.uri) | {"HTTP_PROXY": through, "http_proxy": through}
        daemon = start_daemon(TRACKING, env=env, unreachable_after=10.0)
        found = caller_of(daemon, room).fetch(f"{container.uri}/run")
        assert trees.read(found.path) == FILES and found.transport == "mlflow"
        assert "through a proxy" in daemon.read_log()
        env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        assert caller_of(start_daemon(TRACKING, env=env), room).fetch(f"{container.uri}/run").transport == "azure"


def test_variables_that_only_obstore_knows_change_nothing(
    start_daemon: StartDaemon, liar: LyingAzure, container: LyingContainer, caller_of: CallerOf, room: Path
) -> None:
    """What MLflow's own client would not heed is not heeded; what cannot be switched off leaves it to MLflow."""
    container.put("run", {"x": b"x"})
    with azure.lying_azure() as stranger:
        env = connection(liar.uri) | {
            "AZURE_STORAGE_ENDPOINT": stranger.uri,
            "AZURE_ENDPOINT": stranger.uri,
            "AZURE_STORAGE_ACCOUNT_NAME": "another",
            "AZURE_STORAGE_SAS_TOKEN": "sig=another",
            "AZURE_STORAGE_TOKEN": "another",
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": stranger.uri,
            "AZURE_SKIP_SIGNATURE": "true",
            "AZURE_CREDENTIAL_TYPE": "managed_identity",
            "AZURE_USE_FABRIC_ENDPOINT": "true",
            "AZURE_PROXY_URL": stranger.uri,
        }
        since = len(liar.seen)
        found = caller_of(start_daemon(TRACKING, env=env), room).fetch(f"{container.uri}/run")
        assert found.transport == "azure" and stranger.request_count == 0
        assert all(header.startswith(f"SharedKey {ACCOUNT}:") for _, header, _ in liar.seen[since:])
        env["AZURE_ENCRYPTION_KEY"] = "YQ=="
        found = caller_of(start_daemon(TRACKING, env=env), room).fetch(f"{container.uri}/run")
        assert found.transport == "mlflow" and stranger.request_count == 0
