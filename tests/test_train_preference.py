"""A run with preference rows beside the contrastive loss, broken off and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from training_run import SHAPE, break_off, trace, write_examples

from grit_jax.errors import GritError
from grit_jax.run_config import read_run_config
from grit_jax.runtime.files import write_jsonl
from grit_jax.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory, sentences) -> Path:
    root = tmp_path_factory.mktemp("preference")
    write_examples(root, sentences)
    write_jsonl(
        root / "pairs.jsonl",
        (
            {"prompt": sentences[i], "chosen": sentences[i + 1], "rejected": sentences[i + 2]}
            for i in range(20)
        ),
    )
    settings = {
        "model": {"shape": SHAPE | {"num_hidden_layers": 1}, "dtype": "float32", "remat": "none"},
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 480},
        "data": {
            "embedding": ["embedding.jsonl"],
            "embedding_batch": 4,
            "preference": ["pairs.jsonl"],
            "preference_batch": 6,
            "query_max_length": 64,
            "passage_max_length": 64,
            "preference_max_length": 128,
        },
        "train": {"steps": 4, "checkpoint_every": 2, "preference_chunk": 8},
        "optimizer": {"lr": 1e-2, "warmup_fraction": 0.0},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "whole",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    return root / "config.yaml"


def test_a_run_goes_on_with_the_same_reference_model(config):
    """It is in no checkpoint: the seed draws it again, and another seed is refused."""
    whole = trace(train(read_run_config(config)).output)
    assert whole[0]["loss_preference"] == pytest.approx(0.5) and whole[0]["rewards_chosen"] == 0
    assert whole[3]["rewards_chosen"] != 0 and whole[3]["preference_kl"] >= 0
    assert {"loss_emb", "rewards_rejected", "rewards_margin", "rewards_accuracy"} <= whole[3].keys()
    output = {"output": str(config.parent / "broken")}
    broken = read_run_config(config, output)
    break_off(broken, 3)
    with pytest.raises(GritError, match="train.seed 0, which drew the reference model"):
        train(read_run_config(config, output | {"train.seed": "1"}))
    assert trace(train(broken).output) == whole
