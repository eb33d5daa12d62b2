"""The size of a request, and the result that is to come."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.requests import EmbedRequest, GenerateRequest, Pending, ScoreRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.types import DocumentKV


def record(tokens):
    empty = np.zeros((1, 1, 2, tokens), np.float32)
    return DocumentKV(np.zeros(tokens, np.int32), empty, empty.swapaxes(2, 3))


def test_tokens_of_a_request():
    request = GenerateRequest([1, 2, 3], [record(5), record(11)], Sampling(max_new_tokens=20))
    assert request.cached == 16 and request.length == 16 + 3 + 20
    alone = GenerateRequest([1, 2, 3], sampling=Sampling(max_new_tokens=1))
    assert alone.cached == 0 and alone.length == 4


def test_requests_are_told_apart_by_identity():
    """Those of equal content are two, and their arrays are not compared."""
    assert GenerateRequest([1]) != GenerateRequest([1])
    assert EmbedRequest(np.ones((2, 3)), [0, 0]) != EmbedRequest(np.ones((2, 3)), [0, 0])
    assert ScoreRequest(np.ones(3), 1) != ScoreRequest(np.ones(3), 1)
    assert len({GenerateRequest([1]), GenerateRequest([1])}) == 2


def test_a_result_is_waited_for():
    pending = Pending("request")
    assert not pending.done() and pending.times.finished is None and pending.request == "request"
    threading.Timer(0.05, pending.finish, ["answer"]).start()
    assert pending.result(timeout=30) == "answer"
    assert pending.done() and pending.times.finished >= pending.times.submitted


def test_a_result_takes_too_long():
    pending = Pending("request")
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.01)
    assert not pending.done() and not pending.cancelled
    pending.finish("answer")  # the request went on
    assert pending.result(timeout=0) == "answer"


def test_an_error_is_raised_by_result():
    pending = Pending("request")
    pending.fail(GritError("the prompt is too long"))
    assert pending.done() and pending.times.finished is not None
    with pytest.raises(GritError, match="too long"):
        pending.result(timeout=0)


def test_cancel_wakes_the_engine_and_drop_ends_the_request():
    woken = []
    pending = Pending("request", lambda: woken.append(pending.cancelled))
    pending.cancel()
    assert woken == [True]  # marked before the engine looks
    assert pending.cancelled and not pending.done()  # until the engine lets go of it
    pending.drop()
    assert pending.done() and pending.times.finished is not None
    with pytest.raises(CancelledError):
        pending.result(timeout=0)


def test_the_first_end_of_a_request_stays():
    answered, dropped, failed = Pending("a"), Pending("b"), Pending("c")
    answered.finish("answer")
    answered.cancel()
    answered.drop()
    answered.fail(GritError("late"))
    assert answered.result(timeout=0) == "answer"
    dropped.cancel()
    dropped.drop()
    dropped.finish("late")
    with pytest.raises(CancelledError):
        dropped.result(timeout=0)
    failed.fail(GritError("first"))
    failed.finish("late")
    with pytest.raises(GritError, match="first"):
        failed.result(timeout=0)


def test_an_answer_that_was_ready_before_the_engine_saw_the_cancellation_is_kept():
    pending = Pending("request")
    pending.cancel()
    pending.finish("answer")
    pending.drop()
    assert pending.result(timeout=0) == "answer" and pending.cancelled
