"""Mixture of experts without dropped tokens: tokens sorted by expert, one ragged matrix product a
weight.

Along the mesh axis that splits experts every device has all of its tokens: it computes what its own
experts have to say to them, and one sum joins the shares. No token is sent, none is dropped,
whatever the load of an expert.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import ACTIVATIONS, Weights, linear
from grit_jax.models.quantise import Quantised, storage_axes
from grit_jax.sharding import fitted_spec
from grit_jax.types import RouterStats

# Logical axes of a layer's expert weights as they are used: whole along D (stored, it is split).
_AXES = {
    "expert_gate": ("experts", None, "ffn"),
    "expert_up": ("experts", None, "ffn"),
    "expert_down": ("experts", "ffn", None),
}


def expert_mlp(
    x: Float[Array, "B T D"], segments: Int[Array, "B T"], layer: Weights, config: ModelConfig
) -> tuple[Float[Array, "B T D"], RouterStats]:
    """Each token through the experts that its router chose, and how the choice was spread (padding
    left out).

    The softmax goes over all experts, then the best `num_experts_per_tok` are taken, their weights
    normalised where `norm_topk_prob` says so (`transformers:
    models/qwen3_moe/modeling_qwen3_moe.py`; Mixtral always does).
    """
    E, k = config.num_experts, config.num_experts_per_tok
    probabilities = jax.nn.softmax(linear(x, layer, "router").astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, k)
    if config.norm_topk_prob:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    valid = (segments > 0).astype(jnp.float32)
    tokens = jnp.maximum(valid.sum(), 1.0)
    real = jnp.where(valid[:, :, None] > 0, probabilities, 0.0)  # padding may not be finite
    stats = RouterStats(
        jnp.einsum("bt,btke->e", valid, jax.nn.one_hot(chosen, E, dtype=jnp.float32)) / tokens,
        jnp.einsum("bt,bte->e", valid, real) / tokens,
    )
    return _on_mesh(x, weights, chosen, layer, ACTIVATIONS[config.hidden_act]), stats


def router_aux_loss(stats: RouterStats, num_experts: int) -> Float[Array, ""]:
    """Load-balancing loss: `E * sum(share of tokens * mean probability)` over experts, `top_k` when
    balanced.

    Equal to transformers' over the concatenated layers (`load_balancing_loss_func`; arXiv
    2101.03961, eq. 4 to 6).
    """
    return num_experts * jnp.sum(stats.chosen * stats.probability)


def _on_mesh(x, weights, chosen, layer: Weights, activation: Callable) -> Float[Array, "B T D"]:
    """`_experts` on the mesh in use: rows and experts (or else the width of each expert) split over
    its devices."""
    experts = {name: layer[name] for name in layer if name.startswith("expert_")}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _experts(x, weights, chosen, experts, activation, None, ())
    is_quantised = lambda value: isinstance(value, Quantised)
    # Quantised experts are spread as wholes only: what shares a scale may lie across their width.
    in_blocks = any(map(is_quantised, jax.tree.leaves(experts, is_leaf=is_quantised)))
    axes = {name: (of[0], None, None) if in_blocks else of for name, of in _AXES.items()}
    spec = lambda part, axes: fitted_spec(axes, part.shape, mesh)
    specs = {
        name: jax.tree.map(spec, value, storage_axes(value, axes[name]))
        for name, value in experts.items()
    }
    by_expert, _, by_width = spec(experts["expert_gate"], axes["expert_gate"])
    split = by_expert or by_width or ()
    rows = fitted_spec(("rows", "tokens", None), x.shape, mesh)

    def local(x, weights, chosen, experts):
        # Said outright, for the sake of gradients: jax 0.10's argsort forgets over which axes its
        # argument varies, and a gather by what it gives would not sum up what the devices of an
        # axis send back.
        if split:
            x, weights = (jax.lax.pcast(a, split, to="varying") for a in (x, weights))
        if rows[0]:  # as rows do: `grouped_product` has gradients of its own
            experts = jax.tree.map(lambda a: jax.lax.pcast(a, rows[0], to="varying"), experts)
        return _experts(x, weights, chosen, experts, activation, by_expert, split)

    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, rows, specs), out_specs=rows)(
        x, weights, chosen, experts
    )


def _experts(
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    experts: Weights,
    activation: Callable,
    by_expert: str | tuple[str, ...] | None,
    split: str | tuple[str, ...],
) -> Float[Array, "B T D"]:
    """What the experts at hand add to each token.

    Args:
      by_expert: mesh axis over which the experts are spread, None where all of them are here.
      split: mesh axis over which shares of the result are to be added, empty for none.
    """
    B, T, D = x.shape
    k, here = chosen.shape[-1], experts["expert_down"].shape[0]
    first = jax.lax.axis_index(by_expert) * here if by_expert else 0
    total = here * (jax.lax.axis_size(by_expert) if by_expert else 1)
    place = (chosen.reshape(-1) - first) % total  # experts of other devices come last
    order = jnp.argsort(place, stable=True)
    sizes = jnp.bincount(place, length=total)[:here]
    sorted_x = x.reshape(-1, D)[order // k]
    gate, up = (linear(sorted_x, experts, name, sizes) for name in ("expert_gate", "expert_up"))
    out = linear(activation(gate) * up, experts, "expert_down", sizes)
    out = jnp.where((jnp.arange(len(order)) < sizes.sum())[:, None], out, 0)
    back = out[jnp.argsort(order)].reshape(B, T, k, D)
    joined = jnp.einsum("btk,btkd->btd", weights, back.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.psum(joined, split) if split else joined
