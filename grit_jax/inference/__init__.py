"""Inference room: texts to vectors and caches, prefill and decode, the GritLM object."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DecodeOptions": "decode",
        "Encoded": "encoder",
        "Encoder": "encoder",
        "Generation": "decode",
        "GritLM": "model",
        "KVRecord": "records",
        "ModelOptions": "model",
        "Sampling": "sampling",
        "VectorOptions": "vector_file",
        "encode_file": "vector_file",
        "generate": "decode",
        "generate_prompts": "files",
    },
)
