"""Rows in the formats that other projects publish, converted to the lines of `formats.py`.

grit        the lines of formats.py, MEDI2's among them: kept as they are
bge         {"query", "pos": [text], "neg"?, "prompt"?, "pos_scores"?, "neg_scores"?}
medi        {"query": [instruction, text], "pos": [instruction, text], "neg", "task_id"|"task_name"}
tevatron    {"query", "positive_passages": [{"title"?, "text"}], "negative_passages"}
triplet     {"anchor"|"query"|"question", "positive"|"answer", "negative"?, "negative_1"?, ...}
messages    {"messages": [{"role", "content"}]}: Tulu and OpenAI
sharegpt    {"conversations": [{"from", "value"}]}
alpaca      {"instruction", "input"?, "output"}
completion  {"prompt", "completion"|"response"}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from grit_jax.data.formats import LineError, document_text, kind_of
from grit_jax.errors import GritError
from grit_jax.text.chat import turns_of

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Keys that make a preference row: both answers to a prompt, or one and whether it is good.
PREFERENCE = {"chosen", "rejected", "label"}


def dialect_of(row: Mapping[str, Any]) -> str | None:
    """The format of a row by its keys; None: none of the known ones.

    >>> dialect_of({"messages": []}), dialect_of({"query": "q", "pos": ["p"]})
    ('messages', 'grit')
    """
    keys = row.keys()
    if {"chosen", "rejected"} <= keys:  # UltraFeedback's rows have "messages" as well
        return "grit"
    if "messages" in keys:
        return "messages"
    if "conversations" in keys or "conversation" in keys:
        return "sharegpt"
    if "positive_passages" in keys:
        return "tevatron"
    if "query" in keys and "pos" in keys:
        if keys & {"task_id", "task_name"} and _is_pair(row["pos"]):
            return "medi"
        if keys & {"prompt", "pos_scores", "neg_scores"} or isinstance(row["pos"], str):
            return "bge"
        return "grit"
    if keys & {"positive", "answer"} and keys & {"anchor", "query", "question"}:
        return "triplet"
    if "instruction" in keys and "output" in keys:
        return "alpaca"
    if "prompt" in keys and keys & {"completion", "response"} and not keys & PREFERENCE:
        return "completion"
    return "grit" if kind_of(dict(row)) is not None else None


def convert(
    row: Mapping[str, Any], place: str, dialect: str = "auto", instruction: str = ""
) -> dict[str, Any]:
    """A row as a line of `formats.py`. Other keys are left out, except where the row is such a line
    already.

    Args:
      dialect: one of DIALECTS, or "auto": by the row's keys.
      instruction: of queries in a format that has none.

    Raises:
      LineError (a GritError): the row has not the keys or the values of its format.

    >>> convert({"conversations": [{"from": "human", "value": "Hi"},
    ...                            {"from": "gpt", "value": "Hello"}]}, "f:1")
    {'text': ['Hi', 'Hello']}
    """
    name = dialect_of(row) if dialect == "auto" else dialect
    if name is None or name == "grit":
        return dict(row)  # `parse_line` says what is wrong with it
    try:
        return DIALECTS[name](row, place, instruction)
    except KeyError as error:
        key = error.args[0]
        raise LineError(place, f'the key "{key}" is missing ({name} format)') from None


def _bge(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    positives, negatives = _list(row["pos"]), _list(row.get("neg"))
    scores = [*_list(row.get("pos_scores")), *_list(row.get("neg_scores"))]
    prompt = row.get("prompt") or instruction
    line = _embedding(row["query"], positives, negatives, _string(prompt, place, '"prompt"'))
    if scores:
        if len(scores) != len(positives) + len(negatives):
            raise LineError(
                place,
                f'"pos_scores" and "neg_scores": expected {len(positives) + len(negatives)}'
                f' numbers, one for each of "pos" and "neg", got {len(scores)}',
            )
        line["scores"] = scores
    return line


def _medi(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    negative = row.get("neg")
    return {"query": row["query"], "pos": [row["pos"]], "neg": [negative] if negative else []}


def _tevatron(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    positives, negatives = (
        [
            document_text(passage, place, f"{key}[{i}]")
            for i, passage in enumerate(_list(row.get(key)))
        ]
        for key in ("positive_passages", "negative_passages")
    )
    return _embedding(row["query"], positives, negatives, instruction)


def _triplet(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    query = next(row[key] for key in ("anchor", "query", "question") if key in row)
    positives = next(row[key] for key in ("positive", "answer") if key in row)
    negatives = [
        text
        for key in sorted(row, key=_number)
        if re.fullmatch(r"negatives?(_\d+)?", key)
        for text in _list(row[key])
    ]
    return _embedding(query, _list(positives), negatives, instruction)


def _messages(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    return _conversation(row["messages"], ("role", "content"), {}, place)


def _sharegpt(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    said = row["conversations"] if "conversations" in row else row["conversation"]
    keys = ("from", "value")
    if isinstance(said, list) and said and isinstance(said[0], dict) and "role" in said[0]:
        keys = ("role", "content")
    return _conversation(said, keys, SHAREGPT_ROLES, place)


def _conversation(
    said: Any, keys: tuple[str, str], roles: Mapping[str, str], place: str
) -> dict[str, Any]:
    """Messages as turns. What the assistant says before the first question is left out, and so is a
    last question without an answer, as both have nothing to train on."""
    if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
        raise LineError(place, "the conversation must be a list of objects")
    messages = []
    for number, message in enumerate(said):
        role = message.get(keys[0])
        content = message.get(keys[1])
        if isinstance(content, list):  # OpenAI's parts
            content = "\n".join(
                part["text"]
                for part in content
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        if message.get("tool_calls"):
            raise LineError(place, "a message has tool calls")
        if not isinstance(content, str):
            raise LineError(place, f'message {number + 1}: "{keys[1]}" must be a string')
        messages.append({"role": roles.get(str(role), str(role)), "content": content})
    spoken = [m for m in messages if m["role"] != "system"]
    while spoken and spoken[0]["role"] == "assistant":
        messages.remove(spoken.pop(0))
    if spoken and spoken[-1]["role"] == "user":
        while messages and messages[-1] is not spoken[-1]:
            messages.pop()
        messages.pop()
    if not any(m["role"] == "assistant" for m in messages):
        raise LineError(place, "a conversation without an answer")
    try:
        return {"text": turns_of(messages)}
    except GritError as error:
        # Counted together, whichever message it is.
        reason = re.sub(r"^messages(\[\d+\])?: ", "", str(error))
        raise LineError(place, f"the conversation cannot be used: {reason}") from None


def _alpaca(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    question, more = row["instruction"], row.get("input")
    if isinstance(question, str) and isinstance(more, str) and more.strip():
        question = f"{question}\n\n{more}"
    return {"text": [question, row["output"]]}


def _completion(row: Mapping[str, Any], place: str, instruction: str) -> dict[str, Any]:
    return {"text": [row["prompt"], row["completion" if "completion" in row else "response"]]}


def _embedding(query: Any, positives: list, negatives: list, instruction: str) -> dict[str, Any]:
    """An embedding line; the query gets the instruction, passages none."""
    pair = lambda value, instruction: [instruction, value] if isinstance(value, str) else value
    return {
        "query": pair(query, instruction),
        "pos": [pair(text, "") for text in positives],
        "neg": [pair(text, "") for text in negatives],
    }


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _string(value: Any, place: str, name: str) -> str:
    if not isinstance(value, str):
        raise LineError(place, f"{name} must be a string, got {type(value).__name__}")
    return value


def _number(key: str) -> tuple[str, int]:
    """Sorts `negative_2` before `negative_10`."""
    name, _, digits = key.rpartition("_")
    return (name, int(digits)) if digits.isdecimal() else (key, -1)


DIALECTS: dict[str, Callable[[Mapping[str, Any], str, str], dict[str, Any]]] = {
    "bge": _bge,
    "medi": _medi,
    "tevatron": _tevatron,
    "triplet": _triplet,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
}
