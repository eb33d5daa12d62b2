"""Inference room: texts to vectors and caches, the engine, the GritLM object."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DecodeOptions": "decode",
        "Encoded": "encoder",
        "Encoder": "encoder",
        "EmbedRequest": "requests",
        "Engine": "engine",
        "EngineLimits": "engine",
        "EngineStats": "engine",
        "GenerateRequest": "requests",
        "GenerateResult": "requests",
        "Generation": "decode",
        "GritLM": "model",
        "KVRecord": "records",
        "ModelOptions": "model",
        "Pending": "requests",
        "QueueFull": "fair_queue",
        "Sampling": "sampling",
        "ScoreRequest": "requests",
        "VectorOptions": "vector_file",
        "encode_file": "vector_file",
        "generate": "decode",
        "generate_prompts": "files",
    },
)
