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


def test_positions_and_segments_of_prompts():
    rows = steps.PromptRows(np.zeros((2, 4), np.int32), np.array([3, 1], np.int32))
    np.testing.assert_array_equal(rows.positions(), [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(rows.segments(), [[1, 1, 1, 0], [1, 0, 0, 0]])


NEW = 8


def batch_of(prompts, eos=(-1,), lengths=(NEW, NEW, NEW), ignore_eos=(False, False, False)):
    """Three prompts as rows of one batch, greedy, and when they end."""
    chosen = [prompts[0], prompts[1], prompts[3]]
    tokens = np.zeros((3, max(map(len, chosen))), np.int32)
    for row, prompt in enumerate(chosen):
        tokens[row, : len(prompt)] = prompt
    rows = steps.PromptRows(tokens, np.array([len(prompt) for prompt in chosen], np.int32))
    stop = steps.StopConditions(
        np.array(lengths, np.int32), np.array(ignore_eos), np.array(eos, np.int32)
    )
    return rows, steps.DecodeSettings(sampling_rows([Sampling()] * 3), stop)


def start(params, config, rows, settings):
    sizes = steps.DecodeSizes(rows.tokens.shape[1] + NEW, NEW, return_logits=True)
    return steps.prefill_step(params, rows, settings, config=config, sizes=sizes)


def go_on(params, config, state, settings, until):
    return steps.decode_step(params, state, None, np.int32(until), settings, config=config)


def test_one_call_or_several_give_the_same_state(tiny_config, tiny_params, prompts):
    rows, settings = batch_of(prompts)
    first = start(tiny_params, tiny_config, rows, settings)
    assert int(first.step) == 1 and not np.asarray(first.tokens)[:, 1:].any()
    whole = go_on(tiny_params, tiny_config, first, settings, NEW)
    parts = start(tiny_params, tiny_config, rows, settings)
    for until in (2, 5, 5, NEW, NEW + 3):
        parts = go_on(tiny_params, tiny_config, parts, settings, until)
        assert int(parts.step) == min(until, NEW)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.tokens, np.argmax(whole.logits, axis=-1))
    np.testing.assert_array_equal(whole.position, rows.lengths + NEW - 1)


def test_a_row_ends_by_its_length_or_an_end_of_sequence(tiny_config, tiny_params, prompts):
    """What comes after the end is 0, and the other rows go on."""
    rows, settings = batch_of(prompts)
    state = go_on(
        tiny_params, tiny_config, start(tiny_params, tiny_config, rows, settings), settings, NEW
    )
    free = np.asarray(state.tokens)
    end = int(free[1, 2])
    rows, settings = batch_of(
        prompts, eos=(end, -1), lengths=(NEW, NEW, 3), ignore_eos=(True, False, False)
    )
    state = start(tiny_params, tiny_config, rows, settings)
    state = go_on(tiny_params, tiny_config, state, settings, NEW)
    ends = [NEW, free[1].tolist().index(end) + 1, 3]
    if end in free[2][:3]:
        ends[2] = free[2].tolist().index(end) + 1
    for row, count in enumerate(ends):
        np.testing.assert_array_equal(state.tokens[row, :count], free[row, :count])
        assert not np.asarray(state.tokens[row, count:]).any()
        assert not np.asarray(state.logits[row, count:]).any()
    assert np.asarray(state.done).all() and np.asarray(state.finite).all()
