"""The frozen base of adapters: quantised layer by layer, sharded like the weights."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from lora_state import CONFIG, LORA

from grit_jax.models import parameters
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training import frozen_base as base


@pytest.mark.parametrize("precision", ["full", "int4"])
def test_a_frozen_base_goes_through_a_device_by_layers_only(monkeypatch, tmp_path, precision):
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
    weights = jax.device_get(parameters.init_params(CONFIG, jax.random.key(0)))
    monkeypatch.setattr(
        base,
        "read_model_directory",
        lambda path, dtype, place: type(
            "Directory",
            (),
            {"params": {name: place(name, array) for name, array in weights.items()}},
        ),
    )
    seen, freeze = [], base.freeze
    monkeypatch.setattr(
        base,
        "freeze",
        lambda name, weight, **how: (
            seen.append((name, weight.shape)),
            freeze(name, weight, **how),
        )[1],
    )
    lora = dataclasses.replace(LORA, base=precision)
    frozen, _ = base.load_base(tmp_path, CONFIG, lora, mesh)
    assert all(shape == weights[name].shape[1:] for name, shape in seen) and bool(seen) == (
        precision != "full"
    )
    for leaf in jax.tree.leaves(frozen):
        assert len(leaf.sharding.device_set) == 8
    expected = {name: freeze(name, weight, CONFIG, lora) for name, weight in weights.items()}
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
