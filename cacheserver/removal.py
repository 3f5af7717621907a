"""Removing what is not needed any more.

Law of this file: what cannot be removed stays, and is told; it costs space, and stops nobody.
"""

from __future__ import annotations

import contextlib
import os


def remove(path: str) -> OSError | None:
    """Removes a file, or a folder with all that is in it, read-only folders too; of a symlink only the symlink.

    Returns None where it is gone, else why something of it stays. Root is not stopped by a view's mode, and what it
    makes there, `__pycache__` say, belongs to root: no other user can remove it.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        return _remove_folder(path)
    return _unlink(path)


def _remove_folder(path: str) -> OSError | None:
    why = None
    folders = [path]  # each before those inside it; no recursion, for whoever fills a folder decides how deep it is
    for folder in folders:
        with contextlib.suppress(OSError):  # a view's is read-only; one of another user may be empty all the same
            os.chmod(folder, 0o700)
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as error:
            inside, why = [], why or error
        for entry in inside:  # all of it: what can go, goes
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                why = _unlink(entry.path) or why
    for folder in reversed(folders):
        try:
            os.rmdir(folder)
        except OSError as error:
            why = why or error
    return why


def _unlink(path: str) -> OSError | None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None
