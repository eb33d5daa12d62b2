"""Vector search: exact on the device mesh, or Milvus."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ExactSearch": "exact",
        "MilvusSearch": "milvus",
        "SearchResult": "exact",
        "SearchSettings": "exact",
    },
)
