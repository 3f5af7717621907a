"""Folders of this host in which runs and logged models have their artifacts, as MLflow lays them out:

    <folder>/<experiment>/<run ID>/artifacts in an mlruns/ folder, and below a tracking server's artifact root
    <folder>/<experiment>/models/<model ID>/artifacts of logged models

Law of this file: a name is a hint. What a run is, whether it has finished and where its bytes lie, the tracking server
says. Folders are listed and files looked at, never opened; in a run's artifacts no symlink is followed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

ARTIFACTS, MODELS = "artifacts", "models"
WALK_MAX = 200_000  # files of one run that are looked at to see whether they are still written
_RUN = re.compile(r"[0-9a-f]{32}")
_MODEL = re.compile(r"m-[0-9a-f]{32}")


class Spot(NamedTuple):
    """A folder that looks like a run's, or a logged model's.

    Attributes:
        path: the folder.
        name: the ID.
        experiment: the name of the folder that it lies in.
        changed_at: when a name in it, or in its artifacts/, has changed, or it was moved here; by the filesystem's
            clock, in seconds since the epoch. 0: it has no artifacts.
    """

    path: str
    name: str
    experiment: str
    changed_at: float

    @property
    def artifacts(self) -> str:
        """Where its artifacts lie, if the tracking server says so."""
        return os.path.join(self.path, ARTIFACTS)

    @property
    def uri(self) -> str:
        """The artifact URI of all that was logged."""
        return f"models:/{self.name}" if self.name.startswith("m-") else f"runs:/{self.name}"


def identity(path: str) -> tuple[int, int]:
    """Which folder stands there: its device and inode. Raises OSError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def experiments(folder: str) -> Iterator[str]:
    """The folders that may be experiments. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                yield entry.path


def is_spot(name: str) -> bool:
    """Whether a folder of this name may be a run's, or a logged model's."""
    return bool(_RUN.fullmatch(name) or _MODEL.fullmatch(name))


def spots(folder: str) -> Iterator[Spot]:
    """Those in an experiment's folder, or in its models/. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_spot(entry.name) and (found := spot(entry.path)):
                yield found


def spot(path: str) -> Spot | None:
    """What stands at a path; None where there is no folder."""
    above, name = os.path.split(path)
    above, experiment = os.path.split(above)
    if experiment == MODELS:
        experiment = os.path.basename(above)
    try:
        changed_at = os.stat(path).st_ctime
    except OSError:
        return None
    try:
        return Spot(path, name, experiment, max(changed_at, os.stat(os.path.join(path, ARTIFACTS)).st_ctime))
    except OSError:
        return Spot(path, name, experiment, 0.0)


def owner(folder: str, path: str) -> str:
    """Which experiment, models/, run or logged model below a folder has to be looked at, when something has changed at
    a path; empty where none has."""
    parts = path[len(folder) :].strip("/").split("/")
    depth = 3 if len(parts) > 1 and parts[1] == MODELS else 2
    return os.path.join(folder, *parts[:depth]) if parts[0] and not parts[0].startswith(".") else ""


def has_files(artifacts: str) -> bool:
    """Whether there is anything. Raises OSError."""
    try:
        with os.scandir(artifacts) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def newest(artifacts: str) -> float:
    """When anything below a folder was written, or changed otherwise, last. Raises OSError."""
    found, count, folders = os.stat(artifacts).st_ctime, 0, [artifacts]
    while folders and count < WALK_MAX:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in itertools.islice(entries, WALK_MAX - count):
                count += 1
                with contextlib.suppress(FileNotFoundError):  # it goes while it is looked at
                    found = max(found, entry.stat(follow_symlinks=False).st_ctime)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
