"""Losses against closed forms and NumPy loops over single texts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.training.contrastive import contrastive_loss
from grit_jax.training.language import language_loss, token_losses
from grit_jax.training.losses import LossConfig
from grit_jax.types import GenerativeBatch, Rows


def unit(rng, count, dim=8):
    x = rng.normal(size=(count, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def naive_contrastive(q, p, temperature):
    group, losses = len(p) // len(q), []
    for i in range(len(q)):
        scores = np.array([float(q[i] @ one) / temperature for one in p], np.float64)
        losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[i * group])
    return np.mean(losses)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_contrastive_is_cross_entropy_with_the_positive_first_in_its_group(group):
    rng = np.random.default_rng(group)
    q, p = unit(rng, 7), unit(rng, 7 * group)
    assert contrastive_loss(q, p, temperature=0.05) == pytest.approx(naive_contrastive(q, p, 0.05), rel=1e-5)


def test_contrastive_of_orthogonal_pairs_is_a_closed_form():
    eye = np.eye(4, dtype=np.float32)
    # Each query meets itself (score 1/t) and three orthogonal ones (0).
    assert contrastive_loss(eye, eye, temperature=0.5) == pytest.approx(np.log(1 + 3 * np.exp(-2)), rel=1e-5)


def test_blocks_change_neither_contrastive_loss_nor_gradient():
    rng = np.random.default_rng(0)
    q, p = unit(rng, 10), unit(rng, 20)
    whole = jax.value_and_grad(lambda a: contrastive_loss(a, p, block=100))(q)
    parts = jax.value_and_grad(lambda a: contrastive_loss(a, p, block=3))(q)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-4, atol=1e-5)


def test_token_losses_shift_by_one_and_ignore_blocks():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(4, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (3, 5))
    expected = np.zeros((3, 5))
    for r in range(3):
        for t in range(1, 5):
            logits = hidden[r, t - 1].astype(np.float64) @ head
            expected[r, t] = np.log(np.exp(logits).sum()) - logits[tokens[r, t]]
    for block in (100, 4):
        found = token_losses(lambda h: h @ head, jnp.asarray(hidden), jnp.asarray(tokens), block=block)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def generative():
    """Four sequences of 1, 2, 3 and 2 targets with losses 1, 2, 3, 4 a token."""
    sequence = np.array([[0, 0, 1, 1, 1, 0], [2, 2, 2, 2, 3, 3]])
    targets = np.array([[0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]], np.float32)
    losses = (sequence + 1.0) * np.array([[1, 1, 1, 1, 1, 9], [1] * 6])
    rows = Rows(sequence, sequence, sequence + 1)
    return jnp.asarray(losses, jnp.float32), GenerativeBatch(rows, jnp.asarray(targets), jnp.asarray(sequence), 4)


def test_token_loss_divides_the_sum_by_sequences(generative):
    losses, batch = generative
    assert language_loss(losses, batch, LossConfig(generative="token")) == pytest.approx((1 + 4 + 9 + 8) / 4)


def test_mixed_loss_is_the_mean_over_tokens(generative):
    losses, batch = generative
    assert language_loss(losses, batch, LossConfig()) == pytest.approx((1 + 4 + 9 + 8) / 8)


def test_mixed_loss_by_groups_averages_group_means(generative):
    losses, batch = generative
    found = language_loss(losses, batch, LossConfig(mix_group_size=2))
    assert found == pytest.approx(((1 + 4) / 3 + (9 + 8) / 5) / 2)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        dataclasses.replace(LossConfig(), temperature=0.0)
