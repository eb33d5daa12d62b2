"""Model room: one transformer, its attention, cache, pooling and exchange with Hugging Face."""
