"""Rows on their way into a dataset, on disk: a killed run finds what it had committed.

In a hidden folder beside the output: `lines` (place and line of each row), `rows` (an array with
their offsets and hashes), `matches.jsonl`, and `state.json`, which says how much of them counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.formats import LineError
from grit_jax.data.word_hashes import BANDS
from grit_jax.errors import GritError
from grit_jax.runtime.files import lock_folder, read_json, write_json
from grit_jax.runtime.progress import say

STATE = "state.json"
# A staged row: hash of its texts, MinHash bands, language and source by number, and where its place
# (`where` bytes) and its line (`size` bytes) begin.
STAGED = np.dtype(
    [
        ("exact", "<u8"),
        ("bands", "<u8", (BANDS,)),
        ("start", "<i8"),
        ("size", "<u4"),
        ("where", "<u4"),
        ("language", "u1"),
        ("source", "<u2"),
    ]
)


class Staging:
    """The staged rows of a dataset under way. Open one with `staging_folder`.

    Attributes:
      state: what was committed last; empty at the beginning.
      rows: how many are staged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self._identity = folder, identity
        self.matches_path = folder / "matches.jsonl"
        self.state: dict[str, Any] = {}
        sizes = [0, 0, 0]
        kept = _kept(folder, identity)
        if kept is not None:
            self.state, sizes = kept["state"], kept["sizes"]
        else:
            for path in folder.iterdir():
                if path.name != ".lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = ("lines", "rows", self.matches_path.name)
        self._files = [open(folder / name, "a+b") for name in names]  # noqa: SIM115
        for file, size in zip(self._files, sizes, strict=True):
            file.truncate(size)
            file.seek(size)
        self.rows = sizes[1] // STAGED.itemsize

    def append(
        self, rows: np.ndarray, lines: Sequence[tuple[str, bytes]], state: Mapping[str, Any]
    ) -> None:
        """Commits rows, all matches that were added before, and a state. Offsets and sizes of
        `rows` are filled in here."""
        begin = self._files[0].tell()
        places = [place.encode("utf-8", "surrogatepass") for place, _ in lines]
        rows["where"] = list(map(len, places))
        rows["size"] = [len(line) for _, line in lines]
        ends = np.cumsum(rows["where"].astype(np.int64) + rows["size"])
        rows["start"] = begin + ends - rows["where"] - rows["size"]
        self._files[0].write(b"".join(p + line for p, (_, line) in zip(places, lines, strict=True)))
        self._files[1].write(rows.tobytes())
        self.rows += len(rows)
        self.commit(state)

    def add_match(self, match: Mapping[str, Any]) -> None:
        """Adds a line to the matches; the next commit keeps it."""
        self._files[2].write(json.dumps(match, ensure_ascii=False).encode() + b"\n")

    def commit(self, state: Mapping[str, Any]) -> None:
        """Commits what was written. Once this returns it is on disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        write_json(
            self.folder / STATE, {"identity": self._identity, "sizes": sizes, "state": dict(state)}
        )

    def staged(self) -> np.ndarray:
        """All rows, memory-mapped."""
        if not self.rows:
            return np.zeros(0, STAGED)
        return np.memmap(self.folder / "rows", STAGED, "r", shape=(self.rows,))

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple[bytes, str]]:
        """Line and place of some rows."""
        selected = self.staged()[np.asarray(rows, np.int64)]
        result = []
        for start, size, where in zip(
            *(selected[name].tolist() for name in ("start", "size", "where")), strict=True
        ):
            data = os.pread(self._files[0].fileno(), where + size, start)
            result.append((data[where:], data[:where].decode("utf-8", "surrogatepass")))
        return result

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()


@contextlib.contextmanager
def staging_folder(output: Path, identity: Mapping[str, Any], command: str) -> Iterator[Staging]:
    """The staging area of an output folder; it goes on from what a killed process of the same
    identity had committed.

    It is removed when the block ends, also by a bad line, which the same input would bring again.

    Args:
      command: for the message where another process is at work.

    Raises:
      GritError: the folder cannot be written, or another process has it. Any OSError of the block
        counts as the former.
    """
    folder = output.with_name(f".{output.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, command):
            staging = Staging(folder, identity)
            try:
                yield staging
            except GritError as error:
                if isinstance(error, LineError) or not staging.rows:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                staging.close()
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise GritError(f"{output}: cannot be written ({error.strerror or error})") from None


def _kept(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a killed process had committed; None: nothing that can be used."""
    if not (folder / STATE).exists():
        return None
    try:
        kept = read_json(folder / STATE)
        sizes = [(folder / name).stat().st_size for name in ("lines", "rows", "matches.jsonl")]
        if kept["identity"] == dict(identity) and all(
            size >= least for size, least in zip(sizes, kept["sizes"], strict=True)
        ):
            say(f"{folder}: continuing")
            return kept
    except (GritError, OSError, KeyError, TypeError, ValueError):
        pass
    say(f"{folder}: was left by a run with other input or options; starting again")
    return None
