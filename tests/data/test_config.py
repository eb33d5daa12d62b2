"""The data section: lengths that the model does not read are found before the first step."""

from __future__ import annotations

import pytest

from grit_jax.config import dump_yaml
from grit_jax.data.config import DataConfig
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.run_config import (
    ModelSection,
    RunConfig,
    fit_to_context,
    read_run_config,
    step_config,
)

EMBEDDING = DataConfig(embedding=["e.jsonl"], embedding_batch=4, passage_max_length=2048)
GENERATIVE = DataConfig(generative=["g.jsonl"], generative_batch=4, generative_max_length=2048)
CACHED = DataConfig(cached=["c.jsonl"], cached_batch=4, document_max_length=2048)


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


def test_lengths_that_nobody_set_are_lowered_to_the_context():
    lowered = DataConfig(query_max_length=700).fit_to_context(512)
    lengths = (
        lowered.query_max_length,
        lowered.passage_max_length,
        lowered.generative_max_length,
        lowered.document_max_length,
    )
    assert lengths == (700, 512, 512, 512)  # the one that was set is refused if it is used
    assert DataConfig().fit_to_context(4096).query_max_length == 256


def test_a_configuration_says_what_it_lowers_and_its_yaml_repeats_it(capsys, tmp_path):
    data = DataConfig(generative=["g.jsonl"], generative_batch=4)
    run = RunConfig(model=ModelSection(path="m"), output="x", data=data)
    lowered = fit_to_context(run, ModelConfig(max_position_embeddings=512))
    assert "data.generative_max_length: 512 tokens, the model's context" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(dump_yaml(lowered))
    again = read_run_config(tmp_path / "run.yaml")
    assert again.data.generative_max_length == 512 and again.data.query_max_length == 256
    step_config(again, ModelConfig(max_position_embeddings=512))
