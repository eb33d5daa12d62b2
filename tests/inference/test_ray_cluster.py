"""A Ray cluster of several nodes encodes and indexes as one process does, also when a worker is
killed in the middle (extra 'ray')."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from block_runs import contents, finish
from ray_runs import entries, load_slowly

from grit_jax.errors import GritError
from grit_jax.inference import vector_file
from grit_jax.inference.model import GritLM
from grit_jax.inference.ray_cluster import RayCluster, RayOptions
from grit_jax.inference.vector_file import encode_file
from grit_jax.rag import build
from grit_jax.rag.index import IndexOptions, build_index

pytestmark = pytest.mark.ray
NODES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, sentences) -> Path:
    """A model, a corpus and a file of texts."""
    root = tmp_path_factory.mktemp("ray")
    tiny_model.save_pretrained(root / "model")
    texts = [f"{text} {number}" for number, text in enumerate(sentences[:100])]
    rows = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    (root / "corpus.jsonl").write_text("\n".join(rows))
    (root / "texts.txt").write_text("\n".join(texts))
    return root


@pytest.fixture(scope="module")
def cluster(folder):
    """The address of a real cluster: a head and two more nodes, each a process with workers."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")]
        ),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",  # as the process alone has
        "RAY_USAGE_STATS_ENABLED": "0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(NODES - 1):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(vector_file, "BLOCK_TEXTS", 8)
    monkeypatch.setattr(build, "block_tokens", lambda model, records: 64)


def texts_of(folder: Path) -> list[str]:
    return (folder / "texts.txt").read_text().splitlines()


def kill_one(log: Path, after: int, killed: list[str]) -> threading.Thread:
    """Kills (SIGKILL) the worker that encodes the last of `after` blocks, while it does."""

    def run() -> None:
        deadline = time.monotonic() + 120
        while len(entries(log)) < after and time.monotonic() < deadline:
            time.sleep(0.01)
        worker = entries(log)[-1][0]
        os.kill(int(worker), signal.SIGKILL)
        killed.append(worker)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def alone(folder: Path, words: list[str], name: str) -> Path:
    run = folder / name
    run.mkdir()
    finish(run, [words[0], str(folder / "model"), *words[1:]], 1)
    return run


def test_a_cluster_indexes_as_one_process_with_a_worker_killed(folder, cluster, tmp_path):
    log, killed = tmp_path / "log", []
    load = functools.partial(load_slowly, folder / "model", log, 0.3)
    thread = kill_one(log, 6, killed)
    with RayCluster(load, RayOptions(cluster)) as ray:
        model = ray.open_model()
        summary = build_index(
            model,
            folder / "corpus.jsonl",
            tmp_path / "index",
            IndexOptions(kv="int8"),
            quiet=True,
            cluster=ray,
        )
    thread.join()
    words = ["index", "--input", str(folder / "corpus.jsonl"), "--kv", "int8"]
    one = alone(folder, [*words, "--output", str(folder / "one" / "index")], "one")
    assert contents(tmp_path / "index") == contents(one / "index")
    assert summary.documents == summary.encoded == 100
    assert not (tmp_path / "index" / "shards").exists()
    workers, blocks = zip(*[(line[0], tuple(line[1:])) for line in entries(log)])
    assert killed and len(set(workers)) > NODES, "several workers, and one in the place of another"
    # What the killed worker was at is encoded again, and nothing else.
    again = [block for block in set(blocks) if blocks.count(block) > 1]
    assert len(again) <= 1 and sorted(id for block in set(blocks) for id in block) == sorted(
        repr(f"d{i}") for i in range(100)
    )


def test_a_cluster_encodes_as_one_process_with_a_worker_killed(folder, cluster, tmp_path):
    log, killed = tmp_path / "log", []
    load = functools.partial(load_slowly, folder / "model", log, 0.3)
    thread = kill_one(log, 4, killed)
    with RayCluster(load, RayOptions(cluster)) as ray:
        encode_file(ray.open_model(), texts_of(folder), tmp_path / "v.npy", cluster=ray)
    thread.join()
    words = ["encode", "--input", str(folder / "texts.txt")]
    one = alone(folder, [*words, "--output", str(folder / "two" / "v.npy")], "two")
    assert (tmp_path / "v.npy").read_bytes() == (one / "v.npy").read_bytes() and killed
    assert np.load(tmp_path / "v.npy").shape[0] == 100
    assert [path.name for path in tmp_path.glob("v.npy*")] == ["v.npy"]


def test_the_command_line(folder, cluster, tmp_path):
    words = ["--input", str(folder / "texts.txt"), "--output", str(tmp_path / "v.npy")]
    model = str(folder / "model")
    (log,) = finish(tmp_path, ["encode", model, *words, "--ray", cluster, "--ray-actors", "2"], 1)
    assert "ray: 2 actors, each with 1 CPU; JAX runs on cpu" in log and "100 texts to" in log
    one = alone(
        folder, ["encode", *words[:2], "--output", str(folder / "three" / "v.npy")], "three"
    )
    assert (tmp_path / "v.npy").read_bytes() == (one / "v.npy").read_bytes()


def test_what_fails_on_a_node_is_one_line(folder, cluster, tmp_path):
    def broken():
        raise GritError("the model is damaged; fetch it again")

    with (
        pytest.raises(GritError, match=r"^the model is damaged; fetch it again$"),
        RayCluster(broken, RayOptions(cluster)) as ray,
    ):
        ray.open_model()


def test_what_fails_while_blocks_are_encoded_is_one_line(folder, cluster, tmp_path):
    """A node that does not see the shards, and one with another model."""
    model, seen = folder / "model", tmp_path / "seen"

    def load():
        opened = GritLM.from_pretrained(model)
        if seen.exists():
            opened.pooling = "cls"
        seen.touch()
        return opened

    with (
        pytest.raises(GritError, match=r"^--ray: the nodes have different models; give all of"),
        RayCluster(load, RayOptions(cluster, actors=1)) as ray,
    ):
        encode_file(ray.open_model(), texts_of(folder), tmp_path / "v.npy", cluster=ray)
    assert not (tmp_path / "v.npy").exists()


def test_no_cluster_is_one_line():
    pytest.importorskip("ray")
    with pytest.raises(GritError, match=r"--ray localhost:1: there is no cluster \("):
        RayCluster(lambda: None, RayOptions("localhost:1"))
