"""Cold reads: having the system forget what it keeps in memory of a folder's files."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def drop_page_cache(folder: str | Path) -> bool:
    """Has the next read of each file below `folder` come from the disk.

    Returns:
      Whether none of their first pages is in memory any more. False where the system cannot do it
        or say so: it is
      no Linux, the files stand on no disk (tmpfs), the folder is a URL, or somebody has mapped a
      file.
    """
    if not hasattr(os, "posix_fadvise") or not Path(folder).is_dir():
        return False
    gone = True
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
            os.fsync(file.fileno())  # a page that is still to be written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            gone &= _on_disk_only(file.fileno())
    return gone


def _on_disk_only(file: int) -> bool:
    """Whether the first byte of a file would have to be fetched."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return not os.preadv(
            file, [bytearray(1)], 0, os.RWF_NOWAIT
        )  # an empty file is not in memory
    except OSError as error:
        return error.errno == errno.EAGAIN
