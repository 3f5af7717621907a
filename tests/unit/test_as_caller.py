"""A tracking server behind a path prefix, asked as a caller: the questions go there, and the caller's credentials
nowhere else. Other applications may be behind the same host."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from artifactcache.errors import Corrupted
from cacheserver import uris
from cacheserver.credentials import Credentials
from cacheserver.origin import MlflowOrigin
from cacheserver.staging import Sink
from cacheserver.words import File, Location

PREFIX, API, FILES = "/mlflow", "/api/2.0/", "mlflow-artifacts/artifacts"
RUN, MODEL = "a" * 32, "m-" + "b" * 32
HERS = "Bearer hers"
ROOT = f"mlflow-artifacts:/1/{RUN}/artifacts"
RUN_INFO = {"run_id": RUN, "artifact_uri": ROOT, "status": "FINISHED"}
VERSION = {"name": "resnet", "version": "3", "run_id": RUN, "status": "READY", "creation_timestamp": 1}
ANSWERS: dict[str, Any] = {
    "mlflow/runs/get": {"run": {"info": RUN_INFO, "outputs": {"model_outputs": [{"model_id": MODEL}]}}},
    f"mlflow/logged-models/{MODEL}": {
        "model": {"info": {"model_id": MODEL, "name": "m", "source_run_id": RUN, "artifact_uri": f"{ROOT}/m"}}
    },
    "mlflow/model-versions/get": {"model_version": VERSION},
    "mlflow/model-versions/get-download-uri": {"artifact_uri": f"{ROOT}/model"},
    "mlflow/registered-models/alias": {"model_version": VERSION},
    "mlflow/registered-models/get-latest-versions": {"model_versions": [VERSION]},
    FILES: {"files": [{"path": "x", "is_dir": False, "file_size": 1}]},
}


class Host:
    """A host with a tracking server below PREFIX, and something that answers the same elsewhere. Keeps path, query and
    Authorization header of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], str]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
                host.asked.append((path, query, self.headers.get("Authorization", "")))
                what = unquote(path).rpartition(API)[2]
                body = b"x" if what.startswith(f"{FILES}/") else json.dumps(ANSWERS[what]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.name = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Answers nothing any more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    """The host."""
    host = Host()
    yield host
    host.close()


@pytest.fixture
def another() -> Iterator[Host]:
    """Another host."""
    host = Host()
    yield host
    host.close()


@pytest.fixture(params=["http://{host}/mlflow", "http://{host}/mlflow/", "http://daemon:s3cret@{host}/mlflow"])
def origin(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> Iterator[MlflowOrigin]:
    """What a daemon makes of its tracking URI, with a slash at its end or without, and with a login of its own."""
    yield from _origin(request.param.format(host=host.name), tmp_path)


@pytest.fixture
def plain(host: Host, tmp_path: Path) -> Iterator[MlflowOrigin]:
    """The same, of the first of these."""
    yield from _origin(f"http://{host.name}{PREFIX}", tmp_path)


def _origin(tracking_uri: str, folder: Path) -> Iterator[MlflowOrigin]:
    origin = MlflowOrigin(
        tracking_uri, 30.0, forbidden=str(folder), world_only=True, ticks=time.monotonic, clock=time.time
    )
    yield origin
    origin.close()


QUESTIONS = {
    f"runs:/{RUN}": ["mlflow/runs/get", f"mlflow/logged-models/{MODEL}"],
    f"models:/{MODEL}": [f"mlflow/logged-models/{MODEL}"],
    "models:/resnet/3": ["mlflow/model-versions/get", "mlflow/model-versions/get-download-uri", "mlflow/runs/get"],
    f"{ROOT}/model": ["mlflow/runs/get"],
    "mlflow-artifacts:/1/plain": [FILES],
}


@pytest.mark.parametrize("uri", QUESTIONS)
def test_questions_go_below_the_prefix(origin: MlflowOrigin, host: Host, uri: str) -> None:
    """All that is asked before a caller is let in, with the caller's credentials, and nothing else is."""
    origin.prove(uris.parse(uri), Credentials({"Authorization": HERS}))
    assert [(path, login) for path, _, login in host.asked] == [(PREFIX + API + each, HERS) for each in QUESTIONS[uri]]
    if uri.startswith("runs:"):
        assert host.asked[0][1] == {"run_id": [RUN]}


@pytest.mark.parametrize("uri", ["models:/resnet@champion", "models:/resnet/latest"])
def test_names_that_move_are_looked_up_below_the_prefix(origin: MlflowOrigin, host: Host, uri: str) -> None:
    """So are they, as the caller."""
    version, _ = origin.as_caller({"Authorization": HERS}).version_of(uris.parse(uri))
    assert version.uri == "models:/resnet/3"
    assert [(path.startswith(f"{PREFIX}{API}mlflow/registered-models/"), login) for path, _, login in host.asked] == [
        (True, HERS)
    ]


def fetched(origin: MlflowOrigin, root: str, folder: Path, login: str = HERS) -> None:
    """A root that the tracking server has named is listed, and its file downloaded, as a caller."""
    seen, location = origin.as_caller({"Authorization": login} if login else {}), Location(root, "")
    (file,) = seen.listing(location, named_by_client=False).files
    assert file == File(b"x", 1, "x")
    with Sink(str(folder / "x"), 1, "x") as sink:
        seen.fill(location, file, sink, named_by_client=False)


def test_bytes_come_from_below_the_prefix(origin: MlflowOrigin, host: Host, tmp_path: Path) -> None:
    """With the caller's credentials."""
    fetched(origin, ROOT, tmp_path)
    folder = f"{PREFIX}{API}{FILES}"
    assert host.asked == [
        (folder, {"path": [f"1/{RUN}/artifacts"]}, HERS),
        (f"{folder}/1/{RUN}/artifacts/x", {}, HERS),
    ]


@pytest.mark.parametrize(
    "before",
    [
        "http://{host}/other",
        "http://{host}",
        "http://{host}/mlflow-of-others",
        "http://{host}/mlflow/../other",
        "http://{host}/mlflow/%2e%2E/other",
        "http://{another}/mlflow",
        "http://{host}@{another}/mlflow",
    ],
)
def test_credentials_stay_below_the_prefix(
    plain: MlflowOrigin, host: Host, another: Host, tmp_path: Path, before: str
) -> None:
    """Whoever may create runs names any root: what another application is asked, be it at the same host, has nothing of
    whose run it was thought to be."""
    fetched(plain, f"{before.format(host=host.name, another=another.name)}{API}{FILES}/1/x", tmp_path)
    assert [login for _, _, login in host.asked + another.asked] == ["", ""]


def test_credentials_do_not_climb(plain: MlflowOrigin, host: Host, tmp_path: Path) -> None:
    """Nor do they go with a path that leads out of the tracking server's at its end."""
    root = f"http://{host.name}{PREFIX}{API}{FILES}/../../../../../other{API}{FILES}/x"
    fetched(plain, root, tmp_path)
    assert [login for path, _, login in host.asked if ".." in path] == [""]


def test_the_daemons_own_login_is_not_sent_for_a_caller(host: Host, tmp_path: Path) -> None:
    """Whoever presents nothing is asked for as nobody, whatever the daemon itself has."""
    for origin in _origin(f"http://daemon:s3cret@{host.name}{PREFIX}", tmp_path):
        origin.prove(uris.parse(f"runs:/{RUN}"), Credentials())
        fetched(origin, ROOT, tmp_path, login="")
    assert {login for _, _, login in host.asked} == {""}


@pytest.mark.parametrize("uri", [f"runs:/{'c' * 32}", f"models:/m-{'c' * 32}", "models:/resnet/4"])
def test_an_answer_about_something_else_lets_nobody_in(
    plain: MlflowOrigin, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """What a server, or a proxy before it, says of another run, model or version is no leave to read this one."""
    monkeypatch.setitem(ANSWERS, f"mlflow/logged-models/m-{'c' * 32}", ANSWERS[f"mlflow/logged-models/{MODEL}"])
    with pytest.raises(Corrupted, match="another one"):
        plain.prove(uris.parse(uri), Credentials({"Authorization": HERS}))
