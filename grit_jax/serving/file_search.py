"""The tool `file_search` of a response: the documents of a store, found for the last question.

The search is made for every question, unless `tool_choice` is "none": the model is not asked
whether it needs one. Documents that are found are read as in chat over documents, from their
records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from grit_jax.rag.prepared import PreparedQuestion
from grit_jax.serving.documents import DocumentRequest, question_of
from grit_jax.serving.errors import bad_request
from grit_jax.serving.filters import expression_of
from grit_jax.serving.response_protocol import FileSearchTool, ResponseBody
from grit_jax.serving.service import Service
from grit_jax.serving.sources import source_of
from grit_jax.serving.vector_stores import retrieval_of
from grit_jax.text.rag_layouts import MODES

DEFAULT_RESULTS = 5  # documents that are read where the tool says nothing
CHOICES = ("auto", "required", "none")


def file_search_of(body: ResponseBody) -> FileSearchTool | None:
    """The search that a request asks for; None: none.

    Raises:
      ApiError: 400 for another tool or a field with a mistake.
    """
    tools = body.tools or []
    for number, tool in enumerate(tools):
        if tool.get("type") != "file_search":
            raise bad_request(
                f"tools[{number}].type: expected file_search, got {tool.get('type')!r:.60}; this"
                " endpoint has no other tool",
                "tools",
            )
    if len(tools) > 1:
        raise bad_request("tools: expected one file_search at most", "tools")
    choice = body.tool_choice
    if isinstance(choice, dict):
        choice = "required" if choice == {"type": "file_search"} else str(choice)
    if choice not in (None, *CHOICES):
        raise bad_request(
            f"tool_choice: expected {', '.join(CHOICES)} or {{'type': 'file_search'}}, got"
            f" {choice!r:.80}",
            "tool_choice",
        )
    if choice == "required" and not tools:
        raise bad_request("tool_choice: there is no tool to use", "tool_choice")
    if not tools:
        return None
    try:
        search = FileSearchTool.model_validate(tools[0])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise bad_request(f"tools[0].{place}: {first['msg']}", "tools") from None
    return None if choice == "none" else search


def searched(
    service: Service, tool: FileSearchTool, messages: Sequence[dict[str, str]]
) -> DocumentRequest:
    """What is asked of the store.

    Raises:
      ApiError: 400 for a field with a mistake, or a conversation without a question at its end; 404
        for an unknown store.
    """
    if len(tool.vector_store_ids) != 1:
        raise bad_request(
            f"tools[0].vector_store_ids: expected one store, got {len(tool.vector_store_ids)}",
            "tools",
        )
    store = service.stores.get(tool.vector_store_ids[0], "tools")
    if tool.filters is not None and tool.where is not None:
        raise bad_request("tools[0]: give filters or where, not both", "tools")
    where = tool.where if tool.filters is None else expression_of(tool.filters)
    retrieval = retrieval_of(tool.search, where, tool.ranking_options, tool.rerank or 0)
    mode = tool.mode or "auto"
    if mode not in (*MODES, "auto"):
        raise bad_request(
            f"tools[0].mode: expected one of {', '.join((*MODES, 'auto'))}, got {mode!r:.40}",
            "tools",
        )
    question, turns = question_of(messages, "input")
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
