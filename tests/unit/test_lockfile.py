"""The lock file's format: what is written is read again, and whatever else somebody writes is refused in words."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from artifactcache import lockfile
from artifactcache.errors import InvalidRequest
from artifactcache.lockfile import Lock, Locked

DIGEST = "ab" * 32
ONE = Locked("resnet", "models:/resnet@champion", "models:/resnet/3", DIGEST, 8, 12345)
TWO = Locked("data", "runs:/0a/data", "runs:/0a/data", DIGEST, 0, 0, include=("b", "a/**"), exclude=("*.tmp",))
LOCK = Lock("http://mlflow.example:5000", (TWO, ONE))


def document() -> Any:
    """A lock as JSON has it."""
    return json.loads(LOCK.text())


def parse(value: object) -> Lock:
    """Read what JSON makes of a value."""
    return lockfile.parse(json.dumps(value).encode(), "x.lock")


def words(data: bytes | object) -> str:
    """What is said of it; always with the file's name."""
    with pytest.raises(InvalidRequest) as caught:
        lockfile.parse(data if isinstance(data, bytes) else json.dumps(data).encode(), "x.lock")
    message = str(caught.value)
    assert message.startswith("x.lock")
    assert len(message) < 400
    return message


def test_the_text() -> None:
    """One value on a line, sorted, with a newline at the end; what is empty is left out."""
    assert LOCK.text() == (
        '{\n  "format": 1,\n  "tracking_uri": "http://mlflow.example:5000",\n  "artifacts": [\n'
        '    {\n      "name": "data",\n      "uri": "runs:/0a/data",\n      "version": "runs:/0a/data",\n'
        f'      "digest": "{DIGEST}",\n      "file_count": 0,\n      "size_bytes": 0,\n'
        '      "include": [\n        "a/**",\n        "b"\n      ],\n'
        '      "exclude": [\n        "*.tmp"\n      ]\n    },\n'
        '    {\n      "name": "resnet",\n      "uri": "models:/resnet@champion",\n'
        '      "version": "models:/resnet/3",\n'
        f'      "digest": "{DIGEST}",\n      "file_count": 8,\n      "size_bytes": 12345\n    }}\n  ]\n}}\n'
    )


def test_it_is_read_again() -> None:
    """Text and lock are the same thing; the order of the artifacts and of the patterns is none of it."""
    read = lockfile.parse(LOCK.text().encode(), "x")
    assert read.text() == LOCK.text() == Lock(LOCK.tracking_uri, (ONE, TWO)).text()
    assert set(read.artifacts) == {ONE, dataclasses.replace(TWO, include=("a/**", "b"))}
    strange = dataclasses.replace(ONE, name="Bär 模型", uri='models:/"\\\n\u2028é@x')
    assert lockfile.parse(Lock("x", (strange,)).text().encode(), "x").artifacts == (strange,)


def test_other_ways_to_write_it() -> None:
    """Windows' newlines, a byte order mark and another order of the keys are no reason to refuse it."""
    text = json.dumps(document(), sort_keys=True, indent=1)
    assert lockfile.parse(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), "x").text() == LOCK.text()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", "", "empty"),
        ("name", ".", "no name"),
        ("name", "..", "no name"),
        ("name", "a/b", "slash"),
        ("name", "/etc", "slash"),
        ("name", "a\nb", "control"),
        ("name", "a\0b", "NUL"),
        ("name", "ä" * 128, "255 bytes"),
        ("name", ".artifactcache-1", "half made"),
        ("name", "\ud800", "Unicode"),
        ("name", 1, "text"),
        ("name", None, "text"),
        ("uri", "", "empty"),
        ("uri", "x" * 5000, "longer"),
        ("uri", ["x"], "text"),
        ("version", "\0", "NUL"),
        ("digest", DIGEST.upper(), "lower case"),
        ("digest", DIGEST[1:], "64"),
        ("digest", DIGEST + "\n", "64"),
        ("digest", None, "64"),
        ("file_count", -1, "whole number"),
        ("file_count", True, "whole number"),
        ("file_count", 1.0, "whole number"),
        ("size_bytes", "1", "whole number"),
        ("size_bytes", 2**63, "whole number"),
        ("size_bytes", 10**400, "whole number"),
        ("include", "*.py", "list"),
        ("include", [1], "text"),
        ("include", [""], "empty"),
        ("include", ["../x"], "stays inside"),
        ("exclude", ["x"] * 101, "too many"),
    ],
)
def test_wrong_values(key: str, value: object, said: str) -> None:
    """The place and the reason are in the error; of a value only a name is repeated."""
    wrong = document()
    wrong["artifacts"][1][key] = value
    message = words(wrong)
    assert said in message
    assert "artifact 2" in message
    if key not in ("name", "include", "exclude"):
        assert "(resnet)" in message
        assert key in message


def test_keys() -> None:
    """One that is unknown is refused with the one that was meant, one that is missing is named."""
    wrong = document()
    wrong["artifact"] = wrong.pop("artifacts")
    assert "'artifact': did you mean 'artifacts'?" in words(wrong)
    wrong = document()
    wrong["artifacts"][0]["size"] = 1
    assert "artifact 1 has the unknown key 'size'" in words(wrong)
    wrong["artifacts"][0] = {"x" * 10_000: 1}
    assert "xxx…" in words(wrong)
    for key in ("name", "uri", "version", "digest", "file_count", "size_bytes"):
        wrong = document()
        del wrong["artifacts"][0][key]
        assert f"lacks '{key}'" in words(wrong)
    for key in ("format", "tracking_uri", "artifacts"):
        wrong = document()
        del wrong[key]
        assert f"lacks '{key}'" in words(wrong)
    twice = LOCK.text().replace('"file_count": 8,', '"file_count": 8,\n"digest": "x",')
    assert "'digest' is there 2 times" in words(twice.encode())


def test_formats() -> None:
    """A newer format is refused before its keys are looked at; what is no format is none."""
    assert "newer artifactcache" in words({"format": 2, "signature": "x", "artifacts": 3})
    for wrong in (0, -1, "1", 1.0, True, None, [1]):
        assert "format is the number 1" in words(document() | {"format": wrong})


def test_what_is_no_json() -> None:
    """Cut off anywhere, a merge that is not finished, numbers that are none, brackets without end."""
    whole = LOCK.text().encode()
    for length in range(len(whole) - 2):
        words(whole[:length])
    assert "line 3" in words(whole[:40])
    conflict = LOCK.text().replace('      "file_count": 8', '<<<<<<< ours\n      "file_count": 8')
    assert "merge" in words(conflict.encode())
    for data in (
        b"",
        b"\xff",
        b"\0" * 100,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"NaN",
        b"9" * 5000,
        b"[]",
        b"1",
        b'""',
    ):
        words(data)
    assert "larger" in words(b" " * (lockfile.FILE_BYTES_MAX + 1))


def test_too_many() -> None:
    """More artifacts than anybody locks are refused, and so are two of one name."""
    wrong = document()
    wrong["artifacts"] = [wrong["artifacts"][0]] * (lockfile.ARTIFACTS_MAX + 1)
    assert "10001 artifacts" in words(wrong)
    wrong["artifacts"] = wrong["artifacts"][:2]
    assert "2 artifacts have the name 'data'" in words(wrong)


def test_anything_else(dice: random.Random) -> None:
    """Bytes of a good file, changed at random: it is read, or refused as InvalidRequest, and nothing else happens."""
    whole = LOCK.text().encode()
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(changed))
            changed[place : place + dice.randrange(3)] = dice.choice((b"", b'"', b"{", b"0", b"\\u", b"\xff", b"null"))
        try:
            read = lockfile.parse(bytes(changed), "x.lock")
        except InvalidRequest:
            continue
        assert lockfile.parse(read.text().encode(), "x.lock").text() == read.text()


@pytest.mark.parametrize(
    ("uri", "is_fine"),
    [
        ("models:/resnet@champion", True),
        ("models:/a?b=c/1", True),
        ("runs:/0a/a?b@c:d", True),
        ("file:/data/a?b", True),
        ("s3://bucket/a@b:c", True),
        ("abfss://container@account.example.com/x", True),
        ("sftp://alice@host/x", True),
        ("sftp://alice:hunter2@host/x", False),
        ("abfss://a:hunter2@account.example.com/x", False),
        ("s3://hunter2@bucket/x", False),
        ("HTTPS://hunter2@host/x", False),
        ("https:/hunter2@host/x", False),
        ("https://u:p@hunter2@host/x", False),
        ("unheard-of://hunter2@host", False),
        ("s3://bucket/x?X-Amz-Signature=hunter2", False),
        ("mlflow-artifacts:/x?token=hunter2", False),
    ],
)
def test_secrets(uri: str, is_fine: bool) -> None:
    """A user, a password or a query is refused where it may be a secret, and never repeated."""
    if is_fine:
        assert lockfile.without_secret(uri, "x") == uri
        return
    with pytest.raises(InvalidRequest) as caught:
        lockfile.without_secret(uri, "x")
    assert "hunter2" not in str(caught.value)
    for key in ("uri", "version"):
        wrong = document()
        wrong["artifacts"][0][key] = uri
        assert "hunter2" not in words(wrong)
    assert "hunter2" not in words(document() | {"tracking_uri": uri})


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["models:/resnet@champion=models:/resnet/3"], ["resnet"]),
        (["models:/resnet/3/data/x=models:/resnet/3/data/x"], ["x"]),
        (["models:/m-1=models:/m-1"], ["m-1"]),
        (["runs:/0a=runs:/0a"], ["0a"]),
        (["runs:/0a/model/=runs:/0a/model"], ["model"]),
        (["s3://bucket/a/b=s3://bucket/a/b"], ["b"]),
        (["file:/a%20b=file:/a b"], ["a b"]),
        (["models:/r@a=models:/r/1", "models:/r@b=models:/r/2", "runs:/0/x=runs:/0/x"], ["r@a", "r@b", "x"]),
        (["runs:/0/m=runs:/0/m", "runs:/1/m=runs:/1/m"], ["0-m", "1-m"]),
        (["runs:/0/m=runs:/0/m", "runs:/0/m/=runs:/0/m"], ["0-m", "0-m-2"]),
        (["runs:/0/..=runs:/0/.."], ["artifact.."]),
        (["runs:/0/.artifactcache-x=runs:/0/.artifactcache-x"], ["artifact.artifactcache-x"]),
    ],
)
def test_names(wanted: list[str], chosen: list[str]) -> None:
    """Short where that is clear, else the whole URI for all who would share the short one."""
    pairs = [(each.split("=")[0], each.split("=")[1]) for each in wanted]
    assert list(lockfile.names(pairs)) == chosen


def test_names_can_always_be_used() -> None:
    """Whatever a URI looks like, and however many look alike: each name passes the check, and no two are the same."""
    parts = ["", ".", "..", "x" * 400, "ä" * 200, "a\nb", "x-2", "x", "x-3", ".artifactcache-"]
    pairs = [(f"runs:/{a}/{b}/{c}",) * 2 for a in parts for b in parts for c in parts] + [("", ""), (":", ":")]
    found = list(lockfile.names(pairs))
    assert len(found) == len(pairs) == len(set(found))
    assert [name for name in found if lockfile.name_fault(name)] == []


def test_the_uri_of_a_version() -> None:
    """A `file:` version has plain names, so its per cent signs are escaped when it is asked for; no other's are."""
    assert dataclasses.replace(ONE, version="file:/a%20b").version_uri == "file:/a%2520b"
    assert dataclasses.replace(ONE, version="s3://b/a%20b").version_uri == "s3://b/a%20b"
