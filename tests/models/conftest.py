"""Fixtures of the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compilation import quickly_compiled


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For modules that compile many small programs and ask nothing of them but their numbers."""
    with quickly_compiled():
        yield
