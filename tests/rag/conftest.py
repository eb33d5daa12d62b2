"""Fixtures of the tests of indexes."""

from __future__ import annotations

import fake_model
import pytest
from stored_rows import ROWS, write_rows


@pytest.fixture
def model():
    """A fake model, quick and with vectors and records that follow from the tokens."""
    return fake_model.fake_model()


@pytest.fixture
def corpus(tmp_path):
    """`ROWS` as a file."""
    return write_rows(tmp_path / "corpus.jsonl", ROWS)
