"""The weights of the layers as separate arrays, which decoding on a CPU reads without a copy.

A second copy of the layers: stacks stay for programs that take many tokens, where copying a layer's
slice costs little and unrolled layers would take long to compile.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grit_jax.inference.placement import device_memory
from grit_jax.models.layer_stack import LayerArrays
from grit_jax.models.parameters import OUTSIDE_LAYERS, Params

SMALLEST = 16 * 2**20  # bytes of all layers; the slices of smaller ones stay in the caches
MEMORY_PART = (
    8  # the copy takes at most one part in so many of the memory of the machine or container
)

# Of each stacked array by its identity, as long as it lives: an engine, answers to a list of
# prompts and the adapters of a model share what they have in common.
_made: dict[int, tuple[weakref.ref[jax.Array], tuple[jax.Array, ...]]] = {}


def separate_layers(params: Params, mesh: Mesh | None = None) -> Params | None:
    """`params` with `LayerArrays` in place of stacked weights; None where stacks are as quick, or
    the copy would be large: on other devices than one CPU, for layers of less than `SMALLEST`
    bytes or of more than a part of the memory."""
    devices = [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)
    if len(devices) > 1 or devices[0].platform != "cpu":
        return None
    layers = {name: w for name, w in params.items() if not name.startswith(OUTSIDE_LAYERS)}
    leaves = jax.tree.leaves(layers)
    size = sum(leaf.nbytes for leaf in leaves)
    if size < SMALLEST or size > (device_memory(devices[0]) or 0) // MEMORY_PART:
        return None
    return params | {name: _separate(weight) for name, weight in layers.items()}


def weights_of_layer(separate: Params, indices: Mapping[str, int]) -> Params:
    """The weights of one layer alone, given where each stands among its `LayerArrays`."""
    return {name: LayerArrays((separate[name].layers[i],)) for name, i in indices.items()}


def _separate(weight: Any) -> LayerArrays:
    leaves, structure = jax.tree.flatten(weight)
    layers = zip(*map(_layers_of, leaves), strict=True)
    return LayerArrays(tuple(jax.tree.unflatten(structure, layer) for layer in layers))


def _layers_of(stack: jax.Array | np.ndarray) -> tuple[Any, ...]:
    """The entries of a stacked array as arrays of their own."""
    if not isinstance(stack, jax.Array):
        return tuple(stack)
    key = id(stack)
    made = _made.get(key)
    if made is not None and made[0]() is stack:
        return made[1]
    layers = tuple(stack[i] for i in range(len(stack)))
    _made[key] = weakref.ref(stack, lambda _: _made.pop(key, None)), layers
    return layers
