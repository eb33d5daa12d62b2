"""OpenAI's filters over attributes as an expression over the documents' metadata
(`rag/filters.py`)."""

from __future__ import annotations

import json
from typing import Any

from grit_jax.serving.errors import bad_request

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
LISTS = {"in": "in", "nin": "not in"}
COMPOUNDS = ("and", "or")
MOST_NESTED = 20


def expression_of(filters: Any, place: str = "filters", depth: int = 0) -> str:
    """`{"type": "eq", "key": ..., "value": ...}`, or `{"type": "and", "filters": [...]}` of those.

    Raises:
      ApiError: 400 for anything else.
    """
    if not isinstance(filters, dict) or depth > MOST_NESTED:
        raise bad_request(
            f"{place}: expected an object with 'type', at most {MOST_NESTED} within each other",
            "filters",
        )
    kind = filters.get("type")
    if kind in COMPOUNDS:
        parts = filters.get("filters")
        if not isinstance(parts, list) or not parts or set(filters) != {"type", "filters"}:
            raise bad_request(f"{place}: expected 'type' and a list of 'filters'", "filters")
        inside = [
            expression_of(part, f"{place}.filters[{number}]", depth + 1)
            for number, part in enumerate(parts)
        ]
        return "(" + f" {kind} ".join(inside) + ")"
    known = (*COMPARISONS, *LISTS)
    if kind not in known:
        raise bad_request(
            f"{place}.type: expected one of {', '.join((*known, *COMPOUNDS))}, got {kind!r:.40}",
            "filters",
        )
    if set(filters) != {"type", "key", "value"}:
        raise bad_request(f"{place}: expected 'type', 'key' and 'value'", "filters")
    key, value = filters["key"], filters["value"]
    if not isinstance(key, str) or not key or "`" in key:
        raise bad_request(f"{place}.key: expected a name without backquotes", "filters")
    if kind in LISTS:
        if not isinstance(value, list) or not value:
            raise bad_request(f"{place}.value: expected a list of values", "filters")
        values = ", ".join(_value(each, place) for each in value)
        return f"`{key}` {LISTS[kind]} [{values}]"
    return f"`{key}` {COMPARISONS[kind]} {_value(value, place)}"


def _value(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return json.dumps(value)
    raise bad_request(f"{place}.value: expected a string, a number or a boolean", "filters")
