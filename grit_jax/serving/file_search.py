"""The tool `file_search` of a response: the documents of a store, found for the last question.

The search is made for every question, unless `tool_choice` is "none": the model is not asked
whether it needs one. Documents that are found are read as in chat over documents, from their
records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.documents import DocumentRequest, question_of
from grit_jax.serving.errors import bad_request
from grit_jax.serving.filters import expression_of
from grit_jax.serving.response_protocol import FileSearchTool
from grit_jax.serving.service import Service
from grit_jax.serving.sources import source_of
from grit_jax.serving.vector_stores import retrieval_of
from grit_jax.text.rag_layouts import MODES

DEFAULT_RESULTS = 5  # documents that are read where the tool says nothing


def file_search_of(place: str, tool: Mapping[str, Any]) -> FileSearchTool:
    """The search that a request asks for.

    Args:
      place: of the tool in the request, for errors.

    Raises:
      ApiError: 400 for a field with a mistake.
    """
    try:
        return FileSearchTool.model_validate(tool)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise bad_request(f"{place}.{name}: {first['msg']}", "tools") from None


def searched(
    service: Service,
    tool: FileSearchTool,
    messages: Sequence[dict[str, Any]],
    *,
    tools: bool = False,
) -> DocumentRequest:
    """What is asked of the store.

    Args:
      tools: as of `question_of`.

    Raises:
      ApiError: 400 for a field with a mistake, or a conversation without a question at its end; 404
        for an unknown store.
    """
    if len(tool.vector_store_ids) != 1:
        raise bad_request(
            f"file_search.vector_store_ids: expected one store, got {len(tool.vector_store_ids)}",
            "tools",
        )
    store = service.stores.get(tool.vector_store_ids[0], "tools")
    if tool.filters is not None and tool.where is not None:
        raise bad_request("file_search: give filters or where, not both", "tools")
    where = tool.where if tool.filters is None else expression_of(tool.filters)
    retrieval = retrieval_of(tool.search, where, tool.ranking_options, tool.rerank or 0)
    mode = tool.mode or "auto"
    if mode not in (*MODES, "auto"):
        raise bad_request(
            f"file_search.mode: expected one of {', '.join((*MODES, 'auto'))}, got {mode!r:.40}",
            "tools",
        )
    question, turns = question_of(messages, "input", tools=tools)
    count = tool.max_num_results or DEFAULT_RESULTS
    return DocumentRequest(store, question, mode, count, retrieval, tool.instruction or "", turns)


def results_of(prepared: PreparedQuestion) -> list[dict[str, Any]]:
    """The documents that were read, as results of a `file_search_call`."""
    return [
        {**source_of(line), "score": document["score"], "text": text}
        for document, line, text in zip(
            prepared.documents, prepared.lines, prepared.texts, strict=True
        )
    ]


def citations(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations of an answer: the files that were read, each once, with the number of its first
    result."""
    first: dict[str, int] = {}
    for number, result in enumerate(results):
        first.setdefault(result["file_id"], number)
    return [
        {
            "type": "file_citation",
            "file_id": id,
            "filename": results[number]["filename"],
            "index": number,
        }
        for id, number in first.items()
    ]
