"""`grit plan --search`: meshes and chunk sizes for the training step on a slice, those that fit
ranked by speed."""

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
from grit_jax.plan.plan import Plan, plan_on
from grit_jax.plan.programs import bytes_per_chip, train_shapes
from grit_jax.run_config import RunConfig, batch_needs, fit_to_mesh
from grit_jax.runtime.chips import GIB
from grit_jax.runtime.progress import progress, say
from grit_jax.sharding import MESH_AXES, MeshConfig, make_mesh, num_row_shards

TENSOR_WAYS = (
    1,
    2,
    4,
    8,
)  # chips of a host, and twice that: further away its sums cost more than they save
MOST_TRIES = 12  # programs compiled, unless told


@dataclasses.dataclass
class Candidate:
    """A mesh and a chunk (rows; None: all at once) that fit, with their plan."""

    mesh: MeshConfig
    chunk_key: str
    chunk: int | None
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f"train.{self.chunk_key}": self.chunk, **self.plan.to_dict()}


def search(
    config: RunConfig, topology: str, tries: int = MOST_TRIES, *, slices: int = 1
) -> list[Candidate]:
    """Meshes and chunk sizes whose training step fits, the fastest by its roofline first.

    For each split of the slice over `tensor`, the largest chunk that fits, from all rows downwards:
    the larger it is, the less often weights are gathered. What cannot work is left out without
    being compiled; at most `tries` programs are. Says of each what became of it.

    Raises:
      GritError: as `plan`, or nothing fits.
    """
    where = open_slices(topology, slices)
    key = "embedding_chunk" if config.data.embedding_batch else "generative_chunk"
    found: dict[MeshConfig, Candidate] = {}
    compiled = 0
    with progress(tries, "plan", "programs") as bar:
        for mesh, chunk in _candidates(config, _meshes(config, len(where.devices), slices)):
            if mesh in found:
                continue
            settings = _settings(mesh, key, chunk)
            tried = dataclasses.replace(
                config, mesh=mesh, train=dataclasses.replace(config.train, **{key: chunk})
            )
            devices = make_mesh(mesh, where.devices)
            try:
                tried = fit_to_mesh(tried, devices)
                if (least := _least_bytes(tried, devices, key)) > where.chip.memory:
                    say(f"{settings}: left out, it needs {least / GIB:.2f} GiB a chip at the least")
                    continue
                if compiled == tries:
                    say(
                        f"{tries} programs were compiled; {settings} and what comes behind it were"
                        " not tried"
                    )
                    break
                compiled += 1
                say(f"{settings}: number {compiled} of {tries} at most")
                one = plan_on(tried, where, devices, serving=False)
            except GritError as error:
                say(f"{settings}: left out, {error}")
                continue
            bar.update()
            step = one.programs["train"]
            say(
                f"{settings}: {step.peak_bytes / GIB:.2f} GiB,"
                f" {'fits' if step.fits else 'too large'}"
            )
            if step.fits:
                found[mesh] = Candidate(mesh, key, chunk, one)
    if not found:
        raise GritError(
            f"--topology {topology}: no mesh and chunk that was tried fits; take more chips or"
            " larger ones"
        )
    return sorted(found.values(), key=lambda one: one.plan.programs["train"].roofline or 0)


def _least_bytes(config: RunConfig, mesh: Mesh, key: str) -> int:
    """What a chip is sure to need: what goes into a step and, whatever is computed again, what each
    layer is given of the rows of a chunk (unless that waits in the host's memory)."""
    shapes = train_shapes(config, mesh)
    model, batch = shapes.abstract.model, shapes.abstract.batch
    part = batch.embedding or batch.generative
    rows, length = part.rows.tokens.shape if part else (0, 0)
    rows = min(rows, getattr(config.train, key) or rows) // num_row_shards(mesh)
    kept = 0 if model.remat == "offload" else model.num_hidden_layers
    token = kept * model.hidden_size * jnp.dtype(model.dtype).itemsize
    ways = mesh.shape["tensor"] * mesh.shape["context"]
    return bytes_per_chip((shapes.state, shapes.batch)) + rows * length * token // ways


def search_table(found: list[Candidate]) -> str:
    """The candidates in words, best first."""
    lines = ["step at least   peak a chip   MFU at most   chip-hours   settings"]
    for one in found:
        step = one.plan.programs["train"]
        lines.append(
            f"{step.roofline:11.3g} s {step.peak_bytes / GIB:9.2f} GiB {one.plan.mfu_bound:13.0%} "
            f"{one.plan.chip_hours:12.1f}   {_settings(one.mesh, one.chunk_key, one.chunk)}"
        )
    return "\n".join(lines)


def _settings(mesh: MeshConfig, key: str, chunk: int | None) -> str:
    """As they are typed."""
    axes = " ".join(f"--mesh.{axis} {getattr(mesh, axis)}" for axis in MESH_AXES)
    return f"{axes} --train.{key} {'null' if chunk is None else chunk}"


def _meshes(config: RunConfig, chips: int, slices: int) -> list[MeshConfig]:
    """Splits over `tensor`, without those that would leave attention whole on each chip; weights in
    every slice, tokens split as the configuration has it."""
    model, found = abstract_step(config).model, []
    context = max(1, config.mesh.context)  # -1 is for one axis, here fsdp
    for tensor in TENSOR_WAYS:
        if chips // slices % (tensor * context):
            continue
        if model.num_attention_heads % tensor or model.num_key_value_heads % tensor:
            heads = f"{model.num_attention_heads} heads with {model.num_key_value_heads} of keys"
            say(f"--mesh.tensor {tensor}: left out, {heads} do not divide among {tensor} chips")
            continue
        found.append(MeshConfig(slices, chips // slices // (tensor * context), tensor, context))
    return found


def _candidates(
    config: RunConfig, meshes: list[MeshConfig]
) -> Iterator[tuple[MeshConfig, int | None]]:
    """Chunks from large to small, and for each all meshes."""
    batch = abstract_batch(config.data, batch_needs(config))
    part = batch.embedding or batch.generative
    rows = part.rows.tokens.shape[0] if part else 0
    for share in (1, 4, 16, 64):
        for mesh in meshes:
            ways = mesh.data * mesh.fsdp
            chunk = rows // share // ways * ways
            if share == 1:
                yield mesh, None
            elif chunk:
                yield mesh, chunk
