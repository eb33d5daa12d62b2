"""Model room: one transformer, its attention, cache, pooling and exchange with Hugging Face."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "KVCache": "cache",
        "LoraConfig": "lora",
        "ModelConfig": "config",
        "Params": "transformer",
        "PoolingMethod": "pooling",
        "RopeScaling": "config",
        "Transformer": "transformer",
        "WeightsHash": "weights_hash",
        "attend": "attention",
        "init_params": "parameters",
        "num_parameters": "parameters",
        "parameter_shapes": "parameters",
        "preset": "presets",
        "text_vectors": "pooling",
    },
)
