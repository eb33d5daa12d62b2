"""Rows as other projects publish them, converted by hand."""

from __future__ import annotations

import json

import pytest

from grit_jax.data.dialects import DIALECTS, convert, dialect_of
from grit_jax.data.formats import LineError, parse_line

CASES = {
    "bge": (
        {
            "query": "q",
            "pos": ["p"],
            "neg": ["n", "m"],
            "pos_scores": [3.0],
            "neg_scores": [1, 0.5],
            "prompt": "Find",
        },
        {
            "query": ["Find", "q"],
            "pos": [["", "p"]],
            "neg": [["", "n"], ["", "m"]],
            "scores": [3.0, 1, 0.5],
        },
    ),
    "medi": (
        {"query": ["I;", "q"], "pos": ["J;", "p"], "neg": ["J;", "n"], "task_id": 3},
        {"query": ["I;", "q"], "pos": [["J;", "p"]], "neg": [["J;", "n"]]},
    ),
    "tevatron": (
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": [{"docid": "a", "title": "T", "text": "p"}],
            "negative_passages": [{"docid": "b", "text": "n"}],
        },
        {"query": ["", "q"], "pos": [["", "T p"]], "neg": [["", "n"]]},
    ),
    "triplet": (
        {"anchor": "q", "positive": "p", "negative_10": "z", "negative_2": "y", "negative": "x"},
        {"query": ["", "q"], "pos": [["", "p"]], "neg": [["", "x"], ["", "y"], ["", "z"]]},
    ),
    "messages": (
        {
            "dataset": "tulu",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": [{"type": "text", "text": "Who"}]},
                {"role": "assistant", "content": "I"},
            ],
        },
        {"text": ["Be brief.\n\nHi", "Hello", "Who", "I"]},
    ),
    "sharegpt": (
        {
            "id": "x_0",
            "conversations": [
                {"from": "gpt", "value": "cut off before"},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "no answer"},
            ],
        },
        {"text": ["Hi", "Hello"]},
    ),
    "alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        {"text": ["Add\n\n1 2", "3"]},
    ),
    "completion": ({"prompt": "Hi", "response": "Hello"}, {"text": ["Hi", "Hello"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_recognised_and_converted(name):
    row, expected = CASES[name]
    assert dialect_of(row) == name and name in DIALECTS
    assert convert(row, "f:1") == convert(row, "f:1", name) == expected
    parse_line(json.dumps(expected), "f:1")  # it is a line of ours


def test_every_format_has_a_case():
    assert CASES.keys() == DIALECTS.keys()


@pytest.mark.parametrize(
    "row",
    [
        {"query": ["i", "q"], "pos": ["a", "b"]},  # two positives, not an instruction and a text
        {"query": "q", "pos": [["", "p"]], "neg": [], "extra": 1},
        {"text": ["u", "a"]},
        {"docs": ["d"], "text": ["q", "a"]},
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "chosen": [], "rejected": [], "messages": []},
        {"colour": "red"},
    ],
)
def test_our_own_lines_and_unknown_ones_stay_as_they_are(row):
    assert convert(row, "f:1") == row


def test_variants():
    row = {"query": "q", "pos": "p", "neg": None}
    assert convert(row, "", instruction="Find") == {
        "query": ["Find", "q"],
        "pos": [["", "p"]],
        "neg": [],
    }
    assert convert({"question": "q", "answer": "a"}, "")["pos"] == [["", "a"]]
    assert convert({"instruction": "x", "input": " ", "output": "y"}, "")["text"] == ["x", "y"]
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert convert({"conversation": said}, "")["text"] == ["a", "b"]
    last = [*said, {"role": "user", "content": "c"}, {"role": "system", "content": "d"}]
    assert convert({"messages": last}, "")["text"] == ["a", "b"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"messages": "a"}, "must be a list of objects"),
        ({"messages": [{"role": "user", "content": "a"}]}, "a conversation without an answer"),
        ({"messages": [{"role": "user", "content": None}]}, 'message 1: "content" must be a str'),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant", "assistant")]},
            "cannot be used: roles must alternate, expected 'user', got 'assistant'",
        ),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("user", "tool", "assistant")]},
            "cannot be used: unknown role 'tool'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]},
            "a message has tool calls",
        ),
        ({"query": "q", "pos": ["p"], "pos_scores": [1, 2]}, "expected 1 numbers"),
        ({"query": "q", "positive_passages": [{"text": 5}]}, "must be a string, got int"),
    ],
)
def test_rows_that_cannot_be_converted(row, reason):
    with pytest.raises(LineError, match=reason) as error:
        convert(row, "f:7")
    assert str(error.value).startswith("f:7: ") and "f:7" not in error.value.reason


def test_a_named_format_misses_its_keys():
    with pytest.raises(LineError, match=r'f:1: the key "messages" is missing \(messages format\)'):
        convert({"text": "a"}, "f:1", "messages")
