"""Texts compared by 64-bit hashes: the documents of an index, and the positives of training lines.

A million texts take 16 MB. Two different texts share a hash with a probability of 5e-20.
"""

from __future__ import annotations

import array
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

from grit_jax.data.formats import EmbeddingExample, Text
from grit_jax.data.lines import LineSource
from grit_jax.data.sources import open_source
from grit_jax.inference.model import GritLM
from grit_jax.rag.index import Index
from grit_jax.rag.indexed_documents import indexed_document
from grit_jax.runtime.progress import progress

MANY = 100_000  # documents from which on reading them takes seconds and shows its progress


def text_hash(text: str) -> int:
    """A hash of a text, white space at both ends left out."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little")


class DocumentHashes:
    """The documents of an index by the hash of their text.

    Attributes:
      hashes: of each document as it is encoded, `{title} {text}`.
    """

    hashes: UInt64[np.ndarray, " N"]

    def __init__(self, index: Index, quiet: bool = False):
        hashes, untitled, rows = array.array("Q"), array.array("Q"), array.array("q")
        numbers = range(len(index))
        shown = progress(
            numbers, "reading documents", "documents", quiet=quiet or len(index) < MANY
        )
        for row in shown:
            document = indexed_document(index.documents[row])
            hashes.append(text_hash(document.content))
            if document.title:  # training lines may have the text without its title
                untitled.append(text_hash(document.text))
                rows.append(row)
        self.hashes = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
        keys = np.concatenate([self.hashes, np.frombuffer(untitled, np.uint64)])
        of = np.concatenate([np.arange(len(hashes)), np.frombuffer(rows, np.int64)])
        order = np.argsort(keys, kind="stable")  # the document as it is encoded comes first
        self._keys, self._rows = keys[order], of[order]

    def row(self, text: str) -> int | None:
        """The row of the document with this text, titled or not; None: there is none."""
        rows = self._rows_of(text_hash(text))
        return int(rows[0]) if len(rows) else None

    def same(self, hashes: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " m"]:
        """The hashes of texts, and of the documents that have one of them as their text without its
        title."""
        rows = [self._rows_of(key) for key in hashes.tolist()]
        return np.concatenate([hashes, *(self.hashes[own] for own in rows)])

    def _rows_of(self, key: int) -> Int[np.ndarray, " n"]:
        first, last = (
            int(np.searchsorted(self._keys, np.uint64(key), side)) for side in ("left", "right")
        )
        return self._rows[first:last]


class KnownPositives:
    """The positives of each query over all lines of a file, by hash.

    Attributes:
      source: the file's lines, all checked.
    """

    source: LineSource

    def __init__(self, source: str):
        queries, positives = array.array("Q"), array.array("Q")

        def collect(example: EmbeddingExample, place: str) -> None:
            query = text_hash(example.query.text)
            for text in example.positives:
                queries.append(query)
                positives.append(text_hash(text.text))

        self.source = open_source(source, "embedding", check=collect)
        keys, values = np.frombuffer(queries, np.uint64), np.frombuffer(positives, np.uint64)
        order = np.argsort(keys, kind="stable")
        self._queries, self._positives = keys[order], values[order]

    def of(self, query: str) -> UInt64[np.ndarray, " n"]:
        """Hashes of the positives that any line has for this query."""
        key = np.uint64(text_hash(query))
        first, last = (np.searchsorted(self._queries, key, side) for side in ("left", "right"))
        return self._positives[first:last]


def encode_queries(
    model: GritLM, queries: Sequence[Text], max_length: int
) -> tuple[Float[np.ndarray, "Q D"], int]:
    """Vectors of queries, each with its own instruction; and how many queries were cut."""
    numbers_of: dict[str, list[int]] = {}
    for number, query in enumerate(queries):
        numbers_of.setdefault(query.instruction or "", []).append(number)
    vectors = np.zeros((len(queries), model.embedding_width), np.float32)
    truncated = 0
    for instruction, numbers in numbers_of.items():
        texts = [queries[number].text for number in numbers]
        vectors[numbers], cut = _encode(model, texts, instruction, max_length)
        truncated += cut
    return vectors, truncated


def encode_passages(
    model: GritLM, texts: Sequence[str], max_length: int
) -> Float[np.ndarray, "P D"]:
    """Vectors of passages as documents are encoded: without an instruction."""
    if not texts:
        return np.zeros((0, model.embedding_width), np.float32)
    return _encode(model, texts, "", max_length)[0]


def _encode(
    model: GritLM, texts: Sequence[str], instruction: str, max_length: int
) -> tuple[Float[np.ndarray, "P D"], int]:
    formatted = model.encoder.format(texts, instruction, max_length)
    names = [f"text {text!r:.60}" for text in texts]
    starts = [formatted.pool_start] * len(texts)
    vectors = model.encoder.encode_ids(formatted.ids, starts, names=names).vectors
    return np.asarray(vectors, np.float32), len(formatted.truncated)


def inner_products(
    queries: Float[np.ndarray, "P D"], passages: Float[np.ndarray, "P D"]
) -> Float[np.ndarray, " P"]:
    """The inner product of each row with the same row of the other array, in float64."""
    return np.einsum("pd,pd->p", queries.astype(np.float64), passages.astype(np.float64))
