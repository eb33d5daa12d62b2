"""The `grit` command."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Verb": "verb",
        "build_parser": "main",
    },
)
