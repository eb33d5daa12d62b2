"""LoRA: frozen weights with trained low-rank additions (arXiv 2106.09685), also over a quantised
base (QLoRA).

An adapted weight is a pytree that takes the place of the weight's array, as a quantised weight
does. `layers.linear` takes plain, quantised and adapted weights alike.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from grit_jax.errors import GritError
from grit_jax.models.quantise import BLOCK, Axes, Quantised, storage_axes

# Name of a linear map in Hugging Face's models (and so in PEFT) -> our weights, of dense layers and
# of experts.
TARGETS: dict[str, tuple[str, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("attention_out",),
    "gate_proj": ("gate", "expert_gate"),
    "up_proj": ("up", "expert_up"),
    "down_proj": ("down", "expert_down"),
}
# The weights that can be adapted or quantised.
MATRICES = tuple(name for names in TARGETS.values() for name in names)
A, B = "_lora_a", "_lora_b"  # appended to a weight's name, the names of its adapter's two factors

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which weights have adapters, and the precision of the frozen weights.

    Attributes:
      rank: rank of the addition.
      alpha: the addition is scaled by `alpha / rank`.
      dropout: of an adapter's input, in training. Adapters of experts have none, as in PEFT (`peft:
        src/peft/tuners/lora/layer.py`, ParamWrapper).
      targets: the linear maps with an adapter, by PEFT's names.
      base: "full" keeps the frozen weights in `model.dtype`; "int8" and "int4" quantise every
        linear map of the layers, adapted or not. The embedding, norms, routers and head are never
        quantised.
    """

    rank: int = 16
    alpha: float = 64.0
    dropout: float = 0.1
    targets: tuple[str, ...] = tuple(TARGETS)
    base: Literal["full", "int8", "int4"] = "full"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: must be at least 0 and below 1, got {self.dropout}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(
                f"lora.targets: expected some of {', '.join(TARGETS)}, got"
                f" {', '.join(unknown) or 'none'}"
            )

    @property
    def scale(self) -> float:
        """The factor of the low-rank addition."""
        return self.alpha / self.rank

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that trained adapters depend on: they are valid with these only."""
        return {
            "base": self.base,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": sorted(self.targets),
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class AdaptedWeight:
    """`base + scale * a @ b`, never formed in training.

    Attributes:
      keys: random keys of the dropout, one for each layer, then for each row of a batch
        (`row_keys`); None: no dropout.
    """

    base: Array | Quantised
    a: Float[Array, "... D r"]
    b: Float[Array, "... r F"]
    keys: Key[Array, "*rows"] | None
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(metadata={"static": True}, default=0.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.base.shape

    def __getitem__(self, place: Any) -> Float[Array, "D F"]:
        """The merged weight of a layer (and expert) in float32, to be written to disk; indexed like
        an array."""
        return _merge(jax.tree.map(lambda part: part[place], dataclasses.replace(self, keys=None)))

    def drop(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The adapter's input: `x` after dropout, with a separate mask for each row."""
        if self.keys is None:
            return x
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[1:]))(
            self.keys
        )
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)

    def axes(self, axes: Axes) -> AdaptedWeight:
        """Logical axes of the parts, given those of the weight's array."""
        *leading, inputs, outputs = axes
        return dataclasses.replace(
            self,
            base=storage_axes(self.base, axes),
            a=(*leading, inputs, None),
            b=(*leading, None, outputs),
        )


def adapter_shapes(config: LoraConfig, weights: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapters' factors, A `[L D r]` and B `[L r F]`, for weights of these
    shapes.

    Raises:
      GritError: the model has no weight for a target.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for target in config.targets:
        names = [name for name in TARGETS[target] if name in weights]
        if not names:
            known = ", ".join(
                t for t, names in TARGETS.items() if any(name in weights for name in names)
            )
            raise GritError(f"lora.targets: this model has no '{target}'; it has {known}")
        for name in names:
            *leading, inputs, outputs = weights[name]
            shapes[name + A] = (*leading, inputs, config.rank)
            shapes[name + B] = (*leading, config.rank, outputs)
    return shapes


def adapter_axes(axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Logical axes of the adapters of every weight that can have one. The rank is not sharded."""
    adapters: dict[str, Axes] = {}
    for name in MATRICES:
        if name in axes:
            *leading, inputs, outputs = axes[name]
            adapters |= {name + A: (*leading, inputs, None), name + B: (*leading, None, outputs)}
    return adapters


def init_adapters(config: LoraConfig, weights: Shapes, key: jax.Array) -> dict[str, Array]:
    """New adapters in float32, whose addition is zero.

    A is Kaiming-uniform with a = sqrt(5), which is uniform within `1 / sqrt(inputs)`, and B is 0
    (`peft: src/peft/tuners/lora/layer.py`, reset_lora_parameters).
    """
    adapters = {}
    for name, shape in adapter_shapes(config, weights).items():
        if name.endswith(A):
            bound = 1 / math.sqrt(shape[-2])
            adapters[name] = jax.random.uniform(
                _named(key, name), shape, jnp.float32, -bound, bound
            )
        else:
            adapters[name] = jnp.zeros(shape, jnp.float32)
    return adapters


def attach(
    base: Mapping[str, Any],
    adapters: Mapping[str, Array],
    config: LoraConfig,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """The weights of the adapted model; with the `key` of a training step, its adapters have
    dropout.

    Other trained weights among the `adapters` (a projection) are passed on unchanged.
    """
    weights = dict(base) | {
        name: weight for name, weight in adapters.items() if not name.endswith((A, B))
    }
    for name in MATRICES:
        if name + A not in adapters:
            continue
        a, b = adapters[name + A], adapters[name + B]
        drop = key is not None and config.dropout and a.ndim == 3
        keys = jax.random.split(_named(key, name), a.shape[0]) if drop else None
        weights[name] = AdaptedWeight(
            base[name], a, b, keys, config.scale, config.dropout if drop else 0.0
        )
    return weights


def row_keys(weights: Mapping[str, Any], tokens: Int[Array, "B T"]) -> dict[str, Any]:
    """`weights` with a dropout key for each row of `tokens`, derived from the row's tokens.

    So the passes of a step have different masks, and a pass that is run again (for the backward
    pass, in chunks of another size, or on another mesh) has the same ones.
    """
    # Hash multipliers: odd numbers of 32 bits, one for each place in a row.
    odd = jnp.arange(1, 2 * tokens.shape[1], 2, dtype=jnp.uint32)
    multipliers = odd * jnp.uint32(2654435761)
    rows = (tokens.astype(jnp.uint32) * multipliers).sum(axis=1, dtype=jnp.uint32)
    # Over layers, then over rows.
    each_row = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return {
        name: (
            dataclasses.replace(weight, keys=each_row(weight.keys, rows))
            if isinstance(weight, AdaptedWeight) and weight.keys is not None
            else weight
        )
        for name, weight in weights.items()
    }


def check_quantisable(weights: Shapes, base: str) -> None:
    """Raises GritError if a weight's inputs do not divide into the blocks of a 4-bit base."""
    for name in MATRICES:
        if base == "int4" and name in weights and weights[name][-2] % BLOCK:
            key = {
                "attention_out": "num_attention_heads x head_dim",
                "down": "intermediate_size",
                "expert_down": "moe_intermediate_size",
            }.get(name, "hidden_size")
            raise GritError(
                f"lora.base: int4 stores blocks of {BLOCK} inputs, which do not divide the model's"
                f" {key} ({weights[name][-2]}); use int8"
            )


@jax.jit
def _merge(weight: AdaptedWeight) -> Array:
    base = weight.base
    full = base.dequantise(jnp.float32) if isinstance(base, Quantised) else base.astype(jnp.float32)
    return full + weight.scale * jnp.matmul(weight.a, weight.b, precision=jax.lax.Precision.HIGHEST)


def _named(key: jax.Array, name: str) -> jax.Array:
    """A random key that depends on the name only, not on the other weights."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
