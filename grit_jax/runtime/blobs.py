"""Blobs by name in a folder or a bucket, through TensorStore: each is there whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorstore as ts

from grit_jax.errors import GritError

CONTEXT = {
    # For the nodes of a database's tree; values are not cached.
    "cache_pool": {"total_bytes_limit": 64 << 20},
    # Each file is written under a name of its own and renamed. With locks it would be written over
    # what a killed writer left under the lock's name, and keep the end of that where it is longer
    # (TensorStore 0.1.86). No two processes write different contents under one name.
    "file_io_locking": {"mode": "none"},
}


def is_url(path: str | Path) -> bool:
    """Whether a place is a URL, not a folder of this machine."""
    return isinstance(path, str) and "://" in path


def tensorstore_base(path: str | Path) -> str | dict[str, str]:
    """A folder or URL in TensorStore's terms."""
    text = str(path)
    return (
        text.rstrip("/") + "/"
        if is_url(text)
        else {"driver": "file", "path": str(Path(text).absolute()) + "/"}
    )


def open_files(path: str | Path, context: ts.Context | None = None) -> ts.KvStore:
    """The files of a folder or below a URL."""
    return ts.KvStore.open(tensorstore_base(path), context=context or ts.Context(CONTEXT)).result()


def short_error(error: Exception) -> str:
    """The first sentence of TensorStore's message, without the trace of its sources."""
    return str(error).split(" [")[0][:200]


@contextlib.contextmanager
def as_grit_error(path: str | Path, what: str) -> Iterator[None]:
    """Turns TensorStore's errors into one line: `path: what (why)`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise GritError(f"{path}: {what} ({short_error(error)})") from None


class BlobStore:
    """Blobs by name. Names have no `/`.

    Args:
      place: a folder, made with the first blob, or a URL that TensorStore knows (`gs://...`).

    Raises (every method):
      GritError: the place cannot be read or written.
    """

    def __init__(self, place: str | Path):
        self.place = str(place)
        with as_grit_error(place, "cannot be opened"):
            self._files = open_files(place)

    def write(self, name: str, data: bytes) -> None:
        """Writes a blob; once this returns it is on disk."""
        with as_grit_error(self.place, "cannot be written"):
            self._files.write(name, data).result()

    def read(self, name: str) -> bytes | None:
        """A blob; None where there is none."""
        with as_grit_error(self.place, "cannot be read"):
            result = self._files.read(name).result()
        return result.value if result.state == "value" else None

    def names(self, prefix: str = "") -> list[str]:
        """The names of all blobs that begin with `prefix`."""
        if not is_url(self.place) and not Path(self.place).is_dir():
            return []
        with as_grit_error(self.place, "cannot be read"):
            names = [name.decode() for name in self._files.list().result()]
        return sorted(n for n in names if n.startswith(prefix) and "/" not in n)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes blobs, those that are there."""
        with as_grit_error(self.place, "cannot be written"):
            for write in [self._files.write(name, None) for name in names]:
                write.result()
