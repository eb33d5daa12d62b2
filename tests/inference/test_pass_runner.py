"""Embeddings and scores of many requests together equal those of each alone, in dense passes."""

from __future__ import annotations

import dataclasses
from concurrent.futures import CancelledError

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import config_for

from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoder
from grit_jax.inference.fair_queue import QueueFull
from grit_jax.inference.pass_runner import PassRunner
from grit_jax.inference.requests import EmbedRequest, Pending, ScoreRequest
from grit_jax.models.transformer import init_params
from grit_jax.runtime.compilations import count_compilations
from grit_jax.text.chat import GRIT
from grit_jax.types import AttentionMode

CAUSAL, PREFIX = AttentionMode.CAUSAL, AttentionMode.PREFIX
TOKENS = 256  # of a batch: one row


@pytest.fixture(scope="module")
def encoder(tiny_config, tiny_params, tiny_tokenizer):
    return Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))


@pytest.fixture()
def runner(encoder):
    return PassRunner(encoder, tokens=TOKENS)


def texts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 400, n).tolist() for n in lengths]


def submit(runner, request):
    runner.check(request)
    pending = Pending(request)
    runner.waiting.put(pending, request.user)
    return pending


def finish(runner):
    """Until nothing is left; two batches at a time, as the engine has it."""
    for _ in range(1000):
        started = runner.dispatch()
        while runner.batches > (1 if started else 0):
            runner.collect()
        if runner.idle:
            assert runner.leaks() == []
            return
    raise AssertionError("the runner does not come to an end")


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


# Results.


def test_embeddings_are_those_of_the_encoder(runner, encoder):
    """Of requests of one text, of several and of none, in whatever company."""
    parts = [texts(5), texts(90, 1, 30), texts(200, 17), [], texts(2, 2, 2)]
    starts = [[0], [40, 0, 29], [3, 16], [], [0, 1, 0]]
    pending = [submit(runner, EmbedRequest(*both)) for both in zip(parts, starts)]
    finish(runner)
    wanted = iter(
        encoder.encode_ids(sum(parts, []), sum(starts, []), tokens_per_call=TOKENS).vectors
    )
    for request, ids in zip(pending, parts):
        out = request.result(timeout=0)
        assert out.shape == (len(ids), encoder.width) and out.dtype == np.float32
        for vector in out:
            np.testing.assert_allclose(vector, next(wanted), atol=1e-6)
    vector = dense.embedding(encoder.params, encoder.config, parts[1][0], 40, "mean")
    np.testing.assert_allclose(pending[1].result()[0], vector, atol=1e-5)


def test_scores_are_log_probabilities_of_the_model(runner, tiny_model):
    """Of the tokens from `start` on, beside other texts in the same rows."""
    parts, starts = texts(2, 9, 40, 120, 33, 117), [1, 4, 39, 1, 10, 100]
    pending = [submit(runner, ScoreRequest(*both)) for both in zip(parts, starts)]
    finish(runner)
    padded = np.zeros((len(parts), 120), int)
    for row, ids in zip(padded, parts):
        row[: len(ids)] = ids
    mask = np.arange(120) < np.array([[len(ids)] for ids in parts])
    log_probabilities = log_softmax(tiny_model(padded, mask.astype(int), "causal").logits)
    for row, request, ids, start in zip(log_probabilities, pending, parts, starts):
        wanted = [row[t - 1, ids[t]] for t in range(start, len(ids))]
        np.testing.assert_allclose(request.result(timeout=0), wanted, atol=2e-5)


def test_scores_in_prefix_mode(encoder):
    """Tokens before `start` are a prompt that sees all of itself; what follows is causal."""
    runner = PassRunner(encoder, PREFIX, tokens=TOKENS)
    parts, starts = texts(2, 9, 40, 33), [1, 4, 39, 10]
    pending = [submit(runner, ScoreRequest(*both)) for both in zip(parts, starts)]
    finish(runner)
    for request, ids, start in zip(pending, parts, starts):
        T = len(ids)
        mask = np.tril(np.ones((T, T), bool))
        mask[:start, :start] = True
        logits = dense.forward(encoder.params, encoder.config, ids, np.arange(T), mask).logits
        wanted = log_softmax(logits)[np.arange(start, T) - 1, ids[start:]]
        np.testing.assert_allclose(request.result(timeout=0), wanted, atol=2e-5)


def test_scores_of_a_soft_capped_model(tiny_config, tiny_params, tiny_tokenizer):
    config = dataclasses.replace(tiny_config, final_logit_softcapping=0.5)
    encoder = Encoder(config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    runner = PassRunner(encoder, tokens=TOKENS)
    (ids,) = texts(20)
    pending = submit(runner, ScoreRequest(ids, 3))
    finish(runner)
    mask = np.tril(np.ones((20, 20), bool))
    logits = dense.forward(tiny_params, config, ids, np.arange(20), mask).logits
    wanted = log_softmax(logits)[np.arange(3, 20) - 1, ids[3:]]
    np.testing.assert_allclose(pending.result(timeout=0), wanted, atol=2e-5)


# Batches.


def test_requests_of_several_users_share_a_batch(runner):
    pending = [submit(runner, EmbedRequest([ids], [0], user=str(n % 3))) for n, ids in enumerate(texts(*[12] * 9))]  # fmt: skip
    assert runner.dispatch() and runner.batches == 1 and not runner.waiting
    assert not any(request.done() for request in pending) and not runner.idle
    runner.collect()
    assert all(request.done() for request in pending)
    assert runner.idle and not runner.dispatch()


def test_requests_of_two_kinds_do_not_share_a_batch(runner, encoder):
    ids = texts(*[20] * 6)
    embed = [submit(runner, EmbedRequest([text], [0])) for text in ids[:3]]
    score = [submit(runner, ScoreRequest(text, 1)) for text in ids[3:]]
    runner.dispatch()
    assert len(runner.waiting) == 3
    runner.collect()
    assert all(request.done() for request in embed) and not any(r.done() for r in score)
    finish(runner)
    assert [len(request.result(timeout=0)) for request in score] == [19] * 3


def test_a_large_request_goes_through_several_batches_and_others_come_between(runner, encoder):
    ids = texts(*[100] * 12)
    large = submit(runner, EmbedRequest(ids, [0] * 12))
    runner.dispatch()
    small = submit(runner, EmbedRequest(texts(30, seed=1), [0]))
    for _ in range(2):
        runner.dispatch()
        while runner.batches:
            runner.collect()
    assert small.done() and not large.done()
    finish(runner)
    out = large.result(timeout=0)
    np.testing.assert_allclose(
        out, encoder.encode_ids(ids, tokens_per_call=TOKENS).vectors, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["embed", "score"])
def test_a_large_request_is_not_held_up_by_those_that_keep_coming(runner, kind):
    """Of its own kind and of the other: it has every other batch."""
    large = submit(runner, EmbedRequest(texts(*[100] * 9), [0] * 9, user="a"))
    (ids,) = texts(100)
    for _ in range(8):
        for _ in range(4):  # more than a batch takes
            request = ScoreRequest(ids, 1) if kind == "score" else EmbedRequest([ids], [0])
            submit(runner, dataclasses.replace(request, user="b"))
        runner.dispatch()
        while runner.batches:
            runner.collect()
    assert large.done() and len(runner.waiting) > 10


def test_many_requests_without_texts(runner, encoder):
    pending = [submit(runner, EmbedRequest([], [])) for _ in range(1000)]
    finish(runner)
    assert all(request.result(timeout=0).shape == (0, encoder.width) for request in pending)


@pytest.mark.parametrize("seed", range(3))
def test_all_of_many_requests_come_to_an_end(encoder, seed):
    """Of all sizes and both kinds, while others arrive; each with its own result."""
    rng = np.random.default_rng(seed)
    runner = PassRunner(encoder, tokens=TOKENS, longest=200)
    vectors, sums = {}, {}
    for n in range(40):
        lengths = rng.integers(2, 60, rng.integers(1, 8))
        ids = texts(*lengths, seed=100 * seed + n)
        if n % 3:
            vectors[submit(runner, EmbedRequest(ids, [0] * len(ids), user=str(n % 5)))] = ids
        else:
            sums[submit(runner, ScoreRequest(ids[0], 1, user=str(n % 5)))] = ids[0]
        if rng.random() < 0.4:
            runner.dispatch()
        if runner.batches and rng.random() < 0.4:
            runner.collect()
    finish(runner)
    everything = [text for ids in vectors.values() for text in ids]
    wanted = encoder.encode_ids(everything, tokens_per_call=TOKENS).vectors
    np.testing.assert_allclose(
        np.concatenate([request.result(timeout=0) for request in vectors]), wanted, atol=1e-6
    )
    for request, ids in list(sums.items())[:3]:
        mask = np.tril(np.ones((len(ids), len(ids)), bool))
        logits = dense.forward(
            encoder.params, encoder.config, ids, np.arange(len(ids)), mask
        ).logits
        wanted = log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(request.result(timeout=0), wanted, atol=2e-5)


# Cancelling and failing.


def test_a_request_is_cancelled_before_between_and_after_its_batches(runner, encoder):
    ids = texts(*[100] * 9)
    first, second, third = (submit(runner, EmbedRequest(ids, [0] * 9)) for _ in range(3))
    runner.dispatch()  # the first three texts of the first request
    first.cancel()  # under way, with texts left
    second.cancel()  # not begun
    runner.drop_cancelled()
    for request in (first, second):
        with pytest.raises(CancelledError):
            request.result(timeout=0)
    assert not third.done() and len(runner.waiting) == 1
    finish(runner)
    third.cancel()  # has its result already
    runner.drop_cancelled()
    wanted = encoder.encode_ids(ids, tokens_per_call=TOKENS).vectors
    np.testing.assert_allclose(third.result(timeout=0), wanted, atol=1e-6)


def test_a_request_is_cancelled_after_its_last_dispatch(runner):
    gone, stays = (submit(runner, EmbedRequest([ids], [0])) for ids in texts(20, 30))
    runner.dispatch()
    gone.cancel()
    runner.drop_cancelled()
    assert gone.done() and not stays.done() and not runner.idle
    runner.collect()
    assert stays.done() and runner.idle
    with pytest.raises(CancelledError):
        gone.result(timeout=0)


def test_all_requests_fail_together(runner):
    pending = [submit(runner, EmbedRequest(texts(*[100] * 9), [0] * 9)) for _ in range(3)]
    runner.dispatch()
    runner.fail_all(GritError("the engine has failed"))
    for request in pending:
        with pytest.raises(GritError, match="the engine has failed"):
            request.result(timeout=0)
    assert runner.idle and runner.leaks() == []


def test_weights_that_are_not_finite_name_the_request(tiny_config, tiny_params, tiny_tokenizer):
    bad = tiny_params | {"up": tiny_params["up"].at[1, 2, 3].set(jnp.nan)}
    encoder = Encoder(tiny_config, bad, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    runner = PassRunner(encoder, tokens=TOKENS)
    ids = texts(9, 200, 200)
    pending = [
        submit(runner, EmbedRequest(ids, [0] * 3, name="line 7 of a.jsonl")),
        submit(runner, ScoreRequest(ids[0], 1, name="the answer of line 3")),
    ]
    finish(runner)
    for request, name in zip(pending, ("line 7 of a.jsonl", "the answer of line 3")):
        with pytest.raises(GritError, match=f"{name} is not finite: the weight 'up' holds NaN"):
            request.result(timeout=0)


def test_a_text_that_is_not_finite_fails_alone(tiny_config, tiny_params, tiny_tokenizer):
    """An embedding of NaN is read by one text of a row; the others have their vectors."""
    bad = tiny_params | {"embed": tiny_params["embed"].at[7].set(jnp.nan)}
    encoder = Encoder(tiny_config, bad, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    runner = PassRunner(encoder, tokens=TOKENS)
    ids = [[9, 8, 10], [9, 7, 10], [11] * 40]
    pending = [submit(runner, EmbedRequest([i], [0], name=f"text {n}")) for n, i in enumerate(ids)]
    finish(runner)
    good = Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    for n in (0, 2):
        wanted = good.encode_ids([ids[n]]).vectors
        np.testing.assert_allclose(pending[n].result(timeout=0), wanted, atol=1e-6)
    with pytest.raises(GritError, match="text 1 is not finite: the weight 'embed'"):
        pending[1].result(timeout=0)


# Checks and limits.


@pytest.mark.parametrize(
    "request_, message",
    [
        (EmbedRequest([[1], []], [0, 0], name="text 3"), "^text 3 has no tokens$"),
        (ScoreRequest([], 1), "^the text has no tokens$"),
        (EmbedRequest([[1] * 33], [0]), "^the text has 33 tokens, and at most 32 are read$"),
        (ScoreRequest([1] * 33, 1), "has 33 tokens, and at most 32 are read"),
        (EmbedRequest([[1, -1]], [0]), "^the text has a token id outside the vocabulary$"),
        (ScoreRequest([1, 10**6], 1), "a token id outside the vocabulary"),
        (EmbedRequest([[1], [2]], [0]), "^the text: 2 texts, but 1 pool starts; each text needs"),
        (ScoreRequest([1, 2], 0), "^the text: tokens are scored from number 0 on, but it has 2"),
        (ScoreRequest([1, 2], 2), "from number 2 on, but it has 2, and the first one has nothing"),
        (ScoreRequest([1], 1), "from number 1 on, but it has 1"),
    ],
)
def test_check(encoder, request_, message):
    with pytest.raises(GritError, match=message):
        PassRunner(encoder, longest=32).check(request_)


def test_check_takes_what_fits(encoder):
    runner = PassRunner(encoder, longest=32)
    last = encoder.config.vocab_size - 1
    for request in (EmbedRequest([[0] * 32, [last]], [0, 0]), ScoreRequest([0, last], 1)):
        runner.check(request)
    runner.check(EmbedRequest([np.array([0, last])], [0]))
    assert PassRunner(encoder).longest == encoder.config.context_length


def test_the_queue_is_bounded(encoder):
    runner = PassRunner(encoder, tokens=TOKENS, limit=2)
    pending = [submit(runner, EmbedRequest([ids], [0])) for ids in texts(3, 4)]
    with pytest.raises(QueueFull):
        submit(runner, EmbedRequest(texts(5), [0]))
    finish(runner)
    assert all(request.done() for request in pending)


# Compilation.


def test_nothing_is_compiled_after_the_warm_up(tiny_tokenizer):
    """Texts of all lengths up to the limit of the warm-up, one at a time and in company."""
    config = config_for(
        tiny_tokenizer, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=4
    )
    params = init_params(config, jax.random.key(0))
    encoder = Encoder(config, params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    runner = PassRunner(encoder, tokens=512, longest=1000)
    longest = 130
    runner.warm_up(longest, score=False)
    compiled = count_compilations()
    rng = np.random.default_rng(0)

    def together(kind):
        for count in (1, 2, 3, 5, 40):
            for ids in texts(*rng.integers(2, longest + 1, count), longest):
                submit(
                    runner, ScoreRequest(ids, 1) if kind == "score" else EmbedRequest([ids], [0])
                )
            finish(runner)

    for n in range(1, longest + 1, 13):
        submit(runner, EmbedRequest(texts(n), [0]))
        finish(runner)
    together("embed")
    assert count_compilations() == compiled
    runner.warm_up(longest)
    assert count_compilations() > compiled and runner.idle
    compiled = count_compilations()
    for n in range(2, longest + 1, 13):
        submit(runner, ScoreRequest(*texts(n), 1))
        finish(runner)
    together("score")
    together("embed")
    assert count_compilations() == compiled
