"""The tracking server's REST API as a caller sees it: with the caller's headers, and none of the daemon's.

Law of this file: what the daemon itself may see never comes into an answer. The methods are named as those of MLflow's
own client, whose place this takes, and give what the origin reads of their results; paths and fields are those of
https://mlflow.org/docs/latest/rest-api.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from artifactcache.errors import Corrupted
from cacheserver.http import Access, Http, same_server
from cacheserver.sources import climbs

API = "/api/2.0/"
ANSWER_BYTES_MAX = 1 << 24  # a run may have megabytes of tags, metrics and parameters
_MODEL_STATUS = "LOGGED_MODEL_"  # before a logged model's status, in JSON only


def is_of_api(url: str, tracking_uri: str) -> bool:
    """Whether a URL lies below the tracking server's REST API: what else is on its host is not the tracking server."""
    path, base = unquote(urlsplit(url).path), urlsplit(tracking_uri).path.rstrip("/") + API
    return same_server(url, tracking_uri) and path.startswith(base) and not climbs(urlsplit(url).path)


class AsCaller:
    """MLflow's client for one caller.

    Args:
        access: what goes beside a URL for this caller.
        patience: seconds that an answer may take.

    Raises what `Http.get` raises, and Corrupted for an answer that makes no sense.
    """

    def __init__(self, tracking_uri: str, http: Http, access: Callable[[str], Access], patience: float) -> None:
        self._base = tracking_uri.rstrip("/") + API
        self._http = http
        self._access = access
        self._patience = patience

    def get_run(self, run_id: str) -> Any:
        """A run: `info`, and the IDs of the logged models that it has put out."""
        run = self._ask("mlflow/runs/get", "run", run_id=run_id)
        info, outputs = _of(run, "info"), run.get("outputs") or {}
        _is_of("run", run_id, info.get("run_id"))
        models = outputs.get("model_outputs") or () if isinstance(outputs, dict) else ()
        return SimpleNamespace(
            info=SimpleNamespace(
                run_id=info.get("run_id", ""), artifact_uri=info.get("artifact_uri"), status=info.get("status")
            ),
            outputs=SimpleNamespace(
                model_outputs=[SimpleNamespace(model_id=str(m.get("model_id", ""))) for m in models if m]
            ),
        )

    def get_logged_model(self, model_id: str) -> Any:
        """A logged model."""
        info = _of(self._ask(f"mlflow/logged-models/{quote(model_id, safe='')}", "model"), "info")
        _is_of("logged model", model_id, info.get("model_id"))
        return SimpleNamespace(
            model_id=info.get("model_id", ""),
            name=str(info.get("name", "")),
            artifact_location=info.get("artifact_uri"),
            source_run_id=info.get("source_run_id", ""),
            creation_timestamp=int(info.get("creation_timestamp_ms") or 0),
            status=str(info.get("status", "")).removeprefix(_MODEL_STATUS),
        )

    def get_model_version(self, name: str, version: str) -> Any:
        """A version of a registered model."""
        found = _version(self._ask("mlflow/model-versions/get", "model_version", name=name, version=version))
        _is_of("version of a model", version, found.version)
        return found

    def get_model_version_download_uri(self, name: str, version: str) -> Any:
        """Where a version's bytes are."""
        return self._ask("mlflow/model-versions/get-download-uri", "artifact_uri", str, name=name, version=version)

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        """The version that an alias stands for."""
        return _version(self._ask("mlflow/registered-models/alias", "model_version", name=name, alias=alias))

    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[Any]:
        """The newest versions, one for each stage."""
        found = self._ask(
            "mlflow/registered-models/get-latest-versions", "model_versions", list, name=name, stages=stages or ()
        )
        return [_version(one) for one in found]

    def list_artifacts(self, path: str) -> None:
        """Looks whether a folder below the server's own artifacts can be listed; what is in it is not read."""
        self._ask("mlflow-artifacts/artifacts", "files", list, path=path)

    def _ask(self, what: str, field: str, kind: type = dict, **parameters: str | Sequence[str]) -> Any:
        url = f"{self._base}{what}" + (f"?{urlencode(parameters, doseq=True)}" if parameters else "")
        with self._http.get(url, self._access(url), self._patience) as answer:
            text = answer.read(ANSWER_BYTES_MAX + 1)
        try:
            told = json.loads(text) if len(text) <= ANSWER_BYTES_MAX else None
        except (ValueError, RecursionError):
            told = None
        found = told.get(field, kind()) if isinstance(told, dict) else None  # MLflow's JSON leaves out what is empty
        if not isinstance(found, kind):
            raise Corrupted(f"{what}: the tracking server's answer makes no sense.")
        return found


def _version(found: Any) -> Any:
    if not isinstance(found, dict):
        raise Corrupted("The tracking server's answer has a version of a model that makes no sense.")
    return SimpleNamespace(
        version=str(found.get("version", "")),
        creation_timestamp=found.get("creation_timestamp"),
        status=str(found.get("status", "")),
        run_id=str(found.get("run_id") or ""),
        model_id=str(found.get("model_id") or ""),
    )


def _is_of(what: str, asked: str, told: object) -> None:
    """Raises Corrupted where an answer is about something else, as from a proxy that mixes answers up."""
    if told != asked:
        raise Corrupted(f"The tracking server was asked for a {what}, {asked}, and has answered with another one.")


def _of(found: dict[str, Any], field: str) -> dict[str, Any]:
    inner = found.get(field)
    if not isinstance(inner, dict):
        raise Corrupted(f"The tracking server's answer has no {field}.")
    return inner
