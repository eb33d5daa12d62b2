"""One HTTP endpoint over one set of weights: embeddings and answers, in OpenAI's forms.

Needs the extra `serve`.
"""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ServeSettings": "settings",
        "Service": "service",
        "create_app": "app",
        "serve": "server",
    },
)
