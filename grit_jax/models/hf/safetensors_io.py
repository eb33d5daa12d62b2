"""Reading and writing the safetensors files of a model directory, one tensor at a time.

The `safetensors` library validates a file's header before anything else is read. The same weights
give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from grit_jax.errors import GritError
from grit_jax.runtime.files import read_json, write_file, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_CODES = {"float32": "F32", "bfloat16": "BF16"}
COMPARE_BYTES = 1 << 24  # bytes compared at a time
# Other dtypes come from quantisation and need its scales.
_READABLE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor in a file's header: its byte range in the file, dtype code and shape."""

    start: int
    stop: int
    code: str
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of a model directory by name, over all shards. Use it in a `with` statement.

    Tensors are read, not memory-mapped: mapped pages would stay in the process's memory beside the
    arrays made from them.

    Args:
      single: name of the file that holds everything, if there are no shards.

    Raises:
      GritError: no safetensors file (pickles are refused), a shard of the index missing, or a
        damaged file.
    """

    def __init__(self, directory: str | Path, single: str = SINGLE_FILE):
        self.directory, self._single = Path(directory), single
        self._headers: dict[str, dict[str, _Entry]] = {}
        self._file_of: dict[str, str] = {}
        if (self.directory / single).is_file():
            self._file_of = dict.fromkeys(self._header(single), single)
        elif (self.directory / INDEX_FILE).is_file():
            self._file_of = self._read_index()
        else:
            raise GritError(self._nothing_to_read())

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._headers.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._file_of)

    def path(self, name: str) -> Path:
        """The file that holds a tensor, or that should."""
        fallback = self._single if (self.directory / self._single).is_file() else INDEX_FILE
        return self.directory / self._file_of.get(name, fallback)

    def read(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """One tensor in the dtype it is stored in.

        Raises:
          GritError: it is missing, of another shape, or of a dtype that is not a plain
            floating-point one.
        """
        path, entry = self.path(name), self._entry(name)
        if entry.shape != tuple(shape):
            raise GritError(
                f"{path}: tensor '{name}' has shape {list(entry.shape)}, config.json asks for"
                f" {list(shape)}"
            )
        if entry.code not in _READABLE:
            raise GritError(
                f"{path}: tensor '{name}' is {entry.code}; take the checkpoint in bfloat16 or"
                " float32"
            )
        values = self._bytes(path, entry.start, entry.stop).view(_READABLE[entry.code])
        return values.reshape(entry.shape)

    def same(self, first: str, second: str) -> bool:
        """True if two tensors have the same bytes."""
        a, b = self._entry(first), self._entry(second)
        if (a.code, a.shape) != (b.code, b.shape):
            return False
        return all(
            np.array_equal(
                self._bytes(
                    self.path(first), a.start + at, min(a.start + at + COMPARE_BYTES, a.stop)
                ),
                self._bytes(
                    self.path(second), b.start + at, min(b.start + at + COMPARE_BYTES, b.stop)
                ),
            )
            for at in range(0, a.stop - a.start, COMPARE_BYTES)
        )

    def _entry(self, name: str) -> _Entry:
        path = self.path(name)
        if name not in self._file_of:
            raise GritError(f"{path}: tensor '{name}' is missing; config.json asks for it")
        header = self._header(path.name)
        if name not in header:
            raise GritError(
                f"{path}: tensor '{name}' is not in it, though {INDEX_FILE} says so; download it"
                " again"
            )
        return header[name]

    @staticmethod
    def _bytes(path: Path, start: int, stop: int) -> np.ndarray:
        try:
            values = np.fromfile(path, np.uint8, stop - start, offset=start)
        except OSError as error:
            raise GritError(f"{path}: cannot be read ({error.strerror or error})") from None
        if len(values) != stop - start:
            raise GritError(f"{path}: became shorter while it was read; download or copy it again")
        return values

    def _header(self, file: str) -> dict[str, _Entry]:
        if file not in self._headers:
            path = self.directory / file
            try:
                # Checks the whole header against the file's size.
                with safe_open(path, framework="numpy"):
                    pass
                with path.open("rb") as stream:
                    length = int.from_bytes(stream.read(8), "little")
                    tree = json.loads(stream.read(length))
            except (SafetensorError, OSError) as error:
                with contextlib.suppress(OSError), path.open("rb") as stream:
                    if stream.read(23) == b"version https://git-lfs":
                        raise GritError(
                            f"{path}: a Git LFS pointer, not the weights; run 'git lfs pull' there"
                        ) from None
                raise GritError(
                    f"{path}: truncated or not a safetensors file ({error}); download or copy it"
                    " again"
                ) from None
            tree.pop("__metadata__", None)
            entries = {}
            for name, info in tree.items():
                start, stop = (8 + length + offset for offset in info["data_offsets"])
                entries[name] = _Entry(start, stop, info["dtype"], tuple(info["shape"]))
            self._headers[file] = entries
        return self._headers[file]

    def _read_index(self) -> dict[str, str]:
        path = self.directory / INDEX_FILE
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise GritError(
                f"{path}: 'weight_map' is missing; it should say which shard each tensor is in"
            )
        for file in sorted(set(map(str, weight_map.values()))):
            if Path(file).name != file:
                raise GritError(f"{path}: shard {file!r} lies outside the directory; refused")
            if not (self.directory / file).is_file():
                raise GritError(
                    f"{path}: shard {file} is missing from {self.directory}; download it too"
                )
        return {str(name): str(file) for name, file in weight_map.items()}

    def _nothing_to_read(self) -> str:
        if not self.directory.is_dir():
            return f"{self.directory}: no such directory"
        pickle = next(
            (p.name for pattern in _PICKLES for p in sorted(self.directory.glob(pattern))), None
        )
        if pickle:
            return (
                f"{self.directory}: only pickled weights there ({pickle}), refused: opening a"
                " pickle can run any code. If you trust their source, convert them with"
                " transformers' save_pretrained"
            )
        return f"{self.directory}: no {self._single} and no {INDEX_FILE} there"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write; `values` is called when the tensor is written."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


def write_tensors(
    directory: str | Path, tensors: Sequence[Tensor], dtype: str, max_shard_bytes: int
) -> None:
    """Writes `model.safetensors`, or shards with an index if it would exceed `max_shard_bytes`.

    Every file is written atomically. When an older model is replaced, its entry point (single file
    or index) is removed first and written last: if the process is killed, the directory has no
    weights instead of mixed ones.

    Raises:
      GritError: a dtype other than float32 and bfloat16.
    """
    if dtype not in DTYPES:
        raise GritError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors, DTYPES[dtype].itemsize, max_shard_bytes))
    names = (
        [SINGLE_FILE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    with contextlib.ExitStack() as files:  # all are written before the first is renamed
        for name, shard in zip(names, shards, strict=True):
            write_shard(files.enter_context(write_file(directory / name)), shard, dtype)
        if len(shards) > 1:
            for entry in (INDEX_FILE, SINGLE_FILE):
                (directory / entry).unlink(missing_ok=True)
    if len(shards) > 1:
        count = sum(tensor.size for tensor in tensors)
        metadata = {"total_parameters": count, "total_size": count * DTYPES[dtype].itemsize}
        weight_map = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        write_json(
            directory / INDEX_FILE,
            {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))},
        )
    else:
        (directory / INDEX_FILE).unlink(missing_ok=True)
    for stale in directory.glob("model-*-of-*.safetensors"):
        if stale.name not in names:
            stale.unlink()


def _shards(tensors: Sequence[Tensor], itemsize: int, limit: int) -> Iterator[list[Tensor]]:
    """Groups consecutive tensors to at most `limit` bytes; a larger tensor is a shard by itself."""
    shard: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        size = tensor.size * itemsize
        if shard and filled + size > limit:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += size
    yield shard


def write_shard(file: BinaryIO, tensors: Sequence[Tensor], dtype: str) -> None:
    """Writes the safetensors layout: the header's length in 8 bytes, the header (JSON), the
    values.

    Args:
      dtype: float32 or bfloat16.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    start = 0
    for tensor in tensors:
        end = start + tensor.size * DTYPES[dtype].itemsize
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        values = np.ascontiguousarray(tensor.values(), dtype=DTYPES[dtype])
        if values.shape != tensor.shape:
            raise ValueError(f"{tensor.name} has shape {values.shape}, expected {tensor.shape}")
        file.write(values.view(np.uint8).data)  # little-endian, as every platform JAX runs on
