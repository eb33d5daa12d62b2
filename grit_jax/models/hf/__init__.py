"""Hugging Face directories: configuration, weights and PEFT adapters, in and out."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DirectorySettings": "directory",
        "ModelDirectory": "directory",
        "SentenceModules": "sentence_transformers",
        "config_from_hf": "read_config",
        "config_to_hf": "write_config",
        "load_params": "weights",
        "read_adapter": "peft",
        "read_model_directory": "directory",
        "resolve": "sources",
        "save_params": "weights",
        "write_adapter": "peft",
        "write_model_directory": "directory",
    },
)
