"""The batches of a run: a pure function of (configuration, data, seed, step), read ahead by grain."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from grit_jax.data.chat import GRIT, ChatFormat
from grit_jax.data.datasets import open_source
from grit_jax.data.formats import Kind
from grit_jax.data.layouts import CACHED_MODES, MODES
from grit_jax.data.lines import Source
from grit_jax.data.packing import cached_batch, embedding_batch, generative_batch
from grit_jax.data.sampling import ContrastivePlan, Selection, StreamPlan, choose_passages
from grit_jax.data.tokenise import ExampleTokenizer, Limits
from grit_jax.data.tokenizer import Tokenizer
from grit_jax.types import Batch, GritError

if TYPE_CHECKING:
    import grain

_SUBSET, _STEP = 100, 101
# A run without a number of steps: no one trains for longer.
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads. Sources are JSONL paths, globs, or prepared datasets; batches count examples of a
    step over all devices, and 0 leaves a kind out. Lengths are tokens and count BOS, instruction and tags."""

    embedding: list[str] = dataclasses.field(default_factory=list)
    generative: list[str] = dataclasses.field(default_factory=list)
    cached: list[str] = dataclasses.field(default_factory=list)
    embedding_batch: int = 0
    generative_batch: int = 0
    cached_batch: int = 0
    # Passages of a query: one positive and group_size - 1 negatives.
    group_size: int = 2
    query_max_length: int = 256
    passage_max_length: int = 2048
    generative_max_length: int = 2048
    document_max_length: int = 2048
    # Lengths of packed rows. None: the longest text allowed.
    row_length: int | None = None
    generative_row_length: int | None = None
    # Cached examples: a row of cached texts (None: a document and a query) and the row of text that reads it
    # (None: generative_max_length).
    pieces_row_length: int | None = None
    cached_row_length: int | None = None
    # Rows are rounded up to this; every new shape is compiled anew.
    row_multiple: int = 8
    # Batches looked at before the run: its row counts start at their largest, so that shapes settle at once.
    probe_steps: int = 8
    # Layouts of cached examples, drawn at random for each.
    layouts: list[str] = dataclasses.field(default_factory=lambda: list(CACHED_MODES))
    # A bad line stops the run, or is left out and counted.
    on_error: Literal["stop", "skip"] = "stop"
    # True: bare strings get no tags and no BOS, as in the original.
    raw_strings: bool = False
    shuffle: bool = True
    # Random subset of a source: its name as in the lists above, and a number of examples.
    num_samples: dict[str, int] = dataclasses.field(default_factory=dict)
    # Batches prepared ahead, and the threads that do it (0: each batch when it is asked for).
    prefetch: int = 4
    workers: int = 2

    def __post_init__(self):
        for kind in ("embedding", "generative", "cached"):
            if getattr(self, f"{kind}_batch") and not getattr(self, kind):
                raise ValueError(
                    f"data.{kind}_batch is {getattr(self, f'{kind}_batch')}, but data.{kind} is empty"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = (
                0
                if field.name in ("prefetch", "workers", "probe_steps") or field.name.endswith("_batch")
                else 1
            )
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"data.{field.name} must be at least {least}, found {value}")
        unknown = [mode for mode in self.layouts if mode not in MODES]
        if unknown or not self.layouts:
            raise ValueError(f"data.layouts: {unknown or 'empty'}; known: {', '.join(MODES)}")
        for row, longest in (
            ("row_length", max(self.query_max_length, self.passage_max_length)),
            ("generative_row_length", self.generative_max_length),
        ):
            if (getattr(self, row) or longest) < longest:
                raise ValueError(
                    f"data.{row} ({getattr(self, row)}) is less than the longest text ({longest})"
                )
        known = {*self.embedding, *self.generative, *self.cached}
        if strange := [name for name in self.num_samples if name not in known]:
            raise ValueError(
                f"data.num_samples: '{strange[0]}' is not a source; sources: {', '.join(sorted(known))}"
            )

    def limits(self) -> Limits:
        """The token limits, None filled in."""
        return Limits(
            query=self.query_max_length,
            passage=self.passage_max_length,
            generative=self.generative_max_length,
            document=self.document_max_length,
            cached_pieces=self.pieces_row_length or self.document_max_length + self.query_max_length,
            cached_text=self.cached_row_length or self.generative_max_length,
        )


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """What became of one source: `used` of its `examples`, and why others were not (reason: count)."""

    name: str
    kind: Kind
    examples: int
    used: int
    skipped: dict[str, int]
    filtered: dict[str, int]


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
            self.summary.append(SourceSummary(name, kind, total, used, skipped, filtered))
        sizes = [entry.used for entry in self.summary]
        self.plan: ContrastivePlan | StreamPlan | None = None
        if self.batch and kind == "embedding":
            if self.batch > sum(sizes):
                raise GritError(
                    f"data.embedding_batch ({self.batch}) is more than the {sum(sizes)} usable examples: "
                    "a query would meet itself among its negatives; make the batch smaller"
                )
            self.plan = ContrastivePlan(sizes, self.batch, seed, shuffle=config.shuffle)
        elif self.batch:
            # Another seed, so that equally long streams of two kinds do not run in step.
            self.plan = StreamPlan(sizes, self.batch, seed + (kind == "cached"), shuffle=config.shuffle)

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
    """Batches by step number: `batches[step]` is a `Batch` of NumPy arrays, the same one every time.

    Args:
      seed: of the order, the choice of passages and the layouts.
      num_steps: `len()`; None is endless.

    Raises:
      GritError: a source that cannot be read, a bad line (unless skipped), or a contrastive batch of more
        examples than there are.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        chat: ChatFormat = GRIT,
        seed: int = 0,
        num_steps: int | None = None,
    ):
        self.config, self.seed, self.num_steps = config, seed, num_steps
        self.limits = config.limits()
        self._reader = ExampleTokenizer(
            tokenizer,
            chat,
            self.limits,
            group_size=config.group_size,
            layouts=config.layouts,  # type: ignore[arg-type]
            raw_strings=config.raw_strings,
        )
        self._parts = {
            kind: _Part(kind, config, self._reader, seed) for kind in ("embedding", "generative", "cached")
        }
        if not any(part.batch for part in self._parts.values()):
            raise GritError("data: every batch size is 0; set data.embedding_batch or data.generative_batch")
        self._floor: dict[str, int] = {}
        self._probe(min(config.probe_steps, len(self)))

    @property
    def summary(self) -> list[SourceSummary]:
        """One entry a source: examples used, skipped and filtered, and why."""
        return [entry for part in self._parts.values() for entry in part.summary]

    def __len__(self) -> int:
        return _ENDLESS if self.num_steps is None else self.num_steps

    def __getitem__(self, index: int) -> Batch:
        """The batch of step `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        return Batch(self._embedding(index), self._generative(index), self._cached(index))  # type: ignore[arg-type]

    def ids(self, step: int) -> dict[str, list[str]]:
        """Where a step's examples come from: `file:line` by kind in batch order, to report a bad loss."""
        return {
            kind: [source.where(i) for source, i in part.select(step)]
            for kind, part in self._parts.items()
            if part.batch
        }

    def epoch(self, step: int) -> dict[str, int]:
        """The epoch that each kind is in at `step`, from 0."""
        return {kind: part.plan.epoch(step) for kind, part in self._parts.items() if part.plan is not None}

    def _rng(self, step: int, kind: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, _STEP, step, kind))

    def _embedding(self, step: int) -> Any:
        examples = self._examples("embedding", step)
        if not examples:
            return None
        rng, limits = self._rng(step, 0), self.limits
        texts = [example.query for example in examples]
        for example in examples:
            positive, negatives = choose_passages(
                rng, len(example.positives), len(example.negatives), self.config.group_size
            )
            texts += [example.positives[positive], *(example.negatives[i] for i in negatives)]
        passages = len(texts) - len(examples)
        ids, prompts = self._reader.embedding(
            texts, [limits.query] * len(examples) + [limits.passage] * passages
        )
        return embedding_batch(
            ids[: len(examples)],
            ids[len(examples) :],
            prompts,
            row_length=self.config.row_length or max(limits.query, limits.passage),
            row_multiple=self.config.row_multiple,
            min_rows=self._floor.get("embedding", 0),
            min_segments=self._floor.get("segments", 0),
        )

    def _generative(self, step: int) -> Any:
        examples = self._examples("generative", step)
        if not examples:
            return None
        return generative_batch(
            self._reader.generative(examples),
            row_length=self.config.generative_row_length or self.limits.generative,
            row_multiple=self.config.row_multiple,
            min_rows=self._floor.get("generative", 0),
        )

    def _cached(self, step: int) -> Any:
        examples = self._examples("cached", step)
        if not examples:
            return None
        drawn = self._rng(step, 2).integers(len(self.config.layouts), size=len(examples))
        modes = [self.config.layouts[i] for i in drawn]
        return cached_batch(
            self._reader.cached(examples, modes),  # type: ignore[arg-type]
            pieces_row_length=self.limits.cached_pieces,
            row_length=self.limits.cached_text,
            row_multiple=self.config.row_multiple,
            min_rows=self._floor.get("cached", 0),
        )

    def _examples(self, kind: str, step: int) -> Sequence[Any]:
        return [source[i] for source, i in self._parts[kind].select(step)]

    def _probe(self, steps: int) -> None:
        seen: collections.Counter[str] = collections.Counter()
        for step in range(steps):
            batch = self[step]
            for name, value in _shape(batch).items():
                seen[name] = max(seen[name], value)
        self._floor = dict(seen)


def _shape(batch: Batch) -> dict[str, int]:
    shape: dict[str, int] = {}
    if batch.embedding is not None:
        shape["embedding"] = len(batch.embedding.rows.tokens)
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

    The iterator's `get_state()` and `set_state()` hold the step alone, and Orbax (v1) saves and restores it
    as a checkpointable. `batches` are those already opened with the same arguments.
    """
    import grain

    source = batches if batches is not None else JointBatches(config, tokenizer, chat, seed, num_steps)
    # Threads, not processes: tokenisation releases Python's lock, and the state stays one step number.
    options = grain.ReadOptions(
        num_threads=config.workers, prefetch_buffer_size=max(config.prefetch, config.workers)
    )
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
