"""The identity of a model: what changes it and what does not."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from grit_jax.models import weights_hash
from grit_jax.models.config import ModelConfig, RopeScaling
from grit_jax.models.weights_hash import WeightsHash

CONFIG = ModelConfig(vocab_size=8, hidden_size=4, num_attention_heads=2, num_key_value_heads=1)
WEIGHTS = {
    name: np.random.default_rng(i).normal(size=(3, 5)).astype(np.float32)
    for i, name in enumerate(("up", "down", "embed"))
}


def digest(weights=WEIGHTS, **changes) -> str:
    result = WeightsHash(dataclasses.replace(CONFIG, **changes))
    for name, values in weights.items():
        result.add(name, values)
    return result.hexdigest()


def test_order_and_dtype_do_not_count():
    assert len(digest()) == 32 and int(digest(), 16) > 0
    assert digest(dict(reversed(WEIGHTS.items()))) == digest()
    half = {name: values.astype(ml_dtypes.bfloat16) for name, values in WEIGHTS.items()}
    assert digest(half) == digest({k: v.astype(np.float32) for k, v in half.items()}) == digest()


def test_a_weight_taken_in_by_chunks_counts_to_its_last_number(monkeypatch):
    monkeypatch.setattr(weights_hash, "HASH_CHUNK", 4)
    known = {digest()}
    for place in range(15):
        changed = {name: values.copy() for name, values in WEIGHTS.items()}
        changed["down"].reshape(-1)[place] += 1
        known.add(digest(changed))
    assert len(known) == 16


def test_names_count():
    swapped = {"up": WEIGHTS["down"], "down": WEIGHTS["up"], "embed": WEIGHTS["embed"]}
    assert digest(swapped) != digest()
    assert digest({"up": WEIGHTS["up"], "down": WEIGHTS["down"]}) != digest()


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e4},
        {"rope_scaling": RopeScaling("linear", 2.0)},
        {"sliding_window": 7},
        {"rms_norm_eps": 1e-6},
        {"attn_logit_softcapping": 3.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_vectors_depend_on_counts(change):
    assert digest(**change) != digest()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"remat": "none"},
        {"scan_layers": False},
        {"eos_token_id": 5},
        {"router_aux_loss_coef": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_it_is_computed_or_trained_does_not_count(change):
    assert digest(**change) == digest()
