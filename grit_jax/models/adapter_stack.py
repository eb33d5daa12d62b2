"""Several LoRA adapters on one base model, of which each token of a pass has one or none.

The factors of all adapters stand side by side: A `[L D R]` and B `[L R F]`, `R` being the sum of
their ranks. A token is multiplied with all of A; what belongs to other adapters than its own is set
to zero before B. So rows, and texts within a row, may mix adapters in one program, adapters may
have different ranks, and no token's numbers depend on the adapters of others. A token costs as much
as with one adapter of rank `R`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.models.layer_stack import LayerArrays
from grit_jax.models.lora import MATRICES, A, B, LoraConfig
from grit_jax.models.quantise import Axes, Quantised, storage_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class AdapterStack:
    """A base weight and the factors of its adapters; takes the place of the weight's array.

    Attributes:
      b: multiplied by each adapter's scale.
      choice: the adapter of each token of a pass, counted from 1; 0: the base alone. One row
        or one token stands for all.
      ranks: of each adapter; 0: it has none for this weight.
    """

    base: Array | Quantised
    a: Float[Array, "... D R"]
    b: Float[Array, "... R F"]
    choice: Int[Array, "L B T"]
    ranks: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.base.shape

    def own(self, inside: Float[Array, "B T R"]) -> Float[Array, "B T R"]:
        """The products with A that belong to each token's adapter; 0 elsewhere."""
        owners = np.repeat(np.arange(1, len(self.ranks) + 1), self.ranks)
        return jnp.where(self.choice[..., None] == owners, inside, 0)

    def axes(self, axes: Axes) -> AdapterStack:
        """Logical axes of the parts, given those of the weight's array."""
        *leading, inputs, outputs = axes
        return dataclasses.replace(
            self,
            base=storage_axes(self.base, axes),
            a=(*leading, inputs, None),
            b=(*leading, None, outputs),
            choice=(*leading, None, None),
        )


def stacked(
    base: Mapping[str, Any],
    adapters: Sequence[tuple[Mapping[str, np.ndarray], LoraConfig]],
    dtype: str,
) -> dict[str, Any]:
    """The weights of a base with all adapters beside it; no adapter is chosen.

    Args:
      base: weights by name; they are not copied.
      adapters: the factors of each by name, and its settings.
      dtype: of the factors.
    """
    weights = dict(base)
    for name in MATRICES:
        own = [
            (factors[name + A], factors[name + B]) for factors, _ in adapters if name + A in factors
        ]
        if not own:
            continue
        scales = [lora.scale for factors, lora in adapters if name + A in factors]
        a = np.concatenate([a for a, _ in own], axis=-1)
        b = np.concatenate([b * scale for (_, b), scale in zip(own, scales, strict=True)], axis=-2)
        ranks = tuple(
            factors[name + A].shape[-1] if name + A in factors else 0 for factors, _ in adapters
        )
        choice = np.zeros((a.shape[0], 1, 1), np.int32)
        weights[name] = AdapterStack(
            base[name], a.astype(jnp.dtype(dtype)), b.astype(jnp.dtype(dtype)), choice, ranks
        )
    return weights


def choose(
    weights: Mapping[str, Any], choice: Int[Array, " B"] | Int[Array, "B T"] | None
) -> dict[str, Any]:
    """The weights with an adapter for each row, or for each token, of a pass; None keeps the ones
    that are chosen."""
    if choice is None:
        return dict(weights)
    by_token = choice[:, None] if choice.ndim == 1 else choice

    def chosen(weight: Any) -> Any:
        if isinstance(weight, LayerArrays):
            layers = (
                dataclasses.replace(layer, choice=by_token)
                if isinstance(layer, AdapterStack)
                else layer
                for layer in weight.layers
            )
            return LayerArrays(tuple(layers))
        if not isinstance(weight, AdapterStack):
            return weight
        every = jnp.broadcast_to(by_token, (weight.a.shape[0], *by_token.shape))
        return dataclasses.replace(weight, choice=every)

    return {name: chosen(weight) for name, weight in weights.items()}
