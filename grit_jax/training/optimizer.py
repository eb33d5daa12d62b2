"""Optimizers (AdamW, Adafactor), their learning rate schedules, and the state that they keep."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from grit_jax.models.lora import adapter_axes
from grit_jax.models.projection import PROJECTION_AXES
from grit_jax.models.transformer import PARAMETER_AXES

# Logical axes of everything that can be trained.
TRAINED_AXES = PARAMETER_AXES | PROJECTION_AXES | adapter_axes(PARAMETER_AXES)
ADAMW_ONLY = ("b1", "b2", "eps", "moments")
# Adafactor: bound on the root mean square of a matrix's update (arXiv 1804.04235, section 6).
UPDATE_CLIP = 1.0
LEAST_FACTORED = 128  # a matrix with a smaller side is not factored
ROUNDING_KEY = 0x0BF1  # seed of the stochastic rounding of moments; the step is folded in


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Adafactor with a linear warmup, then a linear, cosine or constant schedule.

    Attributes:
      lr: the peak learning rate.
      schedule: the shape of the decay after the warmup.
      warmup_fraction: share of the steps that are warmup.
      final_lr_fraction: the learning rate at the end, as a fraction of the peak.
      b1, b2, eps: AdamW's.
      clip_norm: the largest global norm of the gradient; None: no clipping.
      name: "adamw" keeps two moments for every weight. "adafactor" (arXiv 1804.04235) keeps only
        the mean squares of a matrix's rows and columns (0.01 bytes a parameter or less), and no
        first moment. Its `lr` is not multiplied by the size of the weight, as in `transformers`
        with `scale_parameter=False`.
      moments: dtype of AdamW's moments between steps: "float32" (8 bytes a parameter) or "bfloat16"
        (4). bfloat16 moments are rounded stochastically: with rounding to nearest a second moment
        would never decrease, since at b2 = 0.999 it changes by less than bfloat16 resolves. They
        are unbiased, but noisy: 0.3% of a moment at each step, which at b2 = 0.999 adds up to about
        4% of a second moment and 2% of a weight's update.
      offload: keeps the moments in pinned host memory between steps (each device's share on its own
        host). They are copied to the devices once a step, after the activations are freed.

    Raises:
      ValueError: a value out of range; the message names its key.
    """

    lr: float = 2e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.03
    final_lr_fraction: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    name: Literal["adamw", "adafactor"] = "adamw"
    moments: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        # Written so that NaN is refused, too: every comparison with it is false.
        for key in ("lr", "final_lr_fraction", "weight_decay", "eps"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"optimizer.{key}: must be a finite number >= 0, got {getattr(self, key)}"
                )
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(
                f"optimizer.warmup_fraction: must be between 0 and 1, got {self.warmup_fraction}"
            )
        for key in ("b1", "b2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"optimizer.{key}: must be at least 0 and below 1, got {getattr(self, key)}"
                )
        # A negative norm would reverse the gradient.
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(
                f"optimizer.clip_norm: must be above 0 and finite, or null, got {self.clip_norm}"
            )
        if self.name not in ("adamw", "adafactor"):
            raise ValueError(f"optimizer.name: must be adamw or adafactor, got {self.name}")
        if self.moments not in ("float32", "bfloat16"):
            raise ValueError(f"optimizer.moments: must be float32 or bfloat16, got {self.moments}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for key in ADAMW_ONLY if self.name == "adafactor" else ():
            if getattr(self, key) != defaults[key]:
                raise ValueError(
                    f"optimizer.{key} has no effect with optimizer.name: adafactor; leave it out"
                )

    @property
    def state_kind(self) -> str:
        """The kind of its state, in words. A checkpoint can only be resumed with the same kind."""
        return "adafactor" if self.name == "adafactor" else f"adamw with {self.moments} moments"


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warmup, then the decay."""
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
    # The first step has 1/warmup of the peak, not zero.
    rise = optax.linear_schedule(config.lr / warmup, config.lr, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Gradient clipping by the global norm, then the optimizer. Norms and biases have no weight
    decay."""
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    if config.name == "adafactor":
        parts.append(optax.scale_by_factored_rms(min_dim_size_to_factor=LEAST_FACTORED))
        parts.append(_clip_each_matrix(UPDATE_CLIP))
    else:
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
        parts.append(_kept_in_bfloat16(adam) if config.moments == "bfloat16" else adam)
    if config.weight_decay:
        decayed = lambda params: {name: not name.endswith(("_norm", "_bias")) for name in params}
        parts.append(optax.add_decayed_weights(config.weight_decay, decayed))
    optimizer = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    return _kept_on_host(optimizer) if config.offload else optimizer


class OnHost(NamedTuple):
    """Optimizer state with its arrays in host memory (`training.state` puts them there); scalars
    stay on the device."""

    state: Any


def _kept_on_host(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of an optimizer on the host and copies it to the device for each update."""

    def to(space: jax.memory.Space, state: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)

    def update(gradients: Any, state: OnHost, params: Any = None) -> Any:
        updates, after = optimizer.update(
            gradients, to(jax.memory.Space.Device, state.state), params
        )
        return updates, OnHost(to(jax.memory.Space.Host, after))

    return optax.GradientTransformation(lambda params: OnHost(optimizer.init(params)), update)


def _clip_each_matrix(threshold: float) -> optax.GradientTransformation:
    """Scales each matrix's update down to a root mean square of at most `threshold`.

    Each layer and expert of a stacked weight is a matrix of its own. (`optax.clip_by_block_rms`
    would treat the whole stack as one.)
    """

    def clip(name: str, x: jax.Array) -> jax.Array:
        stacked = sum(axis in ("layers", "experts") for axis in TRAINED_AXES[name])
        square = jnp.mean(jnp.square(x), axis=tuple(range(stacked, x.ndim)), keepdims=True)
        return x / jnp.maximum(1.0, jnp.sqrt(square) / threshold)

    return optax.stateless(lambda updates, _: {name: clip(name, x) for name, x in updates.items()})


def _kept_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stores Adam's moments in bfloat16 between steps; updates are computed in float32."""

    def narrow(state: Any, store: Any) -> Any:
        pairs = zip(jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), strict=True)
        stored = [store(leaf, *pair) for leaf, pair in enumerate(pairs)]
        tree = jax.tree.structure(state.mu)
        mu, nu = (jax.tree.unflatten(tree, [pair[i] for pair in stored]) for i in (0, 1))
        return state._replace(mu=mu, nu=nu)

    def init(params: Any) -> Any:
        return narrow(
            adam.init(params), lambda _, mu, nu: (mu.astype(jnp.bfloat16), nu.astype(jnp.bfloat16))
        )

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
        updates, state = adam.update(
            gradients, state._replace(mu=wide(state.mu), nu=wide(state.nu)), params
        )
        key = jax.random.fold_in(jax.random.key(ROUNDING_KEY), state.count)

        def store(leaf: int, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            noise = jax.random.bits(jax.random.fold_in(key, leaf), mu.shape, jnp.uint32)
            return _round_at_random(mu, noise & 0xFFFF), _round_at_random(nu, noise >> 16)

        return updates, narrow(state, store)

    return optax.GradientTransformation(init, update)


def _round_at_random(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 stochastically, so that the expected value is `x`.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries into
    the upper one with a probability proportional to the lower half.
    """
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)
