"""The weight behind a result that is not finite is named."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from grit_jax.models.finite import describe_cause
from grit_jax.models.quantise import quantise


def test_the_first_weight_with_a_bad_number_and_its_index():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((5, 2, 3)).at[3, 1, 2].set(np.inf)}
    assert describe_cause(params, "float32").startswith("the weight 'b' holds NaN or infinity")
    assert "index 3 of shape (5, 2, 3)" in describe_cause(params, "float32")


def test_quantised_weights_are_looked_at_and_integers_are_not():
    weight = quantise(jnp.ones((64, 8)), "int8")
    assert "'w'" not in describe_cause({"w": weight}, "float32")
    weight.scales = weight.scales.at[0, 3].set(np.nan)
    assert "'w'" in describe_cause({"w": weight}, "float32")


def test_finite_weights_mean_an_overflow():
    assert "overflows bfloat16; use dtype float32" in describe_cause({}, "bfloat16")
