"""What verbs print: strict JSON."""

from __future__ import annotations

import json
import math

import pytest

from grit_jax.cli.output import print_json, print_result
from grit_jax.errors import GritError


def test_json_is_one_line(capsys):
    value = {"a": [1, 2.5, None, {"b": "é\n"}], "c": (0.1,)}
    print_json(value)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and json.loads(out) == json.loads(json.dumps(value))
    print_result({"a": 1}, False, "one")
    assert capsys.readouterr().out == "one\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_named(number, capsys):
    with pytest.raises(GritError, match=r"^the result model\.1\.ndcg is .*, not a finite number"):
        print_json({"model": [{"ndcg": 0.5}, {"ndcg": number}]})
    assert capsys.readouterr().out == ""
