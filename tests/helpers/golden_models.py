"""The model directories in tests/models/golden, written by transformers (see its make_golden.py)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.hf.directory import ModelDirectory, read_model_directory

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
MODELS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@functools.cache
def read_golden(name: str) -> ModelDirectory:
    """Our reading of a golden directory."""
    return read_model_directory(GOLDEN / name)


def golden_config(name: str = "mistral", **changes: Any) -> dict[str, Any]:
    """A golden config.json with changes; a value of `...` removes the key."""
    tree = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    return {key: value for key, value in tree.items() if value is not ...}


def raises(*words: str):
    """Expects a GritError whose message has all of the words, in this order."""
    return pytest.raises(GritError, match="(?s)" + ".*".join(words))


def as_bytes(params: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of each weight, for comparisons that are exact."""
    return {name: np.asarray(value).tobytes() for name, value in params.items()}
