"""An origin inside the tests' process that serves a shelf as MLflow's server would: with entity tags, and in parts."""

from __future__ import annotations

import posixpath
import re

from tests.rig.crowd import Shelf
from tests.rig.lying import Lie, Listing, LyingOrigin, Reply, file, folder


def open_shelf(
    origin: LyingOrigin, *, artifact_count: int, file_count: int, file_bytes: int, large_bytes: int
) -> Shelf:
    """A finished run of such artifacts; the last one has one large file more, which can be resumed."""
    shelf = Shelf("", artifact_count, file_count, file_bytes, large_bytes)
    folders: dict[str, Listing] = {"": []}
    bodies: dict[str, tuple[int, str]] = {}
    for number in range(artifact_count):
        name = shelf.uri_of(number).lstrip("/")
        for path, content in shelf.files(number).items():
            bodies[f"{name}/{path}"] = number, path
            _enter(folders, f"{name}/{path}", len(content))

    def answer(path: str) -> object:
        number, inside = bodies[path]
        body = shelf.files(number)[inside]
        return lambda reply: _send(reply, path, body)

    run_id = origin.run(Lie(lambda path: folders.get(path, []), answer))  # type: ignore[arg-type]
    return Shelf(f"runs:/{run_id}", artifact_count, file_count, file_bytes, large_bytes)


def _enter(folders: dict[str, Listing], path: str, size: int) -> None:
    parent, name = posixpath.split(path)
    folders.setdefault(parent, []).append(file(name, size))
    while parent:
        above, name = posixpath.split(parent)
        known = folders.setdefault(above, [])
        if any(entry["path"] == name for entry in known):
            return
        known.append(folder(name))
        parent = above


def _send(reply: Reply, path: str, body: bytes) -> None:
    tag = f'"{path}"'
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", reply.header("range"))
    if not found or int(found[1]) >= len(body):
        reply.head(Content_Length=len(body), ETag=tag)
        return reply.write(body)
    begin, end = int(found[1]), min(int(found[2] or len(body)), len(body) - 1)
    reply.head(206, Content_Length=end - begin + 1, ETag=tag, Content_Range=f"bytes {begin}-{end}/{len(body)}")
    return reply.write(body[begin : end + 1])
