"""Cold reads are cold, or said not to be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from grit_jax.rag.page_cache import drop_page_cache

SIZE = 1 << 22


@pytest.fixture
def folder(tmp_path):
    """A file just written, in a folder of a folder."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(os.urandom(SIZE))
    (tmp_path / "a" / "empty").touch()
    if not drop_page_cache(tmp_path):
        pytest.skip("this system cannot forget files, or they stand on no disk")
    return tmp_path


def blocks_read() -> int:
    """Bytes that this process had fetched from disks."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def test_files_come_from_the_disk_afterwards(folder):
    file = folder / "a" / "b" / "file"
    before = blocks_read()
    content = file.read_bytes()
    first = blocks_read()
    assert file.read_bytes() == content and blocks_read() == first  # in memory now
    assert drop_page_cache(folder)
    assert file.read_bytes() == content
    if first == before:
        pytest.skip("this system does not count what is read from its disks")
    # But for the page that was looked at to see whether it is there, and what the system reads
    # ahead of it.
    assert first - before > 0.9 * SIZE and blocks_read() - first > 0.9 * SIZE


def test_a_file_that_is_mapped_stays(folder):
    mapped = np.memmap(folder / "a" / "b" / "file", np.uint8, "r")
    assert mapped.sum() and not drop_page_cache(folder)


def test_what_stands_on_no_disk_is_not_cold(tmp_path):
    assert not drop_page_cache(tmp_path / "absent") and not drop_page_cache("gs://bucket/path")
