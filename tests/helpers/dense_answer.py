"""Answers in a RAG layout without any cache, by one dense pass for every token."""

from __future__ import annotations

from collections.abc import Sequence

import dense_reference as dense

from grit_jax.inference.model import GritLM
from grit_jax.text.rag_layouts import RagMode, compose


def dense_answer(
    model: GritLM,
    mode: RagMode,
    question: str,
    documents: Sequence[str],
    new_tokens: int,
    history: Sequence[str] = (),
) -> str:
    """The answer from the texts alone."""
    layout = compose(mode, question, documents, model.chat, history)
    ids = lambda parts: [i for part in model.tokenizer.encode_parts([parts])[0] for i in part]
    cached = [ids(model.chat.embed_parts("", text.text)) for text in layout.cached]
    continuation = ids(layout.continuation)
    tokens = dense.greedy(model.params, model.config, cached, continuation, new_tokens).tokens
    stop = next((n for n, token in enumerate(tokens) if token in model.stop_ids), new_tokens)
    return model.tokenizer.decode(tokens[:stop]).strip()
