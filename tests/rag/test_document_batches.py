"""Documents in batches: each once and in order, of at most the given number of tokens."""

from __future__ import annotations

import dataclasses

import fake_model
import pytest

from grit_jax.rag.corpus import CorpusDocument
from grit_jax.rag.document_batches import batch_tokens, document_batches


@pytest.mark.parametrize("tokens", [1, 50, 100_000])
def test_every_document_once_and_in_order(tokens):
    """More documents than are tokenised together; with the fake model a byte is a token."""
    documents = [CorpusDocument(f"d{i}", "", "x" * (1 + i % 30)) for i in range(600)]
    batches = list(document_batches(iter(documents), fake_model.fake_model(), 20, tokens))
    assert [d for batch in batches for d in batch.documents] == documents
    ids = [ids for batch in batches for ids in batch.ids]
    assert ids == [[256, *b"x" * min(len(d.text), 19)] for d in documents]
    cut = {d.id for d in documents if len(d.text) > 19}
    assert [batch.truncated for batch in batches] == [
        {d.id for d in batch.documents} & cut for batch in batches
    ]
    assert {batch.pool_start for batch in batches} == {1}
    sizes = [sum(map(len, batch.ids)) for batch in batches]
    for size, batch, following in zip(sizes, batches, [*batches[1:], None]):
        assert size <= tokens or len(batch.ids) == 1
        assert following is None or size + len(following.ids[0]) > tokens  # no smaller than needed


def test_no_documents():
    assert list(document_batches([], fake_model.fake_model(), 20, 50)) == []


@pytest.mark.parametrize(
    "layers, dtype, expected",
    [
        # 2 x 8 heads x 128 numbers a token and layer; 128 MiB of them.
        (32, "float32", 4096),  # 256 KiB a token: the least
        (16, "bfloat16", 4096),
        (8, "bfloat16", 4096),
        (4, "bfloat16", 8192),
        (4, "float32", 4096),
        (1, "bfloat16", 32768),
    ],
)
def test_tokens_of_a_batch_by_the_size_of_their_records(layers, dtype, expected):
    config = dataclasses.replace(
        fake_model.CONFIG,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        dtype=dtype,
    )
    model = fake_model.fake_model(config=config)
    assert batch_tokens(model, records=True) == expected
    assert batch_tokens(model, records=False) == 65536
    assert batch_tokens(fake_model.fake_model(), records=True) == 65536  # small records: the most
