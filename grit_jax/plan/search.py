"""`grit plan --search`: compiles the training step with several meshes, chunks of rows and
rematerialisation policies, and ranks those that fit by speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from grit_jax.errors import GritError
from grit_jax.models.config import Remat
from grit_jax.plan.abstract_step import abstract_step
from grit_jax.plan.chips import Slices, open_slices
from grit_jax.plan.estimate import KEEPS_MORE_THAN, Estimate, estimate_step
from grit_jax.plan.plan import CompiledProgram, Plan, plan_on_mesh
from grit_jax.plan.programs import TrainShapes, train_shapes
from grit_jax.run_config import RunConfig, fit_to_mesh
from grit_jax.runtime.chips import GIB
from grit_jax.runtime.progress import progress, say
from grit_jax.sharding import MESH_AXES, MeshConfig, make_mesh, num_row_shards
from grit_jax.types import Batch

# Sizes of the `tensor` axis: up to the chips of two hosts. Further away its sums cost more than
# they save.
TENSOR_SIZES = (1, 2, 4, 8)
# Each loss's rows are taken in about this many chunks. One chunk is cheapest: the contrastive loss
# then has no second forward pass. More chunks take less memory and gather the weights more often.
NUM_CHUNKS = (1, 2, 4, 8, 16, 32, 64)
MAX_TRIES = 12  # programs compiled by default
LARGEST_GATHER = 0.1  # of a chip's memory, for gathered weights of a layer
MARGIN = 0.05  # of a chip's memory that stays free by default


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the search varies.

    Attributes:
      chunks: `train.*_chunk` of each loss that the run has, in rows; None: all at once.
    """

    mesh: MeshConfig
    chunks: tuple[tuple[str, int | None], ...]
    remat: Remat

    def keys(self) -> dict[str, Any]:
        """The settings as keys of a configuration."""
        axes = {f"mesh.{axis}": getattr(self.mesh, axis) for axis in MESH_AXES}
        chunks = {f"train.{key}": rows for key, rows in self.chunks}
        return {**axes, "model.remat": self.remat, **chunks}

    def __str__(self) -> str:
        """The settings as flags."""
        return " ".join(
            f"--{key} {'null' if value is None else value}" for key, value in self.keys().items()
        )


@dataclasses.dataclass
class Candidate:
    """Settings that were compiled.

    Attributes:
      fits: with the margin that was asked for.
    """

    settings: Settings
    plan: Plan
    fits: bool

    @property
    def step(self) -> CompiledProgram:
        return self.plan.programs["train"]

    @property
    def free_bytes(self) -> int:
        """Memory of a chip that stays free; negative where the program is too large."""
        return self.plan.chip.memory - self.step.peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plan = self.plan.to_dict()
        return {**self.settings.keys(), **plan, "fits": self.fits, "free_bytes": self.free_bytes}


@dataclasses.dataclass
class _Untried:
    """Settings with their configuration as the mesh runs it, and their bounds."""

    settings: Settings
    config: RunConfig
    devices: Mesh
    estimate: Estimate

    @property
    def tensor(self) -> int:
        return self.settings.mesh.tensor

    def keeps_no_more_than(self, other: _Untried) -> bool:
        """Whether these settings keep at most the activations that others keep on a chip. With more
        chips along `tensor`, a chip has as many times more tokens, whose heads and feed-forward are
        split and whose layers' inputs are not."""
        a, b = self.settings.remat, other.settings.remat
        less = a == b or a in KEEPS_MORE_THAN[b]
        tokens = self.estimate.tokens * other.tensor <= other.estimate.tokens * self.tensor
        return less and tokens and self.tensor <= other.tensor


def search_settings(
    config: RunConfig,
    topology: str,
    tries: int = MAX_TRIES,
    *,
    slices: int = 1,
    margin: float = MARGIN,
) -> list[Candidate]:
    """Compiles a step with the settings that promise most. Returns what was compiled: first what
    fits, the fastest by its roofline first, then what is too large.

    Settings are tried by their bounds (`plan/estimate.py`), the fastest first. Those are left out
    that cannot fit or cannot be faster, by their bounds or by what was compiled before. Reports the
    outcome of each.

    Args:
      tries: programs compiled at most.
      margin: share of a chip's memory that has to stay free.

    Raises:
      GritError: see `make_plan`; or nothing fits.
    """
    opened = open_slices(topology, slices)
    limit = round(opened.chip.memory * (1 - margin))
    tried: list[tuple[_Untried, Candidate]] = []
    order = _order(config, opened, slices)
    say(
        f"{len(order)} combinations of mesh, chunks and rematerialisation, at most {tries} compiled"
    )
    with progress(min(tries, len(order)), "plan", "programs") as bar:
        for number, untried in enumerate(order):
            if reason := _reason_to_skip(untried, tried, limit):
                say(f"{untried.settings}: skipped, {reason}")
                continue
            if len(tried) == tries:
                left = len(order) - number
                say(f"{tries} programs were compiled; {left} combinations were not looked at")
                break
            say(f"{untried.settings}: number {len(tried) + 1} of {tries} at most")
            try:
                plan = plan_on_mesh(untried.config, opened, untried.devices, serving=False)
            except GritError as error:
                say(f"{untried.settings}: skipped, {error}")
                continue
            bar.update()
            step = plan.programs["train"]
            fits = step.fits and step.peak_bytes <= limit
            tried.append((untried, Candidate(untried.settings, plan, fits)))
            verdict = f"at least {step.roofline:.3g} s" if fits else "too large"
            say(f"{untried.settings}: {step.peak_bytes / GIB:.2f} GiB, {verdict}")
    candidates = [candidate for _, candidate in tried]
    if not any(candidate.fits for candidate in candidates):
        raise GritError(
            f"--topology {topology}: no settings that were tried fit with {margin:.0%} of the"
            " memory left free; use more chips or larger ones, or more --tries"
        )
    return sorted(candidates, key=_rank)


def _rank(candidate: Candidate) -> tuple[bool, float]:
    step = candidate.step
    return not candidate.fits, step.roofline or 0 if candidate.fits else step.peak_bytes


def _reason_to_skip(
    untried: _Untried, tried: list[tuple[_Untried, Candidate]], limit: int
) -> str | None:
    """Why settings need not be compiled; None if they must be."""
    estimate = untried.estimate
    if estimate.memory_bytes > limit:
        return f"needs at least {estimate.memory_bytes / GIB:.2f} GiB per chip"
    fitting = [candidate.step.roofline or 0 for _, candidate in tried if candidate.fits]
    if fitting and estimate.compute_seconds >= min(fitting):
        return (
            f"takes at least {estimate.compute_seconds:.3g} s, and {min(fitting):.3g} s were found"
        )
    for other, candidate in tried:
        same_mesh = other.tensor == untried.tensor
        same_policy = other.settings.remat == untried.settings.remat
        peak = candidate.step.peak_bytes
        # Gathered weights take less along `tensor`, but never a tenth of the memory.
        too_large = not candidate.fits and (same_mesh or peak > (1 + LARGEST_GATHER) * limit)
        if too_large and other.keeps_no_more_than(untried):
            return f"keeps what is too large with {candidate.settings}"
        if not candidate.fits and same_mesh and same_policy:
            # What does not depend on the tokens is counted too small here: this is a lower bound.
            share = untried.estimate.tokens / other.estimate.tokens
            least = estimate.argument_bytes + share * (peak - other.estimate.argument_bytes)
            if least > limit:
                return f"needs about {least / GIB:.2f} GiB per chip, by {candidate.settings}"
        # To keep less takes longer where arithmetic is what takes longest.
        slower = same_mesh and (same_policy or candidate.step.bound == "compute")
        if candidate.fits and slower and untried.keeps_no_more_than(other):
            return f"keeps less than {candidate.settings}, which fits"
    return None


def candidate_table(candidates: list[Candidate]) -> str:
    """The candidates as text for the terminal, best first, and the keys of the best."""
    lines = [
        "fits  peak per chip       free  step at least   bound by       MFU at most   chip-hours"
        "   settings"
    ]
    for candidate in candidates:
        plan, step = candidate.plan, candidate.step
        took = "n/a", "n/a", "n/a", "n/a"
        if step.roofline is not None:
            took = (
                f"{step.roofline:.3g} s",
                f"{step.bound}",
                f"{plan.mfu_bound:.0%}",
                f"{plan.chip_hours:.1f}",
            )
        lines.append(
            f"{'yes' if candidate.fits else 'NO':4} {step.peak_bytes / GIB:10.2f} GiB"
            f" {candidate.free_bytes / GIB:6.1f} GiB {took[0]:>14}   {took[1]:12} {took[2]:>13}"
            f" {took[3]:>12}   {candidate.settings}"
        )
    best = candidates[0]
    lines += ["", f"Best: {best.settings}", f"gradient: {best.plan.gradient}"]
    return "\n".join(lines)


def _order(config: RunConfig, slices: Slices, count: int) -> list[_Untried]:
    """All settings that can work, with their bounds: the fastest first; at equal arithmetic those
    that send least."""
    untried: dict[Settings, _Untried] = {}
    for mesh in _meshes(config, len(slices.devices), count):
        devices = make_mesh(mesh, slices.devices)
        on_mesh = dataclasses.replace(config, mesh=mesh)
        try:
            shapes = train_shapes(on_mesh, devices)
        except GritError as error:
            say(f"{mesh}: skipped, {error}")
            continue
        for chunks in _chunks(shapes.batch, num_row_shards(devices)):
            for remat in KEEPS_MORE_THAN:
                settings = Settings(mesh, chunks, remat)
                if settings in untried:
                    continue
                model = dataclasses.replace(config.model, remat=remat)
                train = dataclasses.replace(config.train, **dict(chunks))
                run = fit_to_mesh(dataclasses.replace(on_mesh, model=model, train=train), devices)
                estimate = _estimate(run, shapes, devices, slices)
                untried[settings] = _Untried(settings, run, devices, estimate)
    by_promise = lambda u: (u.estimate.seconds, u.estimate.transfer_seconds)
    return sorted(untried.values(), key=by_promise)


def _estimate(config: RunConfig, shapes: TrainShapes, mesh: Mesh, slices: Slices) -> Estimate:
    data = config.data.fit_to_context(shapes.abstract.model.context_length)
    return estimate_step(dataclasses.replace(config, data=data), shapes, mesh, slices.chip)


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


def _chunks(batch: Batch, shards: int) -> Iterable[tuple[tuple[str, int | None], ...]]:
    """Chunks of each loss that the batch has, from all rows downwards.

    All losses have about as many chunks, so that embedding rows and generative rows can share them
    (`training/fused.py`)."""
    rows = {
        "embedding_chunk": batch.embedding and batch.embedding.rows.tokens.shape[0],
        "generative_chunk": batch.generative and batch.generative.rows.tokens.shape[0],
        "cached_chunk": batch.cached and batch.cached.text.rows.tokens.shape[0],
        "preference_chunk": batch.preference and batch.preference.text.rows.tokens.shape[0],
    }
    for count in NUM_CHUNKS:
        chunks: list[tuple[str, int | None]] = []
        for key, total in rows.items():
            if total:
                chunk = -(-total // count // shards) * shards
                chunks.append((key, chunk if chunk < total else None))
        yield tuple(chunks)
