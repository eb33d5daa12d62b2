"""A stand-in for a model whose vectors and caches follow from the token ids alone: indexing without a forward pass.

Run as a program it indexes a corpus: what the tests of killed writers kill.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import types

import numpy as np

from grit_jax.data.chat import GRIT
from grit_jax.inference.encoder import Encoded, FormattedTexts
from grit_jax.inference.pieces import PackedDocument
from grit_jax.models.config import ModelConfig
from grit_jax.types import KV, AttentionMode, DocumentKV

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, dtype="float32",
)  # fmt: skip


def document_kv(ids, config: ModelConfig = CONFIG) -> DocumentKV:
    """Arrays that only these ids have."""
    rng = np.random.default_rng(list(ids))
    shape = (config.num_hidden_layers, len(ids), config.num_key_value_heads, config.head_dim)
    k, v = rng.standard_normal((2, *shape)).astype(np.float32)
    return DocumentKV(np.asarray(ids, np.int32), k, v)


def packed(document: DocumentKV, codec) -> DocumentKV | PackedDocument:
    """A record as the encoder makes it with this codec."""
    if codec is None:
        return document
    T = len(document.tokens)
    wide = lambda a: np.pad(a[:, None], ((0, 0), (0, 0), (0, -T % 128), (0, 0), (0, 0)))  # few shapes to compile
    arrays = codec.pack(KV(wide(document.k), wide(document.v)))
    return PackedDocument(document.tokens, {name: np.asarray(a)[:, 0, :T] for name, a in arrays.items()}, codec)


def vector(ids) -> np.ndarray:
    """A unit vector that only these ids have."""
    found = np.random.default_rng([*ids, 7]).standard_normal(CONFIG.hidden_size)
    return (found / np.linalg.norm(found)).astype(np.float32)


@dataclasses.dataclass
class FakeEncoder:
    """Bytes are tokens; `seconds` is what a call takes."""

    seconds: float = 0.0
    encoded: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    def format(self, texts, instruction="", max_length=512) -> FormattedTexts:
        """One tag and the bytes of each text."""
        return FormattedTexts([[256, *text.encode()][:max_length] for text in texts], 1)

    def encode_ids(self, ids, pool_starts=None, *, return_cache=False, codec=None) -> Encoded:
        """Vectors and caches of the ids."""
        time.sleep(self.seconds)
        self.encoded += [tuple(text) for text in ids]
        caches = [packed(document_kv(text), codec) for text in ids] if return_cache else None
        return Encoded(np.stack([vector(text) for text in ids]), caches, sum(map(len, ids)), self.seconds)


def fake_model(weights: str = "w1", seconds: float = 0.0, **changes):
    """What `build_index` and `Index` need of a model."""
    return types.SimpleNamespace(
        **{
            "config": CONFIG, "encoder": FakeEncoder(seconds), "chat": GRIT, "mode": AttentionMode.BIDIRECTIONAL,
            "pooling": "mean", "embedding_width": CONFIG.hidden_size, "weights_hash": weights, "mesh": None,
            **changes,
        }  # fmt: skip
    )


def main(corpus: str, output: str, kv: str = "native") -> None:
    """Indexes a corpus, saying what is committed."""
    from grit_jax.rag import build
    from grit_jax.rag.index_files import IndexWriter

    append = IndexWriter.append

    def says(self, vectors, documents, dead=None) -> None:
        append(self, vectors, documents, dead)
        print(*(document["id"] for document in documents), end=".\n", flush=True)

    IndexWriter.append = says  # type: ignore[method-assign]
    print("begins", flush=True)
    model = fake_model(seconds=0.005)
    build.build_index(model, corpus, output, kv=kv, update=True, delete_missing=True, batch_tokens=60, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
