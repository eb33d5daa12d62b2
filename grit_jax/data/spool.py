"""Pipes and compressed files as temporary files, so that their lines can be read in any order."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grit_jax.errors import GritError
from grit_jax.runtime.files import is_stream, open_stream

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20  # bytes

# A pipe gives its data once. What was read is kept, by the pipe's identity, for as long as the
# process lives, so that a verb may open the same input several times.
_read_streams: dict[tuple[str, int, int], BinaryIO] = {}


def spooled(path: Path) -> BinaryIO | None:
    """The content of a pipe, a device or a gzip or zstd file in a temporary file.

    The temporary file has no name, so nothing is left of it when the process ends or is killed.
    Compression is recognised by the first bytes, whatever the file is called.

    Returns:
      None for any other file, which can be read in place.

    Raises:
      OSError: the file cannot be read.
      GritError: the compressed data are damaged or cut short.
    """
    if not is_stream(path):
        with open(path, "rb") as file:
            source = _Peeked(file)
            if not source.head.startswith((GZIP, ZSTD)):
                return None
            return _copied(_unpacked(source, path))
    status = os.stat(path)
    identity = (str(path), status.st_dev, status.st_ino)
    if identity not in _read_streams:
        with open_stream(path, "rb") as file:
            _read_streams[identity] = _copied(_unpacked(_Peeked(file), path))
    return _read_streams[identity]


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, unpacked if they are compressed with gzip or zstd.

    They are read as a stream: nothing is written to disk, except for what comes from a pipe.

    Raises:
      OSError, GritError: as `spooled`.
    """
    if is_stream(path) and (spool := spooled(path)) is not None:
        with open(os.dup(spool.fileno()), "rb") as file:
            file.seek(0)
            while chunk := file.read(_CHUNK):
                yield chunk
        return
    with open(path, "rb") as file:
        yield from _unpacked(_Peeked(file), path)


class _Peeked:
    """A file whose first bytes are known before they are read. A pipe cannot be rewound."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.head = self._rest = file.read(4)

    def read(self, size: int) -> bytes:
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        return self._file.read(size)


def _unpacked(file: _Peeked, path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in chunks."""
    try:
        if file.head.startswith(GZIP):
            yield from _gunzip(file)
        elif file.head.startswith(ZSTD):
            yield from _unzstd(file)
        else:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise GritError(f"{path}: the compressed data are damaged or cut short ({error})") from None


def _gunzip(file: _Peeked) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:  # type: ignore[call-overload]
        while chunk := stream.read(_CHUNK):
            yield chunk


def _unzstd(file: _Peeked) -> Iterator[bytes]:
    """All frames of a zstd file. The library's own reader ends a cut frame without an error."""
    import zstandard

    decompressor, rest = zstandard.ZstdDecompressor(), b""
    while rest := rest or file.read(_CHUNK):
        frame = decompressor.decompressobj()
        while not frame.eof:
            try:
                yield frame.decompress(rest)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from None
            rest = frame.unused_data if frame.eof else file.read(_CHUNK)
            if not rest and not frame.eof:
                raise EOFError("the last frame is incomplete")


def _copied(chunks: Iterator[bytes]) -> BinaryIO:
    file = tempfile.TemporaryFile(prefix="grit-")  # noqa: SIM115
    try:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file
