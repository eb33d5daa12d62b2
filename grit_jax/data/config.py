"""What a run reads, and what it asks of its batches."""

from __future__ import annotations

import dataclasses
from typing import Literal

from grit_jax.data.example_tokenizer import LengthLimits
from grit_jax.errors import GritError
from grit_jax.text.rag_layouts import CACHED_MODES, MODES


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads. Sources are JSONL paths, globs, or prepared datasets; batches count
    examples of a step over all devices, and 0 leaves a kind out. Lengths are tokens and count BOS,
    instruction and tags."""

    embedding: list[str] = dataclasses.field(default_factory=list)
    generative: list[str] = dataclasses.field(default_factory=list)
    cached: list[str] = dataclasses.field(default_factory=list)
    embedding_batch: int = 0
    generative_batch: int = 0
    cached_batch: int = 0
    # Passages of a query: one positive and group_size - 1 negatives; or up to positives_per_query
    # positives at once, each of them a pair with the query (see train.loss), and the same number of
    # negatives.
    group_size: int = 2
    positives_per_query: int = 1
    query_max_length: int = 256
    passage_max_length: int = 2048
    generative_max_length: int = 2048
    document_max_length: int = 2048
    # Lengths of packed rows. None: the longest text allowed.
    row_length: int | None = None
    generative_row_length: int | None = None
    # Cached examples: a row of cached texts (None: a document and a query) and the row of text that
    # reads it (None: generative_max_length).
    pieces_row_length: int | None = None
    cached_row_length: int | None = None
    # Rows are rounded up to this; every new shape is compiled anew.
    row_multiple: int = 8
    # Batches looked at before the run: its row counts start at their largest, so that shapes settle
    # at once.
    probe_steps: int = 8
    # Layouts of cached examples, drawn at random for each.
    layouts: list[str] = dataclasses.field(default_factory=lambda: list(CACHED_MODES))
    # A bad line stops the run, or is left out and counted.
    on_error: Literal["stop", "skip"] = "stop"
    # True: bare strings get no tags and no BOS, as in the original.
    raw_strings: bool = False
    # Of a conversation only the last answer is trained (the original's prefixlm, whose attention
    # stays causal; where model.attention makes a prefix of what stands before it, nothing else can
    # be).
    last_answer_only: bool = False
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
                    f"data.{kind}_batch is {getattr(self, f'{kind}_batch')}, but data.{kind} is"
                    " empty"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = (
                0
                if field.name in ("prefetch", "workers", "probe_steps")
                or field.name.endswith("_batch")
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
                f"data.num_samples: '{strange[0]}' is not a source; sources:"
                f" {', '.join(sorted(known))}"
            )

    def check_trains(self) -> None:
        """Asks that a batch has examples. The defaults have none, and what only reads sources needs
        none.

        Raises:
          GritError: every batch size is 0.
        """
        if not (self.embedding_batch or self.generative_batch or self.cached_batch):
            raise GritError(
                "data: every batch size is 0; set data.embedding_batch or data.generative_batch"
            )

    def limits(self) -> LengthLimits:
        """The token limits, None filled in."""
        return LengthLimits(
            query=self.query_max_length,
            passage=self.passage_max_length,
            generative=self.generative_max_length,
            document=self.document_max_length,
            cached_pieces=self.pieces_row_length
            or self.document_max_length + self.query_max_length,
            cached_text=self.cached_row_length or self.generative_max_length,
        )


@dataclasses.dataclass(frozen=True)
class BatchNeeds:
    """What a run's attention and losses ask of its batches.

    Attributes:
      sample_blocks: embedding texts are blocks of prefix attention behind their causal instruction
        ("cb").
      prefix_generation: what stands before the last answer is such a block, and that answer alone
        is trained ("bc").
      separate_sides: queries and passages do not share rows, so that either side can be encoded
        alone.
      teacher_scores: batches carry the scores of a teacher.
    """

    sample_blocks: bool = False
    prefix_generation: bool = False
    separate_sides: bool = False
    teacher_scores: bool = False
