"""Lexical search with BM25, by the library bm25s: for the documents of an index, hard negatives of
the quickstart's corpus, distractors, and as a baseline for trained models."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

from grit_jax.errors import GritError

K1, B = 1.2, 0.75
WORDS = 1  # version of `words`: a stored index whose texts were split otherwise is built again


def words(text: str) -> list[str]:
    """Lower-case words and numbers; dotted, underscored and camel-case names are split."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]


class BM25:
    """An inverted index over texts, scored by BM25 with k1 = 1.2 and b = 0.75 (Robertson and
    Zaragoza 2009, section 3.4) and the idf of Lucene, which is never negative.

    Attributes:
      size: number of texts.

    >>> index = BM25(["sort a list", "read the lines of a file", "sort the lines of a list"])
    >>> index.search("lines of a file", k=2)
    [1, 2]
    >>> index.scores("file").round(2).tolist()
    [0.0, 0.91, 0.0]
    """

    def __init__(self, texts: Iterable[str]):
        vocabulary = {"": 0}  # a word that no text has, so that there is one
        ids = [[vocabulary.setdefault(w, len(vocabulary)) for w in words(text)] for text in texts]
        self.size = len(ids)
        # The scores of every word in every text are computed here, in float64: ties are broken by
        # the order of the texts, which rounding must not change.
        self._index = _bm25s().BM25(K1, B, method="atire", idf_method="lucene", dtype="float64")
        if not ids:
            return
        with np.errstate(invalid="ignore"):  # of texts that have no word at all
            self._index.index((ids, vocabulary), create_empty_token=False, show_progress=False)

    def save(self, folder: Path) -> None:
        """Writes an index of at least one text to files in a folder."""
        self._index.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> BM25:
        """The index that `save` wrote, memory-mapped.

        Raises:
          GritError: it cannot be read.
        """
        index = cls([])
        try:
            index._index = _bm25s().BM25.load(folder, mmap=True, show_progress=False)
            index.size = int(index._index.scores["num_docs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GritError(f"{folder}: cannot be read ({error})") from None
        return index

    def scores(self, query: str) -> Float[np.ndarray, " N"]:
        """The score of each text: float64, 0 where the text has no word of the query."""
        if not self.size:
            return np.zeros(self.size)
        # Sorted, because the order of summation must not depend on the process.
        return self._index.get_scores_from_ids(
            self._index.get_tokens_ids(sorted(set(words(query))))
        )

    def search(self, query: str, k: int) -> list[int]:
        """Indices of the `k` best texts, best first; equal scores in the order of the texts."""
        return best(self.scores(query), k).tolist()


def best(scores: Float[np.ndarray, " N"], k: int) -> Int[np.ndarray, " k"]:
    """Indices of the `k` highest scores, the highest first; equal ones in their order."""
    size = len(scores)
    k = min(k, size)
    if 0 < k < size:  # a stable sort of all scores would cost more than computing them
        bound = np.partition(scores, size - k)[size - k]
        candidates = np.flatnonzero(scores >= bound)
    else:
        candidates = np.arange(size)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


@functools.cache
def _bm25s() -> ModuleType:
    """The library, imported without JAX: it would run a program on the default device while it is
    imported, before multi-host initialisation and where another process has the device."""
    with _unimportable("jax.lax" if "jax" in sys.modules else "jax"):
        import bm25s
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every step
    return bm25s


@contextlib.contextmanager
def _unimportable(name: str) -> Iterator[None]:
    """Makes `import name` fail inside the block."""
    present = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if present is None:
            del sys.modules[name]
        else:
            sys.modules[name] = present
