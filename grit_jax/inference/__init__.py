"""Inference room: texts to vectors and caches, prefill and decode, the GritLM object."""
