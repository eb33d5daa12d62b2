"""Which backward passes the gradient of a batch takes.

The choice depends on the shapes of the batch, on the configuration and on the mesh in use. It is
made here, once, and printable: `str(gradient_plan(batch, config))`.
"""

from __future__ import annotations

import dataclasses

import jax

from grit_jax.training.step_config import StepConfig
from grit_jax.types import Batch

LOSSES = ("embedding", "generative", "cached", "preference")


@dataclasses.dataclass(frozen=True)
class BackwardPass:
    """One backward pass.

    Attributes:
      losses: the parts of the batch whose losses share it, of `LOSSES`.
      fused: embedding rows and generative rows go through the layers together, so that weights that
        are split over devices are gathered once for both (`joint.fused_pass`).
      split: the contrastive loss is differentiated by the passages and then by the queries.
      alone: the compiler schedules it as one unit, so that no other pass has memory beside it.
      embedding_chunk, generative_chunk, cached_chunk, preference_chunk: rows taken at a time, None
        for all.
    """

    losses: tuple[str, ...]
    fused: bool = False
    split: bool = False
    alone: bool = False
    embedding_chunk: int | None = None
    generative_chunk: int | None = None
    cached_chunk: int | None = None
    preference_chunk: int | None = None

    @property
    def accumulated(self) -> int | None:
        """The chunk of a language loss whose gradient is added up over chunks of rows."""
        if len(self.losses) > 1 or self.losses == ("embedding",):
            return None
        return getattr(self, f"{self.losses[0]}_chunk")

    def __str__(self) -> str:
        kinds = []
        for loss in self.losses:
            chunk = getattr(self, f"{loss}_chunk")
            kinds.append(f"{loss} rows" + (f" ({chunk} at a time)" if chunk else ""))
        text = " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
        if self.split:
            text += ", passages and then queries"
        if self.fused:
            text += ", embedding and generative rows through the layers together"
        return text


@dataclasses.dataclass(frozen=True)
class GradientPlan:
    """The backward passes of an optimizer step, in order; their gradients add up."""

    passes: tuple[BackwardPass, ...]

    def __str__(self) -> str:
        if len(self.passes) == 1:
            return f"one backward pass: {self.passes[0]}"
        listed = "; ".join(f"({i}) {backward}" for i, backward in enumerate(self.passes, start=1))
        return f"{len(self.passes)} backward passes, one after the other: {listed}"


def gradient_plan(batch: Batch, config: StepConfig) -> GradientPlan:
    """The backward passes for a batch (arrays or their shapes), on the mesh in use.

    `config.backward`: "joint" is one backward pass over all losses; "separate" takes them one after
    the other (language, cached, preference, then contrastive: `gritlm:
    gritlm/training/gradcache_trainer.py:549-550`), so that only one of them has its activations in
    memory; "split" in addition takes the passages' and then the queries' side of the contrastive
    loss, the other held fixed (`gritlm: gritlm/training/gradcache_trainer.py`, split_emb). A
    language loss whose rows are taken in chunks has a backward pass of its own, except where chunks
    of embedding rows and of generative rows go through the layers together.
    """
    rows = {loss: _rows(batch, loss) for loss in LOSSES if getattr(batch, loss) is not None}
    chunk = {loss: getattr(config, f"{loss}_chunk") for loss in LOSSES}
    smaller = lambda loss: (
        chunk[loss] if chunk[loss] is not None and chunk[loss] < rows[loss] else None
    )
    separate, fuse = config.backward != "joint", can_fuse(batch, config)
    # Routers are balanced over the whole batch, which chunks of both kinds do not allow.
    in_chunks = bool(chunk["embedding"] or chunk["generative"])
    fused_chunks = fuse and in_chunks and not config.model.num_experts
    own = {
        "generative": separate or bool(chunk["generative"]) and not fused_chunks,
        "cached": separate or bool(chunk["cached"]) or fused_chunks,
        "preference": separate or bool(chunk["preference"]) or fused_chunks,
    }
    passes = []
    for loss in ("generative", "cached", "preference"):
        if loss in rows and own[loss]:
            size = smaller(loss)
            passes.append(
                BackwardPass((loss,), alone=separate and size is None, **{f"{loss}_chunk": size})
            )
    shared = tuple(loss for loss in LOSSES if loss in rows and not own.get(loss))
    if shared:
        both = {"embedding", "generative"} <= set(shared)
        # Chunks of the others are in passes of their own.
        in_shared = [loss for loss in shared if loss in ("embedding", "generative")]
        sizes = {f"{loss}_chunk": smaller(loss) for loss in in_shared}
        split = config.backward == "split" and "embedding" in shared
        passes.append(
            BackwardPass(
                shared,
                fused=fused_chunks or fuse and both and not chunk["embedding"],
                split=split,
                alone=separate and not split,
                **sizes,
            )
        )
    return GradientPlan(tuple(passes))


def can_fuse(batch: Batch, config: StepConfig) -> bool:
    """Whether embedding rows and generative rows may go through the layers together.

    Both losses in one backward pass, all rows of one length, queries and passages in the same rows;
    and weights that are gathered from several devices, unless `config.fuse` decides (on one CPU the
    fused pass costs 14% more than the two).
    """
    embedding, generative = batch.embedding, batch.generative
    if config.backward != "joint" or embedding is None or generative is None:
        return False
    if embedding.query_rows or embedding.pool.shape[1] != generative.targets.shape[1]:
        return False
    return jax.sharding.get_abstract_mesh().size > 1 if config.fuse is None else config.fuse


def _rows(batch: Batch, loss: str) -> int:
    part = getattr(batch, loss)
    rows = part.text.rows if loss in ("cached", "preference") else part.rows
    return rows.tokens.shape[0]
