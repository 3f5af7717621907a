"""The commands `top` and `page`: the daemon at one look, live in a terminal, or in a browser."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator

from artifactcache import output, render, screen
from artifactcache.client import Client
from artifactcache.errors import DaemonUnavailable, DeadlineExceeded, Unauthenticated
from artifactcache.overviews import Overview

ASK_SECONDS_MAX = 5.0  # for one look, where no --timeout says otherwise
# The alternate screen, without a cursor, and with nothing that runs over into the next line.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, TO_LINE_END, TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
END_KEYS = b"qQ\x03\x04"
PLAIN_COLUMNS = 100  # where standard output is no terminal
# What may be over in a moment: the daemon is started again, or very busy.
AWAY = (DaemonUnavailable, DeadlineExceeded, Unauthenticated)


def top(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Show the daemon, again and again on a terminal, else once."""
    is_live = sys.stdout.isatty() and not arguments.once and not arguments.json
    if is_live:
        with _screen() as keys:
            _live(client, arguments, keys)
        return 0
    found = client.overview(timeout=arguments.timeout)
    if arguments.json:
        print(render.document(found))
    else:
        columns = shutil.get_terminal_size((PLAIN_COLUMNS, 0)).columns if sys.stdout.isatty() else PLAIN_COLUMNS
        output.lines([*map(str, screen.lines(found, columns))])
    return 0


def page(client: Client, arguments: argparse.Namespace, bar: render.Bar) -> int:
    """Print an address of the page that lets this user's browser in."""
    url, seconds = client.page(timeout=arguments.timeout)
    if arguments.json:
        print(render.document({"url": url, "seconds": seconds}))
        return 0
    output.line(url)
    if sys.stderr.isatty():
        print(f"Open it within {seconds:.0f} s: it lets in who opens it first.", file=sys.stderr)
    return 0


def _live(client: Client, arguments: argparse.Namespace, keys: int | None) -> None:
    """Draw until a key ends it."""
    before: Overview | None = None
    while True:
        began = time.monotonic()
        columns, rows = shutil.get_terminal_size()
        try:
            since = time.time() - screen.RECENT_SECONDS  # the daemon is on this host, and so is its clock
            found = client.overview(since=max(0.0, since), timeout=arguments.timeout or ASK_SECONDS_MAX)
            shown, before = screen.lines(found, columns, rows, screen.rates(before, found)), found
        except AWAY as error:
            shown, before = screen.away(str(error), columns), None
        _draw(shown)
        while (left := began + arguments.interval - time.monotonic()) > 0:
            if _has_ended(keys, left):
                return
            if shutil.get_terminal_size() != (columns, rows):
                break


def _draw(shown: list[screen.Line]) -> None:
    """Over what is there, so that nothing flickers."""
    text = "\r\n".join(f"{each.style}{each}{screen.PLAIN if each.style else ''}{TO_LINE_END}" for each in shown)
    encoding = sys.stdout.encoding or "utf-8"
    output.write(f"{HOME}{text}{TO_END}".encode(encoding, "replace"))
    sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[int | None]:
    """The alternate screen, and the keyboard as it is pressed: its descriptor, None where there is none. Afterwards
    everything is as it was, whatever happens."""
    try:
        import termios
        import tty

        keys: int | None = sys.stdin.fileno()
        assert keys is not None
        was = termios.tcgetattr(keys)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        keys = None
    try:
        if keys is not None:
            tty.setcbreak(keys)
        output.write(ENTER.encode())
        sys.stdout.flush()
        yield keys
    finally:
        with contextlib.suppress(OSError):
            output.write(LEAVE.encode())
            sys.stdout.flush()
        if keys is not None:
            termios.tcsetattr(keys, termios.TCSANOW, was)


def _has_ended(keys: int | None, seconds: float) -> bool:
    """Wait a moment, at most so long; whether a key was pressed that ends it. A window that changes its size ends the
    wait, too."""
    moment = min(seconds, 0.2)
    if keys is None:
        time.sleep(moment)
        return False
    if not select.select([keys], [], [], moment)[0]:
        return False
    pressed = os.read(keys, 64)
    return not pressed or any(byte in END_KEYS for byte in pressed)
