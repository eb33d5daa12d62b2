"""A stand-in for a model whose vectors and caches follow from the token ids alone: indexing without
a forward pass."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np

from grit_jax.data.bm25 import BM25
from grit_jax.inference.encoder import Encoded, FormattedTexts
from grit_jax.inference.records import PackedRecord, token_span
from grit_jax.models.config import ModelConfig
from grit_jax.rag.build import build_index
from grit_jax.rag.index_files import IndexWriter
from grit_jax.rag.index_options import IndexOptions
from grit_jax.rag.store import RECORDS, DocumentStore
from grit_jax.text.chat import GRIT
from grit_jax.types import KV, AttentionMode, DocumentKV

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    dtype="float32",
)


def document_kv(ids, config: ModelConfig = CONFIG) -> DocumentKV:
    """Arrays that only these ids have."""
    rng = np.random.default_rng(list(ids))
    shape = (config.num_hidden_layers, config.num_key_value_heads, len(ids), config.head_dim)
    k, v = rng.standard_normal((2, *shape)).astype(np.float32)
    return DocumentKV(np.asarray(ids, np.int32), np.ascontiguousarray(k.swapaxes(2, 3)), v)


def packed(document: DocumentKV, codec) -> DocumentKV | PackedRecord:
    """A record as the encoder makes it with this codec."""
    if codec is None:
        return document
    T = len(document.tokens)
    more = (0, -T % 128)  # few shapes to compile
    k = np.pad(document.k, ((0, 0), (0, 0), (0, 0), more))
    v = np.pad(document.v, ((0, 0), (0, 0), more, (0, 0)))
    arrays = codec.pack(KV(k[:, None], v[:, None]))
    own = {
        name: np.asarray(array)[(slice(None), 0, *token_span(codec.token_axes[name], 0, T))]
        for name, array in arrays.items()
    }
    return PackedRecord(document.tokens, own, codec)


def vector(ids) -> np.ndarray:
    """A unit vector that only these ids have."""
    found = np.random.default_rng([*ids, 7]).standard_normal(CONFIG.hidden_size)
    return (found / np.linalg.norm(found)).astype(np.float32)


def stored_keys(store: DocumentStore) -> set[str]:
    """The keys of all records of a store, from its tree."""
    return {
        name.decode().removeprefix(RECORDS)
        for name in store._kv.list().result()
        if name.startswith(RECORDS.encode())
    }


@dataclasses.dataclass
class FakeEncoder:
    """Bytes are tokens; `seconds` is what a call takes."""

    seconds: float = 0.0
    encoded: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    def format(self, texts, instruction="", max_length=512) -> FormattedTexts:
        """One tag and the bytes of each text."""
        ids = [[256, *text.encode()] for text in texts]
        return FormattedTexts(
            [text[:max_length] for text in ids],
            1,
            1,
            max_length,
            [i for i, text in enumerate(ids) if len(text) > max_length],
        )

    def encode_ids(
        self, ids, pool_starts=None, *, return_cache=False, codec=None, names=None
    ) -> Encoded:
        """Vectors and caches of the ids."""
        time.sleep(self.seconds)
        self.encoded += [tuple(text) for text in ids]
        caches = [packed(document_kv(text), codec) for text in ids] if return_cache else None
        return Encoded(
            np.stack([vector(text) for text in ids]), caches, sum(map(len, ids)), self.seconds
        )


def fake_model(weights: str = "w1", seconds: float = 0.0, **changes):
    """What `build_index` and `Index` need of a model."""
    return types.SimpleNamespace(
        **{
            "config": CONFIG,
            "encoder": FakeEncoder(seconds),
            "chat": GRIT,
            "mode": AttentionMode.BIDIRECTIONAL,
            "pooling": "mean",
            "dtype": CONFIG.dtype,
            "embedding_width": CONFIG.hidden_size,
            "weights_hash": weights,
            "mesh": None,
            **changes,
        }
    )


class Writers:
    """Processes that index a corpus with a fake model, one at a time: what tests kill.

    They are forked from a process that has imported everything, so that each begins to work at
    once.
    """

    def __enter__(self) -> Writers:
        command, env = [sys.executable, __file__], {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, corpus: Path, output: Path, kv: str = "native") -> int:
        """Starts to index; the process's id."""
        print(json.dumps([str(corpus), str(output), kv]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def end(self) -> tuple[set[str], bool]:
        """Once the process is over: ids of the documents that it said to be committed, and whether
        it had finished."""
        ids: set[str] = set()
        while True:
            word, *more = self._process.stdout.readline().split()
            if word == "over":
                return ids, more == ["0"]
            ids |= set(more)


def main() -> None:
    """For each line of standard input forks a process that indexes, and says how it ended."""
    BM25([])  # imports its library
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                index(*json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        print("over", os.waitpid(child, 0)[1], flush=True)


def index(corpus: str, output: str, kv: str) -> None:
    """Brings an index to what a corpus says, telling what is committed."""
    append = IndexWriter.append

    def tells(self, vectors, documents, deleted=None) -> None:
        append(self, vectors, documents, deleted)
        os.write(
            1, " ".join(["committed", *(document["id"] for document in documents)]).encode() + b"\n"
        )

    IndexWriter.append = tells  # type: ignore[method-assign]
    model = fake_model(seconds=0.005)
    build_index(
        model,
        corpus,
        output,
        IndexOptions(kv=kv, update=True, delete_missing=True, batch_tokens=60),
        quiet=True,
    )


if __name__ == "__main__":
    main()
