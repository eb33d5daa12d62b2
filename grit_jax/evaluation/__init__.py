"""Evaluation: retrieval scores, perplexity, answers over documents (RAG), lm-eval's and mteb's
tasks."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Endpoint": "endpoint",
        "bm25_retrieval": "retrieval",
        "evaluate_mteb": "mteb",
        "evaluate_perplexity": "perplexity",
        "evaluate_rag": "rag",
        "evaluate_retrieval": "retrieval",
        "evaluate_table": "rag_table",
        "ndcg": "retrieval",
        "recall": "retrieval",
    },
)
