"""`make dist`: both distributions, as source and as wheel, what they need on a host, and their checksums.

Law of this file: the same checkout gives the same bytes. Times in the archives are that of the last commit, or
SOURCE_DATE_EPOCH; nothing is downloaded, and the builder is the one that the lock has.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from tools.locked import TOP, requirements

SOURCES = (TOP / "client", TOP)
EPOCH_WITHOUT_GIT = "1767225600"  # 2026-01-01, in a checkout that git does not know: in an unpacked sdist, say
REQUIREMENTS = "requirements.txt"  # what the daemon needs, with hashes
CHECKSUMS = "SHA256SUMS"
MADE = re.compile(rf"(artifactcache|cacheserver)-[^/]+\.(whl|tar\.gz)|{re.escape(REQUIREMENTS)}|{CHECKSUMS}")


def epoch() -> str:
    """The time of everything that is built, in seconds since 1970."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        return told
    command = ("git", "-c", "safe.directory=*", "-C", str(TOP), "log", "-1", "--format=%ct")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else EPOCH_WITHOUT_GIT


def build(source: Path, folder: Path, *targets: str) -> None:
    """Build a distribution into a folder: `sdist`, `wheel`, or both where none is named.

    Raises RuntimeError with what the builder said where it does not go well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = [word for target in targets for word in ("--target", target)]
    command = (sys.executable, "-m", "hatchling", "build", *options, "--directory", str(folder.resolve()))
    env = os.environ | {"SOURCE_DATE_EPOCH": epoch()}
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source} cannot be built: {done.stderr}")


def checksums(folder: Path) -> str:
    """What `sha256sum --check` takes, of every file in a folder."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def make(folder: Path) -> None:
    """Everything that is handed out, in a folder that has nothing else.

    Raises FileExistsError where it has what this did not make: nothing of it is removed then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = sorted(folder.iterdir())
    for old in made:
        if old.is_dir() or not MADE.fullmatch(old.name):
            raise FileExistsError(f"{old} was not made here: name a folder that is empty, or not there yet")
    for old in made:
        old.unlink()
    for source in SOURCES:
        build(source, folder)
    (folder / REQUIREMENTS).write_text(requirements("cacheserver"), encoding="utf-8")
    (folder / CHECKSUMS).write_text(checksums(folder), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    sys.stdout.write((Path(sys.argv[1]) / CHECKSUMS).read_text(encoding="utf-8"))
