"""The bytes that an answer has to read, and the rates at which this machine reads them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.bench import lower_bound
from grit_jax.bench.lower_bound import kv_bytes, measure_rates, weight_bytes


def test_the_table_of_embeddings_counts_only_where_it_makes_the_logits(tiny_config, tiny_params):
    """A token reads one of its rows, and all of it where it is the output layer, too."""
    sizes = {name: np.prod(value.shape) * 4 for name, value in tiny_params.items()}
    untied = dataclasses.replace(tiny_config, tie_word_embeddings=False)
    tied = dataclasses.replace(tiny_config, tie_word_embeddings=True)
    assert weight_bytes(tiny_params, tied) == sum(sizes.values())
    assert weight_bytes(tiny_params, untied) == sum(sizes.values()) - sizes["embed"]
    half = {name: value.astype(jnp.bfloat16) for name, value in tiny_params.items()}
    assert weight_bytes(half, tied) == sum(sizes.values()) // 2


def test_keys_and_values_take_the_models_own_dtype(tiny_config):
    """Three layers, two heads of 16 numbers, a key and a value."""
    assert kv_bytes(tiny_config, 10) == 10 * 3 * 2 * 16 * 2 * 4
    assert kv_bytes(dataclasses.replace(tiny_config, dtype="bfloat16"), 10) == 10 * 3 * 2 * 16 * 4


def test_rates_are_all_bytes_of_the_store_by_the_best_time(tmp_path, monkeypatch):
    """By a clock under which each measurement takes 4, 3, 2, 5 and 6 seconds."""
    (tmp_path / "part").mkdir()
    (tmp_path / "a").write_bytes(bytes(3000))
    (tmp_path / "part" / "b").write_bytes(bytes(5001))
    read = []
    pread = lower_bound.os.pread
    monkeypatch.setattr(lower_bound, "CHUNK", 2048)
    monkeypatch.setattr(
        lower_bound.os, "pread", lambda *how: read.append(len(data := pread(*how))) or data
    )
    ticks = iter(t for _ in range(2) for s in (4, 3, 2, 5, 6) for t in (0.0, float(s)))
    monkeypatch.setattr(lower_bound.time, "perf_counter", lambda: next(ticks))
    rates = measure_rates(tmp_path, token_bytes=40_960)
    assert rates.memory == 40_960 / 2 and rates.store == pytest.approx(8001 / 2)
    assert sum(read) == lower_bound.REPEATS * 8001 and max(read) == 2048
