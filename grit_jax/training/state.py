"""What a training run carries from step to step, and how it is made sharded from the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig, adapter_axes, attach, init_adapters
from grit_jax.models.projection import PROJECTION, PROJECTION_AXES, init_projection
from grit_jax.models.transformer import PARAMETER_AXES, Params, init_params, parameter_shapes
from grit_jax.sharding import ShardingRules, tree_shardings
from grit_jax.training.base import freeze, frozen_shardings

PROJECTION_KEY = 0xD3  # beyond the numbers of the other weights
TRAINED_AXES = PARAMETER_AXES | PROJECTION_AXES | adapter_axes(PARAMETER_AXES)  # of everything that can be trained


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
    """Step counter, weights and optimizer state; every array carries its sharding.

    Attributes:
      params: what is trained: the weights, or the adapters to `frozen` ones.
      frozen: weights that stay as they are and have no optimizer state (none: all are trained).
    """

    step: jax.Array
    params: Params
    opt_state: Any
    frozen: Params = dataclasses.field(default_factory=dict)

    def weights(self, lora: LoraConfig | None, key: jax.Array | None = None) -> Params:
        """The weights of the model as it stands; with the `key` of a step, adapters have dropout."""
        return self.params if lora is None else attach(self.frozen, self.params, lora, key)


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

    frozen = frozen_shardings(state.frozen, mesh, rules)
    return TrainState(whole, like_params(state.params), walk(state.opt_state), frozen)


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    rules: ShardingRules,
    params: Params | None = None,
    projection: int | None = None,
    lora: LoraConfig | None = None,
) -> TrainState:
    """A new state, each array made directly in its sharding.

    Args:
      params: start from these weights instead of random ones.
      projection: add a new head of so many dimensions to weights that have none.
      lora: train new adapters (and the projection); `params` are the frozen base, in place (see `training.base`).
    """
    given, frozen = params, {}
    if lora is not None:
        assert params is not None
        given = {name: params[name] for name in PROJECTION_AXES if name in params}
        frozen = {name: weight for name, weight in params.items() if name not in given}
    create = _creation(config, optimizer, key, projection, lora)
    shapes = jax.eval_shape(create, given)
    state = jax.jit(create, out_shardings=state_shardings(shapes, mesh, rules))(given)
    return dataclasses.replace(state, frozen=frozen)


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    projection: int | None = None,
    lora: LoraConfig | None = None,
) -> TrainState:
    """Shapes and dtypes of what `init_state` makes, the frozen base included; nothing is computed."""
    state = jax.eval_shape(_creation(config, optimizer, jax.random.key(0), projection, lora), None)
    if lora is None:
        return state
    random = lambda: init_params(config, jax.random.key(0))
    frozen = jax.eval_shape(lambda: {name: freeze(name, weight, config, lora) for name, weight in random().items()})
    return dataclasses.replace(state, frozen=frozen)


def _creation(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    projection: int | None,
    lora: LoraConfig | None,
) -> Callable[[Params | None], TrainState]:
    """The function that makes what is trained, from given weights or without."""

    def create(given: Params | None) -> TrainState:
        weights = {name: weight.astype(jnp.float32) for name, weight in (given or {}).items()}
        if lora is not None:
            weights |= init_adapters(lora, parameter_shapes(config), key)
        elif given is None:
            weights = init_params(config, key)
        if projection and PROJECTION not in weights:
            weights |= init_projection(config.hidden_size, projection, jax.random.fold_in(key, PROJECTION_KEY))
        return TrainState(jnp.zeros((), jnp.int32), weights, optimizer.init(weights))

    return create
