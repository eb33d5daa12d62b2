"""Examples to token ids: format, truncation, masks, and which examples cannot be used at all.

Texts are cut on the right. What carries the task is never cut: an example whose instruction alone
fills the limit, or whose question and answer do not fit, is left out and counted.
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
from grit_jax.data.packing import TokenCached, TokenText, fit_documents
from grit_jax.text.chat import ChatFormat, PromptPart
from grit_jax.text.rag_layouts import RagMode, compose
from grit_jax.text.tokenizer import Tokenizer

# A text is cut to this many characters for each token of the longest limit before it is tokenised
# (the original's).
CHARACTERS_PER_TOKEN = 10
# A cached example is not worth reading with less of each document than this.
LEAST_DOCUMENT = 8


@dataclasses.dataclass(frozen=True)
class LengthLimits:
    """Token limits; each counts BOS, instruction and tags. The last two are the rows of a cached
    batch."""

    query: int
    passage: int
    generative: int
    document: int
    cached_pieces: int
    cached_text: int


class ExampleTokenizer:
    """Turns parsed examples into ids within `limits`.

    Args:
      raw_strings: a bare string of a data file stays bare (no tags, not even BOS), as in the
        original.
      last_answer_only: of a conversation only the last answer is to be predicted, as a prefix
        language model reads all before it at once (the original's `prefixlm`, `gritlm:
        gritlm/training/data.py:270-279`).
      teacher_scores: every embedding example must have the scores of a teacher.
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

    def embedding(
        self, texts: Sequence[Text], limits: Sequence[int]
    ) -> tuple[list[list[int]], list[int]]:
        """Ids of embedding texts, cut to their limits, and how many of their first tokens are not
        pooled."""
        prompts = [self._embedding_pieces(text) for text in texts]
        ids, lengths = [], []
        for pieces, limit in zip(self.tokenizer.encode_parts(prompts), limits, strict=True):
            prompt = [i for piece in pieces[:-1] for i in piece]
            ids.append((prompt + pieces[-1])[:limit])
            lengths.append(len(prompt))
        return ids, lengths

    def generative(self, examples: Sequence[GenerativeExample]) -> list[TokenText]:
        """Ids and targets of conversations and documents, cut to the generative limit."""
        prompts = [self._generative_pieces(example) for example in examples]
        return [
            _joined(prompt, pieces, self.limits.generative, self.last_answer_only)
            for prompt, pieces in zip(prompts, self.tokenizer.encode_parts(prompts), strict=True)
        ]

    def cached(
        self, examples: Sequence[CachedExample], modes: Sequence[RagMode]
    ) -> list[TokenCached]:
        """Cached texts, continuation and answer of each example in its layout; documents are cut to
        fit."""
        prompts: list[list[PromptPart]] = []
        parts: list[int] = []
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
            parts.append(len(layout.cached))
        encoded = iter(zip(prompts, self.tokenizer.encode_parts(prompts), strict=True))
        return [self._fit([next(encoded) for _ in range(count)], next(encoded)) for count in parts]

    def check(self, example: Example, where: str) -> str | None:
        """Why an example cannot be used, or None.

        Raises:
          LineError: there are no negatives to draw from, or no scores to distil.
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
                    "what stands before the last answer fills generative_max_length"
                    f" ({self.limits.generative})"
                )
            return None
        for mode in self.layouts:
            pieces, text = self._least(example, mode)
            if any(
                self._too_long(piece, self.limits.cached_pieces) for piece in pieces
            ) or self._total_too_long(pieces, self.limits.cached_pieces):
                return (
                    "documents and question do not fit pieces_row_length"
                    f" ({self.limits.cached_pieces})"
                )
            if self._too_long(text, self.limits.cached_text):
                return (
                    f"question and answer do not fit cached_row_length ({self.limits.cached_text})"
                )
        return None

    def _check_embedding(self, example: EmbeddingExample, where: str) -> str | None:
        if self.group_size > 1 and not example.negatives:
            raise LineError(
                where,
                f'no negatives, and group_size is {self.group_size}: add "neg" (grit mine finds'
                " some), or set group_size: 1 to train on the negatives of the batch alone",
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

    def _least(
        self, example: CachedExample, mode: RagMode
    ) -> tuple[list[list[PromptPart]], list[PromptPart]]:
        """The layout with its documents cut to the least."""
        layout = compose(
            mode, example.question, ["x" * LEAST_DOCUMENT] * len(example.docs), self.chat
        )
        cached = [self.chat.embed_parts("", text.text) for text in layout.cached]
        return cached, [*layout.continuation, *self.chat.answer_parts(example.answer)]

    def _too_long(self, pieces: Sequence[PromptPart], limit: int) -> bool:
        # No tokenizer makes more tokens than bytes (and a prefix); that settles nearly every text
        # without reading it.
        if sum(len(p.text.encode()) + 1 for p in pieces) <= limit:
            return False
        return sum(map(len, self.tokenizer.encode_parts([pieces])[0])) > limit

    def _total_too_long(self, prompts: Sequence[Sequence[PromptPart]], limit: int) -> bool:
        if sum(len(p.text.encode()) + 1 for pieces in prompts for p in pieces) <= limit:
            return False
        return (
            sum(len(ids) for pieces in self.tokenizer.encode_parts(prompts) for ids in pieces)
            > limit
        )

    def _embedding_pieces(self, text: Text) -> list[PromptPart]:
        body = text.text[: self._characters]
        if text.instruction is None and self.raw_strings:
            return [PromptPart(body)]
        return self.chat.embed_parts(text.instruction or "", body)

    def _generative_pieces(self, example: GenerativeExample) -> list[PromptPart]:
        if example.text is None:
            return self.chat.render_turns(example.turns)
        if self.raw_strings:
            return [PromptPart(example.text, is_answer=True)]
        return self.chat.plain_parts(example.text)

    def _prompt_length(self, instruction: str) -> int:
        if instruction not in self._prompt_lengths:
            pieces = self.chat.embed_parts(instruction, "")
            self._prompt_lengths[instruction] = sum(
                map(len, self.tokenizer.encode_parts([pieces])[0])
            )
        return self._prompt_lengths[instruction]

    def _fit(
        self,
        cached: list[tuple[list[PromptPart], list[list[int]]]],
        text: tuple[list[PromptPart], list[list[int]]],
    ) -> TokenCached:
        # A document has the same tokens wherever it stands, so its limit does not depend on the
        # layout either.
        most = max(self.limits.document - self._document_prompt, 1)
        _cut([(p[-1], ids, len(p) - 1) for p, ids in cached], most, self.limits.cached_pieces)
        pieces, ids = text
        _cut([(piece, ids, n) for n, piece in enumerate(pieces)], most, self.limits.cached_text)
        return TokenCached(
            [[i for part in ids for i in part] for _, ids in cached],
            _joined(pieces, ids, self.limits.cached_text),
            self._document_prompt,
        )


def _cut(places: list[tuple[PromptPart, list[list[int]], int]], most: int, room: int) -> None:
    """Cuts documents in place: to `most` tokens each, all together to what other pieces leave of
    `room`.

    `places` are (piece, ids of its prompt by piece, number of the piece in it).
    """
    documents = [(ids, n) for piece, ids, n in places if piece.is_document]
    for ids, n in documents:
        ids[n] = ids[n][:most]
    prompts = {id(ids): ids for _, ids, _ in places}
    total = sum(len(part) for ids in prompts.values() for part in ids)
    lengths = [len(ids[n]) for ids, n in documents]
    kept = fit_documents(lengths, room - total + sum(lengths))
    for (ids, n), length in zip(documents, kept, strict=True):
        ids[n] = ids[n][:length]


def _joined(
    pieces: Sequence[PromptPart],
    ids: Sequence[list[int]],
    limit: int,
    last_answer_only: bool = False,
) -> TokenText:
    begin = (
        max((n + 1 for n, piece in enumerate(pieces) if not piece.is_answer), default=0)
        if last_answer_only
        else 0
    )
    targets = [
        piece.is_answer and n >= begin
        for n, (piece, part) in enumerate(zip(pieces, ids, strict=True))
        for _ in part
    ]
    return TokenText([i for part in ids for i in part][:limit], targets[:limit])
