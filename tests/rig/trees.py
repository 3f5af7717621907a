"""Trees of files: made from a dictionary, and read back into one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

Files = dict[str, bytes]  # path -> content; a path that ends with "/" is an empty folder


def plant(folder: Path, files: Files) -> None:
    """Write the files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read(folder: Path, onerror: Callable[[OSError], object] | None = None) -> Files:
    """Everything below `folder`, as `plant` would take it. Anything that is no file or folder is a failure.

    `onerror` is told of folders that cannot be listed, as by `os.walk`.
    """
    files: Files = {}
    for parent, folders, names in os.walk(folder, onerror=onerror):
        where = Path(parent)
        for name in (*folders, *names):
            mode = (where / name).lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{where / name} is no file and no folder"
        for name in names:
            files[str((where / name).relative_to(folder))] = (where / name).read_bytes()
        if not folders and not names and where != folder:
            files[f"{where.relative_to(folder)}/"] = b""
    return files


def neighbours(path: Path) -> list[str]:
    """What lies beside `path`: nothing half-made may."""
    return sorted(name for name in os.listdir(path.parent) if name != path.name)


SMALL: Files = {
    "MLmodel": b"flavors: {}\n",
    "data/weights.bin": bytes(range(256)) * 40,
    "data/again.bin": bytes(range(256)) * 40,
    "data/deep/er/one.txt": b"one\n",
    "empty.txt": b"",
}


def size(files: Files) -> int:
    """The sum of the file sizes."""
    return sum(map(len, files.values()))


def count(files: Files) -> int:
    """How many files there are, empty folders not counted."""
    return sum(not name.endswith("/") for name in files)


def below(files: Files, prefix: str) -> Files:
    """The part below the folder `prefix`, named relative to it."""
    return {name.removeprefix(f"{prefix}/"): data for name, data in files.items() if name.startswith(f"{prefix}/")}


def unique(files_count: int = 3, file_bytes: int = 5000) -> Files:
    """Files whose bytes no other test has, so that nothing of them is held before."""
    return {f"part/{number}.bin": os.urandom(file_bytes) for number in range(files_count)} | {"top": os.urandom(10)}
