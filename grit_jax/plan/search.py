"""`grit plan --search`: meshes and chunk sizes for the training step on a slice, those that fit ranked by speed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from grit_jax.data.shapes import abstract_batch
from grit_jax.plan.chips import GIB, open_slice
from grit_jax.plan.plan import Plan, plan_on
from grit_jax.progress import progress, say
from grit_jax.run_config import RunConfig, batch_needs
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.types import GritError

TENSOR_WAYS = (1, 2, 4, 8)  # chips of a host, and twice that: further away its sums cost more than they save
MOST_TRIES = 12


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


def search(config: RunConfig, topology: str) -> list[Candidate]:
    """Meshes and chunk sizes whose training step fits, the fastest by its roofline first.

    For each split of the slice over `tensor`, the largest chunk that fits, from all rows downwards: the larger it is,
    the less often weights are gathered. At most `MOST_TRIES` programs are compiled.

    Raises:
      GritError: as `plan`, or nothing fits.
    """
    where = open_slice(topology)
    key = "embedding_chunk" if config.data.embedding_batch else "generative_chunk"
    tries = list(itertools.islice(_tries(config, len(where.devices)), MOST_TRIES))
    found: dict[MeshConfig, Candidate] = {}
    with progress(len(tries), "plan", "programs") as bar:
        for mesh, chunk in tries:
            if mesh not in found:
                train = dataclasses.replace(config.train, **{key: chunk})
                tried = dataclasses.replace(config, mesh=mesh, train=train)
                one = plan_on(tried, where, make_mesh(mesh, where.devices), serving=False)
                step = one.programs["train"]
                verdict = "fits" if step.fits else "too large"
                say(f"{_settings(mesh, key, chunk)}: {step.peak_bytes / GIB:.2f} GiB, {verdict}")
                if step.fits:
                    found[mesh] = Candidate(mesh, key, chunk, one)
            bar.update()
    if not found:
        raise GritError(f"--topology {topology}: no mesh and chunk that was tried fits; take more chips or larger ones")
    return sorted(found.values(), key=lambda one: one.plan.programs["train"].roofline or 0)


def search_table(found: list[Candidate]) -> str:
    """The candidates in words, best first."""
    lines = ["step at least   peak a chip   MFU at most   settings"]
    for one in found:
        step = one.plan.programs["train"]
        lines.append(
            f"{step.roofline:11.3g} s {step.peak_bytes / GIB:9.2f} GiB {one.plan.mfu_bound:13.0%}   "
            f"{_settings(one.mesh, one.chunk_key, one.chunk)}"
        )
    return "\n".join(lines)


def _settings(mesh: MeshConfig, key: str, chunk: int | None) -> str:
    """As they are typed."""
    return f"--mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor} --train.{key} {'null' if chunk is None else chunk}"


def _tries(config: RunConfig, chips: int) -> Iterator[tuple[MeshConfig, int | None]]:
    """Chunks from large to small, and for each all meshes."""
    batch = abstract_batch(config.data, batch_needs(config))
    part = batch.embedding or batch.generative
    rows = part.rows.tokens.shape[0] if part else 0
    meshes = [MeshConfig(1, chips // tensor, tensor) for tensor in TENSOR_WAYS if chips % tensor == 0]
    for part_of in (1, 4, 16, 64):
        for mesh in meshes:
            chunk = rows // part_of // mesh.fsdp * mesh.fsdp
            if chunk:
                yield mesh, None if part_of == 1 else chunk
