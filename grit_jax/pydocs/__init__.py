"""The quickstart's corpus: documentation of installed Python packages, and questions about it."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Document": "documents",
        "Question": "questions",
        "prepare_corpus": "corpus",
        "questions_about": "questions",
        "read_packages": "docstrings",
        "split_documents": "documents",
        "write_corpus": "corpus",
        "write_repeats": "repeats",
    },
)
