"""Ahead of time: what a configuration needs on a TPU slice, from the real compiler and no TPU."""
