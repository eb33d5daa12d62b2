"""Text to token ids: chat formats and templates, tokenizers, RAG prompt layouts."""
