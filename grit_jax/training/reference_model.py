"""The reference model of a preference loss: the weights that a run starts from, kept as they are.

A LoRA run has them already: its frozen base. A run that trains all weights keeps a second copy, in
the dtype of the computation and sharded as the trained ones are. No checkpoint holds it: a run that
goes on loads `model.path` again (or draws the same random weights from its seed), and
`run_record` refuses other weights.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import PARAMETER_AXES, Params
from grit_jax.training.frozen_base import frozen_shardings
from grit_jax.training.state import TrainState


def reference_weights(params: Params, config: ModelConfig) -> Params:
    """A copy of a model's weights in the dtype of the computation. It computes the same numbers:
    norms, which are computed in float32, stay as they are, all else is cast when it is used."""

    def copied(name: str, weight: jax.Array) -> jax.Array:
        dtype = weight.dtype if name.endswith("_norm") else jnp.dtype(config.dtype)
        # A copy also where the dtype is the same: the step gives the trained weights' memory away.
        return jnp.array(weight, dtype, copy=True)

    return {name: copied(name, w) for name, w in params.items() if name in PARAMETER_AXES}


def with_reference(state: TrainState, config: ModelConfig, mesh: Mesh) -> TrainState:
    """A state with its current weights as the reference model, each array created in its sharding.

    For a state of a run without adapters, before any step (and before a checkpoint is restored).
    """
    copy = lambda params: reference_weights(params, config)
    shardings = frozen_shardings(jax.eval_shape(copy, state.params), mesh)
    return dataclasses.replace(state, frozen=jax.jit(copy, out_shardings=shardings)(state.params))


def abstract_reference(state: TrainState, config: ModelConfig) -> TrainState:
    """`with_reference` for the shapes of a state. Computes nothing."""
    frozen = jax.eval_shape(lambda params: reference_weights(params, config), state.params)
    return dataclasses.replace(state, frozen=frozen)
