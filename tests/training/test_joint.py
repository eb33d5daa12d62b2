"""The joint loss: its parts, their scales and dtypes, and what their gradients reach."""

from __future__ import annotations

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from grit_jax.models.transformer import Transformer, init_params
from grit_jax.training.joint import StepConfig, embed_sides, embedding_losses, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.types import AttentionMode, Batch


def test_the_joint_loss_is_the_weighted_sum_of_its_parts(config, batch):
    params = init_params(config, jax.random.key(0))
    loss = LossConfig(generative_factor=0.5, cached_factor=2.0)
    total, parts = joint_loss(params, batch, StepConfig(config, loss))
    parts = {name: float(value) for name, value in parts.items()}
    assert float(total) == pytest.approx(
        parts["loss_emb"] + 0.5 * parts["loss_gen"] + 2 * parts["loss_cached"], rel=1e-6
    )
    # Each part alone gives the same number: the losses do not see each other.
    for name, kind in (
        ("loss_emb", "embedding"),
        ("loss_gen", "generative"),
        ("loss_cached", "cached"),
    ):
        _, alone = joint_loss(
            params, Batch(**{kind: getattr(batch, kind)}), StepConfig(config, loss)
        )
        assert float(alone[name]) == pytest.approx(parts[name], rel=1e-6)


def test_emb_grad_scale_scales_the_gradient_and_not_the_loss(config, batch):
    params, only = init_params(config, jax.random.key(0)), Batch(embedding=batch.embedding)
    value = lambda scale: jax.value_and_grad(joint_loss, has_aux=True)(
        params, only, StepConfig(config, LossConfig(emb_grad_scale=scale))
    )
    (full, _), gradient = value(1.0)
    (same, _), eighth = value(0.125)
    assert float(same) == pytest.approx(float(full), rel=1e-6)
    np.testing.assert_allclose(eighth["query"], gradient["query"] / 8, rtol=1e-4, atol=1e-7)


def test_bfloat16_computes_and_float32_pools_and_scores(config, batch):
    """Pooling, similarities and the loss over them are no rounder than float32 (arXiv 2402.09906,
    table on precision)."""
    params, only = init_params(config, jax.random.key(0)), batch.embedding
    how = StepConfig(dataclasses.replace(config, dtype="bfloat16"), LossConfig())
    narrow, wide = (
        jax.jit(functools.partial(embed_sides, config=c))(params, only)
        for c in (how, StepConfig(config, LossConfig()))
    )
    vectors = np.asarray(narrow.queries), np.asarray(narrow.passages)
    assert (
        1e-4 < np.abs(vectors[0] - wide.queries).max() < 0.1
    )  # the layers did compute in bfloat16
    for side in vectors:
        assert (
            side.dtype == np.float32
            and (side != side.astype(ml_dtypes.bfloat16).astype(np.float32)).mean() > 0.9
        )
    scores = vectors[0].astype(np.float64) @ vectors[1].T.astype(np.float64) / 0.02
    right = scores[
        np.arange(len(scores)), np.arange(len(scores)) * (scores.shape[1] // len(scores))
    ]
    expected = (
        np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1) - right
    ).mean()
    assert float(embedding_losses(narrow, only, how)[1]["loss_emb"]) == pytest.approx(
        expected, rel=1e-5
    )


def test_gradients_flow_through_the_documents_cache(config, batch):
    """The cached loss moves when a document's token does, and its gradient reaches that token's
    embedding."""
    params, only = init_params(config, jax.random.key(0)), Batch(cached=batch.cached)
    gradient = jax.grad(lambda p: joint_loss(p, only, StepConfig(config, LossConfig()))[0])(params)
    text = set(np.asarray(batch.cached.text.rows.tokens).ravel().tolist())
    pieces = np.asarray(batch.cached.cached_texts.tokens)[
        np.asarray(batch.cached.cached_texts.segments) > 0
    ]
    alone = [token for token in set(pieces.tolist()) if token not in text]
    if alone:
        assert np.abs(np.asarray(gradient["embed"])[alone]).max() > 0
    # A second way, which does not hang on the draw of tokens: change a document, look at the loss.
    tokens = np.array(batch.cached.cached_texts.tokens)
    tokens[0, 0] = tokens[0, 0] % 60 + 1
    pieces_changed = dataclasses.replace(batch.cached.cached_texts, tokens=tokens)
    changed = Batch(cached=dataclasses.replace(batch.cached, cached_texts=pieces_changed))
    losses = [
        joint_loss(params, one, StepConfig(config, LossConfig()))[0] for one in (only, changed)
    ]
    assert abs(losses[0] - losses[1]) > 1e-6


def test_pieces_are_blind_to_each_other(config, batch):
    """Changing one piece leaves the keys of the row's other pieces as they are."""
    model = Transformer(config, init_params(config, jax.random.key(0)))
    pieces = batch.cached.cached_texts
    tokens = np.array(pieces.tokens)
    tokens[:, 0] = (tokens[:, 0] + 7) % 60 + 1  # the first token of the first piece
    run_one = lambda t: model(
        t, pieces.positions, pieces.segments, mode=AttentionMode.BIDIRECTIONAL, return_kv=True
    ).kv.k.transpose(0, 1, 4, 2, 3)  # tokens after rows
    before, after = run_one(pieces.tokens), run_one(tokens)
    others = np.asarray(pieces.segments) > 1
    np.testing.assert_array_equal(np.asarray(before)[:, others], np.asarray(after)[:, others])
    assert np.abs(np.asarray(before - after)[:, np.asarray(pieces.segments) == 1]).max() > 1e-3
