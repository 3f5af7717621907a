"""The command `cacheserver`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from artifactcache.errors import CacheError
from cacheserver import __version__
from cacheserver.advice import warnings
from cacheserver.config import Config, ConfigError, parse


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cacheserver", description="Gives every job on this host its MLflow artifacts in milliseconds."
    )
    parser.add_argument("--version", action="version", version=f"cacheserver {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve until stopped; needs no configuration")
    serve.add_argument("--config", metavar="PATH", help="a TOML file; config.example.toml has every key")
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check-config", help="say whether a configuration can be used")
    check.add_argument("config", metavar="PATH")
    check.set_defaults(run=_check_config)
    fsck = commands.add_parser("fsck", help="check a store whose daemon is stopped, and mend what can be mended")
    fsck.add_argument("--config", metavar="PATH", help="the TOML file that the daemon is started with")
    fsck.set_defaults(run=_fsck)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    config = _read(arguments.config)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from cacheserver import lean  # noqa: F401, I001 - first
    from cacheserver import daemon  # imports mlflow, about a second: the other commands need not wait for it

    daemon.run(config)
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


def _read(path: str | None) -> Config:
    if path is None:
        return Config()
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file.read(), path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8.") from None


if __name__ == "__main__":
    sys.exit(main())
