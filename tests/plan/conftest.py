"""What the tests of planning share."""

from __future__ import annotations

from pathlib import Path

import pytest
from planned_run import write_run


@pytest.fixture
def config(tmp_path) -> Path:
    """The file of a small run."""
    return write_run(tmp_path)
