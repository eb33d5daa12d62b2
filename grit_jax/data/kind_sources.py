"""The sources of each kind of example: which of their examples a run uses, and in which order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from grit_jax.data.batch_order import BalancedOrder, BatchIndices, ContrastiveOrder, StreamOrder
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.formats import Kind
from grit_jax.data.lines import Source
from grit_jax.data.preference import AnswerCheck, SingleAnswers
from grit_jax.data.sources import open_sources
from grit_jax.errors import GritError

_SUBSET = 100


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


class KindSources:
    """The sources of one kind of example, and the order in which batches draw from them."""

    def __init__(
        self,
        kind: Kind,
        config: DataConfig,
        tokenizer: ExampleTokenizer,
        seed: int,
        needs: BatchNeeds,
    ):
        self.batch: int = getattr(config, f"{kind}_batch")
        self.sources: list[Source | SingleAnswers] = []
        self._subset: list[np.ndarray | None] = []
        self.summary: list[SourceSummary] = []
        names = getattr(config, kind) if self.batch else []
        answers = AnswerCheck(tokenizer.check, needs.preference)
        check = answers if kind == "preference" else tokenizer.check
        opened = open_sources(names, f"data.{kind}", kind, config.on_error, check)
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
        if opened and kind == "preference" and needs.preference == "kto":
            self._take_single_answers(opened, np.array(answers.pairs, bool))
        sizes = [
            len(source) if subset is None else len(subset)
            for source, subset in zip(self.sources, self._subset, strict=True)
        ]
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
            offset = {"cached": 1, "preference": 2}.get(kind, 0)
            self.order = StreamOrder(sizes, self.batch, seed + offset, shuffle=config.shuffle)
        if self.order is not None and config.balance_window > 1:
            self._count = functools.partial(tokenizer.lengths, kind)
            self.order = BalancedOrder(self.order, config.balance_window, self._lengths)

    def _take_single_answers(self, opened: Sequence[Source], pairs: np.ndarray) -> None:
        """Both answers of each pair become examples.

        Args:
          pairs: of the lines of all sources, one source after the other, which are pairs.
        """
        ends = np.cumsum([len(source) for source in opened])
        for d, (source, flags) in enumerate(zip(opened, np.split(pairs, ends[:-1]), strict=True)):
            subset = self._subset[d]
            lines = np.arange(len(source)) if subset is None else subset
            self.sources[d] = SingleAnswers(source, lines, flags[lines])
            self._subset[d] = None

    def select(self, step: int) -> list[tuple[Source | SingleAnswers, int]]:
        """(source, index) of each of the step's examples."""
        if self.order is None:
            return []
        return self._located(self.order(step))

    def _lengths(self, indices: BatchIndices) -> np.ndarray:
        return self._count([example_of(chosen) for chosen in self._located(indices)])

    def _located(self, chosen: BatchIndices) -> list[tuple[Source | SingleAnswers, int]]:
        return [
            (self.sources[d], i if self._subset[d] is None else int(self._subset[d][i]))
            for d, i in zip(chosen.dataset.tolist(), chosen.index.tolist(), strict=True)
        ]


def example_of(chosen: tuple[Source | SingleAnswers, int]) -> Any:
    """The example that `KindSources.select` names."""
    source, index = chosen
    return source[index]
