"""Texts as the model reads them: chat formats and templates, tokenizers, RAG prompt layouts."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FORMATS": "chat",
        "ChatFormat": "chat",
        "ChatTemplate": "chat_template",
        "Layout": "rag_layouts",
        "PromptPart": "chat",
        "RagMode": "rag_layouts",
        "Tokenizer": "tokenizer",
        "compose": "rag_layouts",
    },
)
