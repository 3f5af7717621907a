"""What mallory, a user of the host with an account at the tracking server, is up against: alice's artifacts, held.

Root sets it up and looks at what is left; whatever is attempted runs in processes of mallory's own user.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.rig.caller import Caller, Job
from tests.rig.daemon import Daemon
from tests.rig.guarded_server import GuardedServer
from tests.rig.trees import Files, plant

SECRET = b"nobody but alice may read this"
FILES: Files = {"model/MLmodel": b"flavors: {}", "model/weights": SECRET * 100, "notes": SECRET}
HIS: Files = {"model/MLmodel": b"flavors: {his}", "model/weights": b"mine", "notes": b"mine too"}
PATIENCE_SECONDS = 30.0  # of passwords that are hashed on a busy machine


@dataclass
class Siege:
    """A tracking server that knows alice and mallory, a daemon that asks it as whoever calls, and what alice has there.

    Attributes:
        values: what the attempts name: alice's run, logged model and registered model, a run of mallory's, and places.
    """

    server: GuardedServer
    daemon: Daemon
    alice: Caller
    mallory: Caller
    values: dict[str, Any]

    def login(self, role: str) -> dict[str, str]:
        """What a user's environment has for the tracking server."""
        return self.server.login(role)

    @property
    def secrets(self) -> list[str]:
        """What must stand nowhere."""
        return list(self.server.passwords.values())

    @cached_property
    def client(self) -> Any:
        """MLflow's client as mallory."""
        from mlflow import MlflowClient

        uri = self.server.uri.replace("://", f"://mallory:{self.server.passwords['mallory']}@")
        return MlflowClient(uri, uri)

    def audit(self, **wanted: object) -> list[dict[str, Any]]:
        """The lines of the audit log whose fields are these."""
        lines = [json.loads(line) for line in (self.daemon.root / "audit.jsonl").read_bytes().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]


def start(start_daemon: Any, server: GuardedServer) -> Daemon:
    """A daemon that asks the tracking server as whoever calls, and remembers for long."""
    daemon: Daemon = start_daemon(
        server.uri, check="caller", alias_ttl=60.0, unreachable_after=PATIENCE_SECONDS, stale_after=PATIENCE_SECONDS
    )
    return daemon


def prepared(server: GuardedServer, daemon: Daemon, alice: Caller, mallory: Caller) -> Siege:
    """Alice's artifacts; mallory may see her registered model's entry, and has an experiment of his own."""
    for name in ("alice", "mallory"):
        server.add_user(name)
    hers = server.experiment_of("hers", "alice")
    run = server.run_in(hers, FILES)
    logged = server.client.create_logged_model(hers, "logged")
    plant(server.model_folder(logged.model_id), {"MLmodel": SECRET})
    server.client.finalize_logged_model(logged.model_id, "READY")
    version = server.add_version("treasure", run, "model")
    server.client.set_registered_model_alias("treasure", "champion", version)
    server.permit_model("treasure", "alice", "mallory")
    inside = server.artifact_uri(run).partition(":")[2].strip("/")
    values = {"run": run, "logged": logged.model_id, "model": "treasure", "version": version, "inside": inside}
    values |= {"experiment": hers, "tail": inside.partition("/")[2], "server": server.uri}
    values |= {"host": server.uri.partition("://")[2], "store": str(daemon.root), "sockets": str(daemon.socket_dir)}
    siege = Siege(server, daemon, alice, mallory, values)
    values["his_experiment"] = siege.client.create_experiment("his")
    values["mine"] = server.run_in(values["his_experiment"], HIS)
    return siege


@contextlib.contextmanager
def at_work(siege: Siege) -> Iterator[tuple[Job, dict[str, Any]]]:
    """A process of alice's that has all of hers, stands in a view of it, and has leased it by hand.

    Gives the process and what mallory may have come to know of it: it is hard to keep a secret of names. Its result is
    how many lines the manifest has that it gets by its lease at the end.
    """
    code = """
        import artifactcache
        from artifactcache import credentials
        from artifactcache.v1 import cache_pb2 as pb
        from artifactcache.deadline import Deadline
        from tests.rig.wire import Handoff, leased, manifest_lines, stub
        client = artifactcache.Client()
        proved = client._calls().session.connection(Deadline(None))._token
        fetched = client.fetch(f"runs:/{run}")
        for uri in (f"models:/{model}@champion", f"models:/{logged}", f"mlflow-artifacts:/{inside}"):
            client.fetch(uri)
        client.fetch(f"runs:/{run}/notes")
        os.makedirs("private", 0o700, exist_ok=True)
        client.fetch(f"runs:/{run}", "private/copy", mode="copy", exists="replace")
        blobs = {file.path: file.digest for file in client.inspect(f"runs:/{run}").files}
        home = os.getcwd()
        os.chdir(fetched)
        kept = open("notes", "rb")
        raw = Handoff(sockets)
        token = raw.hello()
        raw.ask(present=pb.Present(headers=credentials.headers(server)))
        with stub(sockets) as cache:
            lease = leased(cache, token, f"runs:/{run}").lease
        say({"view": os.fspath(fetched), "digest": fetched.digest, "blob": blobs["notes"], "alice_pid": os.getpid(),
             "alice_home": home, "alice_token": token, "alice_lease": lease,
             "alice_proved": proved})
        hear()
        with Handoff(sockets) as joined:
            joined.hello(token)
            result = len(manifest_lines(joined, lease))
    """
    with siege.alice.start(code, env=siege.login("alice"), **siege.values) as job:
        yield job, job.hear() | {"daemon_pid": siege.daemon.pid}


_READ = """
import artifactcache, pathlib
fetched = artifactcache.fetch(uri)
result = pathlib.Path(fetched, "weights").read_bytes().hex(), fetched.hit
"""


def read(caller: Caller, uri: str, login: dict[str, str]) -> tuple[bytes, bool]:
    """The weights that somebody gets, and whether it was a hit."""
    weights, hit = caller.run(_READ, uri=uri, env=login)
    return bytes.fromhex(weights), hit


def take_over(siege: Siege, name: str) -> None:
    """Alice renames her registered model, and mallory takes its name for a version of what is his.

    It is of a run that nobody has fetched: the siege is shared by all tests of a worker, in whatever order.
    """
    siege.server.client.rename_registered_model(name, f"{name}-of-alice")
    siege.client.create_registered_model(name)
    mine = siege.server.run_in(siege.values["his_experiment"], HIS)
    siege.client.create_model_version(name, f"{siege.server.artifact_uri(mine)}/model", mine)
