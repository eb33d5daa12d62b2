"""RAG room: document store, vector search, and answers over cached documents."""
