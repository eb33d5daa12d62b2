"""Files and folders that are written whole or not at all, and JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from grit_jax.errors import GritError


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      GritError: no such file, not JSON, or no object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GritError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise GritError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise GritError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_jsonl(output: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as they come, and puts the file in its place once all are written; returns their
    number.

    Raises:
      GritError: the file cannot be written.
    """
    temporary, count = output.with_name(f"{output.name}.tmp"), 0
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        temporary.replace(output)
    except OSError as error:
        raise GritError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that is at `path` when the block ends well, and nowhere otherwise.

    Raises:
      GritError: something is there already, or the place cannot be written; an OSError of the block
        is taken for the latter.
    """
    if path.exists() and not path.is_dir():
        raise GritError(f"{path}: is a file; name a folder")
    if path.is_dir() and any(path.iterdir()):
        raise GritError(f"{path}: the folder is not empty; remove it or choose another one")
    target = path.resolve()
    temporary = target.with_name(
        f".{target.name}.{os.getpid()}.tmp"
    )  # beside it, so that a rename is enough
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise GritError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: Path) -> None:
    """Makes a folder, or finds that nothing can be written there: before the work, not after it.

    Raises:
      GritError: it cannot.
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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is at `path` when the block ends well, and leaves what is there alone
    otherwise.

    Raises:
      GritError: a folder, or a place that cannot be written; an OSError of the block is taken for
        the latter.
    """
    if path.is_dir():
        raise GritError(f"{path}: is a folder; name a file")
    target = path.resolve()  # a link stays one
    special = (
        target.exists() and not target.is_file()
    )  # a pipe or a device is written, not replaced
    temporary = target if special else target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        if not special:
            temporary.replace(target)
    except OSError as error:  # NumPy's own of a full disk has no strerror
        raise GritError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from None
    finally:
        if not special:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
