"""Loading the frozen base of LoRA adapters: weight by weight, quantised, hashed and sharded."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.directory import read_model_directory
from grit_jax.models.lora import MATRICES, LoraConfig, check_quantisable
from grit_jax.models.parameters import PARAMETER_AXES, Params, parameter_shapes
from grit_jax.models.projection import PROJECTION_AXES
from grit_jax.models.quantise import quantise, storage_axes
from grit_jax.models.weights_hash import WeightsHash
from grit_jax.sharding import fitted_sharding


def freeze(name: str, weight: jax.Array, config: ModelConfig, lora: LoraConfig) -> Any:
    """A weight as the frozen base stores it: quantised, or in the dtype of the computation."""
    if lora.base != "full" and name in MATRICES:
        return quantise(weight, lora.base)
    return weight.astype(jnp.dtype(config.dtype))


def load_base(
    directory: Path, config: ModelConfig, lora: LoraConfig, mesh: Mesh
) -> tuple[Params, str]:
    """The frozen weights of a model directory, and their hash as in `GritLM.weights_hash`.

    Host memory holds one unquantised weight at a time, and no device holds a whole one: weights are
    quantised on a device layer by layer, the others are cast on the host. The same files give the
    same bits.

    Raises:
      GritError: a damaged directory, or weights whose inputs do not divide into 4-bit blocks.
    """
    check_quantisable(parameter_shapes(config), lora.base)
    digest = WeightsHash(config)
    freeze_layer = jax.jit(functools.partial(freeze, config=config, lora=lora), static_argnums=0)

    def place(name: str, array: np.ndarray) -> Any:
        digest.add(name, array)
        if lora.base != "full" and name in MATRICES:
            layers = [jax.device_get(freeze_layer(name, layer)) for layer in array]
            frozen = jax.tree.map(lambda *parts: np.stack(parts), *layers)
        else:
            frozen = array.astype(jnp.dtype(config.dtype))
        return jax.tree.map(_put, frozen, frozen_shardings({name: frozen}, mesh)[name])

    params = read_model_directory(directory, config.dtype, place=place).params
    assert params is not None
    return params, digest.hexdigest()


def frozen_shardings(frozen: Params, mesh: Mesh) -> Any:
    """Shardings of frozen weights (or their shapes): each array of a quantised weight is sharded
    like the weight itself."""
    axes_of = PARAMETER_AXES | PROJECTION_AXES
    sharding = lambda part, axes: fitted_sharding(axes, part.shape, mesh)
    return {
        name: jax.tree.map(sharding, part, storage_axes(part, axes_of[name]))
        for name, part in frozen.items()
    }


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
