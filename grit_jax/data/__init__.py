"""Training data: formats of lines, sources, tokenization, packing, and batches by step number."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BM25": "bm25",
        "BatchNeeds": "config",
        "DataConfig": "config",
        "Distractors": "distractors",
        "ExampleTokenizer": "example_tokenizer",
        "HostGroup": "multihost",
        "JointBatches": "pipeline",
        "PrepareOptions": "preparation",
        "cached_batch": "packing",
        "embedding_batch": "packing",
        "generative_batch": "packing",
        "make_iterator": "pipeline",
        "open_source": "sources",
        "parse_line": "formats",
        "prepare": "preparation",
    },
)
