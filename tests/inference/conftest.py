"""These tests compile many small programs: quickly compiled ones will do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compilation import quickly_compiled


# A module, not "package": pytest takes this folder (no __init__.py) for no package, and the setting would stay on for
# whatever runs after it, whose results then differ from another process's in the last bit.
@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    with quickly_compiled(True):
        yield


@pytest.fixture()
def full_optimization() -> Iterator[None]:
    """For tests that look at the compiled program itself."""
    with quickly_compiled(False):
        yield
