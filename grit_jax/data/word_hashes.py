"""Words and word n-grams of many texts as 64-bit hashes, by NumPy, and MinHash over them.

Texts are compared by their words: lower-cased, in Unicode's form NFKC, punctuation left out. In
scripts without spaces between words (Chinese, Japanese, Thai, ...) each character is a word. Hashes
are the same in every process and on every machine.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8, UInt64

# MinHash (Broder 1997) with banding: texts of Jaccard similarity s share a band with probability
# 1 - (1 - s^ROWS)^BANDS, which is 0.05 at s = 0.5, 0.95 at 0.8, 0.9996 at 0.9.
BANDS, ROWS = 16, 8
SHINGLE = 3  # words: similarity counts the triples of words that two texts share
GRAMS_TOGETHER = 1 << 15  # hashed at once, which fits a core's cache
# Characters that are words of their own: kana, Han, and the scripts of South-East Asia.
ALONE = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_BASE, _WORD_BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd


@dataclasses.dataclass(frozen=True)
class Grams:
    """Hashes of several texts, one behind the other.

    Attributes:
      hashes: of all texts. ends: where each text's hashes end among them.
    """

    hashes: UInt64[np.ndarray, " grams"]
    ends: Int[np.ndarray, " texts"]

    def of(self, text: int) -> UInt64[np.ndarray, " n"]:
        """The hashes of one text."""
        return self.hashes[self.ends[text - 1] if text else 0 : self.ends[text]]

    @property
    def counts(self) -> Int[np.ndarray, " texts"]:
        """How many each text has."""
        return np.diff(self.ends, prepend=0)


def words_of(texts: Sequence[str]) -> Grams:
    """The words of texts.

    >>> one, other = words_of(["Sort a list!"]), words_of(["sort, a LIST"])
    >>> bool((one.hashes == other.hashes).all()), one.counts.tolist()
    (True, [3])
    """
    plain = [text.lower() if text.isascii() else _folded(text) for text in texts]
    codes = np.frombuffer("\n".join(plain).encode("utf-32-le", "surrogatepass"), "<u4")
    text_ends = np.cumsum([len(text) + 1 for text in plain]) if plain else np.zeros(0, np.int64)
    kinds = _kinds()[codes]
    is_word = kinds > 0
    before = np.concatenate([[np.uint8(0)], kinds[:-1]]) if len(kinds) else kinds
    begins = np.flatnonzero(is_word & ((before == 0) | (kinds == 2) | (before == 2)))
    if not len(begins):
        return Grams(np.zeros(0, np.uint64), np.zeros(len(texts), np.int64))
    number = np.zeros(len(codes), np.int64)
    number[begins] = 1
    place = np.arange(len(codes)) - begins[np.maximum(np.cumsum(number) - 1, 0)]
    place = np.where(is_word, place, 0)
    values = np.where(is_word, _mixed(codes.astype(np.uint64)) * _powers(place.max() + 1)[place], 0)
    hashes = _mixed(np.add.reduceat(values.astype(np.uint64), begins))
    return Grams(hashes, np.searchsorted(begins, text_ends))


def ngrams_of(words: Grams, n: int, *, whole: bool = False) -> Grams:
    """The n-grams of words of each text.

    Args:
      whole: a text of fewer words, but one at least, has one gram: all of its words.
    """
    count = len(words.hashes)
    sums = np.zeros(count, np.uint64)
    for i in range(min(n, count)):
        sums[: count - i] += words.hashes[i:] * _WORD_BASE ** np.uint64(i)
    begins, counts = words.ends - words.counts, words.counts
    left = np.repeat(words.ends, counts) - np.arange(count)  # words to the end of the text
    keep = left >= n
    if whole:
        short = np.flatnonzero((counts > 0) & (counts < n))
        keep[begins[short]] = True
        sums[begins[short]] = sequences_of(words)[short]
    grams = np.cumsum(keep) if count else np.zeros(0, np.int64)
    ends = np.where(words.ends > 0, grams[np.maximum(words.ends - 1, 0)] if count else 0, 0)
    return Grams(_mixed(sums[keep] + np.uint64(1)), ends.astype(np.int64))


def sequences_of(words: Grams) -> UInt64[np.ndarray, " texts"]:
    """A hash of all words of each text, in their order; 0 for a text without words."""
    count, counts = len(words.hashes), words.counts
    result = np.zeros(len(counts), np.uint64)
    if not count:
        return result
    begins = words.ends - counts
    place = np.arange(count) - np.repeat(begins, counts)
    values = words.hashes * _word_powers(int(place.max()) + 1)[place]
    some = np.flatnonzero(counts)
    result[some] = _mixed(np.add.reduceat(values, begins[some]) + counts[some].astype(np.uint64))
    return result


def min_hash_bands(grams: Grams) -> UInt64[np.ndarray, "texts BANDS"]:
    """Keys of which two similar texts are likely to share one at least; 0 for a text without
    grams."""
    bands = np.zeros((len(grams.ends), BANDS), np.uint64)
    some = np.flatnonzero(grams.counts)
    begins = (grams.ends - grams.counts)[some]
    multipliers, summands = _permutations()
    first = 0
    while first < len(some):
        # As many texts as fill a block of grams; at least one.
        limit = begins[first] + GRAMS_TOGETHER
        last = max(first + 1, int(np.searchsorted(grams.ends[some], limit, "right")))
        block = grams.hashes[begins[first] : grams.ends[some[last - 1]]]
        own = begins[first:last] - begins[first]
        for band in range(BANDS):
            key = np.full(last - first, np.uint64(band + 1))
            for row in range(band * ROWS, (band + 1) * ROWS):
                ordered = (block * multipliers[row] + summands[row]) >> np.uint64(32)
                key = _mixed(key * _BASE + np.minimum.reduceat(ordered, own))
            bands[some[first:last], band] = np.maximum(key, np.uint64(1))
        first = last
    return bands


def similarity(one: UInt64[np.ndarray, " n"], other: UInt64[np.ndarray, " m"]) -> float:
    """The Jaccard similarity of two texts' grams: those they share, of those that either has."""
    one, other = np.unique(one), np.unique(other)
    if not len(one) or not len(other):
        return 0.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


@functools.cache
def _kinds() -> UInt8[np.ndarray, " characters"]:
    """For each character: 0 separates words, 1 is a part of one, 2 is one of its own."""
    category = unicodedata.category
    letters = (category(chr(code))[0] in "LMN" for code in range(sys.maxunicode + 1))
    kinds = np.fromiter(letters, np.uint8, sys.maxunicode + 1)
    for first, last in ALONE:
        kinds[first : last + 1] *= 2
    return kinds


def _powers(count: int) -> UInt64[np.ndarray, " n"]:
    return _power_table(_BASE, 1 << (int(count) - 1).bit_length())


def _word_powers(count: int) -> UInt64[np.ndarray, " n"]:
    return _power_table(_WORD_BASE, 1 << (int(count) - 1).bit_length())


@functools.lru_cache(maxsize=64)
def _power_table(base: np.uint64, count: int) -> UInt64[np.ndarray, " n"]:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


@functools.cache
def _permutations() -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """Odd factors and summands of the multiply-shift hashes that order the grams."""
    numbers = _mixed(np.arange(1, 2 * BANDS * ROWS + 1, dtype=np.uint64) * _BASE)
    return numbers[::2] | np.uint64(1), numbers[1::2]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each number's bits mixed, one to one (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
