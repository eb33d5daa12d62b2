"""Dropless mixture of experts: tokens are sorted by expert, with one ragged product per weight.

Along the mesh axis that shards experts, every device has all tokens. It computes the output of its
own experts, and one sum over the axis joins the shares. No token is sent to another device and none
is dropped, whatever the load of an expert.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import ACTIVATIONS, Weights, linear
from grit_jax.models.quantise import NF4Weight, storage_axes
from grit_jax.sharding import fitted_spec
from grit_jax.types import RouterStats

# Logical axes of a layer's expert weights in use: not sharded along D, although they are stored so.
_AXES = {
    "expert_gate": ("experts", None, "ffn"),
    "expert_up": ("experts", None, "ffn"),
    "expert_down": ("experts", "ffn", None),
}


def expert_mlp(
    x: Float[Array, "B T D"], segments: Int[Array, "B T"], layer: Weights, config: ModelConfig
) -> tuple[Float[Array, "B T D"], RouterStats]:
    """The output of the experts that the router chooses for each token, and the router's
    statistics (without padding).

    The softmax is over all experts. The best `num_experts_per_tok` are used, with weights
    normalised if `norm_topk_prob` (`transformers: models/qwen3_moe/modeling_qwen3_moe.py`; always
    true for Mixtral).
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
    """Load-balancing loss: `E * sum(share of tokens * mean probability)` over experts, which is
    `num_experts_per_tok` when balanced.

    Equal to transformers' over the concatenated layers (`load_balancing_loss_func`; arXiv
    2101.03961, eq. 4 to 6).
    """
    return num_experts * jnp.sum(stats.chosen * stats.probability)


def _on_mesh(x, weights, chosen, layer: Weights, activation: Callable) -> Float[Array, "B T D"]:
    """`_experts` on the mesh in use, with rows and experts (or else the width of each expert)
    sharded over its devices."""
    experts = {name: layer[name] for name in layer if name.startswith("expert_")}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _experts(x, weights, chosen, experts, activation, None, ())
    is_4_bit = lambda value: isinstance(value, NF4Weight)
    # A 4-bit expert is never split: weights that share a scale may lie across its width.
    quantised = any(map(is_4_bit, jax.tree.leaves(experts, is_leaf=is_4_bit)))
    axes = {
        name: (expert_axes[0], None, None) if quantised else expert_axes
        for name, expert_axes in _AXES.items()
    }
    spec = lambda part, axes: fitted_spec(axes, part.shape, mesh)
    specs = {
        name: jax.tree.map(spec, value, storage_axes(value, axes[name]))
        for name, value in experts.items()
    }
    by_expert, _, by_width = spec(experts["expert_gate"], axes["expert_gate"])
    split = by_expert or by_width or ()
    rows = fitted_spec(("rows", "tokens", None), x.shape, mesh)

    def local(x, weights, chosen, experts):
        # The casts are needed for gradients: argsort of jax 0.10 loses the axes that its argument
        # varies over, and the gradient of a gather by its result would not be summed over them.
        if split:
            x, weights = (jax.lax.pcast(a, split, to="varying") for a in (x, weights))
        if rows[0]:  # as rows do, since `grouped_product` has custom gradients
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
    """The output of this device's experts for each token.

    Args:
      by_expert: mesh axis that the experts are sharded over; None: all of them are here.
      split: mesh axes to sum the result over; empty for none.
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
