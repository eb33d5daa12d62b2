"""The compiled programs of generation: in one piece or in several, in place, few of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from generation import generate

from grit_jax.inference import steps
from grit_jax.inference.sampling import Sampling, sampling_rows
from grit_jax.models.transformer import init_params


def test_few_programs_serve_many_prompts(tiny_config, tiny_params, documents, prompts):
    before = steps.decode_step._cache_size()
    for i in range(1, 8):
        generate(
            tiny_params,
            tiny_config,
            [prompts[0] * (i % 3 + 1)],
            records=[documents[: i % 2 + 1]],
            sampling=Sampling(2 + i),
        )
    assert steps.decode_step._cache_size() - before <= 2


def test_the_cache_is_updated_in_place(tiny_config, full_optimization):
    """No operation of the compiled loop copies a whole cache."""
    config = dataclasses.replace(tiny_config, num_hidden_layers=2)
    params = init_params(config, jax.random.key(0))
    stop = steps.StopConditions(np.ones(1, np.int32), np.zeros(1, bool), np.array([2], np.int32))
    settings = steps.DecodeSettings(sampling_rows([Sampling()]), stop)
    prompts = steps.PromptRows(np.zeros((1, 32), np.int32), np.ones(1, np.int32))
    sizes = steps.DecodeSizes(slots=640, new_tokens=16)
    state = jax.eval_shape(
        lambda: steps.prefill(params, prompts, settings, config=config, sizes=sizes)
    )
    text = (
        steps.decode_step.lower(params, state, None, np.int32(9), settings, config=config)
        .compile()
        .as_text()
    )
    keys, values = "f32[2,1,2,16,640]", "f32[2,1,2,640,16]"
    assert keys in text and values in text
    whole = lambda line: f"= {keys}" in line or f"= {values}" in line
    copies = [line for line in text.splitlines() if whole(line) and " copy(" in line]
    assert not copies, copies
