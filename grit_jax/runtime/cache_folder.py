"""The folder of this user in which the package keeps what it can make again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from grit_jax.errors import GritError
from grit_jax.runtime.files import LOCK, new_folder
from grit_jax.runtime.progress import say

VARIABLE = "GRIT_CACHE"


def cache_folder() -> Path:
    """The folder that GRIT_CACHE names, else `grit_jax` in XDG_CACHE_HOME, else in `~/.cache`."""
    if named := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(named))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "grit_jax"


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by `fill` if it is not there.

    It appears whole or not at all. Of several processes that need it at once, one makes it and the
    others wait.

    Args:
      name: a relative path that changes whenever the content would.
      fill: called with an empty folder to write into.

    Raises:
      GritError: the cache cannot be written, or one that `fill` raises.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent) as alone:
            if folder.is_dir():  # another process made it meanwhile
                return folder
            for leftover in folder.parent.glob(f".{folder.name}.*.tmp") if alone else ():
                shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
            with new_folder(folder) as temporary:
                fill(temporary)
    except OSError as error:
        raise GritError(
            f"{folder.parent}: cannot be written ({error.strerror or error}); set {VARIABLE} to"
            " another folder"
        ) from None
    except GritError:
        # Where files cannot be locked, as on some network file systems, another process may have
        # been faster.
        if not folder.is_dir():
            raise
    return folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Waits for the lock of a folder and holds it while the block runs; yields False where the
    file system has no locks."""
    with open(folder / LOCK, "wb") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: waiting for another process that writes there")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            locked = False
        yield locked
