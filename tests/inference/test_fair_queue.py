"""Users in turn, and in the order of sending for each of them."""

from __future__ import annotations

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.fair_queue import FairQueue, QueueFull


def filled(*items, limit=1000):
    queue = FairQueue(limit)
    for item in items:
        queue.put(item, item[0])
    return queue


def drained(queue):
    return [queue.get() for _ in range(len(queue))]


def test_one_user_is_served_in_the_order_of_sending():
    queue = FairQueue(9)
    for item in "dbca":
        queue.put(item)
    assert drained(queue) == list("dbca")


def test_users_are_served_in_turn():
    queue = filled("a1", "a2", "a3", "b1", "c1", "c2")
    assert sorted(queue) == ["a1", "a2", "a3", "b1", "c1", "c2"] and len(queue) == 6
    assert drained(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert len(queue) == 0 and not list(queue)


def test_a_user_who_comes_back_is_behind_those_who_wait():
    queue = filled("a1", "a2", "b1", "c1")
    assert queue.get() == "a1"
    queue.put("a3", "a")
    assert [queue.get(), queue.get()] == ["b1", "c1"]
    queue.put("b2", "b")
    assert drained(queue) == ["a2", "b2", "a3"]


@pytest.mark.parametrize("seed", range(5))
def test_who_sends_one_waits_for_one_of_each_other_user(seed):
    """However many the others have sent; and nothing is lost."""
    rng = np.random.default_rng(seed)
    items = [f"{user}{n}" for user in "abcd" for n in range(rng.integers(1, 50))]
    queue = filled(*rng.permutation(items).tolist())
    for _ in range(rng.integers(0, 10)):
        items.remove(queue.get())
    queue.put("z0", "z")
    order = drained(queue)
    assert sorted(order) == sorted([*items, "z0"]) and order.index("z0") <= 4


def test_peek_is_what_get_returns():
    queue = filled("a1", "a2", "b1", "c1", "c2")
    queue.discard("b1")
    while queue:
        before = len(queue)
        first = queue.peek()
        assert len(queue) == before and queue.get() == first


def test_the_limit_counts_all_users():
    queue = filled("a1", "a2", "b1", limit=3)
    for user in "ac":
        with pytest.raises(QueueFull, match="the queue is full: 3 requests wait"):
            queue.put("x", user)
    assert sorted(queue) == ["a1", "a2", "b1"]  # nothing of it is kept
    assert issubclass(QueueFull, GritError)
    queue.get()
    queue.put("c1", "c")
    queue.discard("a2")
    queue.put("c2", "c")
    assert drained(queue) == ["b1", "c1", "c2"]


def test_discard():
    queue = filled("a1", "a2", "a3", "b1", "c1")
    assert queue.discard("a2") and queue.discard("b1")
    assert not queue.discard("a2") and not queue.discard("x")
    assert len(queue) == 3 and sorted(queue) == ["a1", "a3", "c1"]
    assert drained(queue) == ["a1", "c1", "a3"]
    assert not queue.discard("a1")


def test_an_empty_queue():
    queue = filled("a1")
    queue.get()
    with pytest.raises(IndexError, match="empty"):
        queue.get()
