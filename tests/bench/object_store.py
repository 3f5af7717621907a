"""Cold fetches from a real S3 endpoint, against MLflow's own client and against what the endpoint can give at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from obstore.store import S3Store

import artifactcache
from tests.bench.cases import Ground
from tests.bench.figures import Figure, milliseconds, seconds
from tests.rig import s3 as endpoints

BUCKET = "bench"
SMALL_FILES, SMALL_BYTES = 2000, 4096
BIG_BYTES = 1 << 30
PART_BYTES = 8 << 20
ROUNDS = 3


def s3(ground: Ground) -> Iterator[Figure]:
    """2,000 files of 4 KiB, and one of 1 GiB. In each round all three, one after the other; the medians are told."""
    if why := endpoints.reason_not_to_start("swift"):
        yield Figure("cold fetch over S3", f"not measured: {why}", "", "", "")
        return
    with endpoints.endpoint("swift", ground.folder / "swift") as endpoint:
        os.environ.update(endpoint.env)
        endpoint.client.create_bucket(Bucket=BUCKET)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: _put(endpoint, f"small/folder{i % 20:02}/{i:05}"), range(SMALL_FILES)))
        with tempfile.NamedTemporaryFile(dir=ground.folder) as big:
            for _ in range(BIG_BYTES >> 20):
                big.write(os.urandom(1 << 20))
            big.flush()
            endpoint.client.upload_file(big.name, BUCKET, "big/weights.bin")
        yield from _case(ground, endpoint, "2,000 files of 4 KiB", "small", _all_small, "5 ×, or 90 % of the limit")
        yield from _case(ground, endpoint, "1 GiB", "big", _all_big, "2 ×, or 90 % of the limit")


def _put(endpoint: endpoints.Endpoint, key: str) -> None:
    endpoint.client.put_object(Bucket=BUCKET, Key=key, Body=os.urandom(SMALL_BYTES))


def _case(
    ground: Ground,
    endpoint: endpoints.Endpoint,
    what: str,
    prefix: str,
    bare: Callable[[endpoints.Endpoint, int], None],
    goal: str,
) -> Iterator[Figure]:
    rounds: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        rounds.append((_ours(ground, endpoint, prefix), _theirs(ground, prefix), _limit(endpoint, bare)))
    ours, theirs, limit = (sorted(column)[ROUNDS // 2] for column in zip(*rounds, strict=True))
    yield Figure(
        f"cold fetch over S3, {what}",
        milliseconds(ours),
        f"MLflow {milliseconds(theirs)}; the endpoint alone {milliseconds(limit)}",
        f"{theirs / ours:.1f} × faster, {limit / ours:.0%} of the limit",
        goal,
    )


def _ours(ground: Ground, endpoint: endpoints.Endpoint, prefix: str) -> float:
    with (
        ground.daemon("http://127.0.0.1:9", env=endpoint.env) as daemon,
        artifactcache.Client(str(daemon.socket_dir)) as client,
    ):
        client.ping()
        took = seconds(lambda: client.fetch(f"s3://{BUCKET}/{prefix}"))
    shutil.rmtree(daemon.root)
    return took


def _theirs(ground: Ground, prefix: str) -> float:
    import mlflow

    to = ground.folder / "theirs"
    uri = f"s3://{BUCKET}/{prefix}"
    took = seconds(lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(to)))
    shutil.rmtree(to)
    return took


def _limit(endpoint: endpoints.Endpoint, bare: Callable[[endpoints.Endpoint, int], None]) -> float:
    """The quickest of several numbers of requests at a time: what the endpoint gives to who does nothing with it."""
    return min(seconds(lambda at_once=at_once: bare(endpoint, at_once)) for at_once in (4, 16))  # type: ignore[misc]


def _all_small(endpoint: endpoints.Endpoint, at_once: int) -> None:
    pages = endpoint.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="small/")
    keys = [found["Key"] for page in pages for found in page["Contents"]]
    store = _store(endpoint)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda key: len(store.get(key).bytes()), keys))


def _all_big(endpoint: endpoints.Endpoint, at_once: int) -> None:
    store = _store(endpoint)
    begins = range(0, BIG_BYTES, PART_BYTES)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda begin: len(store.get_range("big/weights.bin", start=begin, length=PART_BYTES)), begins))


def _store(endpoint: endpoints.Endpoint) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=endpoint.uri,
        region=endpoints.REGION,
        access_key_id=endpoint.env["AWS_ACCESS_KEY_ID"],
        secret_access_key=endpoint.env["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
