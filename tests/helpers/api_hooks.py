"""Schemathesis hooks (`$SCHEMATHESIS_HOOKS`): generated requests name the model, store and layout
that there are, so that more of them get past the first checks."""

from __future__ import annotations

import json
import zlib
from typing import Any

import schemathesis

KNOWN = {"model": "tiny", "mode": "auto", "search": "hybrid", "encoding_format": "base64"}
RARE = ("input_type", "prompt_name", "where", "filters", "response_format", "best_of", "suffix")
# Fields that are refused without another one, and fields that are refused in most forms.
NEEDED = {"top_logprobs": "logprobs", "stream_options": "stream"}
UNSERVED = ("tools", "tool_choice", "functions", "function_call", "audio", "modalities")
DOCUMENTS = ("mode", "k", "search", "where", "rerank", "instruction", "logit_bias", "store")
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 4}},
}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """The store that there is, three times of four."""
    if isinstance(path_parameters, dict) and _chance(path_parameters, 4):
        return {k: "docs" if k == "name" else v for k, v in path_parameters.items()}
    return path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Names that there are, three times of four; lengths that take no minutes."""
    if not isinstance(body, dict) or not _chance(body, 4):
        return body
    mapped = {k: KNOWN.get(k, v) if isinstance(v, str) else v for k, v in body.items()}
    for name in RARE:
        if not _chance([name, body], 2):
            mapped.pop(name, None)
    for name in DOCUMENTS:
        if "messages" in mapped:
            mapped.pop(name, None)
    for name in ("n", "max_tokens", "max_completion_tokens", "max_output_tokens", "top_n", "k"):
        if isinstance(value := mapped.get(name), int):
            mapped[name] = min(value, 4)
    for name, needed in NEEDED.items():
        if not mapped.get(needed):
            mapped.pop(name, None)
    for name in UNSERVED:
        mapped.pop(name, None)
    if isinstance(messages := mapped.get("messages"), list):
        mapped["messages"] = [*messages[:-1], {"role": "user", "content": json.dumps(messages)}]
        if _chance([messages, body], 3):
            mapped["messages"] = mapped["messages"][-1:]
        if context.operation.path.startswith("/v1/chat") and _chance(["store", body], 2):
            mapped["store"] = "docs"
            mapped["messages"] = mapped["messages"][-1:]
        elif _chance(["form", body], 2):
            mapped["response_format"] = SCHEMA
    return mapped


def _chance(value: Any, of: int) -> bool:
    """True for most values where `of` is large, and always the same for a value."""
    return zlib.crc32(repr(value).encode("utf-8", "backslashreplace")) % of > 0
