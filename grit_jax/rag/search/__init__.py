"""Search by vectors (exact on the device mesh, or Milvus), by words (BM25), and by both."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ExactSearch": "exact",
        "Hits": "hybrid",
        "HybridSearch": "hybrid",
        "MilvusSearch": "milvus",
        "Retrieval": "hybrid",
        "SearchResult": "exact",
        "SearchSettings": "exact",
    },
)
