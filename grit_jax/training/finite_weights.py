"""Whether all weights are finite numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.weights import hf_names
from grit_jax.models.parameters import layers_with
from grit_jax.training.optimizer import TRAINED_AXES


def check_finite(weights: Any, config: ModelConfig, mesh: Mesh, source: str) -> None:
    """Checks weights before the first step, so that bad ones are not reported as a diverged loss.

    Args:
      weights: by name, as a `TrainState` has them.
      source: where they come from, for the message.

    Raises:
      GritError: a weight has a NaN or an infinity; the message names it as its file does.
    """

    def finite(path: Any, x: jax.Array) -> jax.Array:
        stacked = "layers" in TRAINED_AXES.get(path[0].key, ())[:1]
        return jnp.isfinite(x).all(axis=tuple(range(stacked, x.ndim)))

    floats = lambda tree: [
        (path, x)
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    every = jax.jit(
        lambda tree: [finite(*entry) for entry in floats(tree)],
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    for (path, _), good in zip(floats(weights), every(weights), strict=True):
        bad = np.flatnonzero(~np.atleast_1d(np.asarray(good)))
        if len(bad):
            raise GritError(
                f"{source}: the weight {_tensor_name(path[0].key, int(bad[0]), config)} holds"
                " numbers that are not finite (nan or inf); start from a model without them"
            )


def _tensor_name(name: str, row: int, config: ModelConfig) -> str:
    """The name in a Hugging Face directory; `row` is the place in the stack of layers."""
    if name not in (names := hf_names(config)):
        return name  # a projection, or an adapter
    template = names[name][0].replace("{expert}", "*")
    if "{layer}" not in template:
        return template
    return template.format(layer=layers_with(name, config.layer_kinds)[row])
