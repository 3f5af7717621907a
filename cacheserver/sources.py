"""The source of an artifact, as the tracking server shows it to whoever asks: may they read its bytes?

Law of this file: what is shown is what the bytes come from, not a name beside them. A version of a registered model may
name any run and any place, and so may a bare URI: the run, or the logged model, has to be shown, and the bytes have to
lie in its own folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from artifactcache.errors import NotFound, PermissionDenied
from cacheserver import names, roots
from cacheserver.http import same_server
from cacheserver.refusals import without_credentials
from cacheserver.uris import Artifact, Kind

CANDIDATES_MAX = 4  # IDs in a bare URI that may be those of its run or its logged model
ENDPOINT = "/mlflow-artifacts/artifacts/"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_OF_SERVER = frozenset({"http", "https", "mlflow-artifacts"})

Ask = Callable[[str, Callable[[], Any]], Any]


class Place(NamedTuple):
    """Where an artifact's bytes lie: in the folder of which run, or logged model, with the path there, None where there
    is none; and of a version of a registered model at which bare URI."""

    home: Artifact | None
    root: str = ""


class Proof(NamedTuple):
    """What says that a caller may read an artifact.

    Attributes:
        reason: for messages.
        root: of a version of a registered model where its bytes lay then: its name may go to another one.
        parts: of a run where the bytes of those logged models lie that show as folders of it; None of anything else.
    """

    reason: str
    root: str = ""
    parts: frozenset[str] | None = None


class Sources:
    """What one caller is shown.

    Args:
        client: MLflow's, or `AsCaller`.
        ask: one answer about something; raises errors of ours only.
        tracking_uri: without credentials.
    """

    def __init__(self, client: Any, ask: Ask, tracking_uri: str) -> None:
        self._client = client
        self._ask = ask
        self._tracking_uri = tracking_uri

    def prove(self, artifact: Artifact) -> Proof:
        """Looks whether the bytes of an artifact may be read.

        Raises PermissionDenied, Unauthenticated, NotFound, OriginUnavailable.
        """
        client, base, name = self._client, artifact.base, artifact.name
        match artifact.kind:
            case Kind.RUN:
                run = self._ask(base, lambda: client.get_run(name))
                shown = roots.folders(name, self._logged_models(run))
                parts = frozenset(root for _, root in shown)
                return Proof(f"the tracking server shows the run {name} to the caller", parts=parts)
            case Kind.LOGGED_MODEL:
                self._ask(base, lambda: client.get_logged_model(name))
                return Proof(f"the tracking server shows the logged model {name} to the caller")
            case Kind.MODEL_VERSION | Kind.BARE:
                return self._lies_in(artifact)
        raise AssertionError(f"{base} is no version")

    def _logged_models(self, run: Any) -> Iterator[Any]:
        """The logged models that a run names, which may be in another experiment."""
        outputs = getattr(run, "outputs", None)
        for output in outputs.model_outputs if outputs else ():
            with contextlib.suppress(NotFound):  # deleted: then it does not show
                yield self._ask(output.model_id, partial(self._client.get_logged_model, output.model_id))

    def home(self, uri: str, ids: Iterable[str]) -> Artifact | None:
        """The run, or the logged model, in whose folder a URI lies, with the path there; None where none is shown.

        Args:
            uri: bare.
            ids: of runs and logged models that it may be; those that stand in it are tried as well.

        Raises PermissionDenied where one that it may be is not shown to the caller.
        """
        if climbs(uri):
            return None
        refused: PermissionDenied | None = None
        segments = [s for s in uri.split("/") if _RUN_ID.fullmatch(s) or _MODEL_ID.fullmatch(s)]
        for one in list(dict.fromkeys([*ids, *segments]))[:CANDIDATES_MAX]:
            try:
                root = self._root(one)
            except NotFound:
                continue
            except PermissionDenied as error:
                refused = refused or error
                continue
            if uri == root or uri.startswith(root + "/"):
                return Artifact(
                    Kind.LOGGED_MODEL if _MODEL_ID.fullmatch(one) else Kind.RUN, one, path=uri[len(root) + 1 :]
                )
        if refused:
            raise refused
        return None

    def place(self, artifact: Artifact) -> Place:
        """Where a bare artifact, or a version of a registered model, lies. Raises what `home` raises."""
        if artifact.kind is Kind.BARE:
            return Place(self.home(artifact.name, ()))
        name, number = artifact.name, artifact.selector
        version = self._ask(artifact.base, lambda: self._client.get_model_version(name, number))
        told = self._ask(artifact.base, lambda: self._client.get_model_version_download_uri(name, number))
        ids = [one for one in (getattr(version, "model_id", ""), version.run_id) if one]
        root = roots.root(artifact.base, told)
        return Place(self.home(root, ids), root)

    def _lies_in(self, artifact: Artifact) -> Proof:
        home, root = self.place(artifact)  # a run that is not shown is not outweighed by a listing of its folder
        if home:
            return Proof(f"the tracking server shows {home.base} to the caller, where the artifact lies", root)
        path = self._path_at_server(artifact.name) if artifact.kind is Kind.BARE and not climbs(artifact.name) else ""
        if path:
            self._ask(artifact.base, lambda: self._client.list_artifacts(path))
            return Proof("the tracking server lists the artifact's folder to the caller")
        raise PermissionDenied(
            f"{names.show(without_credentials(artifact.base))}: the tracking server has no run and no logged model in"
            " whose folder this lies, so that nothing says whether you may read it. Name the run or the model, as in"
            " runs:/<run id>/<path>."
        )

    def _root(self, one: str) -> str:
        if _MODEL_ID.fullmatch(one):
            model = self._ask(one, lambda: self._client.get_logged_model(one))
            return roots.root(one, model.artifact_location)
        run = self._ask(one, lambda: self._client.get_run(one))
        return roots.root(one, run.info.artifact_uri)

    def _path_at_server(self, uri: str) -> str:
        """The path of an artifact that the tracking server itself hands out; empty where it is elsewhere."""
        scheme = roots.scheme(uri)
        if scheme not in _OF_SERVER:
            return ""
        if scheme == "mlflow-artifacts":
            there, rest = roots.server(uri), uri.partition(":")[2]
            if there and there != roots.server(self._tracking_uri):
                return ""
            return rest[2 + len(there) :].strip("/") if rest.startswith("//") else rest.strip("/")
        if not same_server(uri, self._tracking_uri):
            return ""
        return uri.partition(ENDPOINT)[2].strip("/")


def climbs(uri: str) -> bool:
    """Whether a part of a URI leads upwards, as it is or once it is unescaped."""
    return any(part in (".", "..") for text in (uri, unquote(uri)) for part in text.split("/"))
