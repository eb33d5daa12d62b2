"""Evaluation room: retrieval, perplexity and RAG scores."""
