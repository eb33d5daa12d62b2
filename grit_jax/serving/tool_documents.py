"""Documents of a store beside tools: read as text, in the last question of a conversation that the
model's chat template renders with its tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.documents import DocumentRequest
from grit_jax.serving.errors import bad_request
from grit_jax.serving.service import Service
from grit_jax.text.rag_layouts import compose

READING = ("none", "query-then-doc", "doc-then-query")
DEFAULT = "doc-then-query"


async def prepare_with_tools(
    service: Service,
    asked: DocumentRequest,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    new_tokens: int,
    user: str,
) -> PreparedQuestion:
    """Finds the documents of a conversation and puts them into its prompt.

    A record begins a prompt in a format of ours, and tools are shown in the template's: so no
    record is read here. Documents for which the context has no room are left out, with a warning.

    Args:
      tools: what the template shows.
      new_tokens: of the answer, for which the context keeps room.
      user: who asks.

    Raises:
      ApiError: 400 for a layout that reads records, or a conversation that does not fit.
    """
    if asked.mode not in (*READING, "auto"):
        raise bad_request(
            f"mode: {asked.mode!r} reads records, and beside tools documents are read as text;"
            f" expected auto, {', '.join(READING)}",
            "mode",
        )
    mode = DEFAULT if asked.mode == "auto" else asked.mode
    found = await dataclasses.replace(asked, mode=mode).prepare(service, new_tokens, user)
    return await service.prepare(lambda: _fitted(service, found, messages, tools, new_tokens))


def _fitted(
    service: Service,
    found: PreparedQuestion,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    new_tokens: int,
) -> PreparedQuestion:
    """As many of the documents as there is room for, at least one; the engine refuses what is still
    too long."""
    template = service.model.template
    assert template is not None
    place = max(i for i, message in enumerate(messages) if message["role"] == "user")
    question, count = messages[place]["content"], len(found.texts)
    while True:
        mode = found.mode if count else "none"
        parts = compose(mode, question, found.texts[:count], service.model.chat).continuation
        text = "".join(part.text for part in parts if not part.is_template)
        asked = [*messages[:place], {**messages[place], "content": text}, *messages[place + 1 :]]
        ids = template.prompt_ids(asked, tools=tools)
        if count <= 1 or len(ids) + new_tokens <= service.context:
            break
        count -= 1
    warnings = list(found.warnings)
    if count < len(found.texts):
        left_out = ", ".join(repr(document["id"]) for document in found.documents[count:])
        warnings.append(
            f"left out: documents {left_out} do not fit the context of {service.context} tokens"
            f" beside the conversation, its tools and {new_tokens} new tokens"
        )
    return dataclasses.replace(
        found,
        ids=ids,
        records=(),
        cached_tokens=0,
        documents=found.documents[:count],
        mode=mode,
        cache="read",
        warnings=warnings,
        texts=found.texts[:count],
        lines=found.lines[:count],
    )
