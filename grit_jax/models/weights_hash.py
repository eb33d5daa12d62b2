"""Which model this is: a hash over its weights and its shape."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from grit_jax.models.config import ModelConfig

HASH_CHUNK = 1 << 24  # numbers hashed at a time


class WeightsHash:
    """Hash of the weights and of what a forward pass depends on beside them, weight by weight in
    any order.

    Weights are hashed rounded to bfloat16, so that a model has the same hash whatever dtype it was
    opened in.
    """

    def __init__(self, config: ModelConfig):
        self._config = config
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        """Takes in one weight."""
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
            self._digests[name] = b"".join(pool.map(_digest, _chunks(values.reshape(-1))))

    def hexdigest(self) -> str:
        """The hash, in hexadecimal."""
        settings = dataclasses.asdict(self._config)
        for key in (
            "dtype",
            "remat",
            "scan_layers",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "router_aux_loss_coef",
        ):
            settings.pop(key, None)
        total = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=16)
        for name in sorted(self._digests):
            total.update(name.encode())
            total.update(self._digests[name])
        return total.hexdigest()


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, max(len(values), 1), HASH_CHUNK):
        yield values[start : start + HASH_CHUNK]


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(values.astype(ml_dtypes.bfloat16).tobytes(), digest_size=32).digest()
