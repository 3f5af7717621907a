"""Where Google's and Azure's own clients would ask and as whom, and what obstore can be told of that."""

from __future__ import annotations

import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken, AzureSasCredential
from azure.storage.blob import BlobServiceClient
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.oauth2 import credentials as oauth2
from mlflow.store.artifact.azure_blob_artifact_repo import AzureBlobArtifactRepository

from cacheserver import azure, gcs
from cacheserver.azure import AzureBuckets
from cacheserver.buckets import LONG_AGO, Unfit
from cacheserver.objects import ObjectFiles, Parts
from cacheserver.repository import RepositoryFiles, Transfers
from cacheserver.staging import Sink
from cacheserver.words import Location
from tests.rig.azure import LyingAzure, connection, lying_azure
from tests.rig.lying_s3 import make_certificate

google_credentials: Any = oauth2.Credentials
KEY = "a2V5"
ACCOUNT_URL = "https://acc.blob.core.windows.net"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has set for clients is not set."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_")) or name.upper().endswith(("_PROXY", "CA_BUNDLE")):
            monkeypatch.delenv(name)


def google(user_project: str | None = None, **client: Any) -> Any:
    """A bucket of Google's own client. Nobody is asked."""
    client.setdefault("credentials", google_credentials("token"))
    return storage.Client(project="tests", **client).bucket("b1", user_project=user_project)


GOOGLE = "https://storage.googleapis.com"


@pytest.mark.parametrize(
    ("bucket", "environment", "expected"),
    [
        (google, {}, gcs.Place("b1", GOOGLE, True, True)),
        (partial(google, credentials=AnonymousCredentials()), {}, gcs.Place("b1", GOOGLE, False, True)),
        (google, {"REQUESTS_CA_BUNDLE": "/some.pem"}, gcs.Place("b1", GOOGLE, True, "/some.pem")),
        (google, {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, gcs.Place("b1", "http://127.0.0.1:9", True, True)),
        (google, {"API_ENDPOINT_OVERRIDE": "https://gcs.example/"}, gcs.Place("b1", "https://gcs.example", True, True)),
        (google, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "googleapis.com"}, gcs.Place("b1", GOOGLE, True, True)),
        (
            partial(
                google,
                credentials=google_credentials("token", universe_domain="cloud.example"),
                client_options={"universe_domain": "cloud.example"},
            ),
            {},
            gcs.Place("b1", "https://storage.cloud.example", True, True),
        ),
    ],
)
def test_a_bucket_is_where_googles_client_asks(
    monkeypatch: pytest.MonkeyPatch, bucket: Callable[[], Any], environment: dict[str, str], expected: gcs.Place
) -> None:
    """Host, whether there are credentials, certificates."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gcs.place(bucket()) == expected


@pytest.mark.parametrize(
    ("bucket", "environment", "why"),
    [
        (partial(google, user_project="payer"), {}, "pays"),
        (partial(google, extra_headers={"x-audit": "1"}), {}, "headers of its own"),
        (google, {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9/deep"}, "of a kind"),
        (google, {"HTTPS_PROXY": "http://proxy.example:3128"}, "proxy"),
        (google, {"ALL_PROXY": "http://proxy.example:3128"}, "proxy"),
        (google, {"REQUESTS_CA_BUNDLE": "/tmp"}, "folder"),
    ],
)
def test_what_of_google_is_left_to_mlflow(
    monkeypatch: pytest.MonkeyPatch, bucket: Callable[[], Any], environment: dict[str, str], why: str
) -> None:
    """Nothing is guessed."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unfit, match=why):
        gcs.place(bucket())


def azure_client(url: str = ACCOUNT_URL, credential: Any = KEY, **more: Any) -> Any:
    """Azure's own client. Nobody is asked; its transport is opened, as by a listing."""
    client = BlobServiceClient(url, credential=credential, **more)
    client._config.transport.open()
    return client


def connected(text: str) -> Any:
    """The same, of a connection string."""
    client = BlobServiceClient.from_connection_string(text)
    client._config.transport.open()
    return client


class Tokens:
    """A credential of somebody's; each token is another one, and each is about to expire."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """As azure.identity has it."""
        assert scopes == ("https://storage.azure.com/.default",)
        self.given.append(f"token-{len(self.given)}")
        return AccessToken(self.given[-1], int(time.time()) + 10)


AZURITE = "http://127.0.0.1:10000/devstoreaccount1"


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (azure_client, azure.Place("c", "acc", ACCOUNT_URL, "key", True)),
        (partial(azure_client, credential=Tokens()), azure.Place("c", "acc", ACCOUNT_URL, "token", True)),
        (partial(azure_client, credential="sv=1&sig=a"), azure.Place("c", "acc", ACCOUNT_URL, "signature", True)),
        (
            partial(azure_client, credential=AzureSasCredential("sig=a")),
            azure.Place("c", "acc", ACCOUNT_URL, "signature", True),
        ),
        (partial(azure_client, f"{ACCOUNT_URL}/?sig=a", None), azure.Place("c", "acc", ACCOUNT_URL, "signature", True)),
        (partial(azure_client, credential=None), azure.Place("c", "acc", ACCOUNT_URL, "", True)),
        (
            partial(azure_client, connection_verify="/some.pem"),
            azure.Place("c", "acc", ACCOUNT_URL, "key", "/some.pem"),
        ),
        (
            partial(connected, f"AccountName=devstoreaccount1;AccountKey={KEY};BlobEndpoint={AZURITE}"),
            azure.Place("c", "devstoreaccount1", AZURITE, "key", True),
        ),
        (
            partial(connected, f"AccountName=acc;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"),
            azure.Place("c", "acc", "https://acc.blob.core.chinacloudapi.cn", "key", True),
        ),
    ],
)
def test_a_container_is_where_azures_client_asks(client: Callable[[], Any], expected: azure.Place) -> None:
    """Host, account, kind of credential, certificates."""
    assert azure.place(client(), "c") == expected


@pytest.mark.parametrize(
    ("client", "environment", "why"),
    [
        (azure_client, {"AZURE_ENCRYPTION_KEY": "YQ=="}, "AZURE_ENCRYPTION_KEY"),
        (azure_client, {"HTTPS_PROXY": "http://proxy.example:3128"}, "proxy"),
        (partial(azure_client, proxies={"https": "http://proxy.example:3128"}), {}, "proxy"),
        (partial(azure_client, connection_cert="/mine.pem"), {}, "certificate"),
    ],
)
def test_what_of_azure_is_left_to_mlflow(
    monkeypatch: pytest.MonkeyPatch, client: Callable[[], Any], environment: dict[str, str], why: str
) -> None:
    """Nothing is guessed."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unfit, match=why):
        azure.place(client(), "c")


def test_without_obstore_it_is_left_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one package that only this room needs; what there is, MLflow's client says all the same."""
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with lying_azure() as server:
        container = server.container()
        container.put("run", {"a": b"first"})
        client = BlobServiceClient.from_connection_string(*connection(server.uri).values())
        repository = AzureBlobArtifactRepository(f"{container.uri}/run", client=client)
        buckets, name = AzureBuckets(5.0, lambda: None), container.uri.removeprefix("wasbs://")
        assert [found.key for found in buckets.page(repository, name, "run/", "", None).found] == ["run/a"]
    left = buckets.known(name)
    assert left and left.store is None


@pytest.fixture
def over_tls(tmp_path: Path) -> Iterator[tuple[LyingAzure, Path]]:
    """An endpoint with a certificate, for Azure's client gives its token to no other; and whom to trust for it."""
    authority, certificate, key = make_certificate(tmp_path, self_signed=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with lying_azure() as server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        server.uri = server.uri.replace("http:", "https:")
        yield server, authority


def test_tokens_are_those_of_azures_client(over_tls: tuple[LyingAzure, Path], tmp_path: Path) -> None:
    """Each request has the one that the client's own policy would send; what that renews is renewed for obstore."""
    server, authority = over_tls
    tokens, container = Tokens(), server.container()
    container.put("run", {"a": b"first", "b": b"second"})
    client = BlobServiceClient(server.uri, credential=tokens, connection_verify=str(authority))
    repository = AzureBlobArtifactRepository(f"{container.uri}/run", client=client)
    parts, transfers, buckets = Parts(), Transfers(5.0), AzureBuckets(5.0, lambda: None)
    try:
        ask: Callable[[str, Callable[[], Any]], Any] = lambda what, question: question()  # noqa: E731
        otherwise = RepositoryFiles(repository, True, ask, transfers)
        files = ObjectFiles(f"{container.uri}/run", lambda: repository, buckets, parts, ask, otherwise)
        listed = files.listing(Location(f"{container.uri}/run", ""))
        for file in listed.files:
            with Sink(str(tmp_path / os.fsdecode(file.path)), file.size, "it") as sink:
                files.fill(file, sink)
    finally:
        parts.close()
        transfers.close()
    assert files.transport == "azure" and (tmp_path / "a").read_bytes() == b"first"
    sent = [authorization.removeprefix("Bearer ") for _, authorization, _ in server.seen]
    assert set(sent) <= set(tokens.given) and len(set(sent)) == len(sent) > 2  # the first asks for a certificate
    bucket = buckets.known(container.uri.removeprefix("wasbs://"))
    assert bucket and tokens.given[-1] in bucket.secrets()


def test_what_of_a_signature_is_secret() -> None:
    """The signature itself, as it is and as it stands in a URL."""
    client = azure_client(credential="sv=2024-11-04&sp=rl&sig=a%2Bb%2F%3D")
    keys = azure.Keys(client, azure.place(client, "c"))
    assert keys.credential() == {
        "sas_token": [("sv", "2024-11-04"), ("sp", "rl"), ("sig", "a+b/=")],
        "expires_at": LONG_AGO,
    }
    assert {"a+b/=", "a%2Bb%2F%3D"} <= set(keys.secrets())
