"""Files and folders that appear whole or not at all, JSON, and locks.

Everything the package writes in one go passes through `write_file`: the data go to a temporary file
beside the target, which is flushed to disk and renamed over it, and the rename is flushed as well.
A process that is killed at any instant leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from grit_jax.errors import GritError

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Open files of this process by name: standard output, and the shell's `>(command)`.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


# ---- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def write_file(path: str | Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Opens a binary file that replaces `path` when the block ends without an exception.

    A symbolic link stays one; its target is replaced. A pipe, a device or an open descriptor
    (`/dev/stdout`, `/dev/fd/63`) cannot be replaced and is written to directly.

    Args:
      overwrite: False keeps a file that exists when the block ends, and drops the new one.

    Raises:
      GritError: `path` is a folder or cannot be written. Any OSError of the block counts as the
        latter.
    """
    path = Path(path)
    if path.is_dir():
        raise GritError(f"{path}: is a folder; name a file")
    with _writing(path):
        if is_stream(path):
            with open_stream(path, "wb") as file:
                yield file
            return
        target = path.resolve()
        temporary = _temporary(target)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(temporary, target)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, target)
            sync_folder(target.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Writes a UTF-8 text file as `write_file` does; line ends stay as they are.

    Raises:
      GritError: see `write_file`.
    """
    with write_file(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file as `write_file` does.

    Raises:
      GritError: see `write_file`; or a number in `value` is not finite.
    """
    try:
        text = json_text(value, indent=2)
    except GritError as error:
        raise GritError(f"{path}: not written: {error}") from None
    write_text(path, text + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line as `write_file` does; returns the number of rows.

    Raises:
      GritError: see `write_file`; or a number in a row is not finite.
    """
    count = 0
    with write_file(path) as file:
        for row in rows:
            try:
                file.write(json_text(row).encode("utf-8") + b"\n")
            except GritError as error:
                raise GritError(f"{path}: not written: row {count}: {error}") from None
            count += 1
    return count


def json_text(value: Any, indent: int | None = None, *, ascii: bool = False) -> str:
    """`value` as JSON text. NaN and infinity have no JSON form, and a reader would reject them.

    Args:
      ascii: write other characters as escapes, for an output of unknown encoding.

    Raises:
      GritError: a number is not finite; the message names its place.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ascii, allow_nan=False)
    except ValueError:
        if (place := _not_finite(value)) is None:
            raise
        raise GritError(f"{place}, not a finite number") from None


def _not_finite(value: Any, place: str = "") -> str | None:
    """`place.of.the.number is nan` for the first number that is not finite, None without one."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place or 'the value'} is {value}"
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, inner in items:
        if inner_place := _not_finite(inner, f"{place}.{key}" if place else str(key)):
            return inner_place
    return None


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      GritError: there is no such file, it is not JSON, or it holds no object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GritError(f"{path}: no such file") from None
    except OSError as error:
        raise GritError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise GritError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise GritError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


# ---- folders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` when the block ends without an exception.

    Raises:
      GritError: `path` exists and is not an empty folder, or cannot be written. Any OSError of the
        block counts as the latter.
    """
    if path.exists() and not path.is_dir():
        raise GritError(f"{path}: is a file; name a folder")
    if path.is_dir() and any(path.iterdir()):
        raise GritError(f"{path}: the folder is not empty; remove it or choose another one")
    target = path.resolve()
    temporary = _temporary(target)
    try:
        with _writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            sync_folder(temporary)
            temporary.replace(target)
            sync_folder(target.parent)
    except GritError as error:  # the user knows the folder by the name it will have
        raise GritError(str(error).replace(str(temporary), str(path))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: Path) -> None:
    """Makes a folder and tests that it can be written, so that a run fails before its work.

    Raises:
      GritError: the folder cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise GritError(f"{path}: is a file; name a folder") from None
    except OSError as error:
        raise GritError(
            f"{path}: cannot be written ({error.strerror}); choose another output folder"
        ) from None


def writable_file(path: Path, *inputs: Path | None) -> None:
    """Tests that `write_file` can write a file, so that a run fails before its work.

    Raises:
      GritError: it is one of the inputs, is a folder, or cannot be written.
    """
    refuse_same_file(path, *inputs)
    if path.is_dir():
        raise GritError(f"{path}: is a folder; name a file")
    if is_stream(path):
        return
    with _writing(path):
        temporary = _temporary(path.resolve())
        temporary.touch()
        temporary.unlink()


@contextlib.contextmanager
def lock_folder(path: Path, command: str) -> Iterator[None]:
    """Holds the folder's lock, so that one process at a time writes in it.

    The operating system releases the lock when the process ends, also when it is killed.

    Args:
      path: a folder that exists; the lock is a file in it.
      command: the command that takes this lock, for the message: `grit train`.

    Raises:
      GritError: another process holds the lock.
    """
    with open(path / LOCK, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GritError(
                f"{path}: another {command} is writing here; wait until it is done"
            ) from None
        yield


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename in it survives a power failure."""
    with contextlib.suppress(OSError):  # some network file systems cannot; the file itself is safe
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether a path is a file or folder being written, or what a killed process left of one."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def expand_home(name: str) -> str:
    """A file name with `~` or `~user` at its beginning (behind `tfds:`) replaced by the folder."""
    scheme, colon, rest = name.rpartition(":")
    return f"{scheme}{colon}{os.path.expanduser(rest)}" if scheme in ("", "tfds") else name


def home_path(name: str | Path) -> Path:
    """The path of a name that a caller of the Python interface gives, `~` expanded as above.

    >>> home_path("folder/~")
    PosixPath('folder/~')

    Raises:
      GritError: the name is empty, or neither a string nor a path.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise GritError(f"a path must be a string that is not empty, or a Path, got {name!r}")
    return Path(expand_home(str(name)))


# ---- streams -------------------------------------------------------------------------------------


def is_stream(path: str | Path) -> bool:
    """Whether a path is a pipe, a device, a socket or an open descriptor, not a file on disk.

    A stream can be read or written once and cannot be replaced.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(path: str | Path) -> int | None:
    """The number of the open file that a path such as /dev/fd/63 names."""
    name = str(path)
    if name in _STANDARD:
        return _STANDARD[name]
    match = _DESCRIPTOR.fullmatch(name)
    return int(match[1]) if match else None


def open_stream(path: Path, mode: Literal["rb", "wb"]) -> BinaryIO:
    """Opens a stream (see `is_stream`) for reading or writing."""
    number = _descriptor(path)
    # A duplicate keeps the position in a redirected file; opening the path would truncate it.
    return cast(BinaryIO, open(path if number is None else os.dup(number), mode))


def is_stdout(path: str | Path) -> bool:
    """Whether a path is this process's standard output."""
    return _descriptor(path) == 1


def refuse_same_file(output: Path, *inputs: Path | None) -> None:
    """Raises, before the work starts, if the output file is one of the inputs.

    Raises:
      GritError: it is one of them, under this name or another.
    """
    for path in inputs:
        if path is None or is_stream(output) or not (output.exists() and path.exists()):
            continue
        if output.samefile(path):
            raise GritError(f"{output}: is an input as well; write to another file")


def _temporary(target: Path) -> Path:
    """A name beside `target`, on the same file system, so that it can be renamed."""
    return target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.tmp")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an OSError into the error that names the path."""
    try:
        yield
    except BrokenPipeError:  # the reader ended, which is no error of the path
        raise
    except OSError as error:  # NumPy's own error of a full disk has no strerror
        room = "make room or " if error.errno in FULL else ""
        raise GritError(
            f"{path}: cannot be written ({error.strerror or error}); {room}choose another place"
        ) from None
