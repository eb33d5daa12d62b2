"""The compiled programs of the engine: in one call or in several, in place, few of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from generation import generate

from grit_jax.inference import engine_steps as steps
from grit_jax.inference import prefill
from grit_jax.inference.engine_state import EngineShape, LastChunk, PromptChunk
from grit_jax.inference.record_loader import Layered
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling, settings_of
from grit_jax.models.slot_cache import Span
from grit_jax.models.transformer import init_params

NEW = 8
NONE = np.asarray([-1], np.int32)


def start(params, config, prompts, samplings, eos=NONE, chunk=64):
    """An engine's state with one prompt in each slot, read in chunks, and the first tokens."""
    state = steps.empty_state_step(
        config=config, shape=EngineShape(slots=len(prompts), capacity=256)
    )
    firsts = []
    for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        for begin in range(0, len(prompt), chunk):
            part = prompt[begin : begin + chunk]
            tokens = np.zeros((1, 64), np.int32)
            tokens[0, : len(part)] = part
            one = lambda n: np.array([n], np.int32)
            span = Span(one(slot), one(begin), one(len(part)))
            last = np.array([begin + len(part) == len(prompt)])
            state, chosen = steps.prefill_step(
                params,
                state,
                PromptChunk(tokens, span),
                LastChunk(last, settings_of([sampling]), eos),
                config=config,
            )
        firsts.append(int(chosen.tokens[0, 0]))
    return state, firsts


def go_on(params, config, state, count, eos=NONE, early=False):
    state, chosen = steps.generate_step(
        params, state, np.int32(count), eos, np.bool_(early), config=config, return_logits=True
    )
    counts = np.asarray(chosen.counts)
    rows = [row[:n].tolist() for row, n in zip(np.asarray(chosen.tokens), counts, strict=True)]
    return state, rows, chosen


@pytest.fixture(scope="module")
def three(prompts) -> list[list[int]]:
    return [prompts[0], prompts[1], prompts[3]]


@pytest.fixture(scope="module")
def answers(tiny_config, tiny_params, three) -> list[list[int]]:
    """Of each prompt, alone."""
    return [
        generate(tiny_params, tiny_config, [prompt], sampling=Sampling(NEW)).tokens[0]
        for prompt in three
    ]


def test_few_programs_serve_many_prompts(tiny_config, tiny_params, documents, prompts):
    before = steps.generate_step._cache_size()
    for i in range(1, 8):
        generate(
            tiny_params,
            tiny_config,
            [prompts[0] * (i % 3 + 1)],
            records=[documents[: i % 2 + 1]],
            sampling=Sampling(2 + i),
        )
    assert steps.generate_step._cache_size() - before <= 1


def test_the_cache_is_updated_in_place(tiny_config, full_optimization):
    """No operation of the compiled programs copies a whole cache."""
    config = dataclasses.replace(tiny_config, num_hidden_layers=2)
    params = init_params(config, jax.random.key(0))
    shape = EngineShape(slots=3, capacity=1024)
    state = jax.eval_shape(lambda: steps.empty_state(config, shape))
    one = np.zeros(1, np.int32)
    chunk = PromptChunk(np.zeros((1, 32), np.int32), Span(one, one, one + 5))
    last = LastChunk(one > 0, settings_of([Sampling()]), NONE)
    lowered = {
        "generate": steps.generate_step.lower(
            params, state, np.int32(9), NONE, np.bool_(False), config=config
        ),
        "prefill": steps.prefill_step.lower(params, state, chunk, last, config=config),
    }
    for name, program in lowered.items():
        text = program.compile().as_text()
        keys, values = "f32[2,3,2,16,1024]", "f32[2,3,2,1024,16]"
        assert keys in text and values in text
        whole = lambda line: f"= {keys}" in line or f"= {values}" in line
        copies = [line for line in text.splitlines() if whole(line) and " copy(" in line]
        assert not copies, (name, copies)


def test_one_call_or_several_give_the_same_answers(tiny_config, tiny_params, three, answers):
    limits = [Sampling(NEW), Sampling(NEW), Sampling(NEW)]
    state, firsts = start(tiny_params, tiny_config, three, limits)
    state, rest, chosen = go_on(tiny_params, tiny_config, state, steps.STEPS)
    assert [[f, *r] for f, r in zip(firsts, rest, strict=True)] == answers
    assert not np.asarray(chosen.active).any() and np.asarray(chosen.finite).all()
    np.testing.assert_array_equal(
        [r for r in rest], np.argmax(chosen.logits, axis=-1)[:, : NEW - 1]
    )
    state, firsts = start(tiny_params, tiny_config, three, limits, chunk=5)
    parts = [[f] for f in firsts]
    for count in (1, 0, 3, steps.STEPS):
        state, rows, _ = go_on(tiny_params, tiny_config, state, count)
        for part, row in zip(parts, rows, strict=True):
            part += row
    assert parts == answers


def test_a_slot_ends_by_its_limit_or_an_end_of_sequence(tiny_config, tiny_params, three, answers):
    """And the others go on, unless the call returns for the slot that is free."""
    end = answers[1][2]
    eos = np.array([end, -1], np.int32)
    samplings = [Sampling(NEW, ignore_eos=True), Sampling(NEW), Sampling(3, ignore_eos=True)]
    expected = [answers[0], answers[1][: answers[1].index(end) + 1], answers[2][:3]]
    state, firsts = start(tiny_params, tiny_config, three, samplings, eos)
    state, rest, chosen = go_on(tiny_params, tiny_config, state, steps.STEPS, eos)
    assert [[f, *r] for f, r in zip(firsts, rest, strict=True)] == expected
    state, firsts = start(tiny_params, tiny_config, three, samplings, eos)
    state, rest, chosen = go_on(tiny_params, tiny_config, state, steps.STEPS, eos, early=True)
    shortest = min(len(answer) for answer in expected)
    assert {len(row) for row in rest} == {shortest - 1} and np.asarray(chosen.active).any()


def test_a_slot_that_is_being_filled_is_left_alone(tiny_config, tiny_params, three, answers):
    """Between two chunks of its prompt the other slots decode."""
    limits = [Sampling(NEW), Sampling(NEW)]
    state, [first, _] = start(tiny_params, tiny_config, [three[0], three[1][:1]], limits)
    one = lambda n: np.array([n], np.int32)
    prompt, got = three[2], [first]
    halves = (prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :])
    begin = 0
    for half in halves:
        tokens = np.zeros((1, 64), np.int32)
        tokens[0, : len(half)] = half
        state, chosen = steps.prefill_step(
            tiny_params,
            steps.release_step(state, np.array([True, False])) if not begin else state,
            PromptChunk(tokens, Span(one(1), one(begin), one(len(half)))),
            LastChunk(np.array([begin > 0]), settings_of([Sampling(NEW)]), NONE),
            config=tiny_config,
        )
        begin += len(half)
        state, rows, _ = go_on(tiny_params, tiny_config, state, 3)
        got += rows[0]
    assert got == answers[0][:7]
    assert [int(chosen.tokens[0, 0]), *rows[1]] == answers[2][:4]


def test_a_freed_slot_keeps_nothing_for_the_next(tiny_config, tiny_params, three, answers):
    """Not even what was not finite."""
    broken = {name: np.asarray(x).copy() for name, x in tiny_params.items()}
    broken["embed"][three[0][-1]] = np.nan
    state = steps.empty_state_step(config=tiny_config, shape=EngineShape(slots=1, capacity=256))
    one = lambda n: np.array([n], np.int32)
    for params, prompt, finite in ((broken, three[0] * 9, False), (tiny_params, three[1], True)):
        tokens = np.zeros((1, 64), np.int32)
        prompt = prompt[:64]
        tokens[0, : len(prompt)] = prompt
        state, chosen = steps.prefill_step(
            params,
            state,
            PromptChunk(tokens, Span(one(0), one(0), one(len(prompt)))),
            LastChunk(np.array([True]), settings_of([Sampling(NEW)]), NONE),
            config=tiny_config,
        )
        assert bool(chosen.finite[0]) == bool(chosen.active[0]) == finite
        assert all(np.isfinite(x).all() for x in (state.cache.k, state.cache.v))
    state, [row], _ = go_on(tiny_params, tiny_config, state, steps.STEPS)
    assert [int(chosen.tokens[0, 0]), *row] == answers[1]


def test_a_layer_of_a_prompt_is_written_in_place(tiny_model, prompts, monkeypatch):
    """No copy of the slots is made between what a layer reads of them and what it writes."""
    temporary = []

    def measured(*args, **options):
        if not temporary:
            compiled = steps.prefill_layer_step.lower(*args, **options).compile()
            temporary.append(compiled.memory_analysis().temp_size_in_bytes)
        return steps.prefill_layer_step(*args, **options)

    monkeypatch.setattr(prefill, "prefill_layer_step", measured)
    [record] = tiny_model.encoder.encode_ids([prompts[0]], return_cache=True).caches
    with tiny_model.engine(8, tiny_model.config.context_length) as engine:
        request = GenerateRequest(prompts[1], (Layered(record),), Sampling(max_new_tokens=1))
        assert engine.submit(request).result(120).tokens
        slots = engine._runner.state.cache
        assert temporary[0] < min(slots.k.nbytes, slots.v.nbytes)
