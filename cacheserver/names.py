"""Which relative paths may exist in a tree, and why others may not.

Law of this file: a name from a client or from an origin passes here before anything else sees it.
"""

from __future__ import annotations

COMPONENT_BYTES_MAX = 255  # NAME_MAX of every filesystem that the store can live on
PATH_BYTES_MAX = 4000  # PATH_MAX is 4096; the rest is room for the destination's own path
DEPTH_MAX = 100


def fault(path: bytes) -> str | None:
    """Says what is wrong with a relative path, in words that finish "the path … "; None where it is fine."""
    if not path:
        return "is empty"
    if len(path) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    if path.startswith(b"/"):
        return "is absolute"
    if b"\0" in path:
        return "contains a NUL byte"
    components = path.split(b"/")
    if len(components) > DEPTH_MAX:
        return f"is deeper than {DEPTH_MAX} folders"
    for component in components:
        if component == b"":
            return "has an empty component"
        if component in (b".", b".."):
            return f"has the component {component.decode()!r}"
        if len(component) > COMPONENT_BYTES_MAX:
            return f"has a component longer than {COMPONENT_BYTES_MAX} bytes"
    return None


def show(path: bytes | str, limit: int = 120) -> str:
    """A path for a message: printable, and not longer than a line."""
    text = path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(text)
