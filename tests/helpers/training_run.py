"""A training run for tests: a tiny model on all kinds of data, and what of its metrics must be the
same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from grit_jax.run_config import RunConfig
from grit_jax.runtime.metrics import read_lines
from grit_jax.train import train
from grit_jax.training import loop

STEPS = 6
TIMES = ("seconds", "tokens_per_s", "data_wait_s")


def write_run(root: Path, sentences: list[str]) -> Path:
    """`root/config.yaml` with its data beside it, all three kinds, paths relative to it."""
    files = {
        "embedding": [
            {"query": ["find it", a], "pos": [["", b]], "neg": [["", c]]}
            for a, b, c in zip(sentences[:40], sentences[40:80], sentences[80:120], strict=True)
        ],
        "generative": [
            {"text": [a, b]} for a, b in zip(sentences[:50], sentences[50:100], strict=True)
        ],
        "cached": [
            {"docs": [a], "text": [b, c]}
            for a, b, c in zip(sentences[:30], sentences[30:60], sentences[60:90], strict=True)
        ],
        "documents": [{"id": str(i), "text": text} for i, text in enumerate(sentences)],
    }
    for name, lines in files.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": {
            "shape": {
                "vocab_size": 512,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "tie_word_embeddings": True,
            },
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
