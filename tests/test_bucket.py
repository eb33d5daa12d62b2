"""A run whose output is a bucket: several processes, a store that knows no folders, appends or
renames.

The store is an emulator of Cloud Storage, a process of its own, to which gcsfs and TensorStore
(through Orbax) talk as they would to Google's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import check, finish, small_run, start, wait
from training_run import STEPS, trace

from grit_jax.inference.model import GritLM

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")
pytestmark = pytest.mark.multiprocess

RUN = "gs://bucket/runs/mine"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[dict[str, str]]:
    """What the processes of a run need to know of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
        "--default-bucket=bucket",
    ]
    log = (tmp_path_factory.mktemp("bucket") / "log").open("w")
    store = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", *words], stdout=log, stderr=log
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/storage/v1/b/bucket")
                break
            except (urllib.error.URLError, OSError):
                assert store.poll() is None
                time.sleep(0.1)
        # No account is looked for, nor a kind of bucket that the emulator does not know.
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "NO_GCE_CHECK": "true",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        store.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"), sentences)


def ask(bucket: dict[str, str], what: str) -> bytes:
    with urllib.request.urlopen(
        f"{bucket['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o{what}"
    ) as answer:
        return answer.read()


def objects(bucket: dict[str, str]) -> set[str]:
    """The names of what is under the run's address."""
    items = json.loads(ask(bucket, "?prefix=runs/mine/&maxResults=10000")).get("items", [])
    return {item["name"].removeprefix("runs/mine/") for item in items}


def fetch(bucket: dict[str, str], folder: Path) -> Path:
    """All of it but the checkpoints, as a folder."""
    for name in objects(bucket):
        if not name.startswith("checkpoints/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(
                ask(bucket, f"/{('runs/mine/' + name).replace('/', '%2F')}?alt=media")
            )
    return folder


def test_killed_on_one_set_of_machines_and_finished_on_another(folder, bucket, tmp_path):
    """Two processes write to the bucket and are killed; two others, with empty disks, go on from
    there."""
    alone = trace(finish(folder, "one", 1))
    machine = lambda name: bucket | {"XDG_CACHE_HOME": str(tmp_path / name)}
    processes = start(folder, "killed", 2, output=RUN, environment=machine("first"))
    deadline = time.monotonic() + 600
    while "checkpoints/2/commit_success.txt" not in objects(bucket) and time.monotonic() < deadline:
        assert [p.poll() for p in processes] == [None, None], [
            p.read_text() for p in folder.glob("killed.*.log")
        ]
        time.sleep(0.2)
    for process in processes:
        process.kill()
    wait(folder, processes)
    assert {"metrics.jsonl", "config.yaml", "tokenizer/tokenizer.json"} <= objects(bucket)
    assert len(trace(fetch(bucket, tmp_path / "then"))) >= 2, (
        "the lines that lead to a checkpoint are there before it"
    )

    finish(folder, "gone on", 2, output=RUN, environment=machine("second"))
    there = fetch(bucket, tmp_path / "there")
    check(trace(there), alone)
    lines = [
        json.loads(line)["step"] for line in (there / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == list(range(STEPS)), "one line a step, all of them whole"
    kept = {
        name.split("/")[1]
        for name in objects(bucket)
        if name.startswith("checkpoints/") and "commit" in name
    }
    assert kept == {str(STEPS - 2), str(STEPS)}
    one, two = (GritLM.from_pretrained(where / "model") for where in (folder / "one", there))
    for name, weight in one.params.items():
        np.testing.assert_allclose(two.params[name], weight, atol=1e-4, err_msg=name)

    # A finished run is not done again, on a third machine as little as on the second.
    before = objects(bucket)
    said = f"finished before: {STEPS} steps; model in {RUN}/model"
    finish(folder, "done", 1, said=said, output=RUN, environment=machine("third"))
    assert objects(bucket) == before
    command = [sys.executable, "-m", "grit_jax", "export", RUN, str(tmp_path / "exported")]
    subprocess.run(
        command,
        check=True,
        env={**os.environ, **machine("fourth"), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
    )
    for name, weight in GritLM.from_pretrained(tmp_path / "exported").params.items():
        np.testing.assert_allclose(two.params[name], weight, atol=1e-6, err_msg=name)
