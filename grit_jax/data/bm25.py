"""Lexical search with BM25: hard negatives for the quickstart's corpus, and a baseline for trained
models."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

K1, B = 1.2, 0.75


def words(text: str) -> list[str]:
    """Lower-case words and numbers; dotted, underscored and camel-case names are split."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]


class BM25:
    """An inverted index over texts, scored by BM25 with k1 = 1.2 and b = 0.75 (Robertson and
    Zaragoza 2009, section 3.4).

    >>> index = BM25(["sort a list", "read the lines of a file", "sort the lines of a list"])
    >>> index.search("lines of a file", k=2)
    [1, 2]
    >>> index.scores("file").round(2).tolist()
    [0.0, 0.91, 0.0]
    """

    def __init__(self, texts: Sequence[str]):
        bags = [Counter(words(text)) for text in texts]
        lengths = np.array([sum(bag.values()) for bag in bags], np.float64)
        self.size = len(bags)
        norm = K1 * (1 - B + B * lengths / max(lengths.mean() if self.size else 1.0, 1e-9))
        postings: defaultdict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index, bag in enumerate(bags):
            for word, count in bag.items():
                postings[word][0].append(index)
                postings[word][1].append(count)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, (indices, counts) in postings.items():
            at, tf = np.array(indices), np.array(counts, np.float64)
            idf = np.log(1 + (self.size - len(at) + 0.5) / (len(at) + 0.5))
            self._postings[word] = at, idf * tf * (K1 + 1) / (tf + norm[at])

    def scores(self, query: str) -> np.ndarray:
        """The score of each text: float64 [number of texts]."""
        result = np.zeros(self.size)
        # Sorted, because the order of summation must not depend on the process.
        for word in sorted(set(words(query))):
            if word in self._postings:
                at, weight = self._postings[word]
                result[at] += weight
        return result

    def search(self, query: str, k: int) -> list[int]:
        """Indices of the `k` best texts, best first; equal scores in the order of the texts."""
        scores = self.scores(query)
        k = min(k, self.size)
        if 0 < k < self.size:  # a stable sort of all texts would cost more than the scores
            bound = np.partition(scores, self.size - k)[self.size - k]
            candidates = np.flatnonzero(scores >= bound)
        else:
            candidates = np.arange(self.size)
        return candidates[np.argsort(-scores[candidates], kind="stable")][:k].tolist()
