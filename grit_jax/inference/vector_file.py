"""Texts to a file of vectors, in blocks: on one process, on all hosts of a run, or on a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.block_hosts import BlockCluster, agree, run_blocks, share_plan
from grit_jax.inference.blocks import (
    PREFIX,
    BlockEncoder,
    BlockJob,
    block_ranges,
    from_ranges,
    model_identity,
    shard_name,
    to_ranges,
)
from grit_jax.inference.encoder import CHARACTERS_PER_TOKEN
from grit_jax.inference.files import Precision, quantize, truncate, write_npy_header
from grit_jax.inference.model import GritLM
from grit_jax.inference.shards import Shard
from grit_jax.runtime.blobs import BlobStore
from grit_jax.runtime.files import is_stream, lock_folder, write_file
from grit_jax.runtime.hosts import errors_together, is_first
from grit_jax.runtime.progress import progress
from grit_jax.text.length import MAX_LENGTH, length_limit, warn_truncated

# A block is the most that a killed process loses, and about what a process is ahead of the others.
BLOCK_TEXTS, BLOCK_CHARACTERS = 4096, 4 << 20


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How a block of texts is encoded; `show` shows the progress within it."""

    instruction: str
    max_length: int
    show: bool = dataclasses.field(default=False, repr=False)

    def encoder(self, model: GritLM) -> BlockEncoder:
        """Encodes blocks with a model."""

        def encode(texts: list[str], names: list[str]) -> Callable[[], Shard]:
            formatted = model.encoder.format(texts, self.instruction, self.max_length)
            encoded = model.encoder.encode_ids(
                formatted.ids,
                [formatted.pool_start] * len(formatted.ids),
                names=names,
                progress=self.show,
            )
            lengths = [len(ids) for ids in formatted.ids]
            return lambda: Shard(encoded.vectors, lengths, list(formatted.truncated))

        return encode


@dataclasses.dataclass(frozen=True)
class VectorOptions:
    """What vectors are written.

    Attributes:
      instruction: what the vectors are for.
      max_length: tokens of a text, format included.
      dim: keep so many dimensions, normalised again; None: all.
      precision: of the numbers in the file.
      shards: where blocks that are encoded are kept until the file is whole: a folder, or a URL
        that TensorStore knows. On several hosts all must see it. None: beside the output, if there
        is more than one block or process.
    """

    instruction: str = ""
    max_length: int = MAX_LENGTH
    dim: int | None = None
    precision: Precision = "float32"
    shards: str | None = None


def encode_file(
    model: GritLM,
    texts: list[str],
    output: Path,
    options: VectorOptions = VectorOptions(),
    *,
    cluster: BlockCluster | None = None,
) -> dict[str, Any]:
    """Vectors of texts into a `.npy` file, row `i` for text `i`; the file appears whole or not at
    all.

    The same call goes on after a kill; blocks that were encoded are not encoded again. On several
    hosts all processes call it, and process 0 writes the file.

    Args:
      cluster: encodes the blocks instead of this process.

    Returns:
      `texts, tokens, truncated, seconds, tokens_per_s, dim, precision`; `truncated` is the number
      of texts that were cut to `max_length`, `tokens_per_s` is of what this run has encoded.

    Raises:
      GritError: `dim` beyond the model's, `max_length` beyond its context, a vector that is not
        finite, an output that cannot be written, or processes that differ.
    """
    start = time.perf_counter()
    processes, width = jax.process_count(), model.embedding_width
    with errors_together():
        if options.dim is not None and options.dim > width:
            raise GritError(f"--dim {options.dim}: the model's vectors have {width} dimensions")
        max_length = length_limit(options.max_length, model.config.context_length)
    sizes = (min(len(text), max_length * CHARACTERS_PER_TOKEN) for text in texts)
    blocks = block_ranges(sizes, BLOCK_CHARACTERS, BLOCK_TEXTS)
    settings = TextSettings(options.instruction, max_length, show=processes * len(blocks) == 1)
    place = _shards_place(output, options, processes > 1 or cluster is not None, len(blocks))
    shards = BlobStore(place) if place is not None else None
    names = [""] * len(blocks)
    if shards is not None:
        identity = model_identity(model)
        head = (repr(settings), identity)
        names = [shard_name(*head, b.start, *texts[b.start : b.stop]) for b in blocks]
        agree(
            {
                "--dtype": model.dtype,
                "model": shard_name(identity).removeprefix(PREFIX),
                "input": f"{len(texts)} texts, content {shard_name(*names).removeprefix(PREFIX)}",
                "--instruction": options.instruction,
                "--max-length": max_length,
                "--dim": options.dim,
                "--precision": options.precision,
            }
        )
    with contextlib.ExitStack() as opened:
        plan: dict[str, Any] | None = None
        file: BinaryIO | None = None
        with errors_together():
            if is_first():
                if shards is not None and place == _beside(output):
                    opened.enter_context(_locked(place))
                file = opened.enter_context(write_file(output))  # fails before the work
                there = set(shards.names(PREFIX)) if shards is not None else set()
                missing = [i for i, name in enumerate(names) if name not in there]
                plan = {"missing": to_ranges(missing)}
                write_npy_header(
                    file, len(texts), quantize(_empty(options, width), options.precision)
                )
        missing = from_ranges(share_plan(shards, plan)["missing"])
        counts = _Counts()
        bar = opened.enter_context(progress(len(texts), "encode", "texts", quiet=len(blocks) == 1))

        def commit(block: int, shard: Shard) -> None:
            assert file is not None
            vectors = quantize(truncate(shard.vectors, options.dim), options.precision)
            file.write(np.ascontiguousarray(vectors).view(np.uint8).data)
            counts.add(shard, new=block in new)
            bar.update(len(blocks[block]))

        def finish() -> dict[str, Any]:
            opened.close()  # the file is whole
            if shards is not None:
                shards.delete(names)
                if place == _beside(output):
                    shutil.rmtree(place, ignore_errors=True)
            warn_truncated(counts.truncated, len(texts), max_length)
            seconds = time.perf_counter() - start
            return {
                "texts": len(texts),
                "tokens": counts.tokens,
                "truncated": counts.truncated,
                "seconds": seconds,
                "tokens_per_s": counts.new_tokens / max(seconds, 1e-9),
                "dim": options.dim or width,
                "precision": options.precision,
            }

        new = set(missing)
        job = BlockJob(
            names,
            lambda block: (
                texts[blocks[block].start : blocks[block].stop],
                [f"text {i}" for i in blocks[block]],
            ),
            commit,
            durable=False,
        )
        return run_blocks(job, settings, model, missing, shards, finish, cluster)


@dataclasses.dataclass
class _Counts:
    """Of the blocks that were joined."""

    tokens: int = 0
    new_tokens: int = 0
    truncated: int = 0

    def add(self, shard: Shard, new: bool) -> None:
        tokens = sum(shard.lengths)
        self.tokens, self.truncated = self.tokens + tokens, self.truncated + len(shard.truncated)
        self.new_tokens += tokens if new else 0


def _empty(options: VectorOptions, width: int) -> np.ndarray:
    return np.zeros((0, options.dim or width), np.float32)


def _beside(output: Path) -> str:
    return f"{output}.shards"


def _shards_place(output: Path, options: VectorOptions, shared: bool, blocks: int) -> str | None:
    """Where shards are kept; None: in memory, of a single process."""
    if options.shards is not None:
        return options.shards
    if not is_stream(output):
        return _beside(output) if shared or blocks > 1 else None
    if shared:
        raise GritError(
            f"--output {output}: is a pipe; name a folder or bucket that all hosts share with"
            " --shards"
        )
    return None


@contextlib.contextmanager
def _locked(place: str) -> Iterator[None]:
    """Holds the folder of the shards."""
    path = Path(place)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GritError(f"{place}: cannot be written ({error.strerror})") from None
    with lock_folder(path, "grit encode"):
        yield
