"""Codecs of stored keys and values: int8, int4, principal components."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "StoredCodec": "codecs",
        "calibrate": "codecs",
        "codec_from_bytes": "codecs",
    },
)
