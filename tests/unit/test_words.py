"""Manifests: the text a stranger reads with `b3sum`, and the trees it stands for."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3

from cacheserver.words import Entry, Location, Manifest, Resolved, folder, join, overlay

EMPTY_DIGEST = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # BLAKE3 of nothing

ONE, TWO, THREE = (blake3(text).hexdigest() for text in (b"one", b"two", b"three"))

ODD_NAMES = (
    b"plain",
    b"with space",
    b" leading and trailing ",
    b"new\nline",
    b"carriage\rreturn",
    b"back\\slash",
    b"back\\nslash n",
    b"\\",
    b"\n",
    b"tab\there",
    b"caf\xc3\xa9",
    b"not utf-8 \xff\xfe",
    b"#hash",
    b"?question",
    b"%20",
    b"-",
)


def file(path: bytes, digest: str = ONE, size: int = 3) -> Entry:
    """An entry of a file."""
    return Entry(path, digest, size)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_survives_the_text(name: bytes) -> None:
    """Whatever bytes a name has, the text has one line for it, and gives it back."""
    manifest = Manifest.of([file(name), file(b"folder/" + name, TWO), folder(b"empty " + name)])
    text = manifest.encode()
    assert text.count(b"\n") == 3 and b"\r" not in text
    assert Manifest.decode(text) == manifest


def test_random_trees_survive_the_text(dice: random.Random) -> None:
    """Names of the bytes that the escaping is about, in any order, survive."""
    for _ in range(300):
        names = {bytes(dice.choices(b"\\\n\rn r/ab\xff", k=dice.randint(1, 9))) for _ in range(6)}
        manifest = Manifest.of(file(name, dice.choice([ONE, TWO]), dice.randint(1, 2**63)) for name in names)
        assert Manifest.decode(manifest.encode()) == manifest


def test_the_text_is_the_documented_one() -> None:
    """`<digest> <size> <path>` sorted by the path's bytes, `- 0 <path>/` for an empty folder, escapes as b3sum's."""
    entries = [file(b"b", TWO, 12), folder(b"empty"), file(b"a\n\r\\", ONE), file(b"Z"), file(b"\xff", EMPTY_DIGEST, 0)]
    assert Manifest.of(entries).encode() == (
        b"%b 3 Z\n%b 3 a\\n\\r\\\\\n%b 12 b\n- 0 empty/\n%b 0 \xff\n"
        % (ONE.encode(), ONE.encode(), TWO.encode(), EMPTY_DIGEST.encode())
    )


def test_a_tree_is_named_by_the_hash_of_its_text() -> None:
    """What `b3sum` prints for the manifest's file is the tree's digest; that of no files is that of no bytes."""
    manifest = Manifest.of([file(b"b", TWO), file(b"a")])
    assert manifest.digest == blake3(manifest.encode()).hexdigest()
    assert Manifest.of([]).encode() == b"" and Manifest.of([]).digest == EMPTY_DIGEST
    assert Manifest.decode(b"") == Manifest.of([])


def test_the_order_in_which_entries_come_does_not_matter(dice: random.Random) -> None:
    """One tree has one name, however the origin lists it."""
    entries = [file(f"{n}/{n * n}".encode(), dice.choice([ONE, TWO])) for n in range(20)]
    first = Manifest.of(entries).digest
    dice.shuffle(entries)
    assert Manifest.of(entries).digest == first


def test_a_folder_that_is_not_empty_after_all_is_no_entry() -> None:
    """An empty folder's entry goes as soon as something is in it, and only then."""
    kept = [file(b"a.txt"), file(b"ab/x"), file(b"f/x"), folder(b"a"), folder(b"f/deep")]
    dropped = [folder(b"ab"), folder(b"f"), folder(b"f/deep")]
    assert Manifest.of(kept + dropped) == Manifest.of(kept)


def test_what_is_counted() -> None:
    """Files and bytes are those of files; folders are all there are, parents first."""
    manifest = Manifest.of([file(b"a/b/c", size=5), file(b"a/d", size=7), folder(b"x/y"), file(b"z", EMPTY_DIGEST, 0)])
    assert [e.path for e in manifest.files] == [b"a/b/c", b"a/d", b"z"]
    assert manifest.size_bytes == 12
    assert manifest.folders == (b"a", b"a/b", b"x", b"x/y")


def test_the_part_below_a_path() -> None:
    """A folder gives its content, a file itself under its own name, anything else nothing."""
    manifest = Manifest.of(
        [file(b"a/b/c"), file(b"a/b/d/e", TWO), file(b"a.b", THREE), folder(b"empty/in"), file(b"ab")]
    )
    assert manifest.below(b"a/b") == Manifest.of([file(b"c"), file(b"d/e", TWO)])
    assert manifest.below(b"a/b/c") == Manifest.of([file(b"c")])
    assert manifest.below(b"empty") == Manifest.of([folder(b"in")])
    assert manifest.below(b"empty/in") == Manifest.of([])
    assert [manifest.below(p) for p in (b"b", b"a/b/c/d", b"a/", b"a/b/")] == [None] * 4
    assert manifest.has_file(b"a.b") and not manifest.has_file(b"a") and not manifest.has_file(b"empty/in")


def test_where_two_trees_have_a_path_the_upper_one_wins() -> None:
    """The union of a run and its logged model: all files of both, the model's where both have one."""
    lower = Manifest.of([file(b"both", ONE), file(b"low/x"), folder(b"filled above"), folder(b"empty")])
    upper = Manifest.of([file(b"both", TWO), file(b"filled above/y", THREE)])
    assert overlay(lower, upper) == Manifest.of(
        [file(b"both", TWO), file(b"low/x"), file(b"filled above/y", THREE), folder(b"empty")]
    )


@pytest.mark.parametrize(
    "text",
    [
        b"no newline at the end",
        f"{ONE} 3 cut".encode(),
        b"\n",
        b"one\n",
        b"one two\n",
        f"{ONE} 3 \n".encode(),
        f"{ONE} three a\n".encode(),
        f"{ONE} -3 a\n".encode(),
        f"{ONE}  a\n".encode(),
        f"{ONE} 3 a\\x\n".encode(),
        f"{ONE} 3 a\\\n".encode(),
        b"\xff\xff 3 a\n",
        f"{ONE} 3 a\n\n".encode(),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    """Malformed text raises ValueError, and nothing else."""
    with pytest.raises(ValueError):
        Manifest.decode(text)


def test_a_location_is_one_uri() -> None:
    """A root and a path are joined by one slash."""
    assert join("s3://b/r", "p/q") == "s3://b/r/p/q"
    assert join("mlflow-artifacts:/", "p") == "mlflow-artifacts:/p"
    assert join("s3://b/r", "") == Location("s3://b/r", "").uri == "s3://b/r"


def test_a_run_shows_its_logged_models_as_folders() -> None:
    """Below a logged model's name both roots are asked, the model's last; elsewhere only the run's."""
    run = Resolved("runs:/r", "s3://b/r", (("model", "s3://b/m-1"),), True)
    assert run.locations("model/data") == (Location("s3://b/r", "model/data"), Location("s3://b/m-1", "data"))
    assert run.locations("model") == (Location("s3://b/r", "model"), Location("s3://b/m-1", ""))
    assert run.locations("models") == (Location("s3://b/r", "models"),)
    assert run.locations("") == (Location("s3://b/r", ""),)
