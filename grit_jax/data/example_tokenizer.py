"""Tokenizes examples: chat format, truncation, target masks, and which examples cannot be used.

Texts are truncated on the right. Instructions, questions and answers of cached examples are never
truncated: an example in which they exceed the limit is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grit_jax.data.formats import (
    CachedExample,
    EmbeddingExample,
    Example,
    GenerativeExample,
    LineError,
    Text,
)
from grit_jax.data.packing import fit_documents
from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText
from grit_jax.text.chat import ChatFormat, PromptPart
from grit_jax.text.rag_layouts import RagMode, compose
from grit_jax.text.tokenizer import Tokenizer

# Before tokenization a text is truncated to this many characters for each token of the longest
# limit (as in the original).
CHARACTERS_PER_TOKEN = 10
# A cached example is left out if it has no room for this many characters of each document.
MIN_DOCUMENT_CHARACTERS = 8


@dataclasses.dataclass(frozen=True)
class LengthLimits:
    """The most tokens of a text of each kind, BOS, instruction and tags included; then the tokens
    of a row of cached texts and of a row of continuations in a cached batch."""

    query: int
    passage: int
    generative: int
    document: int
    cached_row: int
    continuation_row: int


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

    def cached(
        self, examples: Sequence[CachedExample], modes: Sequence[RagMode]
    ) -> list[TokenCached]:
        """Cached texts, continuation and answer of each example in its layout; documents are
        truncated to fit."""
        prompts: list[list[PromptPart]] = []
        counts: list[int] = []  # of cached texts
        for example, mode in zip(examples, modes, strict=True):
            layout = compose(
                mode, example.question, [d[: self._characters] for d in example.docs], self.chat
            )
            for text in layout.cached:
                *tags, last = self.chat.embed_parts("", text.text)
                prompts.append(
                    [*tags, dataclasses.replace(last, is_document=text.kind == "document")]
                )
            prompts.append([*layout.continuation, *self.chat.answer_parts(example.answer)])
            counts.append(len(layout.cached))
        encoded = iter(zip(prompts, self.tokenizer.encode_parts(prompts), strict=True))
        return [self._fit([next(encoded) for _ in range(count)], next(encoded)) for count in counts]

    def check(self, example: Example, where: str) -> str | None:
        """The reason why an example cannot be used, or None.

        Args:
          where: `file:line`, for messages.

        Raises:
          LineError: no negatives to draw from, or no scores to distil.
        """
        if isinstance(example, EmbeddingExample):
            return self._check_embedding(example, where)
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
        layout = compose(
            mode, example.question, ["x" * MIN_DOCUMENT_CHARACTERS] * len(example.docs), self.chat
        )
        cached = [self.chat.embed_parts("", text.text) for text in layout.cached]
        return cached, [*layout.continuation, *self.chat.answer_parts(example.answer)]

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
        cached: list[tuple[list[PromptPart], list[list[int]]]],
        text: tuple[list[PromptPart], list[list[int]]],
    ) -> TokenCached:
        # A document keeps the same tokens in every layout, so its limit is the same in each.
        max_tokens = max(self.limits.document - self._document_prompt, 1)
        _truncate_documents(
            [(parts[-1], ids, len(parts) - 1) for parts, ids in cached],
            max_tokens,
            self.limits.cached_row,
        )
        parts, ids = text
        _truncate_documents(
            [(part, ids, n) for n, part in enumerate(parts)],
            max_tokens,
            self.limits.continuation_row,
        )
        return TokenCached(
            [[i for part in ids for i in part] for _, ids in cached],
            _with_targets(parts, ids, self.limits.continuation_row),
            self._document_prompt,
        )


def _truncate_documents(
    candidates: list[tuple[PromptPart, list[list[int]], int]], max_tokens: int, room: int
) -> None:
    """Truncates documents in place: to `max_tokens` each, and all together to what the other parts
    leave of `room`.

    Args:
      candidates: (part, ids of its prompt by part, number of the part in that prompt).
    """
    documents = [(ids, n) for part, ids, n in candidates if part.is_document]
    for ids, n in documents:
        ids[n] = ids[n][:max_tokens]
    prompts = {id(ids): ids for _, ids, _ in candidates}
    total = sum(len(part) for ids in prompts.values() for part in ids)
    lengths = [len(ids[n]) for ids, n in documents]
    kept = fit_documents(lengths, room - total + sum(lengths))
    for (ids, n), length in zip(documents, kept, strict=True):
        ids[n] = ids[n][:length]


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
