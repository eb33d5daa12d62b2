"""Ahead-of-time compilation: what a configuration needs on a TPU slice, from the TPU's compiler,
without a TPU."""
