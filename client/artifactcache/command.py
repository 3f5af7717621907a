"""Where the command `artifactcache` begins: before anything heavy is imported, and with signals that end it in order.

Law of this file: nothing is imported outside of `main`, so that a signal that comes during the imports, which take 0.2
seconds, is met as one that comes later. What a signal raises is a KeyboardInterrupt, for which the whole library cleans
up already. Only the command does this: in a program that uses the library, signals are the program's own.
"""

from __future__ import annotations

SIGNALLED = 128  # and the signal's number: the exit status as shells show it
REPEATS_SECONDS = 5.0  # for so long a signal that comes again is a repetition of the first, and not another wish


def main() -> int:
    """Run the command; return its exit status: after SIGINT, SIGTERM and SIGHUP 128 and the signal's number."""
    number = 2  # SIGINT, which Python raises by itself, until `signal` is there to say so
    first_at = None
    try:
        import signal
        import time

        def end(received: int, frame: object) -> None:
            # Once is enough: `timeout` sends SIGTERM twice, shells SIGHUP, and the clean-up has begun. Who presses
            # Ctrl-C again does not want to wait for it: then the next fetch beside that destination cleans up. So it
            # does for whoever asks again later: the clean-up hangs, or what the first one raised was lost, as it is
            # where it comes in a __del__.
            nonlocal number, first_at
            if first_at is None:
                number, first_at = received, time.monotonic()
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                raise KeyboardInterrupt
            if time.monotonic() - first_at > REPEATS_SECONDS:
                signal.signal(received, signal.SIG_DFL)
                signal.raise_signal(received)

        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as under `nohup`
                signal.signal(each, end)

        from artifactcache import cli

        status = cli.main()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is end:  # there is nothing to clean up any more, so it may end at once
                signal.signal(each, signal.SIG_DFL)
        return status
    except KeyboardInterrupt:
        return SIGNALLED + number
