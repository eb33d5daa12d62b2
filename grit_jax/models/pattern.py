"""Running a stack of layers that may differ: repeating patterns are scanned, what remains is a short stack of its own.

Gemma 3 (five layers with a window, one without, again and again, and a remainder) is one scan whose body holds six
layers, and a scan over the remainder; Qwen2 with `max_window_layers` is two scans; layers that are all alike are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grit_jax.models.config import LayerKind
from grit_jax.models.parameters import owners

# (carry, (the layer's weights, the layer's slice of the cache or None)) -> (carry, the layer's output or None)
Layer = Callable[[Any, tuple[Mapping[str, Any], Any]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """`repeats` times the same `period` layers, from layer `start` on."""

    start: int
    period: int
    repeats: int


def plan_runs(kinds: Sequence[LayerKind]) -> tuple[Run, ...]:
    """Splits a stack into runs: from each place on the pattern that covers most layers, the shortest of those."""
    runs, start = [], 0
    while start < len(kinds):
        rest = kinds[start:]
        best = Run(start, 1, 1)
        for period in range(1, len(rest) // 2 + 1):
            repeats = 1
            while rest[repeats * period : (repeats + 1) * period] == rest[:period]:
                repeats += 1
            if repeats > 1 and period * repeats > best.period * best.repeats:
                best = Run(start, period, repeats)
        runs.append(best)
        start += best.period * best.repeats
    return tuple(runs)


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
      make_layer: the layer of a kind. It first applies the function it is given, which picks the weights and the
        cache of one layer out of what it gets, so that a recomputed layer picks anew instead of keeping a copy.
      carry: what goes from layer to layer.
      weights: by name, each stacked over the layers that have it (`parameters.owners`).
      cached: arrays stacked over all layers, or None.
      scan: False writes every layer out.

    Returns:
      The last carry, and the layers' outputs stacked over all of them (None where they are None).
    """
    stacked = (dict(weights), cached)
    own = {name: owners(name, kinds) for name in weights}
    if scan and len(set(kinds)) == 1:
        return jax.lax.scan(make_layer(kinds[0], lambda picked: picked), carry, stacked)

    def picker(run: Run, place: int) -> Callable[[Any], Any]:
        """Picks layer `place + i * period` out of the stacks, given `(i, (weights, cached))`."""
        end, mine = place + run.period, {}
        for name, layers in own.items():
            if place in layers:
                mine[name] = (layers.index(place), sum(place <= layer < end for layer in layers))

        def pick(given: Any) -> Any:
            i, (weights, cached) = given
            take = lambda tree, first, stride: jax.tree.map(lambda a: a[first + i * stride], tree)
            return {n: take(weights[n], *where) for n, where in mine.items()}, take(cached, place, run.period)

        return pick

    outputs = []
    for run in plan_runs(kinds) if scan else [Run(i, 1, 1) for i in range(len(kinds))]:
        layers = [
            make_layer(kinds[place], picker(run, place)) for place in range(run.start, run.start + run.period)
        ]

        def body(carry: Any, i: Any, layers: list[Layer] = layers) -> tuple[Any, Any]:
            found = []
            for layer in layers:
                carry, output = layer(carry, (i, stacked))  # type: ignore[arg-type]
                found.append(output)
            return carry, jax.tree.map(lambda *a: jnp.stack(a), *found)

        if run.repeats == 1:
            carry, output = body(carry, 0)
        else:
            # The stacks stay whole outside and are picked from inside: a scanned slice of them would be a copy.
            carry, output = jax.lax.scan(body, carry, jnp.arange(run.repeats))
            output = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), output)
        outputs.append(output)
    return carry, jax.tree.map(lambda *a: jnp.concatenate(a), *outputs)
