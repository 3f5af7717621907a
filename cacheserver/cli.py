"""The command `cacheserver`."""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from artifactcache import completion, usage
from artifactcache.errors import CacheError
from cacheserver import __version__
from cacheserver.advice import warnings
from cacheserver.config import ConfigError, parse
from cacheserver.readers import DURATION_SECONDS_MAX, duration
from cacheserver.retention import spell
from cacheserver.settings import Config

CONFIG_LENGTH_MAX = 4 << 20
SETTLE_SECONDS_MAX = 900  # a sweep of the shared tier ends well before publishers stop looking at what it has condemned


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0 on success, 1 where something is wrong, 2 for usage."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except (CacheError, ConfigError) as error:
        print(f"cacheserver: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # what nobody below could say better
        at = f"{error.filename}: " if error.filename is not None else ""
        print(
            f"cacheserver: {at}{error.strerror or error}. The command stopped there; mend it, and try again.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130


EPILOG = """\
Examples:
  cacheserver serve
  cacheserver serve --config /etc/cacheserver.toml
  eval "$(cacheserver --completion bash)"

Without a configuration it serves your own user: its store is in your cache folder, its sockets in your run-time
folder; under systemd it takes STATE_DIRECTORY and RUNTIME_DIRECTORY. MLFLOW_TRACKING_URI names the tracking server,
and CACHESERVER_STORE_CAPACITY takes the place of the key capacity of [store], and so on; config.example.toml has
every key.

Exit status: 0 success, 1 something is wrong, 2 wrong command line."""

EXAMPLES = {
    "serve": ("cacheserver serve", "cacheserver serve --config /etc/cacheserver.toml"),
    "check-config": ("cacheserver check-config /etc/cacheserver.toml",),
    "fsck": ("cacheserver fsck --config /etc/cacheserver.toml",),
    "shared": (
        "cacheserver shared sweep --config /etc/cacheserver.toml --dry-run",
        "cacheserver shared sweep --config /etc/cacheserver.toml --grace 2d --json",
    ),
    "simulate": (
        "cacheserver simulate --trace trace --capacity 2TiB 4TiB",
        "cacheserver simulate --generate mixed --requests 5000 --capacity 10% --policy gdsf lru --json",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cacheserver",
        description="Gives every job on this host its MLflow artifacts in milliseconds.",
        epilog=EPILOG,
        formatter_class=usage.Formatter,
    )
    parser.add_argument("--version", action="version", version=f"cacheserver {__version__}")
    parser.add_argument("--completion", action=completion.Print)
    added_to = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, words: str) -> argparse.ArgumentParser:
        epilog = usage.shown(EXAMPLES[name]) if name in EXAMPLES else None
        return added_to.add_parser(name, help=words, description=words, epilog=epilog, formatter_class=usage.Formatter)

    serve = add("serve", "Serve until stopped; needs no configuration.")
    serve.add_argument("--config", metavar="PATH", help="a TOML file; config.example.toml has every key")
    serve.set_defaults(run=_serve)
    check = add("check-config", "Say whether a configuration can be used, and what in it is surely not meant.")
    check.add_argument("config", metavar="PATH", help="the TOML file")
    check.set_defaults(run=_check_config)
    fsck = add("fsck", "Check a store whose daemon is stopped, and mend what can be mended.")
    fsck.add_argument("--config", metavar="PATH", help="the TOML file that the daemon is started with")
    fsck.set_defaults(run=_fsck)
    _add_shared(add("shared", "Look after the tier that hosts share ([shared] in the configuration)."))
    _add_simulate(add("simulate", "Replay a trace: what would more capacity, or another policy, buy?"))
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    help = "what to do with it; `cacheserver shared COMMAND --help` says more"
    added_to = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", help=help)
    words = "Remove from the tier what retention rules drop, what is over its capacity, and what no record needs."
    epilog = usage.shown(EXAMPLES["shared"])
    sweep = added_to.add_parser("sweep", help=words, description=words, epilog=epilog, formatter_class=usage.Formatter)
    sweep.add_argument("--config", metavar="PATH", help="the TOML file: its [shared] and [[retention]] are gone by")
    sweep.add_argument("--dry-run", action="store_true", help="change nothing; say what would go, and why")
    sweep.add_argument(
        "--grace",
        type=_seconds(DURATION_SECONDS_MAX),
        default="1d",
        metavar="DURATION",
        help="how old an object that no record needs has to be to go, as in 12h (default: 1d)",
    )
    sweep.add_argument(
        "--settle",
        type=_seconds(SETTLE_SECONDS_MAX),
        default="2m",
        metavar="DURATION",
        help="how long hosts have to finish what they are publishing, as in 5m; at most 15m (default: 2m)",
    )
    sweep.add_argument("--json", action="store_true", help="print JSON, for scripts")
    sweep.set_defaults(run=_shared_sweep)


def _seconds(most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            found = duration(text)
        except ValueError:
            found = math.inf
        if found > most:
            raise argparse.ArgumentTypeError(f"{text!r} is no duration of at most {spell(most)}, as in 90s, 15m or 1d")
        return found

    return read


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trace", metavar="FILE", help="a trace that the daemon has recorded")
    source.add_argument(
        "--generate", metavar="NAME", default="mixed", help="a made one: mixed, zipf, versions, … (default: mixed)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="what the made one's chances follow from (default: 1)"
    )
    parser.add_argument(
        "--requests", type=int, default=10_000, metavar="N", help="how many fetches the made one has (default: 10000)"
    )
    parser.add_argument(
        "--capacity",
        nargs="+",
        action="extend",
        default=[],
        metavar="AMOUNT",
        help='as in "2TiB", or per cent of the bytes of all that is fetched, as in "10%%"; several are compared',
    )
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="only these: gdsf, lru, s3-fifo, …",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw it too: FILE.svg or FILE.png")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from cacheserver.whatif import Question, answer

    found = answer(
        Question(
            arguments.trace,
            arguments.generate,
            arguments.seed,
            arguments.requests,
            arguments.capacity,
            arguments.policy,
        ),
        arguments.plot,
    )
    for line in [json.dumps(found.document(), indent=2)] if arguments.json else found.lines():
        print(line)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    config = _read(arguments.config)
    from cacheserver import lean  # noqa: F401, I001 - first
    from cacheserver import logs

    logs.begin(config.log, sys.stderr, os.environ)
    from cacheserver import daemon  # imports mlflow, about a second: the other commands need not wait for it

    daemon.run(config, arguments.config or "", _read)
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    for warning in warnings(_read(arguments.config)):
        print(f"{arguments.config}: warning: {warning}", file=sys.stderr)
    print(f"{arguments.config}: fine")
    return 0


def _fsck(arguments: argparse.Namespace) -> int:
    os.umask(0o077)  # as the daemon: the index is nobody else's to read
    config = _read(arguments.config)
    from cacheserver.fsck import check
    from cacheserver.place import store_root

    report = check(store_root(config, dict(os.environ)))
    for line in report.lines():
        print(line)
    return 0 if report.sound else 1


def _shared_sweep(arguments: argparse.Namespace) -> int:
    config, environ = _read(arguments.config), dict(os.environ)
    where = arguments.config or "the environment"
    if not config.shared.url:
        raise ConfigError(f'{where} names no shared tier: write [shared] url, as in url = "s3://bucket/prefix".')
    if config.shared.read_only:
        raise ConfigError(
            f"{where} has [shared] read_only = true, and to sweep is to write: sweep from a host that may write there."
        )
    from cacheserver.place import place
    from cacheserver.tierplan import How
    from cacheserver.tierstore import TierError
    from cacheserver.tiersweep import opened

    origin = None
    if config.retention:
        from cacheserver.assembly import origin_of  # imports mlflow

        here = place(config, environ, os.geteuid())
        origin = origin_of(here, config, here.root)
    how = How(
        config.retention, round(config.shared.capacity.number), arguments.grace, arguments.settle, arguments.dry_run
    )
    tell = (lambda line: None) if arguments.json else partial(print, flush=True)
    try:
        report = opened(config.shared, origin, how, time.time, time.monotonic, threading.Event().wait, tell).run()
    except TierError as error:
        raise CacheError(str(error)) from None
    finally:
        if origin:
            origin.close()
    print(json.dumps(report.document(), indent=2) if arguments.json else report.summary())
    for trouble in report.troubles:
        print(f"cacheserver: {trouble}", file=sys.stderr)
    return 1 if report.troubles else 0


def _read(path: str | None) -> Config:
    if not path:
        return parse("", "the environment", os.environ)
    try:
        # Not waiting for somebody to write into a pipe, nor reading what is no configuration by its size.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is no file.")
            text = file.read(CONFIG_LENGTH_MAX + 1)
        if len(text) > CONFIG_LENGTH_MAX:
            raise ConfigError(f"{path} is longer than {CONFIG_LENGTH_MAX} characters: that is no configuration.")
        return parse(text, path, os.environ)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8.") from None


if __name__ == "__main__":
    sys.exit(main())
