"""The examples of each kind, by step."""

from __future__ import annotations

import json

import pytest

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.kind_sources import KindSources, example_of
from grit_jax.text.chat import GRIT

PAIR = {"prompt": "u", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("loss, epoch", [("dpo", 4), ("kto", 2)])
def test_an_epoch_has_every_pair_once_or_both_its_answers(tiny_tokenizer, tmp_path, loss, epoch):
    """Four pairs and a batch of one, or of two answers: `epoch` steps see everything."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(PAIR | {"prompt": f"u{i}"}) + "\n" for i in range(4)))
    batch = 1 if loss == "dpo" else 4
    config = DataConfig(preference=[str(path)], preference_batch=batch)
    tokenizer = ExampleTokenizer(tiny_tokenizer, GRIT, config.limits())
    sources = KindSources("preference", config, tokenizer, 0, BatchNeeds(preference=loss))
    seen = [example_of(chosen) for step in range(epoch) for chosen in sources.select(step)]
    assert len(seen) == len(set(seen)) == (4 if loss == "dpo" else 8)
    assert sources.order.epoch(epoch - 1) == 0 and sources.order.epoch(epoch) == 1
    (summary,) = sources.summary
    assert str(summary) == f"{path}: 4 of 4 preference examples"
