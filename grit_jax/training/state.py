"""What a training run carries from step to step, and how it is made sharded from the start."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.models.config import ModelConfig
from grit_jax.models.projection import PROJECTION, PROJECTION_AXES, init_projection
from grit_jax.models.transformer import PARAMETER_AXES, Params, init_params
from grit_jax.sharding import ShardingRules, tree_shardings

PROJECTION_KEY = 0xD3  # beyond the numbers of the other weights
TRAINED_AXES = PARAMETER_AXES | PROJECTION_AXES  # of everything that can be trained


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warmup and a linear or cosine decay to `final_lr_fraction` of the peak."""

    lr: float = 2e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.03
    final_lr_fraction: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"optimizer.lr must not be negative, is {self.lr}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"optimizer.warmup_fraction must be between 0 and 1, is {self.warmup_fraction}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Step counter, weights and optimizer state; every array carries its sharding."""

    step: jax.Array
    params: Params
    opt_state: Any


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warmup, then the decay."""
    warmup = max(1, round(config.warmup_fraction * steps)) if config.warmup_fraction else 0
    rest = max(1, steps - warmup)
    end = config.lr * config.final_lr_fraction
    if config.schedule == "linear":
        decay = optax.linear_schedule(config.lr, end, rest)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr_fraction)
    else:
        decay = optax.constant_schedule(config.lr)
    if not warmup:
        return decay
    # The first step already moves: 1/warmup of the peak, not zero.
    rise = optax.linear_schedule(config.lr / warmup, config.lr, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Gradient clipping by the global norm, then AdamW; norms and biases are not decayed."""
    adamw = optax.adamw(
        schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay,
        mask=lambda params: {name: not name.endswith(("_norm", "_bias")) for name in params},
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def state_shardings(state: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Shardings of a TrainState (or its shapes): moments lie like their weights, scalars are replicated."""
    whole = NamedSharding(mesh, PartitionSpec())

    def like_params(node: Any) -> Any:
        return tree_shardings(node, TRAINED_AXES, mesh, rules)

    def walk(node: Any) -> Any:
        is_params = lambda n: isinstance(n, dict) and n.keys() <= TRAINED_AXES.keys()
        return jax.tree.map(lambda n: like_params(n) if is_params(n) else whole, node, is_leaf=is_params)

    return TrainState(whole, like_params(state.params), walk(state.opt_state))


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    rules: ShardingRules,
    params: Params | None = None,
    projection: int | None = None,
) -> TrainState:
    """A new state, each array made directly in its sharding; `params` starts from given weights instead.

    `projection` adds a new head of so many dimensions to weights that have none.
    """

    def create(given: Params | None) -> TrainState:
        weights = init_params(config, key) if given is None else {n: p.astype(jnp.float32) for n, p in given.items()}
        if projection and PROJECTION not in weights:
            weights |= init_projection(config.hidden_size, projection, jax.random.fold_in(key, PROJECTION_KEY))
        return TrainState(jnp.zeros((), jnp.int32), weights, optimizer.init(weights))

    shapes = jax.eval_shape(create, params)
    return jax.jit(create, out_shardings=state_shardings(shapes, mesh, rules))(params)
