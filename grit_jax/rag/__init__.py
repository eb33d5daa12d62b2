"""RAG room: document store, vector search, and answers over cached documents."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Answer": "answer",
        "Asker": "answer",
        "Corpus": "corpus",
        "CorpusDocument": "corpus",
        "DocumentStore": "store",
        "Index": "index",
        "IndexOptions": "index_options",
        "IndexSummary": "index_options",
        "MiningOptions": "mining_options",
        "MiningSummary": "mining_options",
        "Retrieval": "search.hybrid",
        "build_index": "build",
        "mine": "mining",
    },
)
