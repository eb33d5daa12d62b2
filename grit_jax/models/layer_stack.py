"""Running a stack of layers that may differ: repeating patterns of layers are scanned.

Layers that are all alike are one scan. Gemma 3 repeats five layers with a window and one without:
it is one scan with a body of six layers, and then the remaining layers. Qwen2 with
`max_window_layers` is two scans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grit_jax.models.config import LayerKind
from grit_jax.models.parameters import layers_with

# (carry, (the layer's weights, its slice of the cache or None)) -> (carry, its output or None)
Layer = Callable[[Any, tuple[Mapping[str, Any], Any]], tuple[Any, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerArrays:
    """A weight as separate arrays, one for each layer that has it, in place of one stacked array.

    Layers with such weights are unrolled. For programs that read every weight for a few tokens on a
    CPU, where XLA copies a layer's slice out of a stack before it multiplies with it: a token of a
    56M model took 19.1 ms with stacked weights and 7.8 ms with separate ones.
    """

    layers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """A pattern of `period` layers, repeated `repeats` times, from layer `start` on."""

    start: int
    period: int
    repeats: int

    @property
    def layers(self) -> int:
        """The number of layers in the group."""
        return self.period * self.repeats


def group_layers(kinds: Sequence[LayerKind]) -> tuple[LayerGroup, ...]:
    """Splits a stack into groups: each time the pattern that covers most layers, the shortest of
    those.

    A remainder that is shorter than an earlier pattern becomes one group without repeats: each scan
    makes gradients for the whole stack, which must be added up, while those of unrolled layers are
    added in place.
    """
    groups: list[LayerGroup] = []
    start = 0
    while start < len(kinds):
        rest = kinds[start:]
        best = LayerGroup(start, 1, 1)
        for period in range(1, len(rest) // 2 + 1):
            repeats = 1
            while rest[repeats * period : (repeats + 1) * period] == rest[:period]:
                repeats += 1
            if repeats > 1 and period * repeats > best.layers:
                best = LayerGroup(start, period, repeats)
        if len(rest) < max((group.period for group in groups), default=0):
            best = LayerGroup(start, len(rest), 1)
        groups.append(best)
        start += best.layers
    return tuple(groups)


def run_layers(
    make_layer: Callable[[LayerKind, Callable[[Any], Any]], Layer],
    carry: Any,
    weights: Mapping[str, Any],
    cached: Any,
    kinds: Sequence[LayerKind],
    *,
    scan: bool,
) -> tuple[Any, Any]:
    """Applies the layers first to last.

    Args:
      make_layer: makes the function of a layer of a kind. That function must first apply the given
        one to its second argument, which picks the layer's weights and cache out of the stacks: so
        a rematerialised layer picks again instead of keeping a copy.
      carry: passed from layer to layer.
      weights: by name, each stacked over the layers that have it (`parameters.layers_with`), or
        `LayerArrays` of them.
      cached: arrays stacked over all layers, or None.
      scan: False unrolls all layers, and so do `LayerArrays`.

    Returns:
      The last carry, and the outputs stacked over all layers (None where they are None).
    """
    stacked = (dict(weights), cached)
    layers_of = {name: layers_with(name, kinds) for name in weights}
    scan = scan and not any(isinstance(weight, LayerArrays) for weight in weights.values())
    if scan and len(set(kinds)) == 1:
        return jax.lax.scan(make_layer(kinds[0], lambda picked: picked), carry, stacked)

    def picker(group: LayerGroup, place: int) -> Callable[[Any], Any]:
        """Picks layer `place + i * period` out of the stacks, given `(i, (weights, cached))`."""
        end, slots = place + group.period, {}  # name -> first index in its stack, and stride
        for name, layers in layers_of.items():
            if place in layers:
                slots[name] = (layers.index(place), sum(place <= layer < end for layer in layers))

        def pick(repeat: Any) -> Any:
            i, (weights, cached) = repeat
            take = lambda tree, first, stride: layer_of(tree, first + i * stride)
            return {n: take(weights[n], *slot) for n, slot in slots.items()}, take(
                cached, place, group.period
            )

        return pick

    outputs = []
    for group in group_layers(kinds) if scan else [LayerGroup(i, 1, 1) for i in range(len(kinds))]:
        places = range(group.start, group.start + group.period)
        picks = [picker(group, place) for place in places]
        if group.repeats == 1:
            layer_outputs = []
            for place, pick in zip(places, picks, strict=True):
                carry, output = make_layer(kinds[place], lambda picked: picked)(
                    carry, pick((0, stacked))
                )
                layer_outputs.append(output)
            outputs.append(jax.tree.map(lambda *a: jnp.stack(a), *layer_outputs))
            continue
        layers = [make_layer(kinds[place], pick) for place, pick in zip(places, picks, strict=True)]

        def body(carry: Any, i: Any, layers: list[Layer] = layers) -> tuple[Any, Any]:
            layer_outputs = []
            for layer in layers:
                carry, output = layer(carry, (i, stacked))
                layer_outputs.append(output)
            return carry, jax.tree.map(lambda *a: jnp.stack(a), *layer_outputs)

        # The stacks are closed over and picked from inside: scanning over them would copy slices.
        carry, output = jax.lax.scan(body, carry, jnp.arange(group.repeats))
        outputs.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), output))
    return carry, jax.tree.map(lambda *a: jnp.concatenate(a), *outputs)


def layer_of(weight: Any, i: Any) -> Any:
    """Entry `i` of a stacked weight, or of `LayerArrays` (`i` is a Python int then)."""
    if isinstance(weight, LayerArrays):
        return weight.layers[i]
    return jax.tree.map(lambda a: _index(a, i), weight)


def _index(a: Any, i: Any) -> Any:
    """`a[i]`. A Python int becomes a static slice, whose gradient is added in place, without a
    copy."""
    return jax.lax.index_in_dim(a, i, keepdims=False) if isinstance(i, int) else a[i]
