"""A training run as a whole: configuration, data, loop, checkpoints, exact resume, exported model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from grit_jax.inference.model import GritLM
from grit_jax.metrics import read_lines
from grit_jax.train import RunConfig, export_checkpoint, read_run_config, train
from grit_jax.training import loop
from grit_jax.types import GritError

STEPS = 6
TIMES = ("seconds", "tokens_per_s", "data_wait_s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    """A configuration with all three kinds of data, paths relative to it."""
    root = tmp_path_factory.mktemp("run")
    files = {
        "embedding": [
            {"query": ["find it", a], "pos": [["", b]], "neg": [["", c]]}
            for a, b, c in zip(sentences[:40], sentences[40:80], sentences[80:120], strict=True)
        ],
        "generative": [{"text": [a, b]} for a, b in zip(sentences[:50], sentences[50:100], strict=True)],
        "cached": [{"docs": [a], "text": [b, c]} for a, b, c in zip(sentences[:30], sentences[30:60], sentences[60:90], strict=True)],
        "documents": [{"id": str(i), "text": text} for i, text in enumerate(sentences)],
    }  # fmt: skip
    for name, lines in files.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": {
            "shape": {
                "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
            },
            "dtype": "float32", "remat": "none",
        },
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 480},
        "data": {
            "embedding": ["embedding.jsonl"], "generative": ["generative.jsonl"], "cached": ["cached.jsonl"],
            "embedding_batch": 6, "generative_batch": 4, "cached_batch": 4, "query_max_length": 64,
            "passage_max_length": 64, "generative_max_length": 160, "document_max_length": 64,
        },
        "train": {
            "steps": STEPS, "checkpoint_every": 2, "eval_embedding": "embedding.jsonl",
            "eval_generative": "generative.jsonl",
        },
        "optimizer": {"lr": 1e-3},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "whole",
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def trace(output: Path) -> list[dict]:
    """The metrics without what the clock says."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_lines(output / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return train(read_run_config(folder / "config.yaml")).output


def test_a_run_leaves_metrics_checkpoints_and_a_model(whole):
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert {"loss", "loss_emb", "loss_gen", "loss_cached", "lr", "tokens_per_s", "grad_norm", "padding"} <= first.keys()
    assert last["eval_ndcg@10"] > 0 and last["eval_perplexity"] > 1
    model = GritLM.from_pretrained(whole / "model")
    np.testing.assert_allclose(np.linalg.norm(model.encode(["a river"]), axis=1), 1, rtol=1e-5)


def test_a_finished_run_started_again_does_nothing(folder, whole):
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    assert train(read_run_config(folder / "config.yaml")).already_finished
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(GritError, match="holds a run"):
        train(read_run_config(folder / "config.yaml"), resume="never")


@pytest.mark.parametrize("broken_at", [1, 3, 5])
def test_an_interrupted_run_ends_with_the_identical_trace(folder, whole, broken_at, monkeypatch):
    config = read_run_config(folder / "config.yaml", {"output": str(folder / f"broken{broken_at}")})
    put_rows, calls = loop.put_rows, []

    def failing(*args):
        calls.append(1)
        if len(calls) == broken_at + 1:
            raise RuntimeError("the power went out")
        return put_rows(*args)

    monkeypatch.setattr(loop, "put_rows", failing)
    with pytest.raises(RuntimeError):
        train(config)
    monkeypatch.setattr(loop, "put_rows", put_rows)
    with (Path(config.output) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # what a kill may leave
    assert trace(train(config).output) == trace(whole)


def test_export_writes_the_newest_checkpoint(whole, tmp_path):
    assert export_checkpoint(whole, tmp_path / "out") == STEPS
    one, two = GritLM.from_pretrained(whole / "model"), GritLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(one.params["query"], two.params["query"])


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_batch(folder):
    config = read_run_config(
        folder / "config.yaml", {"output": str(folder / "nan"), "optimizer.lr": "1e30", "optimizer.clip_norm": "null"}
    )
    with pytest.raises(GritError, match="bad_batch.json"):
        train(config)
    ids = json.loads((folder / "nan" / "bad_batch.json").read_text())["ids"]
    assert len(ids["embedding"]) == 6 and "embedding.jsonl:" in ids["embedding"][0]


def test_relative_paths_are_relative_to_the_yaml_and_overrides_to_the_working_directory(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = read_run_config(folder / "config.yaml", {"output": "here"})
    assert config.data.embedding == [str(folder / "embedding.jsonl")] and config.output == "here"


def test_every_shipped_configuration_loads():
    for path in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")):
        assert isinstance(read_run_config(path), RunConfig)


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_the_identical_trace(folder, whole):
    """Real processes, SIGKILL, until one gets through."""
    output, generator = folder / "killed", random.Random(0)
    command = [sys.executable, "-m", "grit_jax", "train", str(folder / "config.yaml"), "--output", str(output)]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        wait_for = generator.randrange(STEPS)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and kills < 5:
            if len(trace(output)) > wait_for:
                time.sleep(generator.random() / 2)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        if process.wait(timeout=300) == 0:
            break
    assert kills >= 2 and trace(output) == trace(whole)
