"""The main job from a corpus to answers, and its report."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "QuickstartSettings": "settings",
        "run_quickstart": "run",
    },
)
