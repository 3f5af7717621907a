"""A daemon as it was before it had what the doctor asks for: without the call, and without the request.

Run as `python -m tests.rig.older serve --config …`. Everything else is the real daemon's.
"""

from __future__ import annotations

import sys
from typing import Any

import cacheserver.server
from artifactcache.errors import InvalidRequest
from cacheserver import cli
from cacheserver.handoff import Handoff

_handlers = cacheserver.server._handlers


def main() -> int:
    """Take both away, and serve."""
    cacheserver.server._handlers = lambda service: {
        name: handler for name, handler in _handlers(service).items() if name != "Checkup"
    }
    Handoff._probe = _unknown  # type: ignore[method-assign, assignment]
    return cli.main()


def _unknown(*_: Any) -> int:
    raise InvalidRequest("The packet holds no request.")  # what a field that is not known leaves of a packet


if __name__ == "__main__":
    sys.exit(main())
