"""Tokenizes examples: chat format, truncation, target masks, and which examples cannot be used.

Texts are truncated on the right. Instructions, questions and answers of cached examples are never
truncated: an example in which they exceed the limit is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from grit_jax.data.formats import (
    CachedExample,
    EmbeddingExample,
    Example,
    GenerativeExample,
    Kind,
    LabelledAnswer,
    LineError,
    PreferencePair,
    Text,
)
from grit_jax.data.packing import fit_documents
from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText
from grit_jax.text.chat import ChatFormat, PromptPart
from grit_jax.text.rag_layouts import READING_MODES, RagMode, compose
from grit_jax.text.tokenizer import Tokenizer

# Before tokenization a text is truncated to this many characters for each token of the longest
# limit (as in the original).
CHARACTERS_PER_TOKEN = 10
# A cached example is left out if it has no room for this many characters of each document.
MIN_DOCUMENT_CHARACTERS = 8

# A prompt and the ids of each of its parts; one of these parts: the ids of its prompt, its number.
EncodedPrompt: TypeAlias = tuple[list[PromptPart], list[list[int]]]
PlacedPart: TypeAlias = tuple[list[list[int]], int]


@dataclasses.dataclass(frozen=True)
class LengthLimits:
    """The most tokens of a text of each kind, BOS, instruction and tags included; then the tokens
    of a cached batch's rows: of cached texts, of continuations, and of a teacher's texts (0: there
    is no teacher). `preference` is that of a prompt with its answer."""

    query: int
    passage: int
    generative: int
    document: int
    cached_row: int
    continuation_row: int
    teacher_row: int = 0
    preference: int = 0


@dataclasses.dataclass(frozen=True)
class PromptedAnswer:
    """An answer to a prompt `(user, assistant, ..., user)`."""

    prompt: tuple[str, ...]
    completion: str


def answers_of(example: PreferencePair | LabelledAnswer) -> list[PromptedAnswer]:
    """The answers of a preference example, of a pair the chosen one first."""
    if isinstance(example, LabelledAnswer):
        return [PromptedAnswer(example.prompt, example.completion)]
    return [PromptedAnswer(example.prompt, text) for text in (example.chosen, example.rejected)]


class ExampleTokenizer:
    """Turns parsed examples into token ids within `limits`.

    Args:
      group_size: passages of a query; above 1, embedding examples need negatives.
      layouts: those that a cached example must fit into.
      raw_strings: a bare string of a data file gets no tags and no BOS, as in the original.
      last_answer_only: only the last answer of a conversation is a target. A prefix language model
        reads everything before it at once (the original's `prefixlm`, `gritlm:
        gritlm/training/data.py:270-279`).
      teacher_scores: every embedding example must have a teacher's scores.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        limits: LengthLimits,
        *,
        group_size: int = 2,
        layouts: Sequence[RagMode] = (),
        raw_strings: bool = False,
        last_answer_only: bool = False,
        teacher_scores: bool = False,
    ):
        self.tokenizer, self.chat, self.limits = tokenizer, chat, limits
        self.group_size, self.layouts, self.raw_strings = group_size, tuple(layouts), raw_strings
        self.last_answer_only, self.teacher_scores = last_answer_only, teacher_scores
        longest = max(limits.query, limits.passage, limits.generative, limits.document)
        self._characters = CHARACTERS_PER_TOKEN * longest
        self._prompt_lengths: dict[str, int] = {}  # a dataset has few different instructions
        self._document_prompt = self._prompt_length("")

    def lengths(self, kind: Kind, examples: Sequence[Any]) -> np.ndarray:
        """About how many tokens of its batch's rows each example fills, truncated as there.

        For embedding examples, whose passages are drawn later: the query, one positive and
        `group_size - 1` negatives of mean length. For cached examples: cached texts and
        continuation in the first layout. For preference examples: every answer with its prompt.
        """
        if kind == "preference":
            answers = [answers_of(example) for example in examples]
            sizes = iter(self.preference([answer for pair in answers for answer in pair]))
            return np.array([sum(len(next(sizes).ids) for _ in pair) for pair in answers], np.int64)
        if kind == "generative":
            return np.array([len(text.ids) for text in self.generative(examples)], np.int64)
        if kind == "cached":
            rows = self.cached(examples, [self.layouts[0]] * len(examples))
            return np.array(
                [sum(map(len, text.cached_texts)) + len(text.text.ids) for text in rows], np.int64
            )
        texts: list[Text] = []
        limits: list[int] = []
        for example in examples:
            passages = example.positives + example.negatives
            texts += [example.query, *passages]
            limits += [self.limits.query] + [self.limits.passage] * len(passages)
        counts = iter([len(text.ids) for text in self.embedding(texts, limits)])
        lengths = []
        for example in examples:
            query = next(counts)
            positives = [next(counts) for _ in example.positives]
            negatives = [next(counts) for _ in example.negatives]
            drawn = (self.group_size - 1) * np.mean(negatives or [0])
            lengths.append(round(query + np.mean(positives) + drawn))
        return np.array(lengths, np.int64)

    def embedding(self, texts: Sequence[Text], limits: Sequence[int]) -> list[PromptedText]:
        """Embedding texts in their format, each truncated to its limit."""
        prompts = [self._embedding_parts(text) for text in texts]
        result = []
        for parts, limit in zip(self.tokenizer.encode_parts(prompts), limits, strict=True):
            prompt = [i for ids in parts[:-1] for i in ids]
            result.append(PromptedText((prompt + parts[-1])[:limit], len(prompt)))
        return result

    def generative(self, examples: Sequence[GenerativeExample]) -> list[TokenText]:
        """Ids and targets of conversations and documents, truncated to the generative limit."""
        prompts = [self._generative_parts(example) for example in examples]
        return [
            _with_targets(prompt, ids, self.limits.generative, self.last_answer_only)
            for prompt, ids in zip(prompts, self.tokenizer.encode_parts(prompts), strict=True)
        ]

    def preference(self, answers: Sequence[PromptedAnswer]) -> list[TokenText]:
        """Ids and targets of prompts with their answers, truncated to the preference limit."""
        prompts = [
            [*self.chat.render_turns(answer.prompt), *self.chat.answer_parts(answer.completion)]
            for answer in answers
        ]
        return [
            _with_targets(prompt, ids, self.limits.preference, last_answer_only=True)
            for prompt, ids in zip(prompts, self.tokenizer.encode_parts(prompts), strict=True)
        ]

    def cached(
        self,
        examples: Sequence[CachedExample],
        modes: Sequence[RagMode],
        orders: Sequence[Sequence[int]] | None = None,
    ) -> list[TokenCached]:
        """Cached texts, continuation and answer of each example in its layout; documents are
        truncated to fit.

        Args:
          orders: the order of each example's documents in its layout; each then has a teacher's
            text as well, with the documents in the order of the data, truncated as in the layout.
            None: the order of the data, and no teacher.
        """
        prompts: list[list[PromptPart]] = []
        counts: list[int] = []  # of cached texts
        for number, (example, mode) in enumerate(zip(examples, modes, strict=True)):
            docs = [d[: self._characters] for d in example.docs]
            in_order = docs if orders is None else [docs[i] for i in orders[number]]
            layout = compose(mode, example.question, in_order, self.chat)
            for cached_text in layout.cached:
                *tags, last = self.chat.embed_parts("", cached_text.text)
                is_document = cached_text.kind == "document"
                prompts.append([*tags, dataclasses.replace(last, is_document=is_document)])
            prompts.append([*layout.continuation, *self.chat.answer_parts(example.answer)])
            counts.append(len(layout.cached))
            if orders is not None:
                prompts.append(self._teacher_parts(example, mode, docs))
        encoded = iter(zip(prompts, self.tokenizer.encode_parts(prompts), strict=True))
        fitted = []
        for number, count in enumerate(counts):
            cached, text = [next(encoded) for _ in range(count)], next(encoded)
            teacher = None if orders is None else (*next(encoded), orders[number])
            fitted.append(self._fit(cached, text, teacher))
        return fitted

    def check(self, example: Example, where: str) -> str | None:
        """The reason why an example cannot be used, or None.

        Args:
          where: `file:line`, for messages.

        Raises:
          LineError: no negatives to draw from, or no scores to distil.
        """
        if isinstance(example, EmbeddingExample):
            return self._check_embedding(example, where)
        if isinstance(example, (PreferencePair, LabelledAnswer)):
            if self._too_long(self.chat.render_turns(example.prompt), self.limits.preference - 1):
                return f"the prompt fills preference_max_length ({self.limits.preference})"
            return None
        if isinstance(example, GenerativeExample):
            if not example.turns:
                return None
            if self._too_long(
                self.chat.render_turns(example.turns[:1]), self.limits.generative - 1
            ):
                return f"the first user turn fills generative_max_length ({self.limits.generative})"
            before = self.chat.render_turns(example.turns[:-1])
            if self.last_answer_only and self._too_long(before, self.limits.generative - 1):
                return (
                    "the turns before the last answer fill generative_max_length"
                    f" ({self.limits.generative})"
                )
            return None
        for mode in self.layouts:
            cached, text = self._shortest_layout(example, mode)
            if any(
                self._too_long(parts, self.limits.cached_row) for parts in cached
            ) or self._total_too_long(cached, self.limits.cached_row):
                return (
                    "documents and question do not fit pieces_row_length"
                    f" ({self.limits.cached_row})"
                )
            if self._too_long(text, self.limits.continuation_row):
                limit = self.limits.continuation_row
                return f"question and answer do not fit cached_row_length ({limit})"
            if self.limits.teacher_row and self._too_long(
                self._teacher_parts(example, mode, _shortest(example)), self.limits.teacher_row
            ):
                limit = self.limits.teacher_row
                return f"documents, question and answer do not fit teacher_row_length ({limit})"
        return None

    def _check_embedding(self, example: EmbeddingExample, where: str) -> str | None:
        if self.group_size > 1 and not example.negatives:
            raise LineError(
                where,
                f'no negatives, and group_size is {self.group_size}: add "neg", or set'
                " group_size: 1 to train on the negatives of the batch alone",
            )
        if self.teacher_scores and example.scores is None:
            raise LineError(
                where,
                'no "scores", and train.loss.distillation_factor is above 0: add a teacher\'s score'
                ' for each of "pos" and "neg", or set the factor to 0',
            )
        for name, limit, texts in (
            ("query", self.limits.query, (example.query,)),
            ("passage", self.limits.passage, example.positives + example.negatives),
        ):
            for text in texts:
                instruction = text.instruction or ""
                if (
                    len(instruction) > CHARACTERS_PER_TOKEN * limit
                    or self._prompt_length(instruction) >= limit
                ):
                    return f"an instruction fills {name}_max_length ({limit})"
        return None

    def _shortest_layout(
        self, example: CachedExample, mode: RagMode
    ) -> tuple[list[list[PromptPart]], list[PromptPart]]:
        """Prompt parts of the cached texts and of the continuation, documents at their shortest."""
        layout = compose(mode, example.question, _shortest(example), self.chat)
        cached = [self.chat.embed_parts("", text.text) for text in layout.cached]
        return cached, [*layout.continuation, *self.chat.answer_parts(example.answer)]

    def _teacher_parts(
        self, example: CachedExample, mode: RagMode, docs: Sequence[str]
    ) -> list[PromptPart]:
        """What a teacher reads: the documents in the text. Empty for a layout without documents:
        its answers are not those of one who has read them."""
        if mode == "none":
            return []
        layout = compose(READING_MODES[mode], example.question, docs, self.chat)
        return [*layout.continuation, *self.chat.answer_parts(example.answer)]

    def _too_long(self, parts: Sequence[PromptPart], limit: int) -> bool:
        return self._total_too_long([parts], limit)

    def _total_too_long(self, prompts: Sequence[Sequence[PromptPart]], limit: int) -> bool:
        # No tokenizer makes more tokens than bytes (and a prefix); nearly every text is short
        # enough by this bound and need not be tokenized.
        if sum(len(part.text.encode()) + 1 for parts in prompts for part in parts) <= limit:
            return False
        encoded = self.tokenizer.encode_parts(prompts)
        return sum(len(ids) for parts in encoded for ids in parts) > limit

    def _embedding_parts(self, text: Text) -> list[PromptPart]:
        body = text.text[: self._characters]
        if text.instruction is None and self.raw_strings:
            return [PromptPart(body)]
        return self.chat.embed_parts(text.instruction or "", body)

    def _generative_parts(self, example: GenerativeExample) -> list[PromptPart]:
        if example.text is None:
            return self.chat.render_turns(example.turns)
        if self.raw_strings:
            return [PromptPart(example.text, is_answer=True)]
        return self.chat.plain_parts(example.text)

    def _prompt_length(self, instruction: str) -> int:
        if instruction not in self._prompt_lengths:
            parts = self.chat.embed_parts(instruction, "")
            self._prompt_lengths[instruction] = sum(
                map(len, self.tokenizer.encode_parts([parts])[0])
            )
        return self._prompt_lengths[instruction]

    def _fit(
        self,
        cached: list[EncodedPrompt],
        text: EncodedPrompt,
        teacher: tuple[list[PromptPart], list[list[int]], Sequence[int]] | None = None,
    ) -> TokenCached:
        # A document keeps the same tokens in every layout, so its limit is the same in each.
        max_tokens = max(self.limits.document - self._document_prompt, 1)
        cached_documents = _documents(cached)
        _truncate_documents(cached_documents, cached, max_tokens, self.limits.cached_row)
        documents = _documents([text])
        _truncate_documents(documents, [text], max_tokens, self.limits.continuation_row)
        read = TokenText([], [])
        if teacher is not None:
            parts, ids, order = teacher
            documents += cached_documents  # a layout has them in one of the two places
            _truncate_to_teacher(documents, (parts, ids), order, self.limits.teacher_row)
            read = _with_targets(parts, ids, self.limits.teacher_row)
        return TokenCached(
            [[i for part in ids for i in part] for _, ids in cached],
            _with_targets(*text, self.limits.continuation_row),
            self._document_prompt,
            read,
        )


def _shortest(example: CachedExample) -> list[str]:
    """The example's documents at their shortest."""
    return ["x" * MIN_DOCUMENT_CHARACTERS] * len(example.docs)


def _documents(prompts: Sequence[EncodedPrompt]) -> list[PlacedPart]:
    """The parts of prompts that are documents."""
    return [
        (ids, number)
        for parts, ids in prompts
        for number, part in enumerate(parts)
        if part.is_document
    ]


def _truncate_documents(
    documents: Sequence[PlacedPart],
    prompts: Sequence[EncodedPrompt],
    max_tokens: int,
    room: int,
) -> None:
    """Truncates the documents of prompts in place: to `max_tokens` each, and all together to what
    the other parts leave of `room`."""
    for ids, number in documents:
        ids[number] = ids[number][:max_tokens]
    total = sum(len(part) for _, ids in prompts for part in ids)
    lengths = [len(ids[number]) for ids, number in documents]
    kept = fit_documents(lengths, room - total + sum(lengths))
    for (ids, number), length in zip(documents, kept, strict=True):
        ids[number] = ids[number][:length]


def _truncate_to_teacher(
    documents: Sequence[PlacedPart], teacher: EncodedPrompt, order: Sequence[int], room: int
) -> None:
    """Truncates a layout's documents and those of its teacher in place, so that both read the same
    ones and the teacher's text is within `room`.

    Args:
      order: for each of the layout's documents, its number among the teacher's.
    """
    read = _documents([teacher])
    if not read:
        return
    read = [read[number] for number in order]
    for (ids, number), (read_ids, place) in zip(documents, read, strict=True):
        read_ids[place] = read_ids[place][: len(ids[number])]
    _truncate_documents(read, [teacher], room, room)
    for (ids, number), (read_ids, place) in zip(documents, read, strict=True):
        ids[number] = ids[number][: len(read_ids[place])]


def _with_targets(
    parts: Sequence[PromptPart],
    ids: Sequence[list[int]],
    limit: int,
    last_answer_only: bool = False,
) -> TokenText:
    """The ids of all parts in one sequence of at most `limit`; those of answers are targets."""
    begin = (
        max((n + 1 for n, part in enumerate(parts) if not part.is_answer), default=0)
        if last_answer_only
        else 0
    )
    targets = [
        part.is_answer and n >= begin
        for n, (part, part_ids) in enumerate(zip(parts, ids, strict=True))
        for _ in part_ids
    ]
    return TokenText([i for part_ids in ids for i in part_ids][:limit], targets[:limit])
