"""A caller's credentials: what the client finds where MLflow does, and what the daemon takes of them."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

from artifactcache import credentials as clients
from artifactcache.errors import InvalidRequest
from cacheserver.credentials import BYTES_MAX, HEADERS_MAX, read

SERVER = "https://mlflow.example"
SECRET = b"secret"


def basic(user: str, password: str) -> dict[str, str]:
    """The header of a login."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without anything."""
    for name in clients.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(clients, "_has_header_plugins", lambda: False)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)


def test_none_are_none() -> None:
    """Then there is no header."""
    assert clients.headers(SERVER) == {}


def test_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MLflow's order, each before those that come later in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    assert clients.headers(SERVER) == {"Authorization": "Bearer token"}
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = file\nmlflow_tracking_password = p%w\n".replace("%", "%%")
    )
    assert clients.headers(SERVER) == basic("file", "p%w")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "variable")
    assert clients.headers(SERVER) == basic("file", "variable")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    assert clients.headers(SERVER) == basic("me", "variable")
    (tmp_path / ".netrc").write_text("machine mlflow.example login net password rc\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert clients.headers(SERVER) == basic("net", "rc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://url:w%40rd@mlflow.example:443/")
    assert clients.headers(SERVER) == basic("url", "w@rd")


@pytest.mark.parametrize(
    "other",
    ["https://elsewhere.example", "http://mlflow.example", "https://mlflow.example:444", f"{SERVER}/sub", "x://["],
)
def test_those_of_another_server_are_not_told(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """Whatever differs: scheme, host, port or path."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert clients.headers(SERVER) == {}


@pytest.mark.parametrize(
    "text", ["", "[mlflow", "[mlflow]\nmlflow_tracking_username = %(x)s\n", "\xff\xfe\x00", "[other]\n"]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """It is as if it were not there; the server says what is missing."""
    (tmp_path / ".mlflow").mkdir()
    for path in (tmp_path / ".mlflow" / "credentials", tmp_path / ".netrc"):
        path.write_bytes(text.encode("latin-1"))
    assert clients.headers(SERVER) == {}


def test_equal_ones_have_one_key_and_others_another() -> None:
    """Whatever the order and the case of names; and with another secret another one."""
    one = read({"Authorization": "a", "X-Api-Key": "b"}, SECRET)
    assert one.key == read({"x-api-key": "b", "authorization": "a"}, SECRET).key
    assert one.key not in (read({"Authorization": "a", "X-Api-Key": "c"}, SECRET).key, read(one.headers, b"x").key)
    assert "hidden" not in repr(read({"Authorization": "hidden"}, SECRET))


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "Connection", "Content-Length", "Transfer-Encoding", "Range", "If-None-Match", "Accept-Encoding"),
        *("X-Forwarded-User", "X-Forwarded-For", "Forwarded", "X-Original-URL", "X-Rewrite-Url", "Remote-User"),
        *("X-MLFLOW-WORKSPACE", "Proxy-Authorization", "User-Agent", "X-HTTP-Method-Override", "X-Remote-User"),
        *("X_MLFLOW_WORKSPACE", "x_forwarded_user", "Remote_User", "X_Original-URL", "Content_Length"),
        *("", "a b", "a:b", "a\r\nb", "ä", "x" * 257),
    ],
)
def test_what_is_not_sent_on(name: str) -> None:
    """What says how a request travels, what is asked for, or whom a proxy has let in; and what is no name."""
    with pytest.raises(InvalidRequest):
        read({name: "x"}, SECRET)


@pytest.mark.parametrize("value", ["a\r\nHost: evil", "a\nb", "a\0b", "ä", "\x7f", "Negotiate abc", "NTLM abc"])
def test_a_value_is_one_line_of_one_request(value: str) -> None:
    """Nothing in it begins another header, or logs in the connection, which is everybody's."""
    with pytest.raises(InvalidRequest):
        read({"Authorization": value}, SECRET)


def test_there_is_an_end_to_it() -> None:
    """So many headers, so many bytes; and each once."""
    read({f"x-{n}": "y" for n in range(HEADERS_MAX)}, SECRET)
    read({"x": "y" * (BYTES_MAX - 1)}, SECRET)
    for headers in ({f"x-{n}": "y" for n in range(HEADERS_MAX + 1)}, {"x": "y" * BYTES_MAX}, {"x-a": "1", "X_A": "2"}):
        with pytest.raises(InvalidRequest):
            read(headers, SECRET)
