"""Rotary embedding: what a scaling means, and that a text's length is its own affair."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig, RopeScaling
from grit_jax.models.rotary import (
    Rotation,
    attention_factor,
    depends_on_length,
    inverse_frequencies,
    rotate,
    rotation,
)

BASE = ModelConfig(
    vocab_size=8,
    hidden_size=32,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=100.0,
    max_position_embeddings=24,
)
scaled = lambda kind, factor, **more: dataclasses.replace(
    BASE, rope_scaling=RopeScaling(kind, factor, **more)
)
PLAIN = 100.0 ** (-np.arange(8) / 8)


def test_frequencies_of_each_scaling():
    np.testing.assert_allclose(inverse_frequencies(BASE), PLAIN, rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(scaled("linear", 4.0)), PLAIN / 4, rtol=1e-6)
    # Wavelengths above the original length are divided, those below a quarter of it kept, nothing
    # jumps between.
    llama3 = inverse_frequencies(scaled("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0))
    ratio, length = llama3 / PLAIN, 2 * np.pi / PLAIN
    np.testing.assert_allclose(ratio[length > 24], 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(ratio[length < 6], 1, rtol=1e-6)
    middle = ratio[(length >= 6) & (length <= 24)]
    assert (
        len(middle) >= 2
        and (np.diff(middle) < 0).all()
        and (middle > 1 / 8).all()
        and (middle < 1).all()
    )
    yarn = inverse_frequencies(scaled("yarn", 8.0, beta_fast=3.0, beta_slow=0.5)) / PLAIN
    assert (
        yarn[0] == pytest.approx(1)
        and yarn[-1] == pytest.approx(1 / 8)
        and (np.diff(yarn) <= 1e-6).all()
    )


def test_yarn_scales_queries_and_keys():
    """So their product by the square: the temperature of attention (arXiv 2309.00071, equation
    22)."""
    assert attention_factor(scaled("linear", 4.0).rope_scaling) == attention_factor(None) == 1
    assert attention_factor(scaled("yarn", 4.0).rope_scaling) == pytest.approx(
        0.1 * math.log(4) + 1
    )
    assert attention_factor(scaled("yarn", 4.0, attention_factor=0.7).rope_scaling) == 0.7
    both = scaled("yarn", 40.0, mscale=0.7, mscale_all_dim=1.4).rope_scaling
    assert attention_factor(both) == pytest.approx(
        (0.07 * math.log(40) + 1) / (0.14 * math.log(40) + 1)
    )
    config, marks = scaled("yarn", 4.0), jnp.arange(5)[None]
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 16))
    turned = rotate(x, rotation(config, marks, marks * 0 + 1))
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), 1.1386294 * jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_local_layers_have_their_own_base_and_no_scaling():
    config = dataclasses.replace(scaled("linear", 4.0), sliding_window=3, rope_local_base_freq=10.0)
    np.testing.assert_allclose(
        inverse_frequencies(config, local=True), 10.0 ** (-np.arange(8) / 8), rtol=1e-6
    )
    yarn = dataclasses.replace(scaled("yarn", 4.0), sliding_window=3, rope_local_base_freq=10.0)
    marks = jnp.arange(5)[None]
    both = [rotation(yarn, marks, marks * 0 + 1, local=local) for local in (False, True)]
    assert both[0].cos[0, 0, 0] == pytest.approx(1.1386294) and both[1].cos[0, 0, 0] == 1


def test_dynamic_scaling_goes_by_each_text_alone():
    config = scaled("dynamic", 2.0)
    assert (
        depends_on_length(config)
        and not depends_on_length(scaled("yarn", 2.0))
        and not depends_on_length(BASE)
    )
    lengths = (20, 50, 30)  # the first is within the limit of 24
    positions = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(4, int)])[None]
    segments = np.concatenate(
        [np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.zeros(4, int)]
    )[None]
    packed = rotation(config, jnp.asarray(positions), jnp.asarray(segments))
    start = 0
    for length in lengths:
        theta = 100.0 * (2 * max(length, 24) / 24 - 1) ** (16 / 14)
        angles = np.arange(length)[:, None] * theta ** (-np.arange(8) / 8)
        np.testing.assert_allclose(packed.cos[0, start : start + length], np.cos(angles), atol=1e-5)
        np.testing.assert_allclose(packed.sin[0, start : start + length], np.sin(angles), atol=1e-5)
        start += length
    # A decoded token stands at the end of its text: the length so far is its position.
    token = rotation(config, jnp.array([[49]]), jnp.array([[1]]))
    np.testing.assert_allclose(token.cos[0, 0], packed.cos[0, 20 + 49], atol=1e-5)


def test_rotations_add_up():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 16))
    turn = lambda x, n: rotate(
        x, Rotation(*(f(n * jnp.broadcast_to(PLAIN, (1, 4, 8))) for f in (jnp.cos, jnp.sin)))
    )
    np.testing.assert_allclose(turn(turn(x, 5), 9), turn(x, 14), atol=1e-5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: scaled("linear", 0.5), "factor: must be at least 1"),
        (
            lambda: scaled("llama3", 2.0, low_freq_factor=4.0, high_freq_factor=4.0),
            "high_freq_factor .* low_freq_factor",
        ),
        (
            lambda: scaled("yarn", 2.0, original_max_position_embeddings=0),
            "original_max_position_embeddings",
        ),
        (lambda: dataclasses.replace(scaled("dynamic", 2.0), head_dim=2), "head_dim of at least 4"),
    ],
)
def test_values_without_a_meaning(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_original_length_defaults_to_the_model_s():
    assert scaled("yarn", 2.0).rope_scaling.original_max_position_embeddings == 24
    assert scaled("linear", 2.0).rope_scaling.original_max_position_embeddings is None
