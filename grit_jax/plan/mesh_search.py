"""`grit plan --search`: compiles the training step for several meshes and chunk sizes, and ranks
those that fit by speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from grit_jax.data.abstract_batch import abstract_batch
from grit_jax.errors import GritError
from grit_jax.plan.abstract_step import abstract_step
from grit_jax.plan.chips import open_slices
from grit_jax.plan.plan import Plan, plan_on_mesh
from grit_jax.plan.programs import bytes_per_chip, train_shapes
from grit_jax.run_config import RunConfig, batch_needs, fit_to_mesh
from grit_jax.runtime.chips import GIB
from grit_jax.runtime.progress import progress, say
from grit_jax.sharding import MESH_AXES, MeshConfig, make_mesh, num_row_shards

# Sizes of the `tensor` axis: up to the chips of two hosts. Further away its sums cost more than
# they save.
TENSOR_SIZES = (1, 2, 4, 8)
MAX_TRIES = 12  # programs compiled by default


@dataclasses.dataclass
class Candidate:
    """A mesh and a chunk size in rows (None: all rows at once) that fit, and their plan."""

    mesh: MeshConfig
    chunk_key: str
    chunk: int | None
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f"train.{self.chunk_key}": self.chunk, **self.plan.to_dict()}


def search_meshes(
    config: RunConfig, topology: str, tries: int = MAX_TRIES, *, slices: int = 1
) -> list[Candidate]:
    """Finds meshes and chunk sizes whose training step fits, the fastest by its roofline first.

    For each size of the `tensor` axis it tries chunks from all rows downwards until one fits:
    larger chunks gather weights less often. Settings that cannot work are skipped without
    compiling, and at most `tries` programs are compiled. Reports the outcome of each.

    Raises:
      GritError: see `make_plan`; or nothing fits.
    """
    opened = open_slices(topology, slices)
    key = "embedding_chunk" if config.data.embedding_batch else "generative_chunk"
    candidates: dict[MeshConfig, Candidate] = {}
    compiled = 0
    with progress(tries, "plan", "programs") as bar:
        for mesh, chunk in _candidates(config, _meshes(config, len(opened.devices), slices)):
            if mesh in candidates:
                continue
            settings = _settings(mesh, key, chunk)
            tried = dataclasses.replace(
                config, mesh=mesh, train=dataclasses.replace(config.train, **{key: chunk})
            )
            devices = make_mesh(mesh, opened.devices)
            try:
                tried = fit_to_mesh(tried, devices)
                if (least := _least_bytes(tried, devices, key)) > opened.chip.memory:
                    say(f"{settings}: skipped, it needs at least {least / GIB:.2f} GiB per chip")
                    continue
                if compiled == tries:
                    say(
                        f"{tries} programs were compiled; {settings} and what follows was not tried"
                    )
                    break
                compiled += 1
                say(f"{settings}: number {compiled} of {tries} at most")
                plan = plan_on_mesh(tried, opened, devices, serving=False)
            except GritError as error:
                say(f"{settings}: skipped, {error}")
                continue
            bar.update()
            step = plan.programs["train"]
            say(
                f"{settings}: {step.peak_bytes / GIB:.2f} GiB,"
                f" {'fits' if step.fits else 'too large'}"
            )
            if step.fits:
                candidates[mesh] = Candidate(mesh, key, chunk, plan)
    if not candidates:
        raise GritError(
            f"--topology {topology}: no mesh and chunk that was tried fits; use more chips or"
            " larger ones"
        )
    return sorted(
        candidates.values(), key=lambda candidate: candidate.plan.programs["train"].roofline or 0
    )


def _least_bytes(config: RunConfig, mesh: Mesh, key: str) -> int:
    """A lower bound of a chip's memory: a step's arguments and, whatever is recomputed, the input
    of each layer for the rows of a chunk (unless it is offloaded to the host's memory)."""
    shapes = train_shapes(config, mesh)
    model, batch = shapes.abstract.model, shapes.abstract.batch
    part = batch.embedding or batch.generative
    rows, length = part.rows.tokens.shape if part else (0, 0)
    rows = min(rows, getattr(config.train, key) or rows) // num_row_shards(mesh)
    kept = 0 if model.remat == "offload" else model.num_hidden_layers
    token = kept * model.hidden_size * jnp.dtype(model.dtype).itemsize
    splits = mesh.shape["tensor"] * mesh.shape["context"]
    return bytes_per_chip((shapes.state, shapes.batch)) + rows * length * token // splits


def candidate_table(candidates: list[Candidate]) -> str:
    """The candidates as text for the terminal, best first."""
    lines = ["step at least   peak per chip MFU at most   chip-hours   settings"]
    for candidate in candidates:
        plan, step = candidate.plan, candidate.plan.programs["train"]
        settings = _settings(candidate.mesh, candidate.chunk_key, candidate.chunk)
        lines.append(
            f"{step.roofline:11.3g} s {step.peak_bytes / GIB:9.2f} GiB {plan.mfu_bound:13.0%}"
            f" {plan.chip_hours:12.1f}   {settings}"
        )
    return "\n".join(lines)


def _settings(mesh: MeshConfig, key: str, chunk: int | None) -> str:
    """The settings as flags."""
    axes = " ".join(f"--mesh.{axis} {getattr(mesh, axis)}" for axis in MESH_AXES)
    return f"{axes} --train.{key} {'null' if chunk is None else chunk}"


def _meshes(config: RunConfig, chips: int, slices: int) -> list[MeshConfig]:
    """Meshes by the size of `tensor`, without those that would leave attention whole on each chip.
    Every slice holds all weights, and `context` is that of the configuration."""
    model, meshes = abstract_step(config).model, []
    context = max(1, config.mesh.context)  # -1 is for one axis, here fsdp
    for tensor in TENSOR_SIZES:
        if chips // slices % (tensor * context):
            continue
        if model.num_attention_heads % tensor or model.num_key_value_heads % tensor:
            heads = f"{model.num_attention_heads} heads with {model.num_key_value_heads} of keys"
            say(f"--mesh.tensor {tensor}: skipped, {heads} do not divide among {tensor} chips")
            continue
        meshes.append(MeshConfig(slices, chips // slices // (tensor * context), tensor, context))
    return meshes


def _candidates(
    config: RunConfig, meshes: list[MeshConfig]
) -> Iterator[tuple[MeshConfig, int | None]]:
    """Chunks from large to small, and for each all meshes."""
    batch = abstract_batch(config.data, batch_needs(config))
    part = batch.embedding or batch.generative
    rows = part.rows.tokens.shape[0] if part else 0
    for share in (1, 4, 16, 64):
        for mesh in meshes:
            shards = mesh.data * mesh.fsdp
            chunk = rows // share // shards * shards
            if share == 1:
                yield mesh, None
            elif chunk:
                yield mesh, chunk
