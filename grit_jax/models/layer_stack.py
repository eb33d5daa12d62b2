"""Running a stack of layers that may differ: repeating patterns are scanned, what remains is a
short stack of its own.

Gemma 3 (five layers with a window, one without, again and again, and a remainder) is one scan whose
body holds six layers, and a scan over the remainder; Qwen2 with `max_window_layers` is two scans;
layers that are all alike are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grit_jax.models.config import LayerKind
from grit_jax.models.parameters import layers_with

# (carry, (the layer's weights, the layer's slice of the cache or None)) -> (carry, the layer's
# output or None)
Layer = Callable[[Any, tuple[Mapping[str, Any], Any]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """`repeats` times the same `period` layers, from layer `start` on."""

    start: int
    period: int
    repeats: int

    @property
    def layers(self) -> int:
        """The number of layers in the group."""
        return self.period * self.repeats


def group_layers(kinds: Sequence[LayerKind]) -> tuple[LayerGroup, ...]:
    """Splits a stack into groups: from each layer on, the pattern that covers most layers, the
    shortest of those.

    A remainder shorter than a pattern before it is one group without repeats. Each scan has
    gradients of its own for the whole stack, which are then added up; those of layers written out
    are added where they belong.
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
      make_layer: the layer of a kind. It first applies the function it is given, which picks the
        weights and the cache of one layer out of what it gets, so that a recomputed layer picks
        anew instead of keeping a copy.
      carry: what goes from layer to layer.
      weights: by name, each stacked over the layers that have it (`parameters.layers_with`).
      cached: arrays stacked over all layers, or None.
      scan: False writes every layer out.

    Returns:
      The last carry, and the layers' outputs stacked over all of them (None where they are None).
    """
    stacked = (dict(weights), cached)
    own = {name: layers_with(name, kinds) for name in weights}
    if scan and len(set(kinds)) == 1:
        return jax.lax.scan(make_layer(kinds[0], lambda picked: picked), carry, stacked)

    def picker(group: LayerGroup, place: int) -> Callable[[Any], Any]:
        """Picks layer `place + i * period` out of the stacks, given `(i, (weights, cached))`."""
        end, mine = place + group.period, {}
        for name, layers in own.items():
            if place in layers:
                mine[name] = (layers.index(place), sum(place <= layer < end for layer in layers))

        def pick(given: Any) -> Any:
            i, (weights, cached) = given
            take = lambda tree, first, stride: jax.tree.map(
                lambda a: _index(a, first + i * stride), tree
            )
            return {n: take(weights[n], *where) for n, where in mine.items()}, take(
                cached, place, group.period
            )

        return pick

    outputs = []
    for group in group_layers(kinds) if scan else [LayerGroup(i, 1, 1) for i in range(len(kinds))]:
        places = range(group.start, group.start + group.period)
        picks = [picker(group, place) for place in places]
        if group.repeats == 1:
            found = []
            for place, pick in zip(places, picks, strict=True):
                carry, output = make_layer(kinds[place], lambda picked: picked)(
                    carry, pick((0, stacked))
                )
                found.append(output)
            outputs.append(jax.tree.map(lambda *a: jnp.stack(a), *found))
            continue
        layers = [make_layer(kinds[place], pick) for place, pick in zip(places, picks, strict=True)]

        def body(carry: Any, i: Any, layers: list[Layer] = layers) -> tuple[Any, Any]:
            found = []
            for layer in layers:
                carry, output = layer(carry, (i, stacked))  # type: ignore[arg-type]
                found.append(output)
            return carry, jax.tree.map(lambda *a: jnp.stack(a), *found)

        # The stacks stay whole outside and are picked from inside: a scanned slice of them would be
        # a copy.
        carry, output = jax.lax.scan(body, carry, jnp.arange(group.repeats))
        outputs.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), output))
    return carry, jax.tree.map(lambda *a: jnp.concatenate(a), *outputs)


def _index(a: Any, i: Any) -> Any:
    """`a[i]`; for a number a slice, whose gradient is put in its place and added to the others
    without a copy."""
    return jax.lax.index_in_dim(a, i, keepdims=False) if isinstance(i, int) else a[i]
