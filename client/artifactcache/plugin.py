"""What MLflow loads: for each scheme of artifact URIs a repository that asks the daemon first.

Law of this file: whatever is wrong, `import mlflow` works and MLflow keeps a repository of its own. It loads in the
middle of that import, so it imports next to nothing: what does the work comes with the classes, that with grpc with
the first download.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from artifactcache.switch import is_on

# Entry point -> MLflow's own module and class. Not here: dbfs, which the daemon does not serve, and plain paths, which
# are files of the caller's own that may change at any time.
_BUILT_IN = {
    "runs": ("runs_artifact_repo", "RunsArtifactRepository"),
    "models": ("models_artifact_repo", "ModelsArtifactRepository"),
    "mlflow_artifacts": ("mlflow_artifacts_repo", "MlflowArtifactsRepository"),
    "http": ("http_artifact_repo", "HttpArtifactRepository"),
    "https": ("http_artifact_repo", "HttpArtifactRepository"),
    "file": ("local_artifact_repo", "LocalArtifactRepository"),
    "s3": ("s3_artifact_repo", "S3ArtifactRepository"),
    "r2": ("r2_artifact_repo", "R2ArtifactRepository"),
    "b2": ("b2_artifact_repo", "B2ArtifactRepository"),
    "gs": ("gcs_artifact_repo", "GCSArtifactRepository"),
    "wasbs": ("azure_blob_artifact_repo", "AzureBlobArtifactRepository"),
    "abfss": ("azure_data_lake_artifact_repo", "AzureDataLakeArtifactRepository"),
    "ftp": ("ftp_artifact_repo", "FTPArtifactRepository"),
    "sftp": ("sftp_artifact_repo", "SFTPArtifactRepository"),
    "hdfs": ("hdfs_artifact_repo", "HdfsArtifactRepository"),
    "viewfs": ("hdfs_artifact_repo", "HdfsArtifactRepository"),
}


def __getattr__(name: str) -> Any:
    """Return the repository of an entry point. Where that raises, MLflow keeps its own and says so."""
    if name not in _BUILT_IN:
        raise AttributeError(f"module 'artifactcache.plugin' has no attribute {name!r}")
    module, class_name = _BUILT_IN[name]
    try:
        built_in = getattr(import_module(f"mlflow.store.artifact.{module}"), class_name)
    except ImportError:
        if name == "b2":  # only newer ones have it; a warning would greet all others
            return _unknown
        raise
    if not is_on(os.environ):
        return built_in
    try:
        from artifactcache import repositories

        return repositories.served(built_in, name)
    except Exception:  # noqa: BLE001 - a cache that is broken is no reason for MLflow to be
        return built_in


def _unknown(artifact_uri: str, *_: Any, **__: Any) -> Any:
    """Refuse a URI as an MLflow that lacks its scheme does."""
    from mlflow.exceptions import MlflowException

    raise MlflowException(f"Could not find a registered artifact repository for: {artifact_uri}.")
