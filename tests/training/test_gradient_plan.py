"""Which backward passes a batch takes, over a table of configurations, and how a plan reads."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.gradient_plan import gradient_plan
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.types import Batch, CachedBatch, EmbeddingBatch, GenerativeBatch, Rows

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
EXPERTS = dataclasses.replace(MODEL, num_experts=4, num_experts_per_tok=2)
CHUNKS = {"embedding_chunk": 3, "generative_chunk": 2, "cached_chunk": 5}


def make_batch(parts="embedding generative cached", length=12, query_rows=0):
    """Shapes alone: 8 embedding rows, 4 generative ones of `length` tokens, 6 with documents."""
    rows = lambda n, T=12: Rows(*(jax.ShapeDtypeStruct((n, T), np.int32),) * 3)
    text = lambda n, T=12: GenerativeBatch(rows(n, T), rows(n, T).tokens, rows(n, T).tokens)
    index = jax.ShapeDtypeStruct((8,), np.int32)
    documents = rows(6)
    made = {
        "embedding": EmbeddingBatch(rows(8), rows(8).tokens, index, index, query_rows=query_rows),
        "generative": text(4, length),
        "cached": CachedBatch(documents, documents.tokens, documents.tokens, text(6)),
    }
    return Batch(**{name: made[name] for name in parts.split()})


ONE = "one backward pass: embedding rows, generative rows and cached rows"
TOGETHER = ", embedding and generative rows through the layers together"


@pytest.mark.parametrize(
    "batch, options, plan",
    [
        ({}, {}, ONE),
        ({}, {"fuse": True}, ONE + TOGETHER),
        ({"length": 9}, {"fuse": True}, ONE),  # rows of another length
        ({"query_rows": 4}, {"fuse": True}, ONE),  # queries and passages in rows of their own
        (
            {"parts": "embedding cached"},
            {"fuse": True},
            "one backward pass: embedding rows and cached rows",
        ),
        ({"parts": "generative"}, {}, "one backward pass: generative rows"),
        (
            {},
            {"embedding_chunk": 3},
            "one backward pass: embedding rows (3 at a time), generative rows and cached rows",
        ),
        (
            {},
            CHUNKS,
            "3 backward passes, one after the other: (1) generative rows (2 at a time);"
            " (2) cached rows (5 at a time); (3) embedding rows (3 at a time)",
        ),
        (
            {},
            CHUNKS | {"fuse": True},
            "2 backward passes, one after the other: (1) cached rows (5 at a time);"
            " (2) embedding rows (3 at a time) and generative rows (2 at a time)" + TOGETHER,
        ),
        (  # routers are balanced over the whole batch
            {},
            CHUNKS | {"fuse": True, "model": EXPERTS},
            "3 backward passes, one after the other: (1) generative rows (2 at a time);"
            " (2) cached rows (5 at a time); (3) embedding rows (3 at a time)",
        ),
        ({}, {"fuse": True, "model": EXPERTS}, ONE + TOGETHER),
        (  # a chunk that holds all rows
            {"parts": "embedding generative"},
            {"generative_chunk": 4},
            "2 backward passes, one after the other: (1) generative rows; (2) embedding rows",
        ),
        (
            {},
            {"backward": "separate", "fuse": True},
            "3 backward passes, one after the other: (1) generative rows; (2) cached rows;"
            " (3) embedding rows",
        ),
        (
            {"query_rows": 4},
            {"backward": "split", "cached_chunk": 5},
            "3 backward passes, one after the other: (1) generative rows;"
            " (2) cached rows (5 at a time); (3) embedding rows, passages and then queries",
        ),
    ],
)
def test_the_passes_of_a_configuration(batch, options, plan):
    config = StepConfig(**{"model": MODEL, "loss": LossConfig()} | options)
    assert str(gradient_plan(make_batch(**batch), config)) == plan


def test_passes_that_the_compiler_schedules_as_one_unit():
    """Those of a backward pass in parts that no chunks bound."""
    options = {"model": MODEL, "loss": LossConfig(), "cached_chunk": 5}
    plan = lambda backward, **batch: gradient_plan(
        make_batch(**batch), StepConfig(**options, backward=backward)
    )
    assert [one.alone for one in plan("joint").passes] == [False, False]
    assert [one.alone for one in plan("separate").passes] == [True, False, True]
    assert [one.alone for one in plan("split", query_rows=4).passes] == [True, False, False]


def test_several_devices_have_weights_to_gather():
    config = StepConfig(MODEL, LossConfig())
    mesh = make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])
    with jax.set_mesh(mesh):
        assert str(gradient_plan(make_batch(), config)) == ONE + TOGETHER
    assert str(gradient_plan(make_batch(), config)) == ONE


def test_an_empty_batch_has_no_pass():
    assert gradient_plan(Batch(), StepConfig(MODEL, LossConfig())).passes == ()
