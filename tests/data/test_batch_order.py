"""Which examples a step sees: nothing lost, nothing twice, one dataset a batch where it can be."""

import collections
import pickle

import numpy as np
import pytest

from grit_jax.data.batch_order import (
    BalancedOrder,
    ContrastiveOrder,
    StreamOrder,
    choose_passages,
    deal_evenly,
)


def pairs(selection):
    return list(zip(selection.dataset.tolist(), selection.index.tolist(), strict=True))


@pytest.mark.parametrize(
    "sizes, batch",
    [((100,), 8), ((97, 50, 3), 8), ((7, 7, 7), 16), ((33, 64), 32), ((16,), 16), ((5, 200), 64)],
)
def test_every_example_equally_often(sizes, batch):
    plan = ContrastiveOrder(sizes, batch, seed=1)
    total, epochs = sum(sizes), 2 * batch
    seen = collections.Counter()
    for step in range(total * epochs // batch):
        chosen = pairs(plan(step))
        assert len(chosen) == batch
        seen.update(chosen)
    assert len(seen) == total
    # After a whole number of epochs that ends with a full batch, everything was seen once an epoch.
    assert set(seen.values()) == {epochs}


@pytest.mark.parametrize(
    "sizes, batch",
    [((100, 61), 16), ((333,), 64), ((5, 200), 64), ((17,), 16), ((40, 40), 64), ((3, 2, 70), 64)],
)
def test_no_example_twice_in_a_batch(sizes, batch):
    plan = ContrastiveOrder(sizes, batch, seed=2)
    for step in range(200):
        assert len(set(pairs(plan(step)))) == batch


def test_batches_come_from_one_dataset_but_the_mixed_ones():
    sizes, batch = (103, 58, 20), 10
    plan = ContrastiveOrder(sizes, batch, seed=3)
    steps = [step for step in range(200) if plan.epoch(step) == 4]
    one = [step for step in steps if len(set(plan(step).dataset.tolist())) == 1]
    assert len(one) >= 10 + 5 + 2
    assert len(steps) - len(one) <= 2
    assert [plan(step).dataset[0] for step in one] != sorted(
        plan(step).dataset[0] for step in one
    )  # permuted


def test_epochs_are_consecutive_and_differ():
    plan = ContrastiveOrder((50, 30), 16, seed=4)
    epochs = [plan.epoch(step) for step in range(100)]
    assert epochs == sorted(epochs) and set(np.diff(epochs)) <= {0, 1} and epochs[0] == 0
    assert pairs(plan(0)) != pairs(plan(epochs.index(1)))


@pytest.mark.parametrize("cls", [ContrastiveOrder, StreamOrder])
def test_pure_function_of_seed_and_step(cls):
    first, second = cls((40, 60), 16, 5), pickle.loads(pickle.dumps(cls((40, 60), 16, 5)))
    steps = [900, 3, 77, 3, 0, 12345]
    for step in steps:
        assert pairs(first(step)) == pairs(second(step))
    assert any(pairs(first(s)) != pairs(cls((40, 60), 16, 6)(s)) for s in range(5))


def test_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch 9 exceeds the 8 examples"):
        ContrastiveOrder((4, 4), 9, 0)


def test_without_shuffling_order_is_that_of_the_files():
    plan = ContrastiveOrder((6, 4), 4, 0, shuffle=False)
    assert [pairs(plan(s)) for s in range(2)] == [
        [(0, i) for i in (2, 3, 4, 5)],
        [(1, i) for i in range(4)],
    ]
    stream = StreamOrder((2, 3), 4, 0, shuffle=False)
    assert pairs(stream(0)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert pairs(stream(1)) == [(1, 2), (0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("sizes, batch", [((7,), 3), ((5, 6), 4), ((2, 1), 8)])
def test_stream_sees_everything_once_an_epoch(sizes, batch):
    plan, total = StreamOrder(sizes, batch, 7), sum(sizes)
    flat = [pair for step in range(10 * total) for pair in pairs(plan(step))]
    for start in range(0, len(flat) - total + 1, total):
        assert len(set(flat[start : start + total])) == total
    assert flat[:total] != flat[total : 2 * total] or total < 4
    assert plan.epoch(0) == 0 and plan.epoch(total) == batch


def test_passages():
    rng = np.random.default_rng(0)
    drawn = [choose_passages(rng, 3, 5, 4) for _ in range(300)]
    assert {tuple(positives) for positives, _ in drawn} == {(0,), (1,), (2,)}
    assert all(len(set(negatives)) == 3 for _, negatives in drawn)
    assert {n for _, negatives in drawn for n in negatives} == set(range(5))
    # Too few are repeated, each as often as the others give or take one.
    for _ in range(50):
        counts = collections.Counter(choose_passages(rng, 1, 2, 6)[1])
        assert sum(counts.values()) == 5 and set(counts.values()) == {2, 3}
    assert choose_passages(rng, 1, 0, 1) == ([0], [])


def test_several_positives_are_different_ones():
    rng = np.random.default_rng(0)
    drawn = [choose_passages(rng, 5, 2, 2, 3)[0] for _ in range(200)]
    assert all(len(set(positives)) == 3 for positives in drawn)
    assert {n for positives in drawn for n in positives} == set(range(5))
    assert sorted(choose_passages(rng, 2, 2, 2, 3)[0]) == [0, 1]  # as many as there are


def test_the_smaller_side_is_drawn_whole_and_once_an_epoch():
    """Unique indices, of either side and of batches that do not divide: no example is lost or drawn
    before its turn.

    The original draws the smaller side by the larger one's index and never reaches what lies beyond
    (`gritlm: gritlm/training/data.py:92-98`).
    """
    contrastive, stream = ContrastiveOrder((7, 6), 5, seed=1), StreamOrder((101,), 3, seed=1)
    for plan, total, batch in ((contrastive, 13, 5), (stream, 101, 3)):
        for epochs in (1, 2, 5):
            seen = collections.Counter(
                p for step in range(epochs * total // batch) for p in pairs(plan(step))
            )
            assert sum(seen.values()) == epochs * total // batch * batch
            assert max(seen.values()) - min((seen[p] for p in seen), default=0) <= 1
        whole = collections.Counter(p for step in range(total) for p in pairs(plan(step)))
        assert len(whole) == total and set(whole.values()) == {batch}


LENGTHS = np.random.default_rng(5).integers(1, 400, size=(3, 200))


def lengths_of(selection):
    return LENGTHS[selection.dataset, selection.index]


def spread(plan, steps):
    totals = [int(lengths_of(plan(step)).sum()) for step in steps]
    return max(totals) - min(totals)


def test_balanced_batches_are_of_nearly_equal_length_and_hold_the_same_examples():
    plain = StreamOrder((200, 150, 90), 6, seed=1)
    plan = BalancedOrder(plain, 8, lengths_of)
    for window in range(6):
        steps = range(8 * window, 8 * window + 8)
        exchanged, before = (
            collections.Counter(p for step in steps for p in pairs(order(step)))
            for order in (plan, plain)
        )
        assert exchanged == before
        assert 3 * spread(plan, steps) < spread(plain, steps)
    assert plan.epoch(100) == plain.epoch(100)


def test_balanced_contrastive_batches_keep_to_their_dataset_and_have_no_example_twice():
    plain = ContrastiveOrder((103, 58, 20), 10, seed=3)
    plan = BalancedOrder(plain, 12, lengths_of)
    moved = 0
    for step in range(120):
        chosen, before = pairs(plan(step)), pairs(plain(step))
        assert len(set(chosen)) == 10
        datasets = {d for d, _ in before}
        if len(datasets) > 1:
            assert chosen == before
        else:
            assert {d for d, _ in chosen} == datasets
            moved += set(chosen) != set(before)
    assert moved > 80
    for epoch in range(4):
        steps = [step for step in range(120) if plan.epoch(step) == epoch]
        assert collections.Counter(
            p for step in steps for p in pairs(plan(step))
        ) == collections.Counter(p for step in steps for p in pairs(plain(step)))


def test_balanced_order_is_a_function_of_the_step():
    plan = BalancedOrder(StreamOrder((120,), 5, seed=2), 4, lengths_of)
    steps = [17, 3, 18, 40, 3, 17]
    first = [pairs(plan(step)) for step in steps]
    other = pickle.loads(pickle.dumps(plan))
    assert first == [pairs(other(step)) for step in steps]
    assert first[1] == first[4] and first[0] == first[5]


def test_dealt_evenly():
    with pytest.raises(ValueError, match="7 examples cannot be dealt to 3 batches"):
        deal_evenly(np.arange(7), 3)
    one = deal_evenly(np.array([3, 9, 5]), 1)
    assert [hand.tolist() for hand in one] == [[1, 2, 0]]
