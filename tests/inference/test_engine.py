"""The engine: every request's result is what it is alone, whatever comes beside it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference import engine as module
from grit_jax.inference.engine import EngineLimits
from grit_jax.inference.fair_queue import QueueFull
from grit_jax.inference.requests import EmbedRequest, GenerateRequest, GenerateResult, ScoreRequest
from grit_jax.inference.sampling import Sampling


@pytest.fixture(scope="module")
def documents(tiny_model, sentences):
    return tiny_model.encode(sentences[:4], return_cache=True, max_length=40).caches


def requests_of(model, documents, count: int, seed: int = 0) -> list:
    """Requests of all kinds and lengths."""
    draw, size = random.Random(seed), model.config.vocab_size
    ids = lambda longest: [draw.randrange(size) for _ in range(draw.randint(2, longest))]
    requests = []
    for _ in range(count):
        kind = draw.random()
        if kind < 0.15:
            texts = [ids(60) for _ in range(draw.randint(0, 3))]
            requests.append(EmbedRequest(texts, [1] * len(texts)))
        elif kind < 0.3:
            text = ids(60)
            requests.append(ScoreRequest(text, draw.randint(1, len(text) - 1)))
        else:
            records = draw.sample(documents, draw.choice([0, 0, 1, 2]))
            sampling = Sampling(
                draw.randint(1, 12),
                temperature=draw.choice([0, 0, 0.8]),
                top_k=draw.choice([0, 5]),
                seed=draw.randrange(99),
                ignore_eos=draw.random() < 0.5,
            )
            requests.append(GenerateRequest(ids(70), tuple(records), sampling))
    return requests


def same(one, other) -> bool:
    if isinstance(one, GenerateResult):
        return (one.tokens, one.finished) == (other.tokens, other.finished)
    return one.shape == other.shape and np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_result_does_not_depend_on_the_company(tiny_model, documents, count):
    """Nor on the order of arrival; nothing is compiled after the warm-up, and nothing is kept."""
    if count == 500:
        jax.clear_caches()  # what other tests have compiled
    requests = requests_of(tiny_model, documents, count)
    with tiny_model.engine(slots=4, context=256, limits=EngineLimits(pass_tokens=256)) as engine:
        compiled = engine.warm_up(longest_records=80, longest_text=64)
        assert compiled > (0 if count == 500 else -1)
        alone = [engine.submit(request).result(60) for request in requests]
        order = list(range(len(requests)))
        random.Random(1).shuffle(order)
        pending = {}
        for i in order:
            pending[i] = engine.submit(dataclasses.replace(requests[i], user=f"user {i % 3}"))
            time.sleep(0.001)
        assert all(same(alone[i], pending[i].result(60)) for i in order)
        assert engine.wait_until_idle(10)
        stats = engine.stats()
    assert (stats.compilations, stats.slots_in_use, stats.leaks) == (0, 0, 0)
    assert stats.submitted == stats.finished == 2 * count and stats.failed == stats.waiting == 0
    generated = [result for result in alone if isinstance(result, GenerateResult)]
    assert stats.generated_tokens == 2 * sum(len(result.tokens) for result in generated)
    assert stats.cached_tokens == 2 * sum(
        request.cached for request in requests if isinstance(request, GenerateRequest)
    )
    # And what the engine answers is what the model's own methods do.
    for request, result in zip(requests, alone, strict=True):
        if isinstance(request, GenerateRequest):
            expected = tiny_model.generate_ids(
                [request.prompt], records=[request.records], sampling=request.sampling
            )
            assert result.tokens == expected.tokens[0]


def test_requests_from_many_threads(tiny_model, documents):
    requests = requests_of(tiny_model, documents, 24, seed=3)
    with tiny_model.engine(slots=4, context=256) as engine:
        alone = [engine.submit(request).result(60) for request in requests]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda request: engine.submit(request).result(60), requests))
        assert all(map(same, alone, together))
        assert engine.wait_until_idle(10) and engine.stats().leaks == 0


def test_int8_records_have_a_place_of_their_own(tiny_model, documents):
    prompt = tiny_model.prompt_ids(["Amber?"])[0]
    with tiny_model.engine(slots=2, context=256, int8_records=256) as engine:
        run = lambda *records: engine.submit(GenerateRequest(prompt, records, Sampling(8)))
        over = [run(documents[0]), run(), run(documents[0], documents[1]), run()]
        answers = [pending.result(60).tokens for pending in over]
    expected = tiny_model.generate_ids(
        [prompt] * 4,
        records=[[documents[0]], [], documents[:2], []],
        sampling=Sampling(8),
        int8_records=True,
    )
    assert answers == expected.tokens and answers[1] == answers[3]


def test_bad_requests_are_refused_at_once(tiny_model):
    with tiny_model.engine(slots=1, context=256) as engine:
        for request, words in (
            (GenerateRequest([]), "empty"),
            (GenerateRequest([1], sampling=Sampling(256)), "257 tokens, and a slot holds 256"),
            (GenerateRequest([10**6], name="request 7"), "request 7.*vocabulary"),
            (EmbedRequest([[]], [0]), "no tokens"),
            (ScoreRequest([1, 2], 2), "nothing before"),
        ):
            with pytest.raises(GritError, match=words):
                engine.submit(request)
        assert engine.stats().submitted == 0
    with pytest.raises(GritError, match="closed"):
        engine.submit(GenerateRequest([1]))
    for bad in ({"slots": 0}, {"context": 0}, {"int8_records": -1}, {"slots": 1.5}):
        with pytest.raises(GritError, match=next(iter(bad))):
            tiny_model.engine(**bad)


def test_a_full_queue_and_cancellation(tiny_model):
    """What does not fit is refused; a cancelled request ends where it is."""
    started = threading.Event()
    long = GenerateRequest([5], (), Sampling(240, ignore_eos=True), on_tokens=lambda _: hold())

    def hold():
        started.set()
        time.sleep(0.05)

    with tiny_model.engine(slots=1, context=256, limits=EngineLimits(waiting=2)) as engine:
        running = engine.submit(long)
        assert started.wait(60)
        waiting = [engine.submit(GenerateRequest([6], (), Sampling(2))) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait"):
            engine.submit(GenerateRequest([7]))
        waiting[0].cancel()
        running.cancel()
        assert len(waiting[1].result(60).tokens) <= 2
        for pending in (running, waiting[0]):
            with pytest.raises(concurrent.futures.CancelledError):
                pending.result(60)
        assert engine.wait_until_idle(10)
        stats = engine.stats()
        assert (stats.cancelled, stats.finished, stats.slots_in_use) == (2, 1, 0)


def test_closing_ends_what_is_under_way(tiny_model):
    engine = tiny_model.engine(slots=1, context=256)
    pending = [
        engine.submit(GenerateRequest([5], (), Sampling(200, ignore_eos=True))) for _ in range(3)
    ]
    engine.close()
    for one in pending:
        assert one.done()
    assert engine.wait_until_idle(5) and engine.stats().failed == 3
    with pytest.raises(GritError, match="closed"):
        pending[-1].result(0)


def test_a_process_may_end_with_an_open_engine(tiny_model, tmp_path):
    """Somebody forgot to close it: the interpreter waits for the program that runs."""
    tiny_model.save_pretrained(tmp_path)
    program = f"""
from grit_jax import GritLM
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling

engine = GritLM.from_pretrained({str(tmp_path)!r}).engine(slots=2, context=2048)
first = engine.submit(GenerateRequest([5], (), Sampling(1)))
engine.submit(GenerateRequest([5], (), Sampling(2000, ignore_eos=True)))
first.result(100)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failing_device_fails_its_requests_and_the_engine_goes_on(tiny_model, monkeypatch):
    with tiny_model.engine(slots=1, context=256) as engine:
        expected = engine.submit(GenerateRequest([5], (), Sampling(4))).result(60).tokens
        with monkeypatch.context() as patch:
            patch.setattr(
                engine._runner, "decode", lambda *a, **k: (_ for _ in ()).throw(OSError("lost"))
            )
            with pytest.raises(GritError, match="the engine failed: lost"):
                engine.submit(GenerateRequest([5], (), Sampling(4))).result(60)
        assert engine.submit(GenerateRequest([5], (), Sampling(4))).result(60).tokens == expected
        assert engine.stats().healthy


def test_the_watchdog_gives_up_an_engine_that_does_not_advance(tiny_model, monkeypatch):
    over = threading.Event()
    with tiny_model.engine(slots=1, context=256, limits=EngineLimits(watchdog=0.3)) as engine:
        stuck = GenerateRequest([5], (), Sampling(4), on_tokens=lambda _: over.wait(20))
        with pytest.raises(GritError, match=r"not advanced for 0\.3 s"):
            engine.submit(stuck).result(60)
        assert not engine.stats().healthy
        with pytest.raises(GritError, match="failed"):
            engine.submit(GenerateRequest([5]))
        over.set()


def test_what_an_idle_engine_still_holds_is_reported(tiny_model, monkeypatch, caplog):
    with tiny_model.engine(slots=2, context=256) as engine:
        kept = module.SlotRunner._free
        monkeypatch.setattr(module.SlotRunner, "leaks", lambda self: ["1 slots"])
        engine.submit(GenerateRequest([5], (), Sampling(2))).result(60)
        assert engine.wait_until_idle(10) and engine.stats().leaks == 1
        assert "1 slots" in caplog.text and kept is module.SlotRunner._free
        monkeypatch.undo()
        assert engine.submit(GenerateRequest([5], (), Sampling(2))).result(60).tokens
