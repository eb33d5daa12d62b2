"""Evaluation: retrieval scores, perplexity, and answers over documents (RAG)."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bm25_retrieval": "retrieval",
        "evaluate_perplexity": "perplexity",
        "evaluate_rag": "rag",
        "evaluate_retrieval": "retrieval",
        "evaluate_table": "rag_table",
        "ndcg": "retrieval",
        "recall": "retrieval",
    },
)
