"""Keeps the daemon small. Imported before anything else of it.

sqlite-utils and MLflow import NumPy and pandas where they happen to be installed, for functions that the daemon never
calls: that is 80 MB of memory and a second of start-up. And glibc gives every thread a heap of its own, which a daemon
with many short-lived threads never gets back.
"""

from __future__ import annotations

import sys

from cacheserver import libc

for unused in ("numpy", "pandas"):
    sys.modules.setdefault(unused, None)  # type: ignore[arg-type] # what importlib takes for "cannot be imported"

libc.share_heaps(2)
