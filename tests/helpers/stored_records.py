"""Records of a fake model, and a comparison of a stored record with its document."""

from __future__ import annotations

import numpy as np
from fake_model import document_kv, fake_model

from grit_jax.rag.record_format import RecordIdentity
from grit_jax.types import DocumentKV

IDENTITY = RecordIdentity.of(fake_model())
DOCUMENTS = [document_kv(range(10, 10 + n)) for n in (1, 7, 40)]


def assert_same(found: DocumentKV, document: DocumentKV) -> None:
    """Tokens, keys and values are equal bit by bit."""
    np.testing.assert_array_equal(found.tokens, document.tokens)
    for name in ("k", "v"):
        read, written = getattr(found, name), getattr(document, name)
        assert read.dtype == written.dtype and read.shape == written.shape
        assert read.tobytes() == written.tobytes()
