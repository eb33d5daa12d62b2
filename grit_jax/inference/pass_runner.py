"""Requests of a single pass (embeddings and log-probabilities), in batches of a token budget.

The texts of all requests that wait are packed into rows together, whoever sent them; a request of
many texts goes through several batches, in turn with the others. Not thread-safe; the engine's
thread calls it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.inference.encoder import EncodedRows, Encoder, PackedTexts
from grit_jax.inference.fair_queue import FairQueue
from grit_jax.inference.label_scores import FEWEST_LABELS, LabelRows, label_rows, label_step
from grit_jax.inference.logprobs import TokenLogprobs, logprobs_of
from grit_jax.inference.requests import (
    MOST_LABELS,
    EmbedRequest,
    LabelRequest,
    Pending,
    ScoreRequest,
)
from grit_jax.inference.row_packing import RowBatch, batch_shapes, pack_rows
from grit_jax.models.adapter_stack import choose
from grit_jax.models.config import ModelConfig
from grit_jax.models.finite import describe_cause
from grit_jax.models.losses import token_losses
from grit_jax.models.transformer import Params, Transformer
from grit_jax.sharding import put_rows, to_host
from grit_jax.types import AttentionMode, Rows

PassRequest: TypeAlias = "EmbedRequest | ScoreRequest | LabelRequest"
LOGIT_BLOCK = 1024  # tokens whose logits exist at a time
TOP_BLOCK = 256  # the same, where the most likely tokens are asked for


@functools.partial(jax.jit, static_argnames=("config", "mode", "top"))
def score_step(
    params: Params, rows: Rows, *, config: ModelConfig, mode: AttentionMode, top: bool = False
) -> Float[Array, "B T"] | TokenLogprobs:
    """The negative log-probability of each token given those before it in its segment; that of a
    segment's first token has no meaning. With `top`, `TokenLogprobs` `[B T ..]`."""
    model = Transformer(config, choose(params, rows.adapters))
    out = model(rows.tokens, rows.positions, rows.segments, mode=mode, blocks=rows.blocks)
    if top:
        return _top_logprobs(model, out.hidden, rows.tokens)
    return token_losses(
        out.hidden,
        rows.tokens,
        model.params(),
        softcap=config.final_logit_softcapping,
        block=LOGIT_BLOCK,
    )


def _top_logprobs(
    model: Transformer, hidden: Float[Array, "B T D"], tokens: Int[Array, "B T"]
) -> TokenLogprobs:
    """Of each token given the state before it; of the first column without meaning."""
    before = jnp.roll(hidden, 1, axis=1).reshape(-1, hidden.shape[-1])
    one = lambda pair: jax.tree.map(
        lambda array: array[0], logprobs_of(model.logits(pair[0][None]), pair[1][None])
    )
    flat = jax.lax.map(one, (before, tokens.reshape(-1)), batch_size=TOP_BLOCK)
    return jax.tree.map(lambda array: array.reshape(*tokens.shape, *array.shape[1:]), flat)


@dataclasses.dataclass(eq=False)
class _Job:
    """A request, the kind of its batches, the number of its first text that was not dispatched, and
    its results so far."""

    pending: Pending[np.ndarray]
    texts: Sequence[Sequence[int]]
    kind: str
    next: int = 0
    left: int = 0
    results: list[Any] = dataclasses.field(default_factory=list)

    @property
    def is_score(self) -> bool:
        return isinstance(self.pending.request, ScoreRequest)


@dataclasses.dataclass
class _Batch:
    """A dispatched batch: its rows, its output, and the job and text number of each packed text."""

    rows: RowBatch
    texts: PackedTexts
    output: EncodedRows | jax.Array | TokenLogprobs
    owners: list[tuple[_Job, int]]


class PassRunner:
    """Embeds and scores texts with one model.

    Args:
      encoder: has the weights, how the model embeds, and the mesh.
      adapters: the encoder of each of its adapters; they embed together with it, and with each
        other, unless they pool or attend differently.
      mode: attention of the model when it generates, for scores.
      limit: most requests that wait.
      tokens: of a batch, about; None chooses by device.
      longest: tokens of a text, at most.
    """

    def __init__(
        self,
        encoder: Encoder,
        mode: AttentionMode = AttentionMode.CAUSAL,
        *,
        adapters: Sequence[Encoder] = (),
        limit: int = 1000,
        tokens: int | None = None,
        longest: int | None = None,
    ):
        self.encoder, self.encoders, self.mode = encoder, (encoder, *adapters), mode
        self.tokens = tokens or encoder.tokens_in_call()
        self.longest = longest or encoder.config.context_length
        self.waiting: FairQueue[Pending[np.ndarray]] = FairQueue(limit)
        self._started: collections.deque[_Job] = collections.deque()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._jobs: set[_Job] = set()
        self._started_first = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return not (self.waiting or self._jobs or self._batches)

    @property
    def batches(self) -> int:
        """Batches whose results were not read yet."""
        return len(self._batches)

    def check(self, request: PassRequest) -> None:
        """Checks a request.

        Raises:
          GritError: a text without tokens or too long, an id outside the vocabulary, or a start
            that leaves nothing to score, or not one pool start for each text.
        """
        texts = [request.ids] if isinstance(request, ScoreRequest) else request.ids
        for ids in texts:
            if not len(ids):
                raise GritError(f"{request.name} has no tokens")
            if len(ids) > self.longest:
                raise GritError(
                    f"{request.name} has {len(ids)} tokens, and at most {self.longest} are read"
                )
            if min(ids) < 0 or max(ids) >= self.encoder.config.vocab_size:
                raise GritError(f"{request.name} has a token id outside the vocabulary")
        if isinstance(request, LabelRequest):
            _check_labels(request, self.encoder.config.vocab_size)
        if isinstance(request, EmbedRequest) and len(request.pool_starts) != len(texts):
            raise GritError(
                f"{request.name}: {len(texts)} texts, but {len(request.pool_starts)} pool starts;"
                " each text needs one"
            )
        if isinstance(request, ScoreRequest) and not 1 <= request.start < len(request.ids):
            raise GritError(
                f"{request.name}: tokens are scored from number {request.start} on, but it has"
                f" {len(request.ids)}, and the first one has nothing before it"
            )

    def dispatch(self) -> bool:
        """Dispatches the next batches, of about `tokens` tokens; False if nothing waits."""
        chosen: list[tuple[_Job, int]] = []
        room = self.tokens
        # Those that wait come first, and every other time those that have texts left: neither holds
        # up the other for ever.
        started_first = self._started_first
        if self._started and self.waiting:
            self._started_first = not started_first
        while room > 0 and (job := self._next_job(chosen, started_first)) is not None:
            while room > 0 and job.next < len(job.texts):
                chosen.append((job, job.next))
                room -= len(job.texts[job.next])
                job.next += 1
            if job.next < len(job.texts):
                self._started.append(job)  # the others come first
        if not chosen:
            return False
        starts = [self._pool_start(job, number) for job, number in chosen]
        ids = [job.texts[number] for job, number in chosen]
        vectors = np.zeros((len(ids), self.encoder.width), np.float32)
        texts = PackedTexts(ids, starts, vectors, None, None, self._adapters(chosen))
        for rows in pack_rows([len(i) for i in ids], self.tokens, self.encoder.row_multiple):
            self._batches.append(_Batch(rows, texts, self._run(rows, texts, chosen), chosen))
        return True

    def collect(self) -> None:
        """Waits for the oldest batch and hands out its results."""
        batch = self._batches.popleft()
        if isinstance(batch.output, EncodedRows):
            batch.texts.collect(batch.rows, batch.output)
            for i in (i for row in batch.rows.texts for i in row):
                self._add(*batch.owners[i], batch.texts.vectors[i])
            return
        output = jax.tree.map(to_host, batch.output)
        if batch.owners[0][0].kind == "labels":
            for row, numbers in enumerate(batch.rows.texts):
                for segment, i in enumerate(numbers):
                    job, number = batch.owners[i]
                    labels = len(job.pending.request.labels)
                    self._add(job, number, output[row, segment, :labels])
            return
        for row, numbers in enumerate(batch.rows.texts):
            for i, start, stop in batch.texts.spans(numbers):
                job, number = batch.owners[i]
                first = start + job.pending.request.start
                scores = output[row, first:stop]
                self._add(job, number, scores if job.pending.request.top else -scores)

    def drop_cancelled(self) -> None:
        """Ends cancelled requests; what is on the device is not waited for."""
        for pending in [pending for pending in self.waiting if pending.cancelled]:
            self.waiting.discard(pending)
            pending.drop()
        for job in [job for job in self._jobs if job.pending.cancelled]:
            self._end(job)
            job.pending.drop()

    def fail_all(self, error: BaseException) -> None:
        """Ends all requests with an error."""
        while self.waiting:
            self.waiting.get().fail(error)
        for job in list(self._jobs):
            self._end(job)
            job.pending.fail(error)
        self._batches.clear()

    def leaks(self) -> list[str]:
        """What an idle runner still holds, and should not."""
        return [f"{len(self._started)} started requests"] if self._started else []

    def warm_up(
        self, longest: int | None = None, *, score: bool = True, labels: bool = False
    ) -> None:
        """Compiles the programs of all batches of texts of up to `longest` tokens: embeddings, with
        `score` log-probabilities of texts, with `labels` those of two labels (reranking)."""
        longest = longest or self.longest
        for rows, length in batch_shapes(longest, self.tokens, self.encoder.row_multiple):
            batch = RowBatch(length, rows, [[0]])
            vectors = np.zeros((1, self.encoder.width), np.float32)
            adapters = [0] if len(self.encoders) > 1 else None
            texts = PackedTexts([[0, 0]], [0], vectors, None, None, adapters)
            for encoder in {(e.pooling, e.mode): e for e in self.encoders}.values():
                jax.block_until_ready(encoder.dispatch(batch, texts).vectors)
            if score:
                jax.block_until_ready(self._score(batch, texts))
            if labels:
                jax.block_until_ready(
                    self._labels(batch, texts, label_rows(batch, texts, [[0] * FEWEST_LABELS]))
                )

    # Inside.

    def _next_job(self, chosen: list[tuple[_Job, int]], started_first: bool) -> _Job | None:
        """The next request of the kind of those chosen."""
        kind = chosen[0][0].kind if chosen else None
        of_kind = lambda other: kind is None or other == kind
        goes_on = self._started and of_kind(self._started[0].kind)
        if goes_on and started_first:
            return self._started.popleft()
        while self.waiting:
            kind_of_next = self._kind(self.waiting.peek().request)
            if not of_kind(kind_of_next):
                break
            pending = self.waiting.get()
            request = pending.request
            texts = [request.ids] if isinstance(request, ScoreRequest) else request.ids
            job = _Job(pending, texts, kind_of_next, 0, len(texts), [None] * len(texts))
            self._jobs.add(job)
            if len(texts):
                return job
            self._finish(job)
        return self._started.popleft() if goes_on else None

    @staticmethod
    def _pool_start(job: _Job, number: int) -> int:
        """Tokens that are left out of the pooled ones; for scores, those of the prompt."""
        request = job.pending.request
        if isinstance(request, LabelRequest):
            return 0
        return request.start if job.is_score else request.pool_starts[number]

    def _run(
        self, rows: RowBatch, texts: PackedTexts, chosen: list[tuple[_Job, int]]
    ) -> EncodedRows | jax.Array | TokenLogprobs:
        if chosen[0][0].kind == "labels":
            labels = [job.pending.request.labels for job, _ in chosen]
            return self._labels(rows, texts, label_rows(rows, texts, labels))
        if chosen[0][0].is_score:
            return self._score(rows, texts, top=chosen[0][0].pending.request.top)
        return self.encoders[chosen[0][0].pending.request.adapter].dispatch(rows, texts)

    def _adapters(self, chosen: list[tuple[_Job, int]]) -> list[int] | None:
        """The adapter of each text; None for a model without."""
        if len(self.encoders) == 1:
            return None
        return [job.pending.request.adapter for job, _ in chosen]

    def _kind(self, request: PassRequest) -> str:
        """What a batch holds requests of: one program runs all of it."""
        if isinstance(request, ScoreRequest):
            return "top" if request.top else "score"
        if isinstance(request, LabelRequest):
            return "labels"
        encoder = self.encoders[request.adapter]
        return f"embed {encoder.pooling} {encoder.mode.value}"

    def _score(
        self, batch: RowBatch, texts: PackedTexts, *, top: bool = False
    ) -> jax.Array | TokenLogprobs:
        encoder = self.encoder
        rows, answers = texts.lay_out(batch, encoder.tokenizer.pad_id)
        if self.mode is AttentionMode.PREFIX:
            prompts = (rows.segments > 0) & ~answers
            rows = dataclasses.replace(rows, blocks=prompts * rows.segments)
        mesh = encoder.mesh
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            if mesh is not None:
                rows = put_rows(rows, mesh)
            return score_step(encoder.params, rows, config=encoder.config, mode=self.mode, top=top)

    def _labels(self, batch: RowBatch, texts: PackedTexts, labels: LabelRows) -> jax.Array:
        encoder = self.encoder
        rows, _ = texts.lay_out(batch, encoder.tokenizer.pad_id)
        if self.mode is AttentionMode.PREFIX:
            rows = dataclasses.replace(rows, blocks=rows.segments)
        mesh = encoder.mesh
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            if mesh is not None:
                rows, labels = put_rows((rows, labels), mesh)
            return label_step(encoder.params, rows, labels, config=encoder.config, mode=self.mode)

    def _add(self, job: _Job, number: int, result: Any) -> None:
        if job not in self._jobs:  # cancelled
            return
        scores = result.chosen if isinstance(result, TokenLogprobs) else result
        if not np.isfinite(scores).all():
            cause = describe_cause(self.encoder.params, self.encoder.config.dtype)
            self._end(job)
            job.pending.fail(GritError(f"{job.pending.request.name} is not finite: {cause}"))
            return
        job.results[number] = result
        job.left -= 1
        if not job.left:
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._end(job)
        if job.is_score:
            job.pending.finish(job.results[0])
        else:
            labels = getattr(job.pending.request, "labels", None)
            width = self.encoder.width if labels is None else len(labels)
            empty = np.zeros((0, width), np.float32)
            job.pending.finish(np.stack(job.results) if job.results else empty)

    def _end(self, job: _Job) -> None:
        self._jobs.discard(job)
        if job in self._started:
            self._started.remove(job)


def _check_labels(request: LabelRequest, vocab_size: int) -> None:
    """Raises GritError: no labels, too many, or one outside the vocabulary."""
    labels = request.labels
    if not 1 <= len(labels) <= MOST_LABELS:
        raise GritError(f"{request.name}: expected 1 to {MOST_LABELS} labels, got {len(labels)}")
    if min(labels) < 0 or max(labels) >= vocab_size:
        raise GritError(
            f"{request.name}: a label is outside the vocabulary (0 to {vocab_size - 1})"
        )
