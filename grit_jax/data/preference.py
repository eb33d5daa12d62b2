"""Preference batches: prompts with preferred and other answers, for KTO and DPO.

DPO compares the two answers of a pair, which are packed into one row, so that any portion of the
rows holds whole pairs. KTO takes single answers with a label; the two answers of a pair are then
two examples. Its reference point needs *mismatched* texts: each prompt of the batch with the answer
to the prompt before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from grit_jax.data.config import PreferenceLoss
from grit_jax.data.example_tokenizer import PromptedAnswer, answers_of
from grit_jax.data.formats import Example, LabelledAnswer, LineError, PreferencePair
from grit_jax.data.lines import Check, Source
from grit_jax.data.packing import (
    GenerativePacking,
    Placement,
    first_fit_decreasing,
    pack_generative,
    place_generative,
    round_up,
)
from grit_jax.data.token_texts import TokenText, max_targets
from grit_jax.types import GenerativeBatch, PreferenceBatch


class AnswerCheck:
    """A check of a line (see `lines.Check`) that also notes which of the lines kept are pairs.

    Args:
      check: the check of the run.
      loss: "dpo" accepts pairs alone.

    Attributes:
      pairs: for each line kept, in the order of the sources.
    """

    def __init__(self, check: Check, loss: PreferenceLoss):
        self._check, self._loss = check, loss
        self.pairs: list[bool] = []

    def __call__(self, example: Example, where: str) -> str | None:
        is_pair = isinstance(example, PreferencePair)
        if isinstance(example, LabelledAnswer) and self._loss == "dpo":
            raise LineError(
                where,
                'no "chosen" and "rejected", and train.loss.preference is dpo; set it to kto to'
                ' train on "completion" and "label"',
            )
        reason = self._check(example, where)
        if reason is None:
            self.pairs.append(is_pair)
        return reason


class SingleAnswers:
    """The answers of a source one by one: of a pair, the chosen one is desirable, the other is not.

    Args:
      source: the lines that a run uses, by their numbers `lines`.
      pairs: which of these are pairs.
    """

    def __init__(self, source: Source, lines: np.ndarray, pairs: np.ndarray):
        self.source, self._lines = source, np.repeat(lines, 1 + pairs)
        first = np.concatenate([[True], self._lines[1:] != self._lines[:-1]])
        self._second = ~first[: len(self._lines)]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> LabelledAnswer:
        example = self.source[int(self._lines[index])]
        if isinstance(example, LabelledAnswer):
            return example
        assert isinstance(example, PreferencePair)
        second = bool(self._second[index])
        text = example.rejected if second else example.chosen
        return LabelledAnswer(example.prompt, text, not second)

    def where(self, index: int) -> str:
        """`file:line` of the line that the answer is in."""
        return self.source.where(int(self._lines[index]))


@dataclasses.dataclass(frozen=True)
class PreferenceTexts:
    """The texts of a batch before they are tokenized.

    Attributes:
      answers: DPO: the chosen answers, then the rejected ones in the same order. KTO: one a
        example, then the mismatched texts.
      count: of those that are not mismatched.
      desirable: KTO: the labels; None with DPO.
    """

    answers: list[PromptedAnswer]
    count: int
    desirable: np.ndarray | None


def preference_texts(
    examples: Sequence[PreferencePair | LabelledAnswer], loss: PreferenceLoss
) -> PreferenceTexts:
    """The texts of a batch's examples: pairs for DPO, single answers for KTO."""
    answers = [answers_of(example) for example in examples]
    if loss == "dpo":
        pairs = [pair[0] for pair in answers] + [pair[1] for pair in answers]
        return PreferenceTexts(pairs, len(pairs), None)
    matched = [answer for (answer,) in answers]
    mismatched = [
        dataclasses.replace(answer, completion=before.completion)
        for answer, before in zip(matched, [*matched[-1:], *matched], strict=False)
    ]
    labels = [isinstance(e, LabelledAnswer) and e.desirable for e in examples]
    return PreferenceTexts([*matched, *mismatched], len(matched), np.array(labels, bool))


@dataclasses.dataclass(frozen=True)
class PreferencePlacement:
    """Where the texts go: those with their own answers, and the mismatched ones (KTO), in rows of
    their own."""

    text: Placement
    mismatched: Placement | None


def place_preference(
    texts: Sequence[TokenText], count: int, packing: GenerativePacking, mismatched_rows: int = 0
) -> PreferencePlacement:
    """Where texts go; of these, only the lengths matter.

    Args:
      texts: as in `PreferenceTexts`; the first `count` are pairs where there are no others.
      mismatched_rows: the least number of rows of mismatched texts.
    """
    if len(texts) > count:
        least = dataclasses.replace(packing, min_rows=mismatched_rows)
        return PreferencePlacement(
            place_generative(texts[:count], packing), place_generative(texts[count:], least)
        )
    half = count // 2
    lengths = [len(a.ids) + len(b.ids) for a, b in zip(texts[:half], texts[half:], strict=True)]
    pairs = first_fit_decreasing(lengths, packing.row_length)
    rows = round_up(max(pairs.num_rows, packing.min_rows), packing.row_multiple)
    index = np.concatenate([2 * pairs.index, 2 * pairs.index + 1])
    return PreferencePlacement(Placement(np.tile(pairs.row, 2), index, rows), None)


def pack_preference(
    texts: Sequence[TokenText],
    desirable: np.ndarray | None,
    placement: PreferencePlacement,
    packing: GenerativePacking,
    mismatched_targets: int = 0,
) -> PreferenceBatch:
    """The batch with the texts at their places.

    Args:
      mismatched_targets: the least `max_targets` of mismatched texts.
    """

    def packed(texts: Sequence[TokenText], place: Placement, least: int) -> GenerativeBatch:
        batch = pack_generative(texts, place, packing)
        most = min(max_targets(texts, place.row, least), packing.row_length)
        return dataclasses.replace(batch, max_targets=most)

    count = len(placement.text.row)
    text = packed(texts[:count], placement.text, packing.min_targets)
    mismatched = None
    if placement.mismatched is not None:
        mismatched = packed(texts[count:], placement.mismatched, mismatched_targets)
    return PreferenceBatch(text, desirable, mismatched)


def preference_batch(
    texts: Sequence[TokenText], desirable: np.ndarray | None, packing: GenerativePacking
) -> PreferenceBatch:
    """A batch for the preference loss, prepared on one host.

    Args:
      texts: DPO: the chosen answers, then the rejected ones. KTO: as many texts as `desirable` has
        labels, then the mismatched ones.
      desirable: KTO: the labels; None: DPO.
    """
    count = len(texts) if desirable is None else len(desirable)
    placement = place_preference(texts, count, packing)
    return pack_preference(texts, desirable, placement, packing)
