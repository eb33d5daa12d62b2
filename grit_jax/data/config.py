"""The configuration of a run's data, and what its model and losses require of the batches."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias, get_args

from grit_jax.data.example_tokenizer import LengthLimits
from grit_jax.data.formats import Kind
from grit_jax.errors import GritError
from grit_jax.text.length import DefaultLength, length_limit
from grit_jax.text.rag_layouts import CACHED_MODES, MODES

KINDS: tuple[Kind, ...] = get_args(Kind)
PreferenceLoss: TypeAlias = Literal["kto", "dpo"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads: the `data` section of a configuration.

    A source is a JSONL path, a glob, a folder made by `grit data prepare`, or `tfds:NAME`. Batch
    sizes count the examples of an optimizer step over all devices and hosts; 0 leaves the kind out.
    Lengths are in tokens and include BOS, instruction and tags.

    Attributes:
      embedding: sources of `{"query", "pos", "neg"}` lines. Default: none.
      generative: sources of `{"text"}` lines. Default: none.
      distilled: those of the generative sources that `train.loss.generative_distillation` applies
        to. Default: all.
      cached: sources of `{"docs", "text"}` lines. Default: none.
      preference: sources of `{"prompt", "chosen", "rejected"}` or `{"prompt", "completion",
        "label"}` lines, for `train.loss.preference`. Default: none.
      embedding_batch: queries in a step. Default: 0.
      generative_batch: sequences in a step. Default: 0.
      cached_batch: questions over cached documents in a step. Default: 0.
      preference_batch: pairs in a step with `train.loss.preference: dpo`, answers with `kto` (of a
        pair, each answer counts by itself). Default: 0.
      group_size: passages of a query: `group_size - 1` negatives beside its positive. 1 trains on
        the negatives of the batch alone. Default: 2.
      positives_per_query: the most positives drawn for a query, each of them a pair with it (see
        `train.loss`). Default: 1.
      query_max_length: longer queries are truncated. Default: 256 tokens.
      passage_max_length: longer passages are truncated. Default: 2048 tokens.
      generative_max_length: longer sequences are truncated. Default: 2048 tokens.
      document_max_length: longer documents of cached examples are truncated. Default: 2048 tokens.
      preference_max_length: longer prompts with their answers are truncated. Default: 2048
        tokens.
      row_length: tokens of a row of embedding texts. Default: the larger of `query_max_length` and
        `passage_max_length`.
      generative_row_length: tokens of a row of sequences. Default: `generative_max_length`.
      pieces_row_length: tokens of a row of cached texts. Default: `document_max_length +
        query_max_length`.
      cached_row_length: tokens of a row of questions and answers that continue cached texts.
        Default: `generative_max_length`.
      teacher_row_length: tokens of a row of the texts that a teacher reads (documents, question
        and answer in one), with `train.loss.cached_distillation`. Default: `pieces_row_length +
        cached_row_length`.
      preference_row_length: tokens of a row of prompts with their answers. Default:
        `preference_max_length`; twice that with `train.loss.preference: dpo`, where the two texts
        of a pair share a row.
      row_multiple: the number of rows in a batch is rounded up to a multiple of it, because each
        new shape compiles a new program. Default: 8.
      probe_steps: batches packed before the run to find its largest shapes, so that few programs
        are compiled. Default: 8.
      balance_window: consecutive batches that exchange examples so that these are of nearly equal
        length, which saves padding; each host then tokenizes every example once more. 0: none
        do. Default: 0.
      layouts: layouts of cached examples; one is drawn at random for each. Default: those with
        cached texts.
      on_error: a bad line stops the run (`stop`), or is left out and counted (`skip`). Default:
        `stop`.
      raw_strings: bare strings get no tags and no BOS, as in the original. Default: false.
      last_answer_only: only the last answer of a conversation is a target (the original's
        `prefixlm`, whose attention stays causal). Implied where `model.attention` makes the text
        before it a prefix block. Default: false.
      shuffle: false reads the sources in their order. Default: true.
      num_samples: the number of examples to use of a source, a random subset, as {source: number}.
        Default: all.
      prefetch: batches prepared ahead. Default: 4.
      workers: threads that prepare them; 0 prepares each batch when it is needed. Default: 2.

    Raises:
      ValueError: a value out of its range, an unknown layout or source name.
    """

    embedding: list[str] = dataclasses.field(default_factory=list)
    generative: list[str] = dataclasses.field(default_factory=list)
    distilled: list[str] = dataclasses.field(default_factory=list)
    cached: list[str] = dataclasses.field(default_factory=list)
    preference: list[str] = dataclasses.field(default_factory=list)
    embedding_batch: int = 0
    generative_batch: int = 0
    cached_batch: int = 0
    preference_batch: int = 0
    group_size: int = 2
    positives_per_query: int = 1
    query_max_length: int = DefaultLength(256)
    passage_max_length: int = DefaultLength(2048)
    generative_max_length: int = DefaultLength(2048)
    document_max_length: int = DefaultLength(2048)
    preference_max_length: int = DefaultLength(2048)
    row_length: int | None = None
    generative_row_length: int | None = None
    pieces_row_length: int | None = None
    cached_row_length: int | None = None
    teacher_row_length: int | None = None
    preference_row_length: int | None = None
    row_multiple: int = 8
    probe_steps: int = 8
    balance_window: int = 0
    layouts: list[str] = dataclasses.field(default_factory=lambda: list(CACHED_MODES))
    on_error: Literal["stop", "skip"] = "stop"
    raw_strings: bool = False
    last_answer_only: bool = False
    shuffle: bool = True
    num_samples: dict[str, int] = dataclasses.field(default_factory=dict)
    prefetch: int = 4
    workers: int = 2

    def __post_init__(self):
        for kind in KINDS:
            if (size := getattr(self, f"{kind}_batch")) and not getattr(self, kind):
                raise ValueError(
                    f"data.{kind}_batch: is {size}, but data.{kind} names no source; add one, or"
                    " set the batch size to 0"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in (
                "prefetch",
                "workers",
                "probe_steps",
                "balance_window",
            )
            minimum = 0 if may_be_zero or field.name.endswith("_batch") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < minimum:
                raise ValueError(f"data.{field.name}: must be at least {minimum}, got {value}")
        known_layouts = ", ".join(MODES)
        if not self.layouts:
            raise ValueError(f"data.layouts: is empty; expected some of {known_layouts}")
        if unknown := [mode for mode in self.layouts if mode not in MODES]:
            raise ValueError(f"data.layouts: expected some of {known_layouts}, got '{unknown[0]}'")
        for key, longest in (
            ("row_length", max(self.query_max_length, self.passage_max_length)),
            ("generative_row_length", self.generative_max_length),
            ("preference_row_length", self.preference_max_length),
        ):
            if (length := getattr(self, key)) is not None and length < longest:
                raise ValueError(
                    f"data.{key}: must be at least {longest}, the longest text allowed, got"
                    f" {length}"
                )
        known = {*self.embedding, *self.generative, *self.cached, *self.preference}
        if unknown := [name for name in self.num_samples if name not in known]:
            raise ValueError(
                f"data.num_samples: '{unknown[0]}' is not a source; expected some of"
                f" {', '.join(sorted(known))}"
            )

        if unknown := [name for name in self.distilled if name not in self.generative]:
            raise ValueError(
                f"data.distilled: '{unknown[0]}' is not a source of data.generative; expected some"
                f" of {', '.join(self.generative) or 'none'}"
            )

    def check_trains(self) -> None:
        """Checks that a run with these settings has batches. (The defaults have none, and reading
        sources alone needs none.)

        Raises:
          GritError: every batch size is 0.
        """
        if not any(getattr(self, f"{kind}_batch") for kind in KINDS):
            raise GritError(
                "data: every batch size is 0; set data.embedding_batch, data.generative_batch,"
                " data.cached_batch or data.preference_batch"
            )

    def fit_to_context(self, context: int) -> DataConfig:
        """The configuration with the lengths that nobody set lowered to the model's context.

        Args:
          context: tokens that the model reads (`ModelConfig.context_length`).
        """
        defaults = [
            field.name
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), DefaultLength)
        ]
        lengths = {key: length_limit(getattr(self, key), context) for key in defaults}
        return dataclasses.replace(self, **lengths)

    def check_lengths(self, context: int) -> None:
        """Checks that the model reads texts of the lengths that a run trains on.

        Args:
          context: tokens that the model reads (`ModelConfig.context_length`).

        Raises:
          GritError: a `data.*_max_length` of a kind that is trained is beyond it.
        """
        for key in self.trained_lengths():
            length_limit(getattr(self, key), context, f"data.{key}")

    def trained_lengths(self) -> list[str]:
        """The keys of the lengths that the trained kinds of batches have."""
        keys = {
            "query_max_length": self.embedding_batch or self.cached_batch,
            "passage_max_length": self.embedding_batch,
            "generative_max_length": self.generative_batch,
            "document_max_length": self.cached_batch,
            "preference_max_length": self.preference_batch,
        }
        return [key for key, used in keys.items() if used]

    def limits(self) -> LengthLimits:
        """The token limits, with the defaults of those that are None."""
        cached_row = self.pieces_row_length or self.document_max_length + self.query_max_length
        continuation_row = self.cached_row_length or self.generative_max_length
        return LengthLimits(
            query=self.query_max_length,
            passage=self.passage_max_length,
            generative=self.generative_max_length,
            document=self.document_max_length,
            cached_row=cached_row,
            continuation_row=continuation_row,
            teacher_row=self.teacher_row_length or cached_row + continuation_row,
            preference=self.preference_max_length,
        )

    def preference_row(self, loss: PreferenceLoss) -> int:
        """Tokens of a row of preference examples."""
        texts = 2 if loss == "dpo" else 1  # the two of a pair share a row
        return self.preference_row_length or texts * self.preference_max_length

    def check_preference(self, loss: PreferenceLoss) -> None:
        """Checks that the preference loss can be computed on batches of these sizes.

        Raises:
          ValueError: a batch of one answer for KTO, or rows without room for a pair for DPO.
        """
        if loss == "kto" and self.preference_batch == 1:
            raise ValueError(
                "data.preference_batch: must be at least 2 with train.loss.preference: kto, whose"
                " reference point reads each prompt with the answer to another one"
            )
        if loss == "dpo" and (row := self.preference_row(loss)) < 2 * self.preference_max_length:
            raise ValueError(
                f"data.preference_row_length: must be at least {2 * self.preference_max_length}"
                f" with train.loss.preference: dpo, two texts of the longest length, got {row}"
            )


@dataclasses.dataclass(frozen=True)
class BatchNeeds:
    """What a run's attention and losses require of its batches.

    Attributes:
      sample_blocks: an embedding text behind its causal instruction is a block of prefix attention
        (the paper's "cb").
      prefix_generation: the text before the last answer is such a block, and that answer is the
        only target ("bc").
      separate_sides: queries and passages do not share rows, so that either can be encoded alone.
      teacher_scores: batches hold a teacher's scores of the passages.
      teacher_rows: cached batches hold the texts that a teacher reads, and their own documents are
        shuffled.
      base_teacher: generative batches mark the examples that are distilled from the base model.
      preference: the loss that preference batches are for.
    """

    sample_blocks: bool = False
    prefix_generation: bool = False
    separate_sides: bool = False
    teacher_scores: bool = False
    teacher_rows: bool = False
    base_teacher: bool = False
    preference: PreferenceLoss = "kto"
