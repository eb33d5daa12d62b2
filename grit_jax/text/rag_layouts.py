"""The seven ways to put a query and documents before an answer: what is cached, what is read.

Templates are the original's word for word (`rag/eval.py` of ContextualAI/gritlm, without `The
answer is`, which its evaluation appends). What is cached is encoded in the embedding format,
`<s><|embed|>\n{text}`, for documents and queries alike and in every layout: one record of a
document serves them all. The original's two on-the-fly variants (`\n<|embed|>\n` without `<s>` for
a document that follows a query) are not reproduced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT, ChatFormat, PromptPart

RagMode: TypeAlias = Literal[
    "none", "query-then-doc", "doc-then-query", "doc", "query", "query-doc", "doc-query"
]
MODES: tuple[RagMode, ...] = get_args(RagMode)
CACHED_MODES: tuple[RagMode, ...] = ("doc", "query", "query-doc", "doc-query")
# Those that read a conversation: a question's record holds the question alone.
CONVERSATION_MODES: tuple[RagMode, ...] = ("none", "query-then-doc", "doc-then-query", "doc")
# The layout that reads the same texts in the same order, without a cache.
READING_MODES: dict[RagMode, RagMode] = {
    "none": "none",
    "query-then-doc": "query-then-doc",
    "doc-then-query": "doc-then-query",
    "doc": "doc-then-query",
    "query": "query-then-doc",
    "query-doc": "query-then-doc",
    "doc-query": "doc-then-query",
}

# The query comes first, the documents follow it.
AFTER_QUERY = "Optionally using the prior context answer the query prior to it"
# The documents come first, the query follows them.
AFTER_CONTEXT = "Answer the prior query while optionally using the context prior to it"


@dataclasses.dataclass(frozen=True)
class CachedText:
    """A text whose keys and values are reused: `text` in the embedding format without an
    instruction."""

    kind: Literal["query", "document"]
    text: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands before an answer.

    `cached` are encoded bidirectionally, each by itself, in this order; `continuation` is read
    causally after them.
    """

    mode: RagMode
    cached: tuple[CachedText, ...]
    continuation: tuple[PromptPart, ...]

    @property
    def text(self) -> str:
        """The continuation as one string."""
        return "".join(part.text for part in self.continuation)


def compose(
    mode: str,
    query: str,
    documents: Sequence[str],
    chat: ChatFormat = GRIT,
    history: Sequence[str] = (),
) -> Layout:
    """The layout `mode` for a query and documents (each `{title} {text}`), in the order given.

    Several documents are separate cached texts, or paragraphs apart in one prompt. A layout without
    cached texts begins with `bos`; one with them goes on with the turn separator.

    Args:
      history: the turns before the query, `[user, assistant, ...]`. Documents that the layout puts
        before the query stand before the whole conversation.

    Raises:
      GritError: an unknown mode, one that needs documents when there are none, or one that does not
        read conversations.

    >>> layout = compose("doc", "Who built it?", ["Eiffel built the tower."])
    >>> [text.text for text in layout.cached]
    ['Eiffel built the tower.']
    >>> compose("none", "Who built it?", []).text
    '<s><|user|>\\nWho built it?\\n<|assistant|>\\n'
    """
    if mode not in MODES:
        raise GritError(f"unknown RAG mode '{mode}'; known: {', '.join(MODES)}")
    if mode != "none" and not documents:
        raise GritError(
            f"RAG mode '{mode}' needs at least one document; use 'none' to answer without"
        )
    if history and mode not in CONVERSATION_MODES:
        raise GritError(
            f"RAG mode '{mode}' reads one question; for a conversation use one of"
            f" {', '.join(CONVERSATION_MODES)}"
        )
    docs = tuple(CachedText("document", text) for text in documents)
    first: list[PromptPart] = []  # before the first of several turns
    queries = (CachedText("query", query),)
    body: list[PromptPart]
    cached: tuple[CachedText, ...] = ()
    if mode == "none":
        body = [PromptPart(query)]
    elif mode == "query-then-doc":
        body = [
            PromptPart(query),
            PromptPart("\n\n"),
            *_paragraphs(documents),
            PromptPart("\n\n" + AFTER_QUERY),
        ]
    elif mode == "doc-then-query":
        before = [*_paragraphs(documents), PromptPart("\n\n")]
        body = [PromptPart(query), PromptPart("\n\n" + AFTER_CONTEXT)]
        first, body = (before, body) if history else ([], before + body)
    elif mode == "query":
        cached, body = queries, [*_paragraphs(documents), PromptPart("\n\n" + AFTER_QUERY)]
    elif mode == "doc":
        cached, body = docs, [PromptPart(query), PromptPart("\n\n" + AFTER_CONTEXT)]
    elif mode == "query-doc":
        cached, body = queries + docs, [PromptPart(AFTER_QUERY)]
    else:
        cached, body = docs + queries, [PromptPart(AFTER_CONTEXT)]
    opening = chat.turn_separator if cached else chat.bos
    return Layout(
        mode,
        cached,
        (
            PromptPart(opening + chat.user, is_template=True),
            *first,
            *_turns(history, chat),
            *body,
            PromptPart(chat.assistant, is_template=True),
        ),
    )


def _turns(history: Sequence[str], chat: ChatFormat) -> list[PromptPart]:
    """Turns `[user, assistant, ...]` after the first user's tag, up to the next user's tag."""
    parts: list[PromptPart] = []
    for user, assistant in zip(history[::2], history[1::2], strict=True):
        parts += [PromptPart(user), PromptPart(chat.assistant, is_template=True)]
        parts += chat.answer_parts(assistant)
        parts.append(PromptPart(chat.turn_separator + chat.user, is_template=True))
    return parts


def _paragraphs(documents: Sequence[str]) -> list[PromptPart]:
    parts: list[PromptPart] = []
    for number, document in enumerate(documents):
        if number:
            parts.append(PromptPart("\n\n"))
        parts.append(PromptPart(document, is_document=True))
    return parts
