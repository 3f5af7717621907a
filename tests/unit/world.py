"""What there is in the model's world: artifacts, files, contents; few of each, so that they meet again and again.

Law of this file: values only.
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from cacheserver.selection import Selection

Files = dict[str, bytes]
Key = tuple[str, str]  # URI and selection

BARE = ("s3://bucket/one", "s3://bucket/two")
RUN, RUN_ROOT = "runs:/r", "s3://bucket/r/artifacts"
ALIAS, VERSIONS = "models:/m@best", ("1", "2")
NAMES = ("x", "d/y", "d/z", "e/f/g")
CONTENTS = (b"", b"a", b"shared", b"large " * 40, b"other" * 50)
WEIGHTS = {version: version.encode() * 120 for version in VERSIONS}
GRACE_SECONDS = 60.0
PARTS = Selection(("d/**",))
WHOLE = Selection()

of_uri = st.sampled_from((*BARE, RUN, ALIAS))
of_root = st.sampled_from((*BARE, RUN_ROOT))
of_selection = st.sampled_from((WHOLE, WHOLE, PARTS))


def selected(files: Files, selection: Selection) -> Files:
    """Those that a selection takes."""
    return {path: content for path, content in files.items() if selection.takes(path.encode())}


def files_in(folder: Path) -> Files:
    """What a client sees of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
