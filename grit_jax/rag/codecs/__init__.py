"""Codecs of stored keys and values: int8, int4, principal components."""
