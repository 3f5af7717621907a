"""A real MLflow tracking server with its basic-auth app: users of its own, who may read one thing and not another."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from werkzeug.security import generate_password_hash

from tests.rig.mlflow_server import MlflowServer
from tests.rig.trees import Files, plant

ADMIN = "admin"
_CONFIG = """
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/auth.db
admin_username = {admin}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {hashed_seconds}
"""


class GuardedServer(MlflowServer):
    """Everybody needs a login, and may do nothing that they were not permitted.

    Args:
        hashed_seconds: for which a password need not be hashed again, which takes half a second of CPU time each.
    """

    def __init__(
        self, folder: Path, *, proxied: bool = True, artifact_root: str | None = None, hashed_seconds: int = 600
    ) -> None:
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would print the login with it
        self.passwords = {ADMIN: secrets.token_urlsafe(16)}
        folder.mkdir(parents=True, exist_ok=True)
        self._users = folder / "auth.db"
        config = folder / "auth.ini"
        config.write_text(
            _CONFIG.format(folder=folder, admin=ADMIN, password=self.passwords[ADMIN], hashed_seconds=hashed_seconds)
        )
        super().__init__(
            folder,
            proxied=proxied,
            artifact_root=artifact_root,
            more=("--app-name", "basic-auth"),
            more_env={"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex()},
        )

    def wait(self) -> None:
        """Wait until it answers."""
        super().wait()
        self._hash_cheaply(ADMIN)

    @property
    def own_uri(self) -> str:
        """With the administrator's login."""
        return self.uri.replace("://", f"://{ADMIN}:{self.passwords[ADMIN]}@")

    @property
    def auth(self) -> Any:
        """MLflow's client for users and permissions, as the administrator."""
        from mlflow.server import get_app_client

        return get_app_client("basic-auth", tracking_uri=self.own_uri)

    def add_user(self, name: str) -> None:
        """A user who may do nothing yet."""
        self.passwords[name] = secrets.token_urlsafe(16)
        self.auth.create_user(name, self.passwords[name])
        self._hash_cheaply(name)

    def _hash_cheaply(self, name: str) -> None:
        """A password that is slow to guess is slow to check as well: a tenth of a second for each request."""
        cheap = generate_password_hash(self.passwords[name], method="pbkdf2:sha256:1")
        with contextlib.closing(sqlite3.connect(self._users)) as users, users:
            users.execute("UPDATE users SET password_hash = ? WHERE username = ?", (cheap, name))

    def experiment_of(self, name: str, *readers: str) -> str:
        """An experiment that these users may read; returns its ID."""
        experiment: str = self.client.create_experiment(name)
        for reader in readers:
            self.permit(experiment, reader)
        return experiment

    def permit(self, experiment: str, reader: str) -> None:
        """Lets a user read an experiment."""
        self.auth.grant_user_permission(reader, "experiment", experiment, "READ")

    def forbid(self, experiment: str, reader: str) -> None:
        """Takes that back."""
        self.auth.revoke_user_permission(reader, "experiment", experiment)

    def permit_model(self, name: str, *readers: str) -> None:
        """Lets users read a registered model, which does not give them what it was made of."""
        for reader in readers:
            self.auth.grant_user_permission(reader, "registered_model", name, "READ")

    def run_in(self, experiment: str, files: Files, tags: dict[str, str] | None = None) -> str:
        """Log a finished run with these artifacts; returns its ID."""
        run = self.client.create_run(experiment, tags=tags)
        run_id: str = run.info.run_id
        plant(self.folder(run_id), files)
        self.client.set_terminated(run_id)
        return run_id

    def login(self, name: str) -> dict[str, str]:
        """What a user has in the environment."""
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": self.passwords[name]}


@contextmanager
def guarded(folder: Path, **options: Any) -> Iterator[GuardedServer]:
    """A server for as long as this lasts."""
    server = GuardedServer(folder, **options)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
