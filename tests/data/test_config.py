"""The data section: lengths that the model does not read are found before the first step."""

from __future__ import annotations

import pytest

from grit_jax.data.config import DataConfig
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.run_config import ModelSection, RunConfig, step_config

EMBEDDING = DataConfig(embedding=["e.jsonl"], embedding_batch=4)
GENERATIVE = DataConfig(generative=["g.jsonl"], generative_batch=4)
CACHED = DataConfig(cached=["c.jsonl"], cached_batch=4)


@pytest.mark.parametrize(
    ("config", "key", "length"),
    [
        (EMBEDDING, "passage_max_length", 2048),
        (GENERATIVE, "generative_max_length", 2048),
        (CACHED, "document_max_length", 2048),
    ],
)
def test_a_length_beyond_the_context_names_key_and_numbers(config, key, length):
    config.check_lengths(length)
    with pytest.raises(GritError, match=rf"^data\.{key} is {length} tokens.*context is 1024"):
        config.check_lengths(1024)


def test_a_kind_that_is_not_trained_does_not_count():
    DataConfig(embedding=["e.jsonl"], embedding_batch=1, passage_max_length=64).check_lengths(256)


def test_no_step_is_made_for_such_lengths():
    with pytest.raises(GritError, match="data.generative_max_length"):
        run = RunConfig(model=ModelSection(path="m"), output="x", data=GENERATIVE)
        step_config(run, ModelConfig(max_position_embeddings=512))
