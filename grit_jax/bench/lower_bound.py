"""A lower bound of an answer's latency: the bytes that it has to read, at this machine's rates."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params
from grit_jax.rag.page_cache import drop_page_cache

REPEATS = 5
COLUMNS = 1024  # of a matrix as large as the weights that decoding reads for a token
CHUNK, READERS = 4 << 20, 8  # files are read in chunks of so many bytes, by so many threads


@dataclasses.dataclass(frozen=True)
class Rates:
    """Bytes per second: `memory` from the device's memory into its arithmetic units, `store` from
    the store's files into memory."""

    memory: float
    store: float


def measure_rates(store: str | Path, token_bytes: int) -> Rates:
    """Measures a vector times a matrix, as in decoding, and reading a store's files from disk; the
    best of several times.

    Args:
      token_bytes: bytes that decoding reads for a token. The matrix has as many, because a small
        model's weights stay in the processor's caches.
    """
    rows = max(1, token_bytes // (4 * COLUMNS))
    matrix, vector = jnp.ones((rows, COLUMNS), jnp.float32), jnp.ones(rows, jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(vector, matrix).block_until_ready()
    memory = _best(lambda: multiply(vector, matrix).block_until_ready())
    files = [path for path in Path(store).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Rates(
        matrix.nbytes / memory, size / _best(lambda: _read(files), lambda: drop_page_cache(store))
    )


def weight_bytes(params: Params, config: ModelConfig) -> int:
    """Bytes of the weights that every token reads: all except an embedding table that is not also
    the output layer."""
    used = {
        name: value
        for name, value in params.items()
        if name != "embed" or config.tie_word_embeddings
    }
    return sum(leaf.nbytes for leaf in jax.tree.leaves(used))


def kv_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` tokens in the cache that decoding reads."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return tokens * numbers * np.dtype(jnp.dtype(config.dtype)).itemsize


def _best(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    seconds = []
    for _ in range(REPEATS):
        before()
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _read(files: list[Path]) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        for path in files:
            file = os.open(path, os.O_RDONLY)
            try:
                list(
                    pool.map(
                        lambda at, file=file: len(os.pread(file, CHUNK, at)),
                        range(0, path.stat().st_size, CHUNK),
                    )
                )  # noqa: B023
            finally:
                os.close(file)
