"""An output file that grows block by block: a killed writer continues after its last block.

Beside the output lie `.NAME.partial`, the blocks so far, and `.NAME.partial.json`, what they hold.
The output itself appears whole, when the last block has been written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.files import (
    is_stream,
    open_stream,
    read_json,
    sync_folder,
    write_json,
)
from grit_jax.runtime.progress import say


class ResumableFile:
    """An output file under way. Open one with `resumable_file`.

    Attributes:
      state: what `append` was given last, by this process or by one that was killed; empty at the
        beginning.
    """

    def __init__(self, file: Any, partial: Path | None, identity: Mapping[str, Any]):
        self._file, self._partial, self._identity = file, partial, identity
        self.state: dict[str, Any] = {}
        if partial is not None:
            self._recover(partial)

    def append(self, data: bytes, state: Mapping[str, Any]) -> None:
        """Commits a block. Once this returns, the block and its state are on disk.

        Args:
          state: JSON from which the next block can be made, after a kill as well.
        """
        self._file.write(data)
        self._file.flush()
        self.state = dict(state)
        if self._partial is None:
            return
        os.fsync(self._file.fileno())
        write_json(
            _state_file(self._partial),
            {"identity": self._identity, "bytes": self._file.tell(), "state": self.state},
        )

    def _recover(self, partial: Path) -> None:
        """Cuts off what a killed writer left uncommitted; all of it, if it did other work."""
        size = 0
        if _state_file(partial).exists():
            try:
                kept = read_json(_state_file(partial))
                if kept["identity"] == dict(self._identity):
                    size, self.state = kept["bytes"], kept["state"]
                else:
                    names = sorted(
                        key
                        for key in {*kept["identity"], *self._identity}
                        if kept["identity"].get(key) != self._identity.get(key)
                    )
                    say(f"{partial}: was made with another {', '.join(names)}; starting again")
            except (GritError, KeyError, TypeError, AttributeError):
                say(f"{partial}: cannot be continued; starting again")
        if self._file.seek(0, os.SEEK_END) < size:
            size, self.state = 0, {}
            say(f"{partial}: is shorter than it was; starting again")
        self._file.truncate(size)
        self._file.seek(size)


@contextlib.contextmanager
def resumable_file(path: Path, identity: Mapping[str, Any]) -> Iterator[ResumableFile]:
    """Opens an output file to write, or to go on writing after a kill; it becomes `path` when the
    block ends without an exception.

    A stream (`/dev/stdout`) is written to directly, and always from the beginning.

    Args:
      identity: JSON of everything that the content depends on. Blocks that were written with
        another identity are dropped.

    Raises:
      GritError: `path` is a folder or cannot be written, or another process is writing it.
    """
    if path.is_dir():
        raise GritError(f"{path}: is a folder; name a file")
    try:
        if is_stream(path):
            with open_stream(path, "wb") as stream:
                yield ResumableFile(stream, None, identity)
            return
        target = path.resolve()
        partial = target.with_name(f".{target.name}.partial")
        with open(partial, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GritError(
                    f"{path}: another process is writing it; wait until it is done"
                ) from None
            yield ResumableFile(file, partial, identity)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, target)
            _state_file(partial).unlink(missing_ok=True)
            sync_folder(target.parent)
    except BrokenPipeError:  # the reader ended, which is no error of the path
        raise
    except OSError as error:
        raise GritError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from None


def _state_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")
