"""The language loss against closed forms and NumPy loops over single tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.training.language import language_loss, token_losses
from grit_jax.training.losses import LossConfig
from grit_jax.types import GenerativeBatch, Rows


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


COUNTS = (1, 2, 3, 2)  # targets of the sequences


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


@pytest.mark.parametrize("size, groups", [(1, [[0], [1], [2], [3]]), (3, [[0, 1, 2], [3]]), (4, [[0, 1, 2, 3]])])
def test_mixed_loss_in_groups_of_any_size(generative, size, groups):
    """A last group of fewer sequences counts as much as the others, as a device's share does in the original."""
    losses, batch = generative
    mean = lambda group: sum((n + 1) * COUNTS[n] for n in group) / sum(COUNTS[n] for n in group)
    found = language_loss(losses, batch, LossConfig(mix_group_size=size))
    assert found == pytest.approx(np.mean([mean(group) for group in groups]))


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(generative="token"), LossConfig(mix_group_size=2)])
def test_nothing_to_predict_is_no_loss(generative, config):
    losses, batch = generative
    batch = GenerativeBatch(batch.rows, jnp.zeros_like(batch.targets), batch.sequence, batch.sequences)
    assert language_loss(losses, batch, config) == 0
