"""What it costs to be judged: warm hits with check = "caller", against a daemon that checks nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from unittest import mock

import artifactcache
from tests.bench.cases import Ground
from tests.bench.figures import Figure, in_turn, milliseconds, seconds
from tests.rig.guarded_server import guarded

ROUNDS = 400
COLD_ROUNDS = 9
FILES = {f"folder{n % 5}/file{n}": os.urandom(4096) for n in range(10)}


def access(ground: Ground) -> Iterator[Figure]:
    """A view of 10 files while the decision is fresh, and the question where it is not."""
    with guarded(ground.folder / "guarded", hashed_seconds=0) as server:
        server.add_user("alice")
        experiment = server.experiment_of("hers", "alice")
        runs = [server.run_in(experiment, FILES) for _ in range(COLD_ROUNDS)]
        login = server.login("alice")
        with (
            mock.patch.dict(os.environ, login),
            ground.daemon(server.uri, env=login) as none,
            ground.daemon(server.uri, check="caller", more="decisions_kept = 3600\n") as caller,
            artifactcache.Client(str(none.socket_dir)) as unchecked,
            artifactcache.Client(str(caller.socket_dir)) as checked,
        ):
            uri = f"runs:/{runs[0]}"
            for client in (unchecked, checked):
                client.fetch(uri).release()

            def hit(client: artifactcache.Client) -> None:
                client.fetch(uri).release()

            a, b, ratio = in_turn(lambda: hit(checked), lambda: hit(unchecked), ROUNDS)
            yield Figure(
                'view of 10 files, check = "caller", decision fresh',
                milliseconds(a),
                f'check = "none" {milliseconds(b)}',
                f"{ratio:.2f} ×",
                "1.3 ×",
            )
        with mock.patch.dict(os.environ, login), ground.daemon(server.uri, check="caller") as caller:
            with artifactcache.Client(str(caller.socket_dir)) as client:
                client.warm(*(f"runs:/{run}" for run in runs))
            caller.stop()
            caller.start()  # it has forgotten its decisions, and holds what it held
            with artifactcache.Client(str(caller.socket_dir)) as client:
                client.ping()
                took = sorted(seconds(partial(client.warm, f"runs:/{run}")) for run in runs)
            yield Figure(
                "the same, decision to be asked for", milliseconds(took[len(took) // 2]), "basic-auth app", "", ""
            )
