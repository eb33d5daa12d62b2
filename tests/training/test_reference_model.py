"""The copy of a run's first weights: its dtypes, its memory, its shardings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.reference_model import abstract_reference, with_reference
from grit_jax.training.state import OptimizerConfig, abstract_state, init_state, make_optimizer


def test_a_copy_in_the_dtype_of_the_computation_sharded_as_the_weights(config, devices):
    narrow = dataclasses.replace(config, dtype="bfloat16")
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.0)
    mesh = make_mesh(MeshConfig(1, 4, 2), devices)
    with jax.set_mesh(mesh):
        state = init_state(narrow, optimizer, jax.random.key(0), mesh, projection=16)
        whole = with_reference(state, narrow, mesh)
    assert whole.frozen.keys() == {n for n in state.params if "projection" not in n}
    for name, weight in whole.frozen.items():
        trained = state.params[name]
        # Norms are computed in float32, all else is cast when it is used.
        assert weight.dtype == (jnp.float32 if name.endswith("_norm") else jnp.bfloat16), name
        assert weight.sharding.spec == trained.sharding.spec, name
        np.testing.assert_array_equal(weight, trained.astype(weight.dtype))
    shapes = abstract_reference(abstract_state(narrow, optimizer, 16), narrow)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes.frozen) == jax.tree.map(
        lambda x: (x.shape, x.dtype), whole.frozen
    )


def test_the_trained_weights_may_be_given_away(config):
    """The step donates them; in float32 a copy is no other dtype."""
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.0)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = with_reference(init_state(config, optimizer, jax.random.key(0), mesh), config, mesh)
    for name, weight in state.frozen.items():
        assert weight.unsafe_buffer_pointer() != state.params[name].unsafe_buffer_pointer(), name
