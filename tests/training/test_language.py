"""The language loss of a batch against closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.training.language import language_loss
from grit_jax.training.losses import LossConfig
from grit_jax.types import GenerativeBatch, Rows

COUNTS = (1, 2, 3, 2)  # targets of the sequences


@pytest.fixture
def generative():
    """Four sequences of 1, 2, 3 and 2 targets with losses 1, 2, 3, 4 a token."""
    sequence = np.array([[0, 0, 1, 1, 1, 0], [2, 2, 2, 2, 3, 3]])
    targets = np.array([[0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]], np.float32)
    losses = (sequence + 1.0) * np.array([[1, 1, 1, 1, 1, 9], [1] * 6])
    rows = Rows(sequence, sequence, sequence + 1)
    return jnp.asarray(losses, jnp.float32), GenerativeBatch(
        rows, jnp.asarray(targets), jnp.asarray(sequence), 4
    )


def test_token_loss_divides_the_sum_by_sequences(generative):
    losses, batch = generative
    assert language_loss(losses, batch, LossConfig(generative="token")) == pytest.approx(
        (1 + 4 + 9 + 8) / 4
    )


def test_mixed_loss_is_the_mean_over_tokens(generative):
    losses, batch = generative
    assert language_loss(losses, batch, LossConfig()) == pytest.approx((1 + 4 + 9 + 8) / 8)


def test_mixed_loss_by_groups_averages_group_means(generative):
    losses, batch = generative
    found = language_loss(losses, batch, LossConfig(mix_group_size=2))
    assert found == pytest.approx(((1 + 4) / 3 + (9 + 8) / 5) / 2)


@pytest.mark.parametrize(
    "size, groups", [(1, [[0], [1], [2], [3]]), (3, [[0, 1, 2], [3]]), (4, [[0, 1, 2, 3]])]
)
def test_mixed_loss_in_groups_of_any_size(generative, size, groups):
    """A last group of fewer sequences counts as much as the others, as a device's share does in the
    original."""
    losses, batch = generative
    mean = lambda group: sum((n + 1) * COUNTS[n] for n in group) / sum(COUNTS[n] for n in group)
    found = language_loss(losses, batch, LossConfig(mix_group_size=size))
    assert found == pytest.approx(np.mean([mean(group) for group in groups]))


@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig(generative="token"), LossConfig(mix_group_size=2)]
)
def test_nothing_to_predict_is_no_loss(generative, config):
    losses, batch = generative
    batch = GenerativeBatch(
        batch.rows, jnp.zeros_like(batch.targets), batch.sequence, batch.sequences
    )
    assert language_loss(losses, batch, config) == 0
