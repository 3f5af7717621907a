"""The inside of a caller's process: runs one snippet of Python, and says what came of it.

Reads one JSON line `{"code", "args"}` from standard input; writes one JSON line for each `say(value)` of the snippet
and, as the last one, `{"result": …}` with the variable `result`, or `{"error": <class>, "message", "traceback"}`. What
the snippet prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

# What the package `tests` sets for the tests' own process is not for the callers': their children call as well.
os.environ.pop("GRPC_ENABLE_FORK_SUPPORT", None)


def main() -> None:
    """Run the snippet."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def say(value: Any) -> None:
        write({"said": value})

    def hear() -> Any:
        return json.loads(sys.stdin.readline())

    order = hear()
    try:
        scope: dict[str, Any] = {"say": say, "hear": hear, "result": None, **order["args"]}
        exec(compile(order["code"], "<job>", "exec"), scope)
        write({"result": scope["result"]})
    except BaseException as error:  # noqa: BLE001 - the far side of a process: everything is told, nothing handled
        write({"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()})


if __name__ == "__main__":
    main()
