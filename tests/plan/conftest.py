"""What the tests of planning share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from planned_run import write_run


@pytest.fixture
def config(tmp_path) -> Path:
    """The file of a small run."""
    return write_run(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs the TPU's compiler where it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu"):
                item.add_marker(pytest.mark.skip(reason="needs the extra 'tpu'"))
