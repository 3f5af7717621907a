"""What the doctor finds of a process by itself: its versions, its environment, its credentials, its limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from artifactcache import doctor, errors, surroundings
from artifactcache.deadline import Deadline
from artifactcache.findings import NOTE, OK, PROBLEM, Finding

SERVER = "http://mlflow.example:5000"
NAMES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "NETRC", "ARTIFACTCACHE", "GRPC_ENABLE_FORK_SUPPORT"),
)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that says nothing of MLflow, whatever this process has imported, and a home without files."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def levels(found: list[Finding]) -> list[str]:
    """The levels alone."""
    return [each.level for each in found]


@pytest.mark.parametrize(
    ("grpcio", "protobuf", "found"),
    [
        ("1.62.0", "4.25.3", [OK]),
        ("1.9.0", "4.25.3", [OK, PROBLEM]),
        ("2.0.0rc1", "10", [OK]),
        ("", "3.20.3", [OK, PROBLEM, PROBLEM]),
        ("weird", "4.25", [OK, PROBLEM]),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, grpcio: str, protobuf: str, found: list[str]) -> None:
    """By their numbers, not their letters; what is missing is a problem of its own."""
    told = {"grpcio": grpcio, "protobuf": protobuf}
    monkeypatch.setattr(surroundings, "found_version", lambda name: told[name])
    assert levels(surroundings.client()) == found


def test_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own switch for them is noted where it is off."""
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    assert levels(surroundings.client()) == [OK, NOTE]


def test_another_version_of_the_daemon() -> None:
    """Older and newer are told apart, by numbers."""
    assert surroundings.daemon_version("0.1.0") == []
    assert "older" in surroundings.daemon_version("0.0.9")[0].what
    assert "newer" in surroundings.daemon_version("0.10.0")[0].what


@pytest.mark.parametrize(
    ("name", "uri", "is_other"),
    [
        ("MLFLOW_TRACKING_URI", "http://mlflow.example:5000/", False),
        ("MLFLOW_TRACKING_URI", "http://u:p@MLFLOW.example:5000", False),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example:5000", True),
        ("MLFLOW_TRACKING_URI", "databricks", True),
        ("MLFLOW_TRACKING_URI", "./mlruns", True),
        ("MLFLOW_REGISTRY_URI", "http://registry.example", True),
    ],
)
def test_another_tracking_server(monkeypatch: pytest.MonkeyPatch, name: str, uri: str, is_other: bool) -> None:
    """As the plugin compares it: what is the same server for it is no finding."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv(name, uri)
    assert (PROBLEM in levels(surroundings.plugin(SERVER))) == is_other


@pytest.mark.parametrize(("mlflow", "switch"), [("", ""), ("3.2.0", "off")])
def test_another_tracking_server_where_nothing_is_served(
    monkeypatch: pytest.MonkeyPatch, mlflow: str, switch: str
) -> None:
    """Without MLflow, or with the plugin off, nothing fails, and nothing is said of a plugin that steps aside."""
    monkeypatch.setattr(surroundings, "found_version", lambda _: mlflow)
    monkeypatch.setenv("ARTIFACTCACHE", switch)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry.example")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert "registry" not in str(surroundings.plugin(SERVER))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere.example")
    found = surroundings.plugin(SERVER)
    assert NOTE in levels(found) and PROBLEM not in levels(found) and "steps aside" not in str(found)


def test_an_mlflow_that_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older and newer ones are noted; 3.2 is older than 3.17."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    for its, found in (("2.9.2", NOTE), ("2.22.0", ""), ("3.2.0", ""), ("3.17.2", ""), ("3.18.0", NOTE)):
        monkeypatch.setattr(surroundings, "found_version", lambda _, its=its: its)
        told = [each for each in surroundings.plugin(SERVER) if "not tried" in each.what]
        assert levels(told) == ([found] if found else []), its


def test_whence_credentials_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In MLflow's order, by name; nothing of them is shown. Without `check = "caller"` none are looked for."""
    assert surroundings.logins(SERVER, "none") == []
    assert levels(surroundings.logins(SERVER, "caller")) == [NOTE]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    assert surroundings.logins(SERVER, "caller")[0].what.endswith("those of MLFLOW_TRACKING_TOKEN")
    (tmp_path / ".mlflow").mkdir()
    path = tmp_path / ".mlflow" / "credentials"
    path.write_text("[mlflow]\nmlflow_tracking_username = u\nmlflow_tracking_password = s3cret\n")
    path.chmod(0o640)
    found = surroundings.logins(SERVER, "caller")
    assert levels(found) == [NOTE, OK] and found[1].what.endswith(str(path))
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine mlflow.example login u password s3cret\n")
    netrc.chmod(0o600)
    assert surroundings.logins(SERVER, "caller")[1].what.endswith(str(netrc))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:s3cret@mlflow.example:5000")
    found = surroundings.logins(SERVER, "caller")
    assert found[1].what.endswith("those of the tracking URI") and "s3cret" not in str(found)


def test_clocks_and_numbers() -> None:
    """What the call itself took is no skew; two numbers for one user are a note."""
    assert surroundings.clock(0.4, 0.5) == [] and surroundings.clock(6.0, 6.0) == []
    assert levels(surroundings.clock(-9.0, 0.1)) == [PROBLEM]
    assert surroundings.identity(5, 5) == [] and levels(surroundings.identity(5, 6)) == [NOTE]


def test_a_check_that_breaks_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one is made all the same; one that hangs beyond its time is left behind."""
    monkeypatch.setattr(doctor, "HANGING_SECONDS", 0.0)
    examination = doctor.Examination(None)
    release = __import__("threading").Event()

    def refused(_: Deadline) -> None:
        raise errors.PermissionDenied("not you")

    assert examination._try("one", lambda _: 1 // 0, 5.0) is None
    assert examination._try("two", refused, 5.0) is None

    def busy(_: Deadline) -> None:
        raise errors.QuotaExceeded("two at a time")

    assert examination._try("three", lambda _: release.wait(60), 0.01) is None
    assert examination._try("four", lambda _: "done", 5.0) == "done"
    release.set()
    assert [each.level for each in examination._found] == [PROBLEM] * 3
    assert "ZeroDivisionError" in examination._found[0].what
    assert examination._found[1].what == "PermissionDenied: not you"
    assert "was not done within" in examination._found[2].what
    assert examination._try("five", busy, 5.0) is None
    assert (examination._found[3].level, "two at a time" in examination._found[3].what) == (NOTE, True)
