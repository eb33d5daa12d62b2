"""The batches of a run: a pure function of (configuration, data, seed, step), read ahead by
grain."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grit_jax.data.batch_order import (
    BalancedOrder,
    BatchIndices,
    ContrastiveOrder,
    StreamOrder,
    choose_passages,
)
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.formats import CachedExample, EmbeddingExample, Kind, Text
from grit_jax.data.lines import Source
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
from grit_jax.data.sources import open_sources
from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText
from grit_jax.errors import GritError
from grit_jax.runtime.files import expand_home, write_json
from grit_jax.runtime.progress import say
from grit_jax.text.chat import GRIT, ChatFormat
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import Batch, CachedBatch, EmbeddingBatch, GenerativeBatch

if TYPE_CHECKING:
    import grain

log = logging.getLogger(__name__)

_SUBSET, _STEP = 100, 101
# The length of a run without a number of steps: more than any run has.
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """How many examples of one source a run uses, and why it leaves out the others.

    Attributes:
      examples: lines of the source.
      used: examples that the run trains on.
      skipped: bad lines, as {reason: count} (only with `on_error: skip`).
      filtered: well-formed lines that the run cannot use, as {reason: count}.
      not_sampled: usable examples that `num_samples` leaves out.
      lines, digest: those of the whole source (see `LineSource`).
    """

    name: str
    kind: Kind
    examples: int
    used: int
    skipped: dict[str, int]
    filtered: dict[str, int]
    not_sampled: int = 0
    lines: int = 0
    digest: str = ""

    def __str__(self) -> str:
        left_out = "".join(f"; {n} {why}" for why, n in {**self.skipped, **self.filtered}.items())
        if self.not_sampled:
            left_out += f"; {self.not_sampled} not among the data.num_samples"
        return f"{self.name}: {self.used} of {self.examples} {self.kind} examples{left_out}"


class _KindSources:
    """The sources of one kind of example, and the order in which batches draw from them."""

    def __init__(self, kind: Kind, config: DataConfig, tokenizer: ExampleTokenizer, seed: int):
        self.batch: int = getattr(config, f"{kind}_batch")
        self.sources: list[Source] = []
        self._subset: list[np.ndarray | None] = []
        self.summary: list[SourceSummary] = []
        names = getattr(config, kind) if self.batch else []
        opened = open_sources(names, f"data.{kind}", kind, config.on_error, tokenizer.check)
        for name in {*names} & {*config.num_samples} - {source.name for source in opened}:
            raise GritError(
                f"data.num_samples: other entries of data.{kind} read all files of {name}; name"
                " those, or list the files one by one"
            )
        for number, source in enumerate(opened):
            name = source.name
            samples = config.num_samples.get(name)
            subset = None
            if samples is not None and samples < len(source):
                rng = np.random.default_rng((seed, _SUBSET, number))
                subset = np.sort(rng.permutation(len(source))[:samples])
            self.sources.append(source)
            self._subset.append(subset)
            skipped, filtered = dict(source.skipped), dict(source.filtered)
            total = len(source) + sum(skipped.values()) + sum(filtered.values())
            used = len(source) if subset is None else len(subset)
            self.summary.append(
                SourceSummary(
                    name,
                    kind,
                    total,
                    used,
                    skipped,
                    filtered,
                    len(source) - used,
                    source.num_lines,
                    source.digest,
                )
            )
        sizes = [entry.used for entry in self.summary]
        self.order: ContrastiveOrder | StreamOrder | BalancedOrder | None = None
        if self.batch and kind == "embedding":
            if self.batch > sum(sizes):
                raise GritError(
                    f"data.embedding_batch ({self.batch}) is more than the {sum(sizes)} usable"
                    " examples, so a query's own positive would be among its negatives; make the"
                    " batch smaller"
                )
            self.order = ContrastiveOrder(sizes, self.batch, seed, shuffle=config.shuffle)
        elif self.batch:
            # Different seeds, so that two kinds with equally many examples differ in order.
            self.order = StreamOrder(
                sizes, self.batch, seed + (kind == "cached"), shuffle=config.shuffle
            )
        if self.order is not None and config.balance_window > 1:
            self._count = functools.partial(tokenizer.lengths, kind)
            self.order = BalancedOrder(self.order, config.balance_window, self._lengths)

    def select(self, step: int) -> list[tuple[Source, int]]:
        """(source, index) of each of the step's examples."""
        if self.order is None:
            return []
        return self._located(self.order(step))

    def _lengths(self, indices: BatchIndices) -> np.ndarray:
        return self._count([_example(chosen) for chosen in self._located(indices)])

    def _located(self, chosen: BatchIndices) -> list[tuple[Source, int]]:
        return [
            (self.sources[d], i if self._subset[d] is None else int(self._subset[d][i]))
            for d, i in zip(chosen.dataset.tolist(), chosen.index.tolist(), strict=True)
        ]


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
            kind: _KindSources(kind, config, self._tokenizer, seed)
            for kind in ("embedding", "generative", "cached")
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
        return Batch(self._embedding(index), self._generative(index), self._cached(index))

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
            return self._tokenizer.generative([_example(chosen[i]) for i in numbers])

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
            examples: list[CachedExample] = [_example(chosen[i]) for i in numbers]
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

    def _examples(self, kind: Kind, step: int) -> list[Any]:
        return [_example(chosen) for chosen in self._kinds[kind].select(step)]

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


def _example(chosen: tuple[Source, int]) -> Any:
    source, index = chosen
    return source[index]


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
