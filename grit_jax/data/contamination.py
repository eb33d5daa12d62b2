"""Training examples that hold texts of evaluation sets.

A training text matches an evaluation text in one of three ways:

    exact     it has the same words in the same order
    ngram     it shares a run of words with it: 13, as in GPT-3 (arXiv 2005.14165, appendix C)
    near      most of their word triples are the same (MinHash finds pairs, which are compared)

Texts are compared by their words (`word_hashes.py`). The evaluation texts' hashes are in memory,
about 60 bytes a word; training texts are not.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int, UInt64

from grit_jax.data.formats import (
    CachedExample,
    EmbeddingExample,
    Example,
    LabelledAnswer,
    PreferencePair,
)
from grit_jax.data.raw_rows import iter_rows
from grit_jax.data.word_hashes import (
    SHINGLE,
    Grams,
    min_hash_bands,
    ngrams_of,
    sequences_of,
    similarity,
    words_of,
)
from grit_jax.errors import GritError

Method: TypeAlias = Literal["exact", "ngram", "near"]
METHODS: tuple[Method, ...] = ("exact", "ngram", "near")
IDS = frozenset({"id", "_id", "ids", "metadata", "query_id", "docid", "dataset", "source", "lang"})
PASSAGES = ("pos", "neg")
EXCERPT = 200  # characters of a match in the report
TEXTS_TOGETHER = 4096  # evaluation texts hashed at once


@dataclasses.dataclass(frozen=True)
class DecontaminationOptions:
    """What training examples are compared with, and what counts as a match.

    Attributes:
      against: evaluation files in any format that `raw_rows.py` reads. Every string of a row is a
        text, ids, metadata and instructions aside; of a file that ends in `.txt`, every line.
      fields: the keys of those rows whose texts count; empty: all.
      ngram: words of a run that two texts may not share.
      share: the least share of an evaluation text's runs that a training text must have, for a
        match by n-grams; 0: one run.
      similarity: the least Jaccard similarity of a near-duplicate, in word triples.
      least_words: evaluation texts with fewer words are not looked for: "yes" is in every set.
    """

    against: tuple[str, ...]
    fields: tuple[str, ...] = ()
    ngram: int = 13
    share: float = 0.0
    similarity: float = 0.8
    least_words: int = 3

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise GritError(f"--ngram: expected at least 1 word, got {self.ngram}")
        for flag, value in (("--ngram-share", self.share), ("--similarity", self.similarity)):
            if not 0 <= value <= 1:
                raise GritError(f"{flag}: expected a number from 0 to 1, got {value}")


@dataclasses.dataclass(frozen=True)
class Match:
    """A training text that holds an evaluation text.

    Attributes:
      part: of the example, `query` or `pos[0]`.
      against: place and key of the evaluation text. file, text: its file, and its number.
      score: the share of its runs that were found (ngram), or the similarity (near); 1 if exact.
      excerpt: the run that was found, or the beginning of the training text.
    """

    part: str
    method: Method
    against: str
    file: str
    text: int
    score: float
    excerpt: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


class EvaluationTexts:
    """The texts of evaluation sets, prepared to be found in training texts.

    Attributes:
      places: file, and place with key, of each text.
      counts: texts by file.
      too_short: texts that are not looked for.

    Raises:
      GritError: a file that cannot be read, a bad line, or no text that is long enough.
    """

    def __init__(self, options: DecontaminationOptions):
        self.options = options
        self.places: list[tuple[str, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.too_short = 0
        parts: list[tuple[Grams, Grams, UInt64[np.ndarray, " texts"]]] = []
        texts: list[str] = []
        for name in options.against:
            for place, text in _texts_of(Path(name), options.fields):
                self.places.append((name, place))
                texts.append(text)
                self.counts[name] += 1
                if len(texts) == TEXTS_TOGETHER:
                    parts.append(self._hashed(texts))
                    texts = []
        parts.append(self._hashed(texts))
        runs, shingles = (_joined([part[i] for part in parts]) for i in (0, 1))
        sequences = np.concatenate([part[2] for part in parts])
        if not sequences.any():
            fields = f" under {', '.join(options.fields)}" if options.fields else ""
            raise GritError(
                f"{', '.join(options.against)}: no text of {options.least_words} words or more"
                f"{fields} to compare with"
            )
        numbers = np.arange(len(self.places))
        self._shingles = shingles
        self._exact = _Lookup(sequences, numbers)
        self._runs = _Lookup(runs.hashes, np.repeat(numbers, runs.counts))
        self._distinct_runs = np.bincount(self._runs.values, minlength=len(numbers))
        bands = min_hash_bands(shingles)
        self._bands = [_Lookup(bands[:, band], numbers) for band in range(bands.shape[1])]

    def _hashed(self, texts: Sequence[str]) -> tuple[Grams, Grams, UInt64[np.ndarray, " texts"]]:
        """Runs, triples and whole sequences; nothing of a text that is too short."""
        words = words_of(texts)
        short = words.counts < self.options.least_words
        self.too_short += int(np.count_nonzero(short))
        keep = np.repeat(~short, words.counts)
        words = Grams(words.hashes[keep], np.cumsum(np.where(short, 0, words.counts)))
        return (
            ngrams_of(words, self.options.ngram),
            ngrams_of(words, SHINGLE, whole=True),
            sequences_of(words),
        )

    def matches(self, texts: Sequence[tuple[str, str]]) -> list[Match | None]:
        """For each training text, named by its part of the example, the evaluation text that it
        holds: the closest one of the first method that finds any."""
        words = words_of([text for _, text in texts])
        runs = ngrams_of(words, self.options.ngram)
        shingles = ngrams_of(words, SHINGLE, whole=True)
        sequences, bands = sequences_of(words), min_hash_bands(shingles)
        # Most texts match nothing, and are passed over by a few operations on all of them together.
        known = self._runs.contains(runs.hashes)
        begins = (runs.ends - runs.counts).tolist()
        exact = self._exact.contains(sequences) & (sequences > 0)
        near = np.zeros(len(texts), bool)
        for band, lookup in enumerate(self._bands):
            near |= lookup.contains(bands[:, band])
        found: list[Match | None] = []
        for i, text in enumerate(texts):
            match = self._exact_match(text, sequences[i]) if exact[i] else None
            own = known[begins[i] : runs.ends[i]]
            if match is None and own.any():
                match = self._run_match(text, runs.of(i), own)
            if match is None and near[i]:
                match = self._near_match(text, shingles.of(i), bands[i])
            found.append(match)
        return found

    def _match(
        self, text: tuple[str, str], method: Method, number: int, score: float, excerpt: str = ""
    ) -> Match:
        file, place = self.places[number]
        excerpt = (excerpt or text[1])[:EXCERPT]
        return Match(text[0], method, place, file, number, round(float(score), 4), excerpt)

    def _exact_match(self, text: tuple[str, str], sequence: np.uint64) -> Match:
        return self._match(text, "exact", int(self._exact.get(sequence)[0]), 1.0)

    def _run_match(
        self,
        text: tuple[str, str],
        runs: UInt64[np.ndarray, " n"],
        known: Bool[np.ndarray, " n"],
    ) -> Match | None:
        places = np.flatnonzero(known)
        own = np.unique(runs[places])
        counts = np.bincount(
            np.concatenate([self._runs.get(key) for key in own]), minlength=len(self.places)
        )
        shares = counts / np.maximum(self._distinct_runs, 1)
        best = int(np.argmax(shares))
        if shares[best] < self.options.share:
            return None
        excerpt = _run(text[1], int(places[0]), self.options.ngram)
        return self._match(text, "ngram", best, shares[best], excerpt)

    def _near_match(
        self,
        text: tuple[str, str],
        shingles: UInt64[np.ndarray, " n"],
        bands: UInt64[np.ndarray, " BANDS"],
    ) -> Match | None:
        candidates = sorted(
            {
                int(number)
                for lookup, key in zip(self._bands, bands, strict=True)
                if key
                for number in lookup.get(key)
            }
        )
        scores = [similarity(shingles, self._shingles.of(number)) for number in candidates]
        if not scores or max(scores) < self.options.similarity:
            return None
        best = int(np.argmax(scores))
        return self._match(text, "near", candidates[best], scores[best])


class _Lookup:
    """Numbers by 64-bit keys, each pair once; a key of 0 is none."""

    def __init__(self, keys: UInt64[np.ndarray, " n"], values: Int[np.ndarray, " n"]):
        order = np.lexsort((values, keys))
        keys, values = keys[order], values[order]
        keep = keys > 0
        if len(keys):
            keep[1:] &= (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
        self.keys, self.values = keys[keep], values[keep]

    def get(self, key: np.uint64) -> Int[np.ndarray, " m"]:
        """The numbers of a key."""
        first, last = (int(np.searchsorted(self.keys, key, side)) for side in ("left", "right"))
        return self.values[first:last]

    def contains(self, keys: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each key has any number."""
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[places] == keys


def example_parts(example: Example) -> list[tuple[str, str]]:
    """The texts of an example, each with its name."""
    if isinstance(example, EmbeddingExample):
        sides = (("pos", example.positives), ("neg", example.negatives))
        passages = [(f"{name}[{i}]", t.text) for name, side in sides for i, t in enumerate(side)]
        return [("query", example.query.text), *passages]
    if isinstance(example, CachedExample):
        documents = [(f"docs[{i}]", text) for i, text in enumerate(example.docs)]
        return [*documents, ("text[0]", example.question), ("text[1]", example.answer)]
    if isinstance(example, (PreferencePair, LabelledAnswer)):
        prompt = [(f"prompt[{i}]", turn) for i, turn in enumerate(example.prompt)]
        if isinstance(example, LabelledAnswer):
            return [*prompt, ("completion", example.completion)]
        return [*prompt, ("chosen", example.chosen), ("rejected", example.rejected)]
    if example.text is not None:
        return [("text", example.text)]
    return [(f"text[{i}]", turn) for i, turn in enumerate(example.turns)]


def _texts_of(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Place and text of everything in an evaluation file."""
    if path.suffix == ".txt":
        for row in iter_rows(path):
            assert row.line is not None
            yield row.place, row.line.decode("utf-8", "replace")
        return
    for row in iter_rows(path):
        value = row.json()
        if not isinstance(value, (dict, str)):
            raise GritError(f"{row.place}: expected a JSON object or a string")
        if isinstance(value, str):
            yield row.place, value
            continue
        for key in value:
            if key in fields or not (fields or key in IDS):
                for text in _strings(_without_instruction(key, value[key])):
                    yield f"{row.place} {key}", text


def _without_instruction(key: str, value: Any) -> Any:
    """The texts of `query`, `pos` and `neg` without their instructions."""
    last = lambda text: text[-1] if isinstance(text, list) and len(text) == 2 else text
    if key == "query":
        return last(value)
    return [last(text) for text in value] if key in PASSAGES and isinstance(value, list) else value


def _strings(value: Any) -> Iterator[str]:
    """All strings within a JSON value, roles and ids aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in IDS and key not in ("role", "from"):
                yield from _strings(item)


def _joined(parts: Sequence[Grams]) -> Grams:
    begins = np.cumsum([0, *(len(part.hashes) for part in parts)])
    return Grams(
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.ends + begin for part, begin in zip(parts, begins, strict=False)]),
    )


def _run(text: str, word: int, n: int) -> str:
    """A run of words of a text, where a regular expression finds the same words; else ""."""
    words = re.findall(r"\w+", text)
    if len(words) != int(words_of([text]).counts[0]):
        return ""
    return " ".join(words[word : word + n])
