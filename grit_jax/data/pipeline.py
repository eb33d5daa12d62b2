"""The batches of a run: a pure function of (configuration, data, seed, step), read ahead by
grain."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from grit_jax.data.batch_order import ContrastiveOrder, Selection, StreamOrder, choose_passages
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.formats import Kind, Text
from grit_jax.data.lines import Source
from grit_jax.data.multihost import CACHED, GENERATIVE, PROMPTED, PromptedText, Share, WireFormat
from grit_jax.data.packing import (
    Arrive,
    TokenCached,
    TokenText,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.sources import open_source
from grit_jax.errors import GritError
from grit_jax.runtime.files import write_json
from grit_jax.runtime.progress import say
from grit_jax.text.chat import GRIT, ChatFormat
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import Batch

if TYPE_CHECKING:
    import grain

log = logging.getLogger(__name__)
T = TypeVar("T")

_SUBSET, _STEP = 100, 101
# A run without a number of steps: no one trains for longer.
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """What became of one source: `used` of its `examples`, and why others were not (reason: count).

    `skipped` are bad lines, `filtered` good ones that the run cannot use, and `not_sampled` is what
    `num_samples` leaves out of the rest.
    """

    name: str
    kind: Kind
    examples: int
    used: int
    skipped: dict[str, int]
    filtered: dict[str, int]
    not_sampled: int = 0

    def __str__(self) -> str:
        left_out = "".join(f"; {n} {why}" for why, n in {**self.skipped, **self.filtered}.items())
        if self.not_sampled:
            left_out += f"; {self.not_sampled} not among the data.num_samples"
        return f"{self.name}: {self.used} of {self.examples} {self.kind} examples{left_out}"


class _Part:
    """The sources of one kind with the plan that picks from them."""

    def __init__(self, kind: Kind, config: DataConfig, reader: ExampleTokenizer, seed: int):
        self.batch: int = getattr(config, f"{kind}_batch")
        self.sources: list[Source] = []
        self._subset: list[np.ndarray | None] = []
        self.summary: list[SourceSummary] = []
        for number, name in enumerate(getattr(config, kind) if self.batch else []):
            source = open_source(name, kind, config.on_error, reader.check)
            wanted = config.num_samples.get(name)
            subset = None
            if wanted is not None and wanted < len(source):
                rng = np.random.default_rng((seed, _SUBSET, number))
                subset = np.sort(rng.permutation(len(source))[:wanted])
            self.sources.append(source)
            self._subset.append(subset)
            skipped, filtered = dict(source.skipped), dict(source.filtered)
            total = len(source) + sum(skipped.values()) + sum(filtered.values())
            used = len(source) if subset is None else len(subset)
            self.summary.append(
                SourceSummary(name, kind, total, used, skipped, filtered, len(source) - used)
            )
        sizes = [entry.used for entry in self.summary]
        self.plan: ContrastiveOrder | StreamOrder | None = None
        if self.batch and kind == "embedding":
            if self.batch > sum(sizes):
                raise GritError(
                    f"data.embedding_batch ({self.batch}) is more than the {sum(sizes)} usable"
                    " examples: a query would meet itself among its negatives; make the batch"
                    " smaller"
                )
            self.plan = ContrastiveOrder(sizes, self.batch, seed, shuffle=config.shuffle)
        elif self.batch:
            # Another seed, so that equally long streams of two kinds do not run in step.
            self.plan = StreamOrder(
                sizes, self.batch, seed + (kind == "cached"), shuffle=config.shuffle
            )

    def select(self, step: int) -> list[tuple[Source, int]]:
        """The sources and indices that make up the step's examples."""
        if self.plan is None:
            return []
        chosen: Selection = self.plan(step)
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
      needs: what the run's attention and losses ask for.
      share: where several hosts prepare each batch together, which of it is this host's; a batch
        then has the texts of this host's rows alone. None: all is prepared here.

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
        share: Share | None = None,
    ):
        self.config, self.seed, self.num_steps, self.needs, self._share = (
            config,
            seed,
            num_steps,
            needs,
            share,
        )
        self.limits = config.limits()
        self._reader = ExampleTokenizer(
            tokenizer,
            chat,
            self.limits,
            group_size=config.group_size,
            layouts=config.layouts,  # type: ignore[arg-type]
            raw_strings=config.raw_strings,
            last_answer_only=config.last_answer_only or needs.prefix_generation,
            teacher_scores=needs.teacher_scores,
        )
        self._parts = {
            kind: _Part(kind, config, self._reader, seed)
            for kind in ("embedding", "generative", "cached")
        }
        config.check_trains()
        self._floor: dict[str, int] = {}
        self._probe(min(config.probe_steps, len(self)))

    @property
    def summary(self) -> list[SourceSummary]:
        """One entry a source: examples used, skipped and filtered, and why."""
        return [entry for part in self._parts.values() for entry in part.summary]

    def tell_summary(self, path: Path) -> None:
        """Says what became of each source's examples, and writes it to `path`; what is left out is
        not just logged."""
        for source in self.summary:
            tell = say if source.used < source.examples else log.info
            tell(str(source))
        entries = [dataclasses.asdict(source) for source in self.summary]
        write_json(path, entries)

    def __len__(self) -> int:
        return _ENDLESS if self.num_steps is None else self.num_steps

    def __getitem__(self, index: int) -> Batch:
        """The batch of step `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        return Batch(self._embedding(index), self._generative(index), self._cached(index))  # type: ignore[arg-type]

    def ids(self, step: int) -> dict[str, list[str]]:
        """Where a step's examples come from: `file:line` by kind in batch order, to report a bad
        loss."""
        return {
            kind: [source.where(i) for source, i in part.select(step)]
            for kind, part in self._parts.items()
            if part.batch
        }

    def epoch(self, step: int) -> dict[str, int]:
        """The epoch that each kind is in at `step`, from 0."""
        return {
            kind: part.plan.epoch(step)
            for kind, part in self._parts.items()
            if part.plan is not None
        }

    def _rng(self, step: int, kind: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, _STEP, step, kind))

    def _embedding(self, step: int) -> Any:
        # All of them are read, by all hosts: which passages are drawn hangs on how many the
        # examples before have.
        examples = [_example(chosen) for chosen in self._parts["embedding"].select(step)]
        if not examples:
            return None
        rng, limits = self._rng(step, 0), self.limits
        config, most = self.config, self.config.positives_per_query
        texts: list[Text] = [example.query for example in examples]
        places: list[int] = []
        scores: list[float] = []
        for number, example in enumerate(examples):
            positives, negatives = choose_passages(
                rng, len(example.positives), len(example.negatives), config.group_size, most
            )
            chosen = [*positives, *(len(example.positives) + i for i in negatives)]
            among = example.positives + example.negatives
            # Where there are fewer positives than wanted, their places stay empty.
            start = number * (most + config.group_size - 1)
            places += [start + i for i in range(len(positives))]
            places += [start + most + i for i in range(len(negatives))]
            texts += [among[i] for i in chosen]
            scores += [example.scores[i] if example.scores is not None else 0.0 for i in chosen]
        Q, P = len(examples), len(examples) * (most + config.group_size - 1)
        longest = [limits.query] * Q + [limits.passage] * len(places)

        def tokenise(numbers: Sequence[int]) -> list[PromptedText]:
            ids, prompts = self._reader.embedding(
                [texts[i] for i in numbers], [longest[i] for i in numbers]
            )
            return [PromptedText(*text) for text in zip(ids, prompts, strict=True)]

        found, arrive = self._tokenised(f"{step}/embedding", len(texts), tokenise, PROMPTED)
        # Passages stand in their places, with a hole where one is missing.
        holes = np.full(Q + P, -1)
        holes[:Q], holes[Q + np.array(places)] = np.arange(Q), Q + np.arange(len(places))
        spread = lambda texts, hole: [texts[i] if i >= 0 else hole for i in holes.tolist()]
        units = spread(found, PromptedText([], 0))
        teacher = [0.0] * P
        for place, score in zip(places, scores, strict=True):
            teacher[place] = score
        ids = [unit.ids for unit in units]
        return embedding_batch(
            ids[:Q],
            ids[Q:],
            [unit.prompt for unit in units],
            row_length=config.row_length or max(limits.query, limits.passage),
            row_multiple=config.row_multiple,
            min_rows=self._floor.get("embedding", 0),
            min_query_rows=self._floor.get("queries", 0),
            min_segments=self._floor.get("segments", 0),
            positives=most,
            separate=self.needs.separate_sides,
            blocks=self.needs.sample_blocks,
            scores=teacher if self.needs.teacher_scores else None,
            keys=[unit.key for unit in units[Q:]],
            arrive=arrive
            and (
                lambda rows, height: spread([t.ids for t in arrive(rows[holes >= 0], height)], [])
            ),
        )

    def _generative(self, step: int) -> Any:
        chosen = self._parts["generative"].select(step)
        if not chosen:
            return None

        def tokenise(numbers: Sequence[int]) -> list[TokenText]:
            return self._reader.generative([_example(chosen[i]) for i in numbers])

        found, arrive = self._tokenised(f"{step}/generative", len(chosen), tokenise, GENERATIVE)
        return generative_batch(
            found,
            row_length=self.config.generative_row_length or self.limits.generative,
            row_multiple=self.config.row_multiple,
            min_rows=self._floor.get("generative", 0),
            prefix=self.needs.prefix_generation,
            arrive=arrive,
        )

    def _cached(self, step: int) -> Any:
        chosen = self._parts["cached"].select(step)
        if not chosen:
            return None
        drawn = self._rng(step, 2).integers(len(self.config.layouts), size=len(chosen))

        def tokenise(numbers: Sequence[int]) -> list[TokenCached]:
            modes = [self.config.layouts[drawn[i]] for i in numbers]
            return self._reader.cached([_example(chosen[i]) for i in numbers], modes)  # type: ignore[arg-type]

        found, arrive = self._tokenised(f"{step}/cached", len(chosen), tokenise, CACHED)
        return cached_batch(
            found,
            pieces_row_length=self.limits.cached_pieces,
            row_length=self.limits.cached_text,
            row_multiple=self.config.row_multiple,
            min_rows=self._floor.get("cached", 0),
            blocks=self.needs.sample_blocks,
            prefix=self.needs.prefix_generation,
            arrive=arrive,
        )

    def _tokenised(
        self,
        key: str,
        number: int,
        tokenise: Callable[[Sequence[int]], list[T]],
        coding: WireFormat[T],
    ) -> tuple[list[T], Arrive[T] | None]:
        """The texts of a part of a batch, or what is known of them and how they arrive."""
        if self._share is None:
            return tokenise(range(number)), None
        return self._share.prepare(key, number, tokenise, coding)

    def _probe(self, steps: int) -> None:
        seen: collections.Counter[str] = collections.Counter()
        for step in range(steps):
            batch = self[step]
            for name, value in _shape(batch).items():
                seen[name] = max(seen[name], value)
        self._floor = dict(seen)


def _example(chosen: tuple[Source, int]) -> Any:
    source, index = chosen
    return source[index]


def _shape(batch: Batch) -> dict[str, int]:
    shape: dict[str, int] = {}
    if batch.embedding is not None:
        shape["queries"] = batch.embedding.query_rows
        shape["embedding"] = len(batch.embedding.rows.tokens) - batch.embedding.query_rows
        shape["segments"] = batch.embedding.segments_per_row
    if batch.generative is not None:
        shape["generative"] = len(batch.generative.rows.tokens)
    if batch.cached is not None:
        shape["cached"] = len(batch.cached.pieces.tokens)
    return shape


def make_iterator(
    config: DataConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat = GRIT,
    seed: int = 0,
    num_steps: int | None = None,
    batches: JointBatches | None = None,
) -> grain.DatasetIterator:
    """Batches in order of step, prepared ahead in the background.

    The iterator's `get_state()` and `set_state()` hold the step alone, and Orbax (v1) saves and
    restores it as a checkpointable. `batches` are those already opened with the same arguments.
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
