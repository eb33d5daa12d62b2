"""The joint step: one gradient of all losses, one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import optax

from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.state import TrainState
from grit_jax.types import Batch

__all__ = ["StepConfig", "joint_loss", "make_step"]


def make_step(
    config: StepConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, batch) -> (state, metrics)`; the state's buffers are donated.

    Shardings are those of the arrays handed in (see `training.state`); metrics are scalars: `loss`,
    its parts, `grad_norm` (before clipping) and `lr`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        here = config
        if state.frozen:  # the base of adapters, or the reference model of a preference loss
            here = dataclasses.replace(here, base_weights_of=lambda params: state.frozen)
        if config.lora is not None:
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            weights = lambda params, key: dataclasses.replace(state, params=params).weights(
                config.lora, key
            )
            here = dataclasses.replace(
                here,
                weights_of=lambda params: weights(params, key),
                teacher_weights_of=lambda params: weights(params, None),
            )
        with jax.default_matmul_precision(config.matmul_precision):
            (loss, parts), grads = joint_gradient(state.params, batch, here)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "lr": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    return jax.jit(step, donate_argnums=0)
