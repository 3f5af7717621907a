"""MLflow's artifact repositories with another way to download: the daemon's, and where that fails MLflow's own.

Law of this file: what a caller gets is what MLflow would have given, its layout, path and errors, as files of the
caller's own. Where that cannot be had in certainty, or anything goes wrong, MLflow's own code does the work; only a
tracking server that answers neither the daemon nor this process is told of at once, instead of after minutes. This
room is loaded in the middle of `import mlflow`; what it needs for a download it imports with the first one.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
import threading
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from artifactcache.switch import is_on

if TYPE_CHECKING:
    from artifactcache.daemon_for_mlflow import Daemon

ROOT_WITHOUT_SLASH_SINCE = (3, 15)  # before, a download of the root returned "dst/"
META_THROUGH_RUNS_SINCE = (3, 13)  # since then MLflow brings a run's logged model through its models:/ URI

_PLAIN = r"[^\x00-\x1f\\?#%]*"  # of other names MLflow's versions make different things
_OF_A_VERSION = r"/(?:models/(m-[0-9a-f]{32})|([0-9a-f]{32}))/artifacts(?:/|$)"
_PROXIED = "/api/2.0/mlflow-artifacts/artifacts/"


def served(built_in: Any, name: str) -> Any:
    """Return a class that is MLflow's own `built_in`, but for its downloads. `name` is that of the entry point."""
    return type(
        built_in.__name__, (_WAYS.get(name, _Storage), built_in), {"__doc__": built_in.__doc__, "__module__": __name__}
    )


class _Repository:
    """What all of them have in common."""

    tracking_uri: str | None = None  # MLflow's older ones have none
    artifact_uri: str
    _makes_a_folder = True
    """Whether MLflow's own download makes a temporary folder where none is given."""

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None, **more: Any) -> str:
        """Download as MLflow does."""
        own: Any = super().download_artifacts  # type: ignore[misc]
        loaded = _loaded() if is_on(os.environ) and self._may_be_served(dst_path) else None
        try:
            folder = (os.path.abspath(dst_path) if dst_path else _temporary()) if loaded else None
        except OSError:  # nowhere for temporary files, or no working directory: MLflow says so, or needs none
            folder = None
        if loaded is None or folder is None:
            self._prepare()
            path: str = own(artifact_path, dst_path, **more)
            return path
        temporary, attempt = loaded
        try:
            found = None
            if _is_plain(artifact_path, folder):
                found = attempt(lambda: self._served(artifact_path, folder), self)
            if found is None:
                self._prepare()
                found = own(artifact_path, dst_path or (folder if self._makes_a_folder else None), **more)
        except BaseException:
            if not dst_path:
                temporary.remove(folder)
            raise
        if not dst_path and not found.startswith(folder):
            temporary.remove(folder)
        return str(found)

    def _may_be_served(self, dst_path: str | None) -> bool:
        return True

    def _prepare(self) -> None:
        """Get ready for MLflow's own download."""

    def _served(self, path: str, folder: str) -> str:
        """Have the daemon place what is at a path of this repository in a folder. Raises Unserved, CacheError."""
        raise NotImplementedError


class _Storage(_Repository):
    """A storage scheme: a bare artifact URI.

    Of a bare URI nobody knows whether it still changes. So where it looks like the folder of a run or of a logged
    model, that is what is asked for, if the daemon then holds just the same under both names.
    """

    def _served(self, path: str, folder: str) -> str:
        from artifactcache.daemon_for_mlflow import Daemon, Unserved, tracking_uri_of

        uri = posixpath.join(self._root(), path).rstrip("/")
        daemon = Daemon.serving([tracking_uri_of(self)])
        version = _version_at(uri)
        if version and daemon.holds_the_same(version, uri):
            uri = version
        elif not self._may_be_bare():
            raise Unserved("a folder of this host that is no run's: its files may change at any time")
        return _place(daemon, uri, folder, path)

    def _root(self) -> str:
        return self.artifact_uri

    def _may_be_bare(self) -> bool:
        return True


class _Proxied(_Storage):
    """What the tracking server hands out itself: MLflow has made an address of the URI already."""

    def _root(self) -> str:
        from artifactcache.daemon_for_mlflow import Unserved, tracking_uri_of

        base = tracking_uri_of(self).rstrip("/") + _PROXIED
        if not self.artifact_uri.startswith(base):
            raise Unserved(f"{self.artifact_uri} is not on the tracking server")
        return "mlflow-artifacts:/" + self.artifact_uri[len(base) :]


class _Local(_Storage):
    """Folders of this host. Without a destination MLflow gives out the files themselves."""

    def _may_be_served(self, dst_path: str | None) -> bool:
        return bool(dst_path)

    def _may_be_bare(self) -> bool:
        return False


class _Lazy(_Repository):
    """One whose constructor asks the tracking server: it does so when something else is asked for than a download."""

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        """Remember the arguments, which differ between MLflow's versions."""
        self.artifact_uri = artifact_uri
        self.tracking_uri = kwargs.get("tracking_uri", args[0] if args else None)
        self.registry_uri = kwargs.get("registry_uri", args[1] if len(args) > 1 else None)
        self._arguments = args, kwargs
        self._lock = threading.RLock()
        if not is_on(os.environ):
            self._prepare()

    def __getattr__(self, name: str) -> Any:
        """Make the rest of MLflow's own repository, where that is what somebody wants."""
        if "_arguments" in self.__dict__ and not name.startswith("__"):
            self._prepare()
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _prepare(self) -> None:
        with self._lock:
            if "_arguments" in self.__dict__:
                args, kwargs = self._arguments
                super().__init__(self.artifact_uri, *args, **kwargs)  # type: ignore[call-arg]
                del self._arguments


class _Runs(_Lazy):
    """`runs:/` URIs. A run shows its logged models as folders of it, but MLflow places both in different ways."""

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self._makes_a_folder = _knows_logged_models(self)

    def _served(self, path: str, folder: str) -> str:
        from artifactcache.daemon_for_mlflow import Daemon, Unserved, tracking_uri_of

        run_id, root = self.parse_runs_uri(self.artifact_uri)  # raises what MLflow's own will raise again
        root, run = root or "", f"runs:/{run_id}"
        if not _is_plain(root, folder) or (root and not path):
            raise Unserved("a folder by itself, which MLflow places in a way of its own")
        daemon = Daemon.serving([tracking_uri_of(self)])
        whole = posixpath.join(root, path)
        first, _, rest = whole.partition("/")
        model = daemon.logged_model_at(f"{run}/{first}") if whole else None
        if model is None:
            placed = _place(daemon, f"{run}/{whole}".rstrip("/"), folder, path)
            daemon.is_no_logged_model(f"{run}/{first}")
            return placed
        source = f"{model}/{rest}".rstrip("/")
        if not _knows_logged_models(self) or not daemon.are_the_same(f"{run}/{whole}", source):
            raise Unserved("files of the run and of a logged model of one name")
        inside = os.path.join(folder, first)
        return _placed_model(daemon, source, inside, rest, with_meta=_version() >= META_THROUGH_RUNS_SINCE)


class _Models(_Lazy):
    """`models:/` URIs."""

    _makes_a_folder = False  # the storage's repository does, or gives out local files themselves

    def _served(self, path: str, folder: str) -> str:
        import mlflow
        from mlflow.store.artifact.utils.models import _parse_model_uri

        from artifactcache.daemon_for_mlflow import Daemon, tracking_uri_of

        _parse_model_uri(self.artifact_uri)  # as above
        asked = [tracking_uri_of(self), mlflow.get_tracking_uri(), mlflow.get_registry_uri()]
        daemon = Daemon.serving([*asked, self.registry_uri or asked[0]])
        return _placed_model(daemon, posixpath.join(self.artifact_uri, path).rstrip("/"), folder, path, with_meta=True)


_WAYS: dict[str, type[_Repository]] = {
    "runs": _Runs,
    "models": _Models,
    "mlflow_artifacts": _Proxied,
    "http": _Proxied,
    "https": _Proxied,
    "file": _Local,
}


def _place(daemon: Daemon, uri: str, folder: str, path: str) -> str:
    """Place an artifact at a path below a folder, and return where it is as MLflow does."""
    daemon.place(uri, os.path.join(folder, path) if path else folder)
    return _returned(folder, path)


def _placed_model(daemon: Daemon, uri: str, folder: str, path: str, *, with_meta: bool) -> str:
    """Place a model, or a path of it, and beside it the file that says which version it is."""
    version = daemon.place(uri, os.path.join(folder, path) if path else folder)
    placed = _returned(folder, path)
    if with_meta and os.path.isfile(os.path.join(placed, "MLmodel")):
        name, _, rest = version.removeprefix("models:/").partition("/")
        number = rest.partition("/")[0]
        if not number.isdigit():  # a logged model is no version of a registered one
            name = number = None  # type: ignore[assignment]
        built_in = import_module("mlflow.store.artifact.models_artifact_repo").ModelsArtifactRepository
        write = getattr(built_in, "_add_registered_model_meta_file", None)
        if write is not None:
            write(SimpleNamespace(model_name=name, model_version=number), placed)
    return placed


def _returned(folder: str, path: str) -> str:
    if path or _version() >= ROOT_WITHOUT_SLASH_SINCE:
        return os.path.join(folder, path) if path else folder
    return os.path.join(folder, "")


def _is_plain(path: str, folder: str) -> bool:
    """Tell whether a path leads below a folder that is there, and means the same to everybody."""
    return (
        isinstance(path, str)
        and os.path.isdir(folder)
        and re.fullmatch(_PLAIN, path) is not None
        and (not path or (posixpath.normpath(path) == path and not path.startswith(("/", "."))))
    )


def _version_at(uri: str) -> str | None:
    """The version that has its artifacts at a bare URI, by MLflow's own way to name folders."""
    found = re.search(_OF_A_VERSION, uri)
    if found is None:
        return None
    base = f"models:/{found[1]}" if found[1] else f"runs:/{found[2]}"
    return f"{base}/{uri[found.end() :]}".rstrip("/")


def _temporary() -> str:
    """A folder that goes with this process; one that stays where `mlflow artifacts download` prints its path."""
    click: Any = sys.modules.get("click")
    context = click.get_current_context(silent=True) if click else None
    if context and getattr(context.command.callback, "__module__", "") == "mlflow.store.artifact.cli":
        from mlflow.utils.file_utils import create_tmp_dir

        return str(create_tmp_dir())
    from artifactcache import temporary

    return temporary.make()


@lru_cache(maxsize=1)
def _loaded() -> tuple[Any, Any] | None:
    """What does the work, loaded by the first download. None where it cannot be, which is said once."""
    try:
        from artifactcache import daemon_for_mlflow, temporary
    except Exception as error:  # noqa: BLE001 - whatever is wrong with this installation, MLflow works
        import logging

        words = "artifactcache cannot be loaded, so MLflow downloads by itself: %s: %s"
        logging.getLogger("artifactcache").warning(words, type(error).__name__, error)
        return None
    return temporary, daemon_for_mlflow.attempt


def _knows_logged_models(runs: Any) -> bool:
    return hasattr(type(runs), "_download_model_artifacts")


@lru_cache(maxsize=1)
def _version() -> tuple[int, ...]:
    import mlflow

    return tuple(int(part) for part in re.findall(r"\d+", mlflow.__version__)[:2])
