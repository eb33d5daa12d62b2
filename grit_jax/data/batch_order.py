"""The order of examples: which ones a step sees, as a pure function of (seed, step). A resumed run
needs no other state.

Each contrastive batch is drawn from one dataset, because texts of other datasets are negatives that
are too easy (the original's `CustomRandomSampler`, `gritlm/training/data.py`). Examples that do not
fill a batch are mixed with the remainders of the other datasets. Unlike in the original, none is
dropped: a mixed batch that is not full at the end of an epoch is filled up from the next one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

_CYCLE, _FULL, _TURNS, _ORDER, _STREAM = range(5)


@dataclasses.dataclass(frozen=True)
class BatchIndices:
    """The examples of a batch: `index[i]` of dataset `dataset[i]`."""

    dataset: np.ndarray
    index: np.ndarray


class ContrastiveOrder:
    """Batches of one dataset each, and mixed batches of the remainders.

    An epoch sees every example once, up to the mixed batch that crosses its end. The examples of
    the mixed batches are a window that moves cyclically through each dataset from epoch to epoch,
    and the datasets alternate in the same order in every epoch. So every example is mixed equally
    often, and no batch holds an example twice (it would be its own negative).

    Args:
      sizes: examples of each dataset.
      batch: global batch size, at most their sum.
    """

    def __init__(self, sizes: Sequence[int], batch: int, seed: int, *, shuffle: bool = True):
        if batch > sum(sizes):
            raise ValueError(f"batch {batch} exceeds the {sum(sizes)} examples")
        self.sizes, self.batch, self.seed, self.shuffle = tuple(sizes), batch, seed, shuffle
        self.total = sum(sizes)
        rest = [size % batch for size in sizes]
        if sum(rest) < batch and any(0 < size < batch for size in sizes):
            # One mixed batch would span several epochs, and so several turns of a small dataset.
            rest[int(np.argmax(sizes))] += batch
        self._rest, self._mixed = tuple(rest), sum(rest)
        self._epoch = functools.lru_cache(maxsize=2)(self._build_epoch)
        self._cycles = [self._permuted(np.arange(size), _CYCLE, d) for d, size in enumerate(sizes)]
        self._turns = self._permuted(np.repeat(np.arange(len(sizes)), rest), _TURNS)

    def epoch(self, step: int) -> int:
        """The epoch that `step` belongs to."""
        return -(-(step + 1) * self.batch // self.total) - 1

    def __call__(self, step: int) -> BatchIndices:
        """The examples of `step`."""
        epoch = self.epoch(step)
        datasets, indices = self._epoch(epoch)
        number = step - epoch * self.total // self.batch
        return BatchIndices(datasets[number], indices[number])

    def exchange_group(self, step: int, batch: BatchIndices) -> tuple[int, int] | None:
        """Batches with the same value may exchange examples; those with None keep theirs.

        Batches of different datasets do not, and those of different epochs do not either: an
        example that is twice in a batch would be its own negative.
        """
        first = int(batch.dataset[0])
        return (self.epoch(step), first) if (batch.dataset == first).all() else None

    def _build_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        datasets, indices = [], []
        for d, size in enumerate(self.sizes):
            full = self._permuted(
                np.setdiff1d(np.arange(size), self._window(d, epoch)), _FULL, d, epoch
            )
            indices.append(full.reshape(-1, self.batch))
            datasets.append(np.full(indices[-1].shape, d))
        if self._mixed:
            first, last = (e * self._mixed // self.batch for e in (epoch, epoch + 1))
            mixed = self._mixed_stream(np.arange(first * self.batch, last * self.batch))
            datasets.append(mixed.dataset.reshape(-1, self.batch))
            indices.append(mixed.index.reshape(-1, self.batch))
        every_dataset, every_index = np.concatenate(datasets), np.concatenate(indices)
        order = self._permuted(np.arange(len(every_index)), _ORDER, epoch)
        return every_dataset[order], every_index[order]

    def _mixed_stream(self, places: np.ndarray) -> BatchIndices:
        """The remainders of all epochs, one after the other, at `places`."""
        index = np.zeros(len(places), np.int64)
        dataset = self._turns[places % self._mixed]
        for epoch in np.unique(places // self._mixed).tolist():
            for d in range(len(self.sizes)):
                here = np.flatnonzero((places // self._mixed == epoch) & (dataset == d))
                # The number of each place among this dataset's turns in the epoch.
                turn = np.searchsorted(np.flatnonzero(self._turns == d), places[here] % self._mixed)
                index[here] = self._window(d, epoch)[turn]
        return BatchIndices(dataset, index)

    def _window(self, d: int, epoch: int) -> np.ndarray:
        places = epoch * self._rest[d] + np.arange(self._rest[d])
        return self._cycles[d][places % max(self.sizes[d], 1)]

    def _permuted(self, values: np.ndarray, *key: int) -> np.ndarray:
        return (
            np.random.default_rng((self.seed, *key)).permutation(values) if self.shuffle else values
        )

    def __reduce__(self):
        return _contrastive, (self.sizes, self.batch, self.seed, self.shuffle)


class StreamOrder:
    """All datasets as one stream, shuffled anew every epoch; a batch may span two epochs.

    Each kind of example has an order of its own. In a joint run, the kind with fewer examples is
    then neither drawn with repetitions within an epoch nor truncated to the length of the other:
    each kind sees all of its examples once in each of its own epochs.
    """

    def __init__(self, sizes: Sequence[int], batch: int, seed: int, *, shuffle: bool = True):
        self.sizes, self.batch, self.seed, self.shuffle = tuple(sizes), batch, seed, shuffle
        self.total = sum(sizes)
        self._ends = np.cumsum(sizes)
        self._order = functools.lru_cache(maxsize=2)(self._build_order)

    def epoch(self, step: int) -> int:
        """The epoch of the first example of `step`."""
        return step * self.batch // self.total

    def __call__(self, step: int) -> BatchIndices:
        """The examples of `step`."""
        places = step * self.batch + np.arange(self.batch)
        flat = np.zeros(self.batch, np.int64)
        for epoch in np.unique(places // self.total).tolist():
            here = places // self.total == epoch
            flat[here] = self._order(epoch)[places[here] % self.total]
        dataset = np.searchsorted(self._ends, flat, side="right")
        return BatchIndices(dataset, flat - (self._ends - self.sizes)[dataset])

    def exchange_group(self, step: int, batch: BatchIndices) -> int:
        """Batches with the same value may exchange examples: here all of them."""
        return 0

    def _build_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.total)
        return np.random.default_rng((self.seed, _STREAM, epoch)).permutation(self.total)

    def __reduce__(self):
        return _stream, (self.sizes, self.batch, self.seed, self.shuffle)


class BalancedOrder:
    """Another order, with examples exchanged among nearby batches so that these are of nearly equal
    length.

    Batches have the rows of the fullest one (each new shape compiles a new program), so batches of
    equal length are padded less. The examples of `window` consecutive batches are sorted by length
    and dealt out in rounds: in each, every batch gets one example, the shortest batch the longest.
    Examples keep their window, so every epoch still sees each once.

    Args:
      window: the number of batches that exchange examples.
      lengths: the length of each example of a `BatchIndices`, in tokens.
    """

    def __init__(
        self,
        order: ContrastiveOrder | StreamOrder,
        window: int,
        lengths: Callable[[BatchIndices], np.ndarray],
    ):
        self.order, self.window, self.lengths = order, window, lengths
        self._window = functools.lru_cache(maxsize=2)(self._build_window)

    def epoch(self, step: int) -> int:
        """The epoch that `step` belongs to."""
        return self.order.epoch(step)

    def __call__(self, step: int) -> BatchIndices:
        """The examples of `step`."""
        number, place = divmod(step, self.window)
        return self._window(number)[place]

    def _build_window(self, number: int) -> list[BatchIndices]:
        steps = range(number * self.window, (number + 1) * self.window)
        batches = [self.order(step) for step in steps]
        groups: dict[object, list[int]] = collections.defaultdict(list)
        for place, step in enumerate(steps):
            group = self.order.exchange_group(step, batches[place])
            if group is not None:
                groups[group].append(place)
        for places in groups.values():
            together = BatchIndices(
                np.concatenate([batches[place].dataset for place in places]),
                np.concatenate([batches[place].index for place in places]),
            )
            dealt = deal_evenly(self.lengths(together), len(places))
            for place, chosen in zip(places, dealt, strict=True):
                batches[place] = BatchIndices(together.dataset[chosen], together.index[chosen])
        return batches

    def __reduce__(self):
        return BalancedOrder, (self.order, self.window, self.lengths)


def deal_evenly(lengths: np.ndarray, hands: int) -> list[np.ndarray]:
    """Deals examples out to `hands` batches of equally many and of nearly equal total length.

    >>> [hand.tolist() for hand in deal_evenly(np.array([9, 1, 5, 8, 2, 4]), 2)]
    [[0, 5, 4], [3, 2, 1]]

    Returns:
      the numbers of each batch's examples, longest first.

    Raises:
      ValueError: their number is no multiple of `hands`.
    """
    if len(lengths) % hands:
        raise ValueError(f"{len(lengths)} examples cannot be dealt to {hands} batches evenly")
    rounds = np.argsort(-lengths, kind="stable").reshape(-1, hands)
    totals = np.zeros(hands, np.int64)
    dealt = np.zeros((hands, len(rounds)), np.int64)
    for number, examples in enumerate(rounds):
        shortest_first = np.argsort(totals, kind="stable")
        dealt[shortest_first, number] = examples
        totals[shortest_first] += lengths[examples]
    return list(dealt)


def choose_passages(
    rng: np.random.Generator,
    positives: int,
    negatives: int,
    group_size: int,
    max_positives: int = 1,
) -> tuple[list[int], list[int]]:
    """Draws up to `max_positives` different positives and `group_size - 1` negatives, as indices.

    Where there are fewer negatives than that, they are repeated before drawing.
    """
    if max_positives == 1:
        chosen = [int(rng.integers(positives))]
    else:
        chosen = rng.permutation(positives)[:max_positives].tolist()
    count = group_size - 1
    if not count:
        return chosen, []
    pool = np.tile(np.arange(negatives), -(-count // negatives))
    return chosen, rng.permutation(pool)[:count].tolist()


def _contrastive(sizes: Sequence[int], batch: int, seed: int, shuffle: bool) -> ContrastiveOrder:
    return ContrastiveOrder(sizes, batch, seed, shuffle=shuffle)


def _stream(sizes: Sequence[int], batch: int, seed: int, shuffle: bool) -> StreamOrder:
    return StreamOrder(sizes, batch, seed, shuffle=shuffle)
