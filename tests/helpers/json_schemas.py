"""JSON schemas drawn from a seed: nested objects and arrays, bounds, patterns, enums, anyOf, $ref."""

from __future__ import annotations

from typing import Any

import numpy as np

PATTERNS = ("[a-z]{2,5}", "\\d{3}-\\d{2}", "(ab|cd)+e?", "[A-Z][a-z]{0,3}")
ENUMS = (["red", "größer", 'a"b'], [1, 2.5, None], [True, "yes", ["x"]], [{"k": 1}, "k"])
NAMES = ("id", "name", "größe", "list", "a b", "x")


def draw_schema(seed: int) -> dict[str, Any]:
    """A schema whose values are finite: strings and arrays have bounds, references end."""
    rng = np.random.default_rng(seed)
    defs = {name: _value(rng, 1, ()) for name in ("leaf", "twig")}
    schema = _object(rng, 3, tuple(defs)) if rng.random() < 0.8 else _value(rng, 3, tuple(defs))
    return {**schema, "$defs": defs}


def _value(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _plain, _enum]
    if depth > 1:
        kinds += [_object, _array, _any_of]
    if defs:
        kinds += [_reference]
    return kinds[int(rng.integers(len(kinds)))](rng, depth, defs)


def _object(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    names = rng.permutation(NAMES)[: int(rng.integers(1, 4))].tolist()
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: _value(rng, depth - 1, defs) for name in names}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _array(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    least = int(rng.integers(0, 3))
    most = least + int(rng.integers(0, 3))
    items = _value(rng, depth - 1, defs)
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _any_of(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth - 1, defs) for _ in range(2)]}


def _reference(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{defs[int(rng.integers(len(defs)))]}"}


def _string(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    if rng.random() < 0.5:
        pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
        return {"type": "string", "pattern": f"^{pattern}$"}
    least = int(rng.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + int(rng.integers(0, 5))}


def _integer(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    least = int(rng.integers(-1000, 1000))
    least_name = "exclusiveMinimum" if rng.random() < 0.3 else "minimum"
    return {"type": "integer", least_name: least, "maximum": least + int(rng.integers(1, 500))}


def _number(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    least = round(float(rng.normal()), 2)
    return {"type": "number", "minimum": least, "maximum": round(least + 1.25, 2)}


def _plain(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    return [{"type": "boolean"}, {"type": "null"}, {"const": "é"}, {"type": ["null", "boolean"]}][
        int(rng.integers(4))
    ]


def _enum(rng: np.random.Generator, depth: int, defs: tuple[str, ...]) -> dict[str, Any]:
    return {"enum": ENUMS[int(rng.integers(len(ENUMS)))]}
