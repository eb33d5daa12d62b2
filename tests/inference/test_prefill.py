"""Reading a chunk layer by layer leaves the state that one program leaves."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from grit_jax.inference import layer_weights
from grit_jax.inference.engine_state import EngineShape, LastChunk, PromptChunk
from grit_jax.inference.engine_steps import empty_state_step
from grit_jax.inference.prefill import Prefill
from grit_jax.inference.sampling import Sampling, settings_of
from grit_jax.models.slot_cache import Span


@pytest.mark.parametrize("nonfinite", [False, True], ids=["finite", "nan"])
def test_layer_by_layer_is_the_whole(monkeypatch, tiny_config, tiny_params, nonfinite):
    """Two chunks of a prompt in slot 1; with a weight that is not finite, the slot is marked."""
    params = dict(tiny_params)
    if nonfinite:
        params["up"] = params["up"].at[1, 0, 0].set(np.nan)
    monkeypatch.setattr(layer_weights, "SMALLEST", 0)
    separate = layer_weights.separate_layers(params)
    assert separate is not None
    found = []
    for weights in (None, separate):
        prefill = Prefill(params, weights, tiny_config)
        state = empty_state_step(config=tiny_config, shape=EngineShape(slots=2, capacity=256))
        for start, count, here in ((0, 32, False), (32, 9, True)):
            tokens = np.arange(5 + start, 5 + start + 32, dtype=np.int32)[None]
            span = Span(*(np.asarray([number], np.int32) for number in (1, start, count)))
            eos = np.asarray([-1], np.int32)
            last = LastChunk(np.asarray([here]), settings_of([Sampling(7)]), eos)
            state, chosen = prefill.whole(state, PromptChunk(tokens, span), last)
        found.append((state, chosen))
    (state, chosen), (other, other_chosen) = found
    assert bool(chosen.finite[0]) is not nonfinite
    for (path, a), b in zip(
        jax.tree.leaves_with_path((state, chosen)),
        jax.tree.leaves((other, other_chosen)),
        strict=True,
    ):
        # Of a slot that is marked the numbers are nobody's.
        if not nonfinite or a.dtype in (bool, np.int32):
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert state.cache.finite.tolist() == [True, not nonfinite]
