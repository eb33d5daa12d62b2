"""The batches of a run: a pure function of (configuration, data, seed, step), read ahead by
grain."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grit_jax.data.batch_order import (
    choose_passages,
)
from grit_jax.data.config import KINDS, BatchNeeds, DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.formats import CachedExample, EmbeddingExample, Kind, Text
from grit_jax.data.kind_sources import KindSources, SourceSummary, example_of
from grit_jax.data.multihost import HostGroup, deliver, tokenize_together
from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    pack_cached,
    pack_embedding,
    pack_generative,
    place_cached,
    place_embedding,
    place_generative,
)
from grit_jax.data.preference import (
    pack_preference,
    place_preference,
    preference_texts,
)
from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText
from grit_jax.runtime.files import expand_home, write_json
from grit_jax.runtime.progress import say
from grit_jax.text.chat import GRIT, ChatFormat
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import Batch, CachedBatch, EmbeddingBatch, GenerativeBatch, PreferenceBatch

if TYPE_CHECKING:
    import grain

log = logging.getLogger(__name__)

_STEP = 101
# The length of a run without a number of steps: more than any run has.
_ENDLESS = 2**40


class JointBatches:
    """Batches by step number: `batches[step]` is a `Batch` of NumPy arrays, the same one every
    time.

    Args:
      seed: of the order, the choice of passages and the layouts.
      num_steps: `len()`; None is endless.
      needs: what the run's attention and losses require of its batches.
      hosts: the hosts that prepare each batch together; a batch then holds the ids of this host's
        rows alone. None: this host prepares all of it.
      probe: False leaves it to the caller to call `probe` before the first batch.

    Raises:
      GritError: a source that cannot be read, a bad line (unless skipped), or a contrastive batch
        of more examples than there are.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        chat: ChatFormat = GRIT,
        seed: int = 0,
        num_steps: int | None = None,
        needs: BatchNeeds = BatchNeeds(),
        hosts: HostGroup | None = None,
        probe: bool = True,
    ):
        self.config, self.seed, self.num_steps = config, seed, num_steps
        self.needs, self._hosts = needs, hosts
        self.limits = config.limits()
        if not needs.teacher_rows:
            self.limits = dataclasses.replace(self.limits, teacher_row=0)
        self._tokenizer = ExampleTokenizer(
            tokenizer,
            chat,
            self.limits,
            group_size=config.group_size,
            layouts=config.layouts,
            raw_strings=config.raw_strings,
            last_answer_only=config.last_answer_only or needs.prefix_generation,
            teacher_scores=needs.teacher_scores,
        )
        self._kinds = {
            kind: KindSources(kind, config, self._tokenizer, seed, needs) for kind in KINDS
        }
        config.check_trains()
        # Lower bounds of the batches' shapes, by name (see `_shapes`).
        self._min_shapes: dict[str, int] = {}
        if probe:
            self.probe()

    @property
    def summary(self) -> list[SourceSummary]:
        """One entry a source: examples used, skipped and filtered, and why."""
        return [entry for sources in self._kinds.values() for entry in sources.summary]

    def report_summary(self, path: Path) -> None:
        """Prints how many examples of each source are used, and writes the summary to `path` as
        JSON. A source that is used whole is only logged."""
        for source in self.summary:
            report = say if source.used < source.examples else log.info
            report(str(source))
        entries = [dataclasses.asdict(source) for source in self.summary]
        write_json(path, entries)

    def __len__(self) -> int:
        return _ENDLESS if self.num_steps is None else self.num_steps

    def __getitem__(self, index: int) -> Batch:
        """The batch of step `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        return Batch(
            self._embedding(index),
            self._generative(index),
            self._cached(index),
            self._preference(index),
        )

    def ids(self, step: int) -> dict[str, list[str]]:
        """`file:line` of each of a step's examples, by kind and in batch order: where to look when
        its loss is bad."""
        return {
            kind: [source.where(i) for source, i in sources.select(step)]
            for kind, sources in self._kinds.items()
            if sources.batch
        }

    def epoch(self, step: int) -> dict[str, int]:
        """The epoch that each kind is in at `step`, from 0."""
        return {
            kind: sources.order.epoch(step)
            for kind, sources in self._kinds.items()
            if sources.order is not None
        }

    def _rng(self, step: int, kind: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, _STEP, step, kind))

    # Each part of a batch is made in four steps: the texts (of other hosts, only their lengths),
    # the place of each, the texts of this host's rows, and the arrays.

    def _embedding(self, step: int) -> EmbeddingBatch | None:
        # Every host reads all examples: which passages are drawn depends on how many each has.
        examples = self._examples("embedding", step)
        if not examples:
            return None
        config, needs = self.config, self.needs
        packing = EmbeddingPacking(
            config.row_length or max(self.limits.query, self.limits.passage),
            config.row_multiple,
            min_rows=self._min_shapes.get("passage_rows", 0),
            min_query_rows=self._min_shapes.get("query_rows", 0),
            min_segments=self._min_shapes.get("segments", 0),
            positives=config.positives_per_query,
            separate=needs.separate_sides,
            blocks=needs.sample_blocks,
        )
        drawn = self._draw_passages(examples, step)
        Q = len(examples)

        def tokenize(numbers: Sequence[int]) -> list[PromptedText]:
            return self._tokenizer.embedding(
                [drawn.texts[i] for i in numbers],
                [self.limits.query if i < Q else self.limits.passage for i in numbers],
            )

        def with_gaps(texts: list[PromptedText]) -> list[PromptedText]:
            """The texts in their slots, and empty ones in place of missing positives."""
            spread = [PromptedText([], 0)] * drawn.num_slots
            for slot, text in zip(drawn.slots, texts, strict=True):
                spread[slot] = text
            return spread

        key = f"{step}/embedding"
        texts = tokenize_together(self._hosts, key, len(drawn.texts), tokenize, PromptedText)
        placement = place_embedding(with_gaps(texts), Q, packing)
        rows = placement.row[drawn.slots]
        texts = deliver(self._hosts, key, texts, rows, placement.num_rows)
        scores = drawn.scores if needs.teacher_scores else None
        return pack_embedding(with_gaps(texts), Q, placement, packing, scores)

    def _generative(self, step: int) -> GenerativeBatch | None:
        chosen = self._kinds["generative"].select(step)
        if not chosen:
            return None
        packing = GenerativePacking(
            self.config.generative_row_length or self.limits.generative,
            self.config.row_multiple,
            min_rows=self._min_shapes.get("generative_rows", 0),
            min_targets=self._min_shapes.get("generative_targets", 0),
            prefix=self.needs.prefix_generation,
        )

        def tokenize(numbers: Sequence[int]) -> list[TokenText]:
            return self._tokenizer.generative([example_of(chosen[i]) for i in numbers])

        key = f"{step}/generative"
        texts = tokenize_together(self._hosts, key, len(chosen), tokenize, TokenText)
        placement = place_generative(texts, packing)
        texts = deliver(self._hosts, key, texts, placement.row, placement.num_rows)
        distilled = None
        if self.needs.base_teacher:
            names = {expand_home(name) for name in self.config.distilled or self.config.generative}
            distilled = [source.name in names for source, _ in chosen]
        return pack_generative(texts, placement, packing, distilled)

    def _cached(self, step: int) -> CachedBatch | None:
        chosen = self._kinds["cached"].select(step)
        if not chosen:
            return None
        packing = CachedPacking(
            self.limits.cached_row,
            self.limits.continuation_row,
            self.config.row_multiple,
            min_rows=self._min_shapes.get("cached_rows", 0),
            min_targets=self._min_shapes.get("cached_targets", 0),
            blocks=self.needs.sample_blocks,
            prefix=self.needs.prefix_generation,
            teacher_row_length=self.limits.teacher_row or None,
        )
        layouts = self._rng(step, 2).integers(len(self.config.layouts), size=len(chosen))

        def tokenize(numbers: Sequence[int]) -> list[TokenCached]:
            modes = [self.config.layouts[layouts[i]] for i in numbers]
            examples: list[CachedExample] = [example_of(chosen[i]) for i in numbers]
            if not self.needs.teacher_rows:
                return self._tokenizer.cached(examples, modes)
            orders = [
                np.random.default_rng((self.seed, _STEP, step, 3, i)).permutation(len(example.docs))
                for i, example in zip(numbers, examples, strict=True)
            ]
            return self._tokenizer.cached(examples, modes, orders)

        key = f"{step}/cached"
        texts = tokenize_together(self._hosts, key, len(chosen), tokenize, TokenCached)
        placement = place_cached(texts, packing)
        texts = deliver(self._hosts, key, texts, placement.row, placement.num_rows)
        return pack_cached(texts, placement, packing)

    def _preference(self, step: int) -> PreferenceBatch | None:
        # Every host reads all examples: a mismatched text has the prompt of one and another's
        # answer.
        examples = self._examples("preference", step)
        if not examples:
            return None
        loss, shapes = self.needs.preference, self._min_shapes
        packing = GenerativePacking(
            self.config.preference_row(loss),
            self.config.row_multiple,
            min_rows=shapes.get("preference_rows", 0),
            min_targets=shapes.get("preference_targets", 0),
            prefix=self.needs.prefix_generation,
        )
        drawn = preference_texts(examples, loss)

        def tokenize(numbers: Sequence[int]) -> list[TokenText]:
            return self._tokenizer.preference([drawn.answers[i] for i in numbers])

        # The two groups are exchanged one after the other: a host holds other rows of each.
        key, n = f"{step}/preference", drawn.count
        texts = tokenize_together(self._hosts, key, n, tokenize, TokenText)
        if count := len(drawn.answers) - n:
            of_mismatched = lambda numbers: tokenize([n + i for i in numbers])
            other = f"{key}/mismatched"
            texts += tokenize_together(self._hosts, other, count, of_mismatched, TokenText)
        placement = place_preference(texts, n, packing, shapes.get("mismatched_rows", 0))
        rows = placement.text
        packed = deliver(self._hosts, key, texts[:n], rows.row, rows.num_rows)
        if placement.mismatched is not None:
            rows = placement.mismatched
            packed += deliver(self._hosts, other, texts[n:], rows.row, rows.num_rows)
        least = shapes.get("mismatched_targets", 0)
        return pack_preference(packed, drawn.desirable, placement, packing, least)

    def _examples(self, kind: Kind, step: int) -> list[Any]:
        return [example_of(chosen) for chosen in self._kinds[kind].select(step)]

    def _draw_passages(self, examples: Sequence[EmbeddingExample], step: int) -> _DrawnTexts:
        """The queries of `examples` and the passages drawn for each."""
        rng, Q = self._rng(step, 0), len(examples)
        group_size, max_positives = self.config.group_size, self.config.positives_per_query
        width = max_positives + group_size - 1  # passages of a query
        drawn = _DrawnTexts(
            [example.query for example in examples],
            list(range(Q)),
            [0.0] * (Q * width),
            Q + Q * width,
        )
        for number, example in enumerate(examples):
            positives, negatives = choose_passages(
                rng, len(example.positives), len(example.negatives), group_size, max_positives
            )
            passages = example.positives + example.negatives
            chosen = [*positives, *(len(example.positives) + i for i in negatives)]
            # Where a query has fewer positives than `max_positives`, slots stay empty.
            first = number * width
            slots = [first + i for i in range(len(positives))]
            slots += [first + max_positives + i for i in range(len(negatives))]
            for slot, i in zip(slots, chosen, strict=True):
                drawn.texts.append(passages[i])
                drawn.slots.append(Q + slot)
                drawn.scores[slot] = example.scores[i] if example.scores is not None else 0.0
        return drawn

    def probe(self) -> None:
        """Prepares the first `probe_steps` batches, so that later ones get at least their shapes:
        each new shape compiles a new program."""
        largest: collections.Counter[str] = collections.Counter()
        for step in range(min(self.config.probe_steps, len(self))):
            for name, value in _shapes(self[step]).items():
                largest[name] = max(largest[name], value)
        self._min_shapes = dict(largest)


@dataclasses.dataclass
class _DrawnTexts:
    """The texts of a contrastive batch before they are tokenized.

    Attributes:
      texts: the queries, then the passages that were drawn.
      slots: the place of each text among all queries and passages, missing positives included.
      scores: a teacher's score for each passage slot (0 where there is none).
      num_slots: Q + P.
    """

    texts: list[Text]
    slots: list[int]
    scores: list[float]
    num_slots: int


def _shapes(batch: Batch) -> dict[str, int]:
    """The sizes of a batch that depend on its texts."""
    shapes: dict[str, int] = {}
    if batch.embedding is not None:
        shapes["query_rows"] = batch.embedding.query_rows
        shapes["passage_rows"] = len(batch.embedding.rows.tokens) - batch.embedding.query_rows
        shapes["segments"] = batch.embedding.segments_per_row
    if batch.generative is not None:
        shapes["generative_rows"] = len(batch.generative.rows.tokens)
        shapes["generative_targets"] = batch.generative.max_targets
    if batch.cached is not None:
        shapes["cached_rows"] = len(batch.cached.text.rows.tokens)
        shapes["cached_targets"] = batch.cached.text.max_targets
    if batch.preference is not None:
        for name in ("text", "mismatched"):
            if (part := getattr(batch.preference, name)) is not None:
                name = "preference" if name == "text" else name
                shapes[f"{name}_rows"] = len(part.rows.tokens)
                shapes[f"{name}_targets"] = part.max_targets
    return shapes


def make_iterator(
    config: DataConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat = GRIT,
    seed: int = 0,
    num_steps: int | None = None,
    batches: JointBatches | None = None,
) -> grain.DatasetIterator:
    """Batches in order of step, prepared ahead in the background.

    The state of the iterator (`get_state()`, `set_state()`) is the step alone; Orbax (v1) saves and
    restores it as a checkpointable.

    Args:
      batches: opened before with the same arguments; None opens them here.
    """
    import grain

    source = (
        batches if batches is not None else JointBatches(config, tokenizer, chat, seed, num_steps)
    )
    # Threads, not processes: tokenisation releases Python's lock, and the state stays one step
    # number.
    options = grain.ReadOptions(
        num_threads=config.workers, prefetch_buffer_size=max(config.prefetch, config.workers)
    )
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
