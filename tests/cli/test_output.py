"""What verbs print: strict JSON, and text in any encoding."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest

from grit_jax.cli.output import escape_unprintable, print_json, print_result, print_text
from grit_jax.errors import GritError


def test_json_is_one_line_of_ascii(capsys):
    value = {"a": [1, 2.5, None, {"b": "\u00e9\n\ud800"}], "c": [0.1]}
    print_json(value)
    out = capsys.readouterr().out
    assert out.isascii() and len(out.splitlines()) == 1 and json.loads(out) == value
    print_result({"a": 1}, False, "one")
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_named(number, capsys):
    with pytest.raises(GritError, match=rf"no JSON was written: model\.1\.ndcg is {number}"):
        print_json({"model": [{"ndcg": 0.5}, {"ndcg": number}]})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", b"caf\xc3\xa9 \xe2\x9c\x93"),
        ("latin-1", b"caf\xe9 \\u2713"),
        ("ascii", b"caf\\xe9 \\u2713"),
    ],
)
def test_an_encoding_without_a_character_escapes_it(encoding, printed, monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
    escape_unprintable()
    print_text("caf\u00e9 \u2713", end="")
    assert stream.getvalue() == printed
    print_text("\ud800", end="")
    assert stream.getvalue() == printed + b"\\ud800"
