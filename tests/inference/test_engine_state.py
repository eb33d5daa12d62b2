"""The engine's state holds what its shape asks for, and nothing else."""

from __future__ import annotations

import numpy as np

from grit_jax.inference.engine_state import EngineShape, empty_state


def test_parts_of_the_state(tiny_config):
    plain = empty_state(tiny_config, EngineShape(slots=2, capacity=64))
    assert plain.records is None and plain.adjustments is None and plain.adapters is None
    assert not np.asarray(plain.active).any() and plain.token.shape == (2,)
    shape = EngineShape(slots=3, capacity=64, int8_records=32, adjustable=True, adapters=2)
    whole = empty_state(tiny_config, shape)
    assert whole.records.k.dtype == np.int8 and whole.adjustments is not None
    assert np.asarray(whole.adapters).tolist() == [0, 0, 0]
