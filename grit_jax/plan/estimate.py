"""What a training step takes at least, from shapes alone: which settings `grit plan --search`
compiles first, and which it need not compile.

The memory and the arithmetic are lower bounds. The traffic between chips is an estimate that orders
settings whose arithmetic is the same.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grit_jax.models.config import ModelConfig, Remat
from grit_jax.models.parameters import OUTSIDE_LAYERS, num_parameters, parameter_shapes
from grit_jax.plan.flops import recomputed_flops, step_flops
from grit_jax.plan.programs import TrainShapes, bytes_per_chip
from grit_jax.run_config import RunConfig
from grit_jax.runtime.chips import HOST_RATE, Chip
from grit_jax.sharding import num_row_shards, num_token_shards
from grit_jax.training.gradient_plan import BackwardPass, gradient_plan
from grit_jax.training.step_config import CHUNKS
from grit_jax.types import Batch

# Policies by what they keep: each keeps what those named after it keep, and more.
KEEPS_MORE_THAN: dict[Remat, tuple[Remat, ...]] = {
    "offload": (),
    "full": ("offload",),
    "save_attention": ("full", "offload"),
    "save_qkv": ("save_attention", "full", "offload"),
    "dots": ("full", "offload"),
    "none": ("dots", "save_qkv", "save_attention", "full", "offload"),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bounds of a training step on one chip.

    Attributes:
      argument_bytes: state and batch.
      memory_bytes: what it holds at least at its peak, arguments included.
      tokens: of the rows whose activations are in memory at the same time.
      compute_seconds: of its matrix products at the chip's peak rate, at least.
      interconnect_seconds: of gathered weights, scattered gradients and summed activations.
      host_seconds: of layers' inputs that are kept in the host's memory, one way.
    """

    argument_bytes: int
    memory_bytes: int
    tokens: int
    compute_seconds: float
    interconnect_seconds: float
    host_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The slowest, as if they overlapped perfectly."""
        return max(self.compute_seconds, self.transfer_seconds)

    @property
    def transfer_seconds(self) -> float:
        return self.interconnect_seconds + self.host_seconds


def estimate_step(config: RunConfig, shapes: TrainShapes, mesh: Mesh, chip: Chip) -> Estimate:
    """Bounds for a configuration that has been fitted to `mesh` (`run_config.fit_to_mesh`).

    Args:
      shapes: of its step, or of one that differs in `model.remat` and in chunks only.
    """
    abstract, remat = shapes.abstract, config.model.remat
    model = abstract.model
    chunks = {key: getattr(config.train, key) for key in CHUNKS}
    with jax.set_mesh(mesh):
        plan = gradient_plan(shapes.batch, dataclasses.replace(abstract.config, **chunks))
    token_shards = num_row_shards(mesh) * num_token_shards(mesh)
    tokens = max(_tokens_in_flight(p, shapes.batch) for p in plan.passes) // token_shards
    arguments = bytes_per_chip((shapes.state, shapes.batch))
    gradients = bytes_per_chip(shapes.state.params) // 2  # in bfloat16 at least
    activations = tokens * kept_bytes_per_token(model, remat, mesh.shape["tensor"])

    chunked = any(_embeds_twice(p) for p in plan.passes)
    rows = [shape for p in plan.passes for loss in p.losses for shape in _rows(shapes.batch, loss)]
    inputs = sum(B * T for B, T in rows) // token_shards * model.num_hidden_layers
    offloaded = inputs * model.hidden_size * jnp.dtype(model.dtype).itemsize
    flops = step_flops(config, model) + recomputed_flops(config, model, remat, chunked=chunked)
    return Estimate(
        argument_bytes=arguments,
        memory_bytes=arguments + gradients + activations,
        tokens=tokens,
        compute_seconds=flops / mesh.size / chip.flops,
        interconnect_seconds=sum(_sent_bytes(p, shapes.batch, model, mesh) for p in plan.passes)
        / chip.link_rate,
        host_seconds=offloaded / HOST_RATE if remat == "offload" else 0.0,
    )


def kept_bytes_per_token(model: ModelConfig, remat: Remat, tensor: int = 1) -> int:
    """Bytes that a forward pass leaves for the backward pass of each token on one chip, at least.

    That is what the policy keeps of each layer (`models/transformer.py`: REMAT_POLICIES), and the
    gate and up projections of one layer where they are computed again.

    Args:
      tensor: chips that split heads and feed-forward; a layer's input is whole on each.
    """
    D, NH, KH = (
        model.hidden_size,
        model.num_attention_heads * model.head_dim,
        model.num_key_value_heads * model.head_dim,
    )
    dense = sum(not kind.experts for kind in model.layer_kinds)
    F = model.intermediate_size if dense else 0
    L, again = model.num_hidden_layers, 2 * F // tensor
    kept = {
        "offload": again,
        "full": L * D + again,
        "save_attention": L * (D + NH // tensor) + again,
        "save_qkv": L * (D + 2 * (NH + KH) // tensor) + again,
        "dots": L * (2 * D + (NH + 2 * KH) // tensor) + dense * 2 * F // tensor,
        "none": L * (2 * D + 2 * (NH + KH) // tensor) + dense * 3 * F // tensor,
    }
    return kept[remat] * jnp.dtype(model.dtype).itemsize


def _embeds_twice(backward: BackwardPass) -> bool:
    """Whether a pass embeds its texts once more for their gradients (GradCache)."""
    chunked = backward.embedding_chunk or backward.fused and backward.generative_chunk
    return "embedding" in backward.losses and bool(chunked)


def _rows(batch: Batch, loss: str) -> list[tuple[int, int]]:
    """Rows and tokens per row of a loss: two kinds of rows for the one over cached documents."""
    part = getattr(batch, loss)
    if loss == "cached":
        return [kind.tokens.shape for kind in (part.cached_texts, part.text.rows)]
    return [(part.text.rows if loss == "preference" else part.rows).tokens.shape]


def _unlearnt_tokens(backward: BackwardPass, batch: Batch) -> int:
    """Tokens of a preference loss that go through a model without leaving anything for a backward
    pass: those that the reference model reads, and mismatched ones, which both models read."""
    if "preference" not in backward.losses:
        return 0
    text, mismatched = batch.preference.text, batch.preference.mismatched
    return text.targets.size + (0 if mismatched is None else 2 * mismatched.targets.size)


def _tokens_in_flight(backward: BackwardPass, batch: Batch) -> int:
    """Tokens of a pass that are in memory at the same time, over all chips, at least."""
    held = []
    for loss in backward.losses:
        chunk = getattr(backward, f"{loss}_chunk")
        tokens = sum(min(B, chunk or B) * T for B, T in _rows(batch, loss))
        held.append(tokens // 2 if backward.split and loss == "embedding" else tokens)
    together = backward.fused or not any(getattr(backward, key) for key in CHUNKS)
    return sum(held) if together else max(held)


def _sent_bytes(backward: BackwardPass, batch: Batch, model: ModelConfig, mesh: Mesh) -> float:
    """Bytes that a chip sends in a pass: it gathers weights for each chunk and direction, scatters
    each chunk's gradients, and sums activations along `tensor` after each block of a layer."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    item = jnp.dtype(model.dtype).itemsize
    outside = sum(
        math.prod(shape)
        for name, shape in parameter_shapes(model).items()
        if name.startswith(OUTSIDE_LAYERS)
    )
    weights = (num_parameters(model) - outside) * item / tensor * (fsdp - 1) / fsdp
    runs, passes, tokens = {}, {}, {}
    for loss in backward.losses:
        chunk = getattr(backward, f"{loss}_chunk")
        kinds = _rows(batch, loss)
        runs[loss] = max(-(-B // (chunk or B)) for B, _ in kinds) * len(kinds)
        # Forward and backward, each with its gather, and the scatter of the gradients.
        passes[loss] = 4 if loss == "embedding" and _embeds_twice(backward) else 3
        tokens[loss] = sum(B * T for B, T in kinds)
        if loss == "preference":  # in passes over as many rows
            forward = _unlearnt_tokens(backward, batch) / tokens[loss]
            passes[loss] += round(forward)
    gathers = {loss: runs[loss] * passes[loss] for loss in runs}
    moved = sum(gathers.values())
    if backward.fused:  # one gather for embedding rows and generative ones
        moved -= min(gathers["embedding"], gathers["generative"])
    sums = sum(2 * (passes[loss] - 1) * tokens[loss] for loss in runs)  # two blocks of a layer
    summed = sums / num_row_shards(mesh) / num_token_shards(mesh)
    summed *= model.num_hidden_layers * model.hidden_size * item * 2 * (tensor - 1) / tensor
    return moved * weights + summed
