"""What `make dist` makes: complete, the same every time, and the same from the source distribution."""

from __future__ import annotations

import configparser
import csv
import hashlib
import re
import shutil
import subprocess
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import tomllib

from tools import dist
from tools.locked import TOP, blocks, needed

DISTRIBUTIONS = {"artifactcache": TOP / "client", "cacheserver": TOP}
# In an environment, what of the checkout stands where.
BESIDE = {
    "config.example.toml": "share/cacheserver/config.example.toml",
    "systemd/cacheserver.service": "lib/systemd/system/cacheserver.service",
    "systemd/cacheserver.sysusers.conf": "lib/sysusers.d/cacheserver.conf",
    "systemd/user/cacheserver.service": "lib/systemd/user/cacheserver.service",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it makes."""
    folder = tmp_path_factory.mktemp("dist")
    dist.make(folder)
    return folder


def _tracked(folder: str) -> set[str]:
    command = ("git", "-c", "safe.directory=*", "-C", str(TOP), "ls-files", "-z", "-c", "-o", "--exclude-standard")
    found = subprocess.run((*command, folder), capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"this is no git checkout: {found.stderr.decode().strip()}")
    return {name for name in found.stdout.decode().split("\0") if name and (TOP / name).is_file()}


def _wheel(made: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(made.glob(f"{name}-*.whl")))


def _metadata(made: Path, name: str, file: str = "METADATA") -> str:
    wheel = _wheel(made, name)
    return wheel.read(next(each for each in wheel.namelist() if each.endswith(f".dist-info/{file}"))).decode()


def _parsed(made: Path, name: str) -> Message:
    return Parser().parsestr(_metadata(made, name))


def test_what_is_made(made: Path) -> None:
    """Two wheels, two sources, what a host needs, and checksums that `sha256sum` takes."""
    names = sorted(path.name for path in made.iterdir())
    version = r"-\d+\.\d+\.\d+"
    wanted = (
        "SHA256SUMS",
        *(f"{name}{version}{end}" for name in DISTRIBUTIONS for end in (r"-py3-none-any\.whl", r"\.tar\.gz")),
        r"requirements\.txt",
    )
    assert len(names) == len(wanted) and all(re.fullmatch(w, n) for w, n in zip(wanted, names, strict=True)), names
    done = subprocess.run(("sha256sum", "--check", "SHA256SUMS"), cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK") == 5


def test_the_same_checkout_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """Whenever it is done."""
    dist.make(tmp_path)
    assert (tmp_path / dist.CHECKSUMS).read_text() == (made / dist.CHECKSUMS).read_text()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_source_makes_the_same_wheel(made: Path, tmp_path: Path, name: str) -> None:
    """Byte for byte: nothing that a wheel needs is only in the checkout."""
    source = next(made.glob(f"{name}-*.tar.gz"))
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (unpacked,) = (tmp_path / "source").iterdir()
    dist.build(unpacked, tmp_path / "wheel", "wheel")
    (again,) = (tmp_path / "wheel").iterdir()
    assert again.read_bytes() == (made / again.name).read_bytes()


def test_every_file_of_a_package_is_in_its_wheel(made: Path) -> None:
    """As git has them or would take them, none more, none less, and with the same bytes."""
    for name, tracked in (
        ("artifactcache", _tracked("client/artifactcache")),
        ("cacheserver", _tracked("cacheserver")),
    ):
        wheel = _wheel(made, name)
        inside = {each for each in wheel.namelist() if each.startswith(f"{name}/")}
        there = {str(Path(each).relative_to("client")) if name == "artifactcache" else each: each for each in tracked}
        assert inside == set(there) and f"{name}/py.typed" in inside
        assert all(wheel.read(each) == (TOP / there[each]).read_bytes() for each in inside)


def test_what_a_host_needs_is_in_the_daemons_wheel(made: Path) -> None:
    """Units, account, example, dashboard and examples, where a host's tools look for them below a prefix."""
    beside = BESIDE | {each: f"share/cacheserver/{each}" for each in _tracked("examples")}
    beside |= {each: each.replace("docs", "share/cacheserver", 1) for each in _tracked("docs/grafana")}
    wheel = _wheel(made, "cacheserver")
    found = {each.split(".data/data/")[1]: each for each in wheel.namelist() if ".data/data/" in each}
    assert set(found) == set(beside.values()) and len(found) >= 9
    for path, place in beside.items():
        assert wheel.read(found[place]) == (TOP / path).read_bytes(), path


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wheel_says_what_it_is(made: Path, name: str) -> None:
    """License, words for a person, Pythons; what it needs as in pyproject.toml; and it is as its own record says."""
    said, project = _parsed(made, name), tomllib.loads((DISTRIBUTIONS[name] / "pyproject.toml").read_text())["project"]
    assert (said["Name"], said["Version"], said["License-Expression"]) == (name, project["version"], "Apache-2.0")
    assert said["Requires-Python"] == project["requires-python"] and said["License-File"] == "LICENSE"
    assert said["Description-Content-Type"] == "text/markdown" and len(str(said.get_payload())) > 500
    pythons = {line.split(" :: ")[2] for line in said.get_all("Classifier", []) if "Python :: 3." in line}
    assert project["requires-python"].removeprefix(">=") in pythons
    extras = project.get("optional-dependencies", {})
    needs = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split(";")[0].strip() for line in needs} == set(project["dependencies"])
    assert set(said.get_all("Provides-Extra", [])) == set(extras)
    scripts = configparser.ConfigParser(delimiters=("=",))
    scripts.read_string(_metadata(made, name, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == project["scripts"]
    wheel = _wheel(made, name)
    for path, told, _ in csv.reader(_metadata(made, name, "RECORD").splitlines()):
        if told:
            kind, digest = told.split("=")
            assert kind == "sha256"
            assert hashlib.sha256(wheel.read(path)).digest().hex() == _hex(digest)
    assert wheel.testzip() is None


def _hex(urlsafe: str) -> str:
    import base64

    return base64.urlsafe_b64decode(urlsafe + "=" * (-len(urlsafe) % 4)).hex()


def test_both_are_under_the_same_license() -> None:
    """A distribution has its own copy, for it is unpacked alone."""
    assert (TOP / "client" / "LICENSE").read_bytes() == (TOP / "LICENSE").read_bytes()


def test_a_host_needs_what_the_tests_ran_with(made: Path) -> None:
    """Each with its hashes as in the lock; nothing of the tests, none of MLflow's server."""
    asked = blocks((made / dist.REQUIREMENTS).read_text())
    locked = blocks((TOP / "requirements.lock").read_text())
    assert set(asked) == needed("cacheserver") - set(DISTRIBUTIONS)
    assert all(locked[name] == block and "--hash=sha256:" in block for name, block in asked.items())
    assert {"grpcio", "mlflow-skinny"} <= set(asked) and not {"mlflow", "pytest", "obstore"} & set(asked)
    assert {"obstore", "boto3"} <= needed("cacheserver", ["s3"])


def test_the_client_needs_grpc_and_protobuf_alone() -> None:
    """And what those need in turn."""
    assert needed("artifactcache") == {"artifactcache", "grpcio", "protobuf", "typing-extensions"}


def test_dist_leaves_nothing_of_before(tmp_path: Path) -> None:
    """A folder that had another version's wheel has it no more."""
    (tmp_path / "artifactcache-0.0.1-py3-none-any.whl").touch()
    dist.make(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    shutil.rmtree(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Whoever names one by mistake loses nothing."""
    kept = tmp_path / "thesis.txt"
    kept.touch()
    (tmp_path / "SHA256SUMS").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.txt was not made here"):
        dist.make(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
