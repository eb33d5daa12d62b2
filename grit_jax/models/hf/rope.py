"""Rotary embedding in config.json, as transformers 5 spells it (`rope_parameters`) and as earlier
releases do."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from grit_jax.errors import GritError
from grit_jax.models.config import FULL, SLIDING, ModelConfig, RopeScaling
from grit_jax.models.hf.families import Family

_KINDS = ("linear", "dynamic", "llama3", "yarn")
_HARMLESS = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "finetuned"}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of a model. `local_base` is the base of layers with a sliding window, where
    it differs from `theta`."""

    theta: float
    scaling: RopeScaling | None = None
    local_base: float | None = None


def rope_from_hf(hf: dict[str, Any], family: Family, max_positions: int, location: str) -> Rope:
    """Reads base and scaling from `rope_parameters` (transformers 5), from `rope_theta` and
    `rope_scaling` (earlier releases), or from both.

    Raises:
      GritError: an unsupported kind of scaling, spellings that contradict each other, or values out
        of range.
    """
    theta, local = (
        _number(hf, "rope_theta", location),
        _number(hf, "rope_local_base_freq", location),
    )
    scaling: RopeScaling | None = None
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key) or {}
        if not isinstance(rope, dict):
            raise GritError(f"{location}: '{key}' must be a mapping, got {rope!r}")
        by_layer = {name: value for name, value in rope.items() if isinstance(value, dict)}
        if by_layer:
            if family.rope_local_base_freq is None or not by_layer.keys() <= {FULL, SLIDING}:
                raise GritError(
                    f"{location}: '{key}' differs between layers ({', '.join(by_layer)}); not"
                    " supported"
                )
            sliding = by_layer.get(SLIDING, {})
            if _scaling(sliding, max_positions, f"{location}: '{key}.{SLIDING}'") is not None:
                raise GritError(
                    f"{location}: '{key}' scales the layers with a window; not supported"
                )
            local = _agree(
                "rope_local_base_freq",
                local,
                _number(sliding, "rope_theta", location),
                key,
                location,
            )
            rope = by_layer.get(FULL, {})
        theta = _agree("rope_theta", theta, _number(rope, "rope_theta", location), key, location)
        parsed = _scaling(rope, max_positions, f"{location}: '{key}'")
        if parsed is not None and scaling is not None and parsed != scaling:
            raise GritError(
                f"{location}: 'rope_parameters' and 'rope_scaling' contradict each other; make them"
                " equal"
            )
        scaling = parsed or scaling
    if family.rope_local_base_freq is not None:
        local = local or family.rope_local_base_freq
    return Rope(
        theta or family.rope_theta,
        scaling,
        local if family.rope_local_base_freq is not None else None,
    )


def rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json, in both spellings."""
    c, scaling = config, config.rope_scaling
    values: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        values = {"rope_type": scaling.rope_type, "factor": scaling.factor}
        uses = {
            "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": (
                "original_max_position_embeddings",
                "beta_fast",
                "beta_slow",
                "truncate",
                "attention_factor",
                "mscale",
                "mscale_all_dim",
            ),
        }
        for key in uses.get(scaling.rope_type, ()):
            if (value := getattr(scaling, key)) is not None:
                values[key] = value
    parameters: dict[str, Any] = values | {"rope_theta": c.rope_theta}
    hf: dict[str, Any] = {"rope_theta": c.rope_theta}
    if c.rope_local_base_freq is not None:
        hf["rope_local_base_freq"] = c.rope_local_base_freq
        parameters = {
            FULL: parameters,
            SLIDING: {"rope_type": "default", "rope_theta": c.rope_local_base_freq},
        }
    hf["rope_parameters"] = parameters
    if scaling is not None:
        hf["rope_scaling"] = values | {"type": scaling.rope_type}
    return hf


def _scaling(rope: dict[str, Any], max_positions: int, location: str) -> RopeScaling | None:
    """The scaling in one mapping; None for the default (no scaling)."""
    kind = rope.get("rope_type", rope.get("type"))
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise GritError(f"{location} rotates only a part of each head; not supported")
    if kind in (None, "default"):
        return None
    if kind not in _KINDS:
        raise GritError(
            f"{location}: rotary scaling {kind!r} is not supported; known: {', '.join(_KINDS)}"
        )
    fields = {field.name: field for field in dataclasses.fields(RopeScaling)}
    if ignored := rope.keys() - fields.keys() - _HARMLESS:
        warnings.warn(
            f"{location}: {', '.join(sorted(ignored))} unknown, as in transformers; ignored",
            stacklevel=4,
        )
    values: dict[str, Any] = {}
    for key in fields.keys() - {"rope_type", "truncate"}:
        if (value := _number(rope, key, location)) is not None:
            values[key] = value
    if kind in ("llama3", "yarn"):
        original = values.get("original_max_position_embeddings", max_positions)
        if original != int(original):
            raise GritError(
                f"{location}: 'original_max_position_embeddings' must be a whole number, got"
                f" {original}"
            )
        values["original_max_position_embeddings"] = int(original)
        if kind == "yarn" and "factor" not in values:
            values["factor"] = max_positions / original
    if "factor" not in values:
        raise GritError(f"{location}: 'factor' is missing; {kind} scaling needs it")
    if kind == "llama3" and (missing := {"low_freq_factor", "high_freq_factor"} - values.keys()):
        raise GritError(f"{location}: '{missing.pop()}' is missing; llama3 scaling needs it")
    if rope.get("truncate") is not None:
        values["truncate"] = bool(rope["truncate"])
    try:
        return RopeScaling(rope_type=kind, **values)
    except ValueError as error:
        raise GritError(f"{location}: {str(error).removeprefix('model.rope_scaling.')}") from None


def _number(tree: dict[str, Any], key: str, location: str) -> float | None:
    value = tree.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise GritError(f"{location}: '{key}' must be a positive number, got {value!r}")
    return float(value)


def _agree(
    key: str, outer: float | None, inner: float | None, section: str, location: str
) -> float | None:
    if outer is not None and inner is not None and outer != inner:
        raise GritError(
            f"{location}: '{key}' is {outer} but '{section}' says {inner}; make them equal"
        )
    return inner if outer is None else outer
