"""JSON to dataclasses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.json_dataclass import from_json


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    many: list[Inner]
    by_name: dict[str, Inner]
    words: tuple[str, ...] = ()
    perhaps: int | None = None
    anything: Any = None
    flag: bool = False


WHOLE = Outer(
    "null",
    "b",
    Inner(3),
    [Inner(1, 2.0)],
    {"x": Inner(9)},
    words=("1e5", "true"),
    perhaps=4,
    anything={"k": [1, None]},
    flag=True,
)
TREE = {"name": "n", "kind": "a", "inner": {"size": 1}, "many": [], "by_name": {}}


def test_there_and_back():
    assert from_json(Outer, json.loads(json.dumps(dataclasses.asdict(WHOLE))), "f") == WHOLE
    assert from_json(Outer, TREE, "f") == Outer("n", "a", Inner(1), [], {})
    assert isinstance(from_json(Inner, {"size": 1, "share": 2}, "f").share, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "f.json: name: expected str, got 3"),
        ({"kind": "c"}, "f.json: kind: expected one of 'a', 'b', got 'c'"),
        ({"inner": []}, r"f.json: inner: expected an object, got \[\]"),
        ({"inner": {}}, "f.json: inner.size: this key is missing"),
        (
            {"many": [{"size": 1}, {"size": True}]},
            r"f.json: many\[1\].size: expected int, got True",
        ),
        ({"many": {}}, "f.json: many: expected a list, got {}"),
        ({"by_name": {"x": {"size": 1, "shape": 2}}}, "f.json: by_name.x.shape: unknown key"),
        ({"words": [None]}, r"f.json: words\[0\]: expected str, got None"),
        ({"perhaps": 1.5}, "f.json: perhaps: expected int, got 1.5"),
        ({"flag": 1}, "f.json: flag: expected bool, got 1"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(GritError, match=f"^{message}$"):
        from_json(Outer, {**TREE, **change}, "f.json")
