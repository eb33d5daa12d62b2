"""Cold reads for benchmarks: dropping a folder's files from the operating system's page cache."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def drop_page_cache(folder: str | Path) -> bool:
    """Drops the files below `folder` from the page cache, so that the next read comes from disk.

    Returns:
      True if no file's first page is in memory any more. False where the system cannot drop pages
        or report on them: it is not Linux, the files are in memory (tmpfs), the folder is a URL, or
        another process has mapped a file.
    """
    if not hasattr(os, "posix_fadvise") or not Path(folder).is_dir():
        return False
    dropped = True
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
            os.fsync(file.fileno())  # a page that is not yet written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            dropped &= _on_disk_only(file.fileno())
    return dropped


def _on_disk_only(file: int) -> bool:
    """True if the first byte of a file would have to be read from disk."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        # An empty file reads nothing and counts as dropped.
        return not os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
