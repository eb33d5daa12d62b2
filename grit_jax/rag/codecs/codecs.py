"""The codecs of compressed caches: which there are, and how one is calibrated and stored.

`int8`: one code a number, 1.9 times smaller than bfloat16, its ranges included. `int4`: four bits
a number, keys on the principal axes of their head, 3.6 times smaller. `pca2`: two bits a number on
the principal axes of a layer's keys and values together, 8 times smaller.

A codec's parameters (ranges of channels, principal axes) are calibrated once, on a sample of the
corpus, and kept in the store: documents are short, and a record with its own would be larger. The
calibration is part of the identity of the records that it packs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load, save

from grit_jax.errors import GritError
from grit_jax.inference.records import Codec
from grit_jax.models.config import ModelConfig
from grit_jax.rag.codecs.axes import AXES
from grit_jax.rag.codecs.int4 import Int4, calibrate_int4
from grit_jax.rag.codecs.int8 import Int8, calibrate_int8
from grit_jax.rag.codecs.pca import Transform, calibrate_transform
from grit_jax.rag.record_format import NATIVE
from grit_jax.types import KV, DocumentKV

KINDS = (NATIVE, "int8", "int4", "pca2")
# A part of the identity of records. Version 1 of int4 had codes for each channel of the keys.
VERSIONS = {"int8": 1, "int4": 2, "pca2": 1}
SAMPLE_TOKENS = 8192  # to calibrate on, at least
# Tokens to calibrate a transform on, for each number of a token and layer: with fewer, its axes
# would fit the sample alone.
TOKENS_PER_DIMENSION = 32


class StoredCodec(Codec, Protocol):
    """A codec whose calibration can be kept: `from_arrays(codec.arrays())` is the same codec."""

    def arrays(self) -> dict[str, Array]:
        """The calibration."""
        ...


def sample_tokens(kind: str, config: ModelConfig) -> int:
    """How many tokens' keys and values to calibrate on."""
    if kind != "pca2":
        return SAMPLE_TOKENS
    return max(
        SAMPLE_TOKENS,
        TOKENS_PER_DIMENSION * 2 * config.num_key_value_heads * (config.head_dim or 1),
    )


def calibrate(kind: str, sample: Sequence[DocumentKV]) -> StoredCodec:
    """A codec for documents like those of a sample.

    Args:
      kind: one of `KINDS`, but not `native`.

    Raises:
      GritError: the numbers of a token do not fill whole bytes.
    """
    L, K, H, _ = sample[0].k.shape
    if (kind == "int4" and H % 2) or (kind == "pca2" and 2 * K * H % AXES):
        raise GritError(
            f"--kv {kind}: {K} heads of {H} dimensions do not fill whole bytes; use --kv int8"
        )
    # Layer by layer, all tokens of the sample first: [N K H].
    join = lambda arrays: np.concatenate([np.asarray(a, np.float32) for a in arrays])
    layers = (
        KV(
            join(document.k[layer].transpose(2, 0, 1) for document in sample),
            join(document.v[layer].swapaxes(0, 1) for document in sample),
        )
        for layer in range(L)
    )
    if kind == "pca2":
        return calibrate_transform(layers)
    return calibrate_int4(layers) if kind == "int4" else calibrate_int8(layers)


def compression_of(kind: str, codec: StoredCodec | None) -> str:
    """Its name in a record's identity: kind, version and a hash of the calibration."""
    return (
        f"{kind}-{VERSIONS[kind]}-{hashlib.sha256(to_bytes(codec)).hexdigest()[:16]}"
        if codec is not None
        else NATIVE
    )


def kind_of(compression: str) -> str:
    """The kind in a name from `compression_of`."""
    return compression.partition("-")[0]


def to_bytes(codec: StoredCodec | None) -> bytes:
    """A calibration as bytes; none for native records."""
    return (
        save({name: np.asarray(array) for name, array in codec.arrays().items()})
        if codec is not None
        else b""
    )


def codec_from_bytes(data: bytes, compression: str, path: str) -> StoredCodec | None:
    """The codec named `compression` from the bytes of `to_bytes`; None for native records.

    Args:
      path: of the store, for messages.

    Raises:
      GritError: an unknown kind or version, or a calibration that is damaged or another one.
    """
    if compression == NATIVE:
        return None
    kind = kind_of(compression)
    known = f"{kind}-{VERSIONS.get(kind)}-"
    if not compression.startswith(known):
        raise GritError(
            f"{path}: compression {compression!r} is unknown to this version; make the index again"
        )
    if known + hashlib.sha256(data).hexdigest()[:16] != compression:
        raise GritError(
            f"{path}: the calibration of its compression is damaged; make the index again"
        )
    try:
        arrays = {name: jnp.asarray(array) for name, array in load(data).items()}
    except SafetensorError as error:
        raise GritError(
            f"{path}: the calibration of its compression is damaged ({error})"
        ) from None
    return _CODECS[kind].from_arrays(arrays)


_CODECS: dict[str, type[Int8] | type[Int4] | type[Transform]] = {
    "int8": Int8,
    "int4": Int4,
    "pca2": Transform,
}
