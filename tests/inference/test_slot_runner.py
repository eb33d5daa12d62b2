"""Requests in slots: room, order, cancellation, what is given back."""

from __future__ import annotations

import concurrent.futures

import pytest
from generation import generate

from grit_jax.errors import GritError
from grit_jax.inference.decode import run_all
from grit_jax.inference.engine_state import EngineShape
from grit_jax.inference.record_loader import Layered, in_one_piece
from grit_jax.inference.requests import GenerateRequest, Pending
from grit_jax.inference.sampling import Sampling
from grit_jax.inference.slot_runner import RunnerOptions, SlotRunner

NEW = 9


@pytest.fixture
def runner(tiny_config, tiny_params) -> SlotRunner:
    return SlotRunner(
        tiny_params, tiny_config, EngineShape(slots=2, capacity=256), RunnerOptions(chunk=32)
    )


def run(runner: SlotRunner, requests: list[GenerateRequest]) -> list[Pending]:
    waiting = [Pending(request) for request in requests]
    ended = list(run_all(runner, waiting, steps=4))
    assert sorted(map(id, ended)) == sorted(map(id, waiting))
    assert runner.idle and not runner.leaks() and runner.free == 2
    return waiting


def test_what_a_slot_has_room_for(runner, tiny_config, tiny_params, documents):
    fits = lambda **request: runner.room.too_long(GenerateRequest(**request))
    assert fits(prompt=[5] * 200, sampling=Sampling(56)) is None
    assert "257 tokens, and a slot holds 256" in fits(prompt=[5] * 200, sampling=Sampling(57))
    cached = len(documents[0].tokens)
    record = {"prompt": [5] * 240, "records": documents[:1]}
    assert f"{256 + cached} tokens" in fits(**record, sampling=Sampling(16))
    lowered = runner.room.lowered(GenerateRequest(**record)).sampling.max_new_tokens
    assert lowered == 256 - 240 - cached and runner.room.lowered(GenerateRequest([5])).length == 256
    assert runner.room.lowered(GenerateRequest([5] * 300)).length == 300 + 256  # left to `too_long`
    apart = SlotRunner(
        tiny_params, tiny_config, EngineShape(slots=1, capacity=256, int8_records=10)
    )
    assert apart.room.records == 256
    assert "records" in apart.room.too_long(GenerateRequest([5], documents * 4, Sampling(1)))


def test_more_requests_than_slots(runner, tiny_config, tiny_params, prompts, documents):
    """Each gets its own answer, its times in order, and what it streams."""
    heard: dict[int, list[int]] = {}
    requests = [
        GenerateRequest(
            prompts[i % 4],
            tuple(documents[i : i + i % 2]),
            Sampling(1 + i % NEW),
            on_tokens=lambda new, i=i: heard.setdefault(i, []).extend(new),
        )
        for i in range(7)
    ]
    for i, pending in enumerate(run(runner, requests)):
        request, answer = requests[i], pending.result()
        alone = generate(
            tiny_params,
            tiny_config,
            [request.prompt],
            records=[request.records],
            sampling=request.sampling,
        )
        assert answer.tokens == alone.tokens[0] == heard[i]
        times = answer.times
        moments = (times.submitted, times.admitted, times.first_token, times.finished)
        assert list(moments) == sorted(moments)


@pytest.mark.parametrize("with_records", [False, True])
def test_a_cancelled_request_frees_its_slot(runner, prompts, documents, with_records):
    records = tuple(documents[:2]) if with_records else ()
    long = Pending(GenerateRequest(prompts[0], records, Sampling(150)))
    other = Pending(GenerateRequest(prompts[1], (), Sampling(NEW)))
    for pending in (long, other):
        runner.admit(pending)
    while not runner.calls:
        runner.prefill(64, wait=1.0)
    runner.decode(2, stop_early=False)
    long.cancel()
    runner.drop_cancelled()
    assert runner.free == 1 and long.cancelled
    with pytest.raises(concurrent.futures.CancelledError):
        long.result(0)
    third = Pending(GenerateRequest(prompts[1], (), Sampling(NEW)))
    list(run_all(runner, [third], steps=4))
    while not other.done():
        runner.decode(4, stop_early=False)
        runner.collect()
    assert other.result().tokens == third.result().tokens and not runner.leaks()


def test_an_error_of_a_listener_ends_its_request_alone(runner, tiny_config, tiny_params, prompts):
    def deaf(new):
        raise KeyError("mine")

    requests = [
        GenerateRequest(prompts[0], (), Sampling(NEW), on_tokens=deaf),
        GenerateRequest(prompts[1], (), Sampling(NEW)),
        GenerateRequest(prompts[3], (), Sampling(NEW)),
    ]
    failed, *others = run(runner, requests)
    with pytest.raises(KeyError, match="mine"):
        failed.result()
    alone = generate(tiny_params, tiny_config, [prompts[1], prompts[3]], sampling=Sampling(NEW))
    assert [pending.result().tokens for pending in others] == alone.tokens


@pytest.mark.parametrize("int8_records", [0, 256])
def test_records_at_once_or_layer_by_layer(
    tiny_config, tiny_params, prompts, documents, int8_records
):
    """Short ones in memory go in by one call, the others layer by layer; the answers are equal."""
    runner = SlotRunner(tiny_params, tiny_config, EngineShape(2, 512, int8_records))
    chosen = [documents[:1], documents[:3], documents[1:3]]
    assert all(in_one_piece(records) for records in chosen)
    requests = [
        GenerateRequest(prompts[i], tuple(map(wrap, records)), Sampling(NEW))
        for wrap in (lambda record: record, Layered)
        for i, records in enumerate(chosen)
    ]
    assert not in_one_piece(requests[-1].records)
    answers = [pending.result().tokens for pending in run(runner, requests)]
    assert answers[:3] == answers[3:]


def test_a_record_that_cannot_be_read_ends_its_request_alone(runner, prompts, documents):
    class Lost:
        tokens, codec = documents[0].tokens, None

        def layer(self, layer):
            raise GritError("document 'd0' is damaged")

    requests = [
        GenerateRequest(prompts[0], (Lost(),), Sampling(NEW)),
        GenerateRequest(prompts[1], (documents[0],), Sampling(NEW)),
    ]
    lost, whole = run(runner, requests)
    with pytest.raises(GritError, match="d0.*damaged"):
        lost.result()
    assert len(whole.result().tokens) == NEW
