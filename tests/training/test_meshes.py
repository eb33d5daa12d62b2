"""Every option of the losses and of the backward pass on eight devices beside one: the same
numbers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.token_texts import TokenCached, TokenText
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer
from grit_jax.types import AttentionMode, Batch

VOCAB = 64
EVERYTHING = LossConfig(
    temperature=0.1,
    symmetric=True,
    false_negatives="relative",
    false_negative_margin=-0.5,
    mask_duplicates=True,
    matryoshka_dims=[16, 8],
    matryoshka_weights=[1.0, 0.5],
    distillation_factor=0.5,
    distillation_temperature=2.0,
    generative="mixed",
    mix_group_size=3,
    similarity_block=8,
    logits_block=64,
    cached_distillation=0.7,
    generative_distillation=0.4,
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """16 rows or more of each kind, two positives for some of the queries, a passage that comes
    twice."""
    rng = np.random.default_rng(0)
    ids = lambda low, high: rng.integers(1, VOCAB, rng.integers(low, high)).tolist()
    answer = lambda tokens: TokenText(tokens, [i > 1 for i in range(len(tokens))])

    def cached():
        documents, text = [ids(4, 8), ids(4, 8)], answer(ids(6, 14))
        read = [i for document in reversed(documents) for i in document]
        teacher = TokenText([*read, *text.ids], [False] * len(read) + list(text.targets))
        return TokenCached(documents, text, 2, teacher)

    passages = [ids(6, 14) if i % 9 != 1 else [] for i in range(36)]
    passages[6] = list(passages[0])
    return Batch(
        embedding_batch(
            [ids(5, 12) for _ in range(12)],
            passages,
            [2] * 48,
            EmbeddingPacking(
                row_length=16, row_multiple=16, positives=2, separate=True, blocks=True
            ),
            scores=rng.normal(size=36).tolist(),
        ),
        generative_batch(
            [answer(ids(6, 16)) for _ in range(20)],
            GenerativePacking(row_length=16, row_multiple=16, prefix=True),
            [i % 3 > 0 for i in range(20)],
        ),
        cached_batch(
            [cached() for _ in range(16)],
            CachedPacking(
                cached_row_length=16,
                row_length=16,
                row_multiple=16,
                blocks=True,
                prefix=True,
                teacher_row_length=32,
            ),
        ),
    )


def gradient(config, batch, mesh_config, devices, **how):
    config = dataclasses.replace(
        config, num_hidden_layers=1, scan_layers=False
    )  # compiled in half the time
    mesh = make_mesh(mesh_config, devices)
    step_config = StepConfig(
        config,
        EVERYTHING,
        embedding_mode=AttentionMode.PREFIX,
        generation_mode=AttentionMode.PREFIX,
        base_weights_of=lambda params: {name: 0.8 * value for name, value in params.items()},
        **how,
    )
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.0)
    with jax.set_mesh(mesh):
        params = init_state(config, optimizer, jax.random.key(0), mesh, projection=16).params
        run = jax.jit(lambda p, b: joint_gradient(p, b, step_config))
        return jax.device_get(run(params, put_rows(batch, mesh)))


SPLIT = {"backward": "split", "embedding_chunk": 8, "generative_chunk": 8, "cached_chunk": 8}


@pytest.fixture(scope="module")
def single(config, batch):
    return gradient(config, batch, MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.mark.parametrize(
    "mesh, how",
    [
        (MeshConfig(2, 2, 2), SPLIT),
        pytest.param(MeshConfig(8, 1, 1), SPLIT, marks=pytest.mark.slow),
        pytest.param(MeshConfig(1, 8, 1), SPLIT, marks=pytest.mark.slow),
        pytest.param(MeshConfig(1, 4, 2), {}, marks=pytest.mark.slow),
        pytest.param(MeshConfig(1, 2, 2, context=2), SPLIT, marks=pytest.mark.slow),
        pytest.param(MeshConfig(2, 2, 1, context=2), {}, marks=pytest.mark.slow),
        pytest.param(MeshConfig(1, 1, 8), {"backward": "separate"}, marks=pytest.mark.slow),
    ],
    ids=[
        "data-fsdp-tensor, split",
        "data, split",
        "fsdp, split",
        "fsdp-tensor, joint",
        "fsdp-context-tensor, split",
        "data-fsdp-context, joint",
        "tensor, separate",
    ],
)
def test_every_option_on_a_mesh(config, batch, single, mesh, how):
    """Losses within 1e-5; every weight's gradient within 1e-5 of its largest entry."""
    (loss, parts), grads = single
    (other_loss, other_parts), other_grads = gradient(config, batch, mesh, jax.devices()[:8], **how)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    assert parts.keys() == other_parts.keys()
    language = {"loss_gen", "loss_gen_kl", "loss_cached", "loss_cached_kl"}
    assert parts.keys() == {"loss_emb", "loss_distill", *language}
    for name in parts:
        np.testing.assert_allclose(other_parts[name], parts[name], rtol=1e-5, err_msg=name)
    for name, value in grads.items():
        np.testing.assert_allclose(
            other_grads[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name
        )


def test_the_batch_has_what_it_should(batch):
    """Or the test above would hold of less than it says."""
    embedding = batch.embedding
    assert 0 < embedding.query_rows < len(embedding.pool) and len(embedding.pool) % 16 == 0
    assert (
        not embedding.present.all()
        and len(set(embedding.texts.tolist())) < embedding.present.sum() + 1
    )
    assert batch.generative.rows.blocks.any() and batch.cached.cached_texts.blocks.any()
    assert all(
        len(leaf) >= 16 for leaf in jax.tree.leaves(dataclasses.replace(batch, embedding=None))
    )
