"""The data section: lengths that the model does not read are found before the first step."""

from __future__ import annotations

import pytest

from grit_jax.data.config import DataConfig
from grit_jax.errors import GritError

EMBEDDING = DataConfig(embedding=["e.jsonl"], embedding_batch=4, passage_max_length=2048)
GENERATIVE = DataConfig(generative=["g.jsonl"], generative_batch=4, generative_max_length=2048)


def test_what_is_distilled_is_a_generative_source():
    DataConfig(generative=["a", "b"], distilled=["b"])
    with pytest.raises(ValueError, match="data.distilled: 'c' is not a source of data.generative"):
        DataConfig(generative=["a", "b"], distilled=["c"])


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
