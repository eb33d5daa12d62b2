"""Rotary embedding in config.json: the spelling of transformers 5 (`rope_parameters`) and that of
before."""

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
    """What config.json says of rotary embedding; `local_base` is that of layers with a window,
    where it differs."""

    theta: float
    scaling: RopeScaling | None = None
    local_base: float | None = None


def rope_from_hf(hf: dict[str, Any], family: Family, max_positions: int, where: str) -> Rope:
    """Base and scaling from `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling`
    (before), or both.

    Raises:
      GritError: a kind that our transformer does not compute, spellings that contradict each other,
        or values without a meaning.
    """
    theta, local = _number(hf, "rope_theta", where), _number(hf, "rope_local_base_freq", where)
    scaling: RopeScaling | None = None
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key) or {}
        if not isinstance(rope, dict):
            raise GritError(f"{where}: '{key}' must be a mapping, got {rope!r}")
        by_layer = {name: value for name, value in rope.items() if isinstance(value, dict)}
        if by_layer:
            if family.rope_local_base_freq is None or not by_layer.keys() <= {FULL, SLIDING}:
                raise GritError(
                    f"{where}: '{key}' differs between layers ({', '.join(by_layer)}); not"
                    " supported"
                )
            sliding = by_layer.get(SLIDING, {})
            if _scaling(sliding, max_positions, f"{where}: '{key}.{SLIDING}'") is not None:
                raise GritError(f"{where}: '{key}' scales the layers with a window; not supported")
            local = _agree(
                "rope_local_base_freq", local, _number(sliding, "rope_theta", where), key, where
            )
            rope = by_layer.get(FULL, {})
        theta = _agree("rope_theta", theta, _number(rope, "rope_theta", where), key, where)
        found = _scaling(rope, max_positions, f"{where}: '{key}'")
        if found is not None and scaling is not None and found != scaling:
            raise GritError(
                f"{where}: 'rope_parameters' and 'rope_scaling' say different things; make them"
                " equal"
            )
        scaling = found or scaling
    if family.rope_local_base_freq is not None:
        local = local or family.rope_local_base_freq
    return Rope(
        theta or family.rope_theta,
        scaling,
        local if family.rope_local_base_freq is not None else None,
    )


def rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of both spellings."""
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


def _scaling(rope: dict[str, Any], max_positions: int, where: str) -> RopeScaling | None:
    """The scaling of one mapping, None where it says the default."""
    kind = rope.get("rope_type", rope.get("type"))
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise GritError(f"{where} rotates only a part of each head; not supported")
    if kind in (None, "default"):
        return None
    if kind not in _KINDS:
        raise GritError(
            f"{where}: rotary scaling {kind!r} is not supported; known: {', '.join(_KINDS)}"
        )
    fields = {field.name: field for field in dataclasses.fields(RopeScaling)}
    if ignored := rope.keys() - fields.keys() - _HARMLESS:
        warnings.warn(
            f"{where}: {', '.join(sorted(ignored))} unknown, as to transformers; ignored",
            stacklevel=4,
        )
    values: dict[str, Any] = {}
    for key in fields.keys() - {"rope_type", "truncate"}:
        if (value := _number(rope, key, where)) is not None:
            values[key] = value
    if kind in ("llama3", "yarn"):
        original = values.get("original_max_position_embeddings", max_positions)
        if original != int(original):
            raise GritError(
                f"{where}: 'original_max_position_embeddings' must be a whole number, got"
                f" {original}"
            )
        values["original_max_position_embeddings"] = int(original)
        if kind == "yarn" and "factor" not in values:
            values["factor"] = max_positions / original
    if "factor" not in values:
        raise GritError(f"{where}: 'factor' is missing; {kind} scaling needs it")
    if kind == "llama3" and (missing := {"low_freq_factor", "high_freq_factor"} - values.keys()):
        raise GritError(f"{where}: '{missing.pop()}' is missing; llama3 scaling needs it")
    if rope.get("truncate") is not None:
        values["truncate"] = bool(rope["truncate"])
    try:
        return RopeScaling(rope_type=kind, **values)
    except ValueError as error:
        raise GritError(f"{where}: {str(error).removeprefix('model.rope_scaling.')}") from None


def _number(tree: dict[str, Any], key: str, where: str) -> float | None:
    value = tree.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise GritError(f"{where}: '{key}' must be a positive number, got {value!r}")
    return float(value)


def _agree(
    key: str, outer: float | None, inner: float | None, place: str, where: str
) -> float | None:
    if outer is not None and inner is not None and outer != inner:
        raise GritError(f"{where}: '{key}' is {outer} but '{place}' says {inner}; make them equal")
    return inner if outer is None else outer
