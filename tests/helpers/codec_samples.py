"""Keys and values to compress, in the axis order that NumPy's arithmetic is written in."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from grit_jax.rag.codecs.codecs import calibrate
from grit_jax.types import KV, DocumentKV

L, T, K, H = 2, 2000, 2, 12


@dataclasses.dataclass
class Document:
    """A document in the axis order of NumPy's arithmetic: `[L T K H]`."""

    tokens: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @property
    def record(self) -> DocumentKV:
        """In the axis order of the cache: `[L K H T]` and `[L K T H]`."""
        return DocumentKV(self.tokens, self.k.transpose(0, 2, 3, 1), self.v.swapaxes(1, 2))


def sample(tokens: int = T, seed: int = 1) -> Document:
    """Keys and values of a hidden state of few dimensions, with outliers, key channels of very
    different size and place."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(99)
    hidden = rng.standard_t(5, (L, tokens, 10)) * 1.5 ** -np.arange(10)
    k, v = (
        np.einsum("ltd,ldx->ltx", hidden, maps.standard_normal((L, 10, K * H))) for _ in range(2)
    )
    k = k * np.exp(maps.standard_normal(K * H)) + 5 * maps.standard_normal(K * H)
    v += 0.05 * rng.standard_normal(v.shape)
    shape = (L, tokens, K, H)
    return Document(
        np.arange(tokens), k.reshape(shape).astype(np.float32), v.reshape(shape).astype(np.float32)
    )


SAMPLE, OTHER = sample(), sample(300, 2)


def kv(document: Document) -> KV:
    """As one row: `[L 1 K H T]` and `[L 1 K T H]`."""
    record = document.record
    return KV(record.k[:, None], record.v[:, None])


def tokens_first(kv: KV) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of row 0 as `[L T K H]`."""
    return np.asarray(kv.k)[:, 0].transpose(0, 3, 1, 2), np.asarray(kv.v)[:, 0].swapaxes(1, 2)


def through(kind: str, document: Document = OTHER) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values after packing and expanding, by a codec calibrated on `SAMPLE`."""
    codec = calibrate(kind, [SAMPLE.record])
    return tokens_first(jax.jit(lambda c, x: c.expand(c.pack(x)))(codec, kv(document)))
