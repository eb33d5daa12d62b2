"""A training run for tests: a tiny model on all kinds of data, and what of its metrics must be the
same every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from grit_jax.run_config import RunConfig
from grit_jax.runtime.files import write_jsonl
from grit_jax.runtime.metrics import read_lines
from grit_jax.train import train
from grit_jax.training import loop

STEPS = 6
TIMES = ("seconds", "tokens_per_s", "data_wait_s")


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def write_examples(
    root: Path,
    sentences: list[str],
    *,
    embedding: int = 40,
    generative: int = 50,
    cached: int = 30,
) -> None:
    """Writes so many examples of each kind to `root/embedding.jsonl` and so on, and every sentence
    to `root/documents.jsonl`."""

    def columns(number: int, count: int) -> Iterator[tuple[str, ...]]:
        parts = [sentences[i * number : (i + 1) * number] for i in range(count)]
        return zip(*parts, strict=True)

    write_jsonl(
        root / "embedding.jsonl",
        (
            {"query": ["find it", a], "pos": [["", b]], "neg": [["", c]]}
            for a, b, c in columns(embedding, 3)
        ),
    )
    write_jsonl(root / "generative.jsonl", ({"text": [a, b]} for a, b in columns(generative, 2)))
    write_jsonl(
        root / "cached.jsonl", ({"docs": [a], "text": [b, c]} for a, b, c in columns(cached, 3))
    )
    write_jsonl(
        root / "documents.jsonl",
        ({"id": str(i), "text": text} for i, text in enumerate(sentences)),
    )


def write_run(root: Path, sentences: list[str]) -> Path:
    """`root/config.yaml` with its data beside it, all three kinds, paths relative to it."""
    write_examples(root, sentences)
    config = {
        "model": {
            "shape": dict(SHAPE),
            "dtype": "float32",
            "remat": "none",
        },
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 480},
        "data": {
            "embedding": ["embedding.jsonl"],
            "generative": ["generative.jsonl"],
            "cached": ["cached.jsonl"],
            "embedding_batch": 6,
            "generative_batch": 4,
            "cached_batch": 4,
            "query_max_length": 64,
            "passage_max_length": 64,
            "generative_max_length": 160,
            "document_max_length": 64,
        },
        "train": {
            "steps": STEPS,
            "checkpoint_every": 2,
            "eval_embedding": "embedding.jsonl",
            "eval_generative": "generative.jsonl",
        },
        "optimizer": {"lr": 1e-3},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "whole",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def trace(output: Path) -> list[dict]:
    """The metrics without what the clock says."""
    return [
        {k: v for k, v in line.items() if k not in TIMES}
        for line in read_lines(output / "metrics.jsonl")
    ]


def break_off(config: RunConfig, step: int) -> None:
    """Runs a configuration until the batch of `step` is at hand, and there ends it as a bug
    would."""
    put_rows, calls = loop.put_rows, []

    def failing(*args):
        calls.append(1)
        if len(calls) == step + 1:
            raise RuntimeError("the power went out")
        return put_rows(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_rows", failing)
        with pytest.raises(RuntimeError):
            train(config)
