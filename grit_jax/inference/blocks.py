"""Texts in blocks: each block is encoded once, by any process on its own devices, and one process
joins the results in the order of the texts.

The bounds of blocks follow from the texts alone, so that a block gives the same numbers however
many processes there are and whatever was killed before. Its result, a shard, is written whole or
not at all, which acknowledges the block: it is not encoded again. A shard is named by everything
that it depends on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.shards import DamagedShard, Shard
from grit_jax.runtime.blobs import BlobStore

PREFIX = "block-"  # of the names of shards
FIRST_LOOK, LAST_LOOK = 0.02, 1.0  # seconds between looks for a shard

# The texts of a block, and what to call each in an error.
BlockTexts: TypeAlias = tuple[list[str], list[str]]


class BlockEncoder(Protocol):
    """Encodes the texts of a block.

    The call runs the model. What it returns packs the results, in another thread while the next
    block is encoded.
    """

    def __call__(self, texts: list[str], names: list[str], /) -> Callable[[], Shard]: ...


class BlockSettings(Protocol):
    """How blocks are encoded; its `repr` names everything that counts."""

    def encoder(self, model: GritLM) -> BlockEncoder:
        """The encoder with a model."""
        ...


@dataclasses.dataclass(frozen=True)
class BlockJob:
    """Blocks to encode and what is done with the results.

    Attributes:
      names: of the blocks' shards (`shard_name`).
      texts: of a block, by its number.
      commit: called with each block's number and shard, in order, by one thread.
      durable: a block that is committed is safe; its shard is removed at once. Otherwise all shards
        are kept until the caller removes them.
    """

    names: Sequence[str]
    texts: Callable[[int], BlockTexts]
    commit: Callable[[int, Shard], None]
    durable: bool


def block_ranges(sizes: Iterable[int], limit: int, most: int) -> list[range]:
    """Consecutive items in blocks, each filled before the next begins.

    Args:
      sizes: of the items.
      limit: of the sizes in a block; a larger item is a block by itself.
      most: items in a block.

    >>> block_ranges([3, 3, 3, 9, 1], limit=6, most=10)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    blocks, start, total, stop = [], 0, 0, 0
    for number, size in enumerate(sizes):
        if number > start and (total + size > limit or number - start == most):
            blocks.append(range(start, number))
            start, total = number, 0
        total, stop = total + size, number + 1
    if stop > start:
        blocks.append(range(start, stop))
    return blocks


def to_ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as `[start, stop]` of their runs.

    >>> to_ranges([0, 1, 2, 7])
    [[0, 3], [7, 8]]
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges


def from_ranges(ranges: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of `to_ranges`."""
    return [number for start, stop in ranges for number in range(start, stop)]


def shard_name(*parts: Any) -> str:
    """The name of a shard that depends on `parts` (text, numbers and bytes)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return PREFIX + digest.hexdigest()


def model_identity(model: GritLM) -> str:
    """Everything of a model that vectors and records depend on, as text."""
    return json.dumps(
        [
            model.weights_hash,
            model.dtype,
            model.config.dtype,
            model.pooling,
            model.mode.value,
            dataclasses.asdict(model.chat),
        ],
        sort_keys=True,
    )


def encode_blocks(
    blocks: Iterable[int],
    job: BlockJob,
    encoder: BlockEncoder,
    deliver: Callable[[int, Shard], None],
    check: Callable[[], None],
) -> None:
    """Encodes blocks one after the other, and delivers each while the next one is encoded.

    Args:
      check: called before each block; ends the work by what it raises.
    """
    with ThreadPoolExecutor(1) as background:
        pending: Future[None] | None = None
        for block in blocks:
            check()
            pack = encoder(*job.texts(block))
            if pending is not None:
                pending.result()
            pending = background.submit(_deliver, deliver, block, pack)
        if pending is not None:
            pending.result()


def _deliver(deliver: Callable[[int, Shard], None], block: int, pack: Callable[[], Shard]) -> None:
    deliver(block, pack())


class Joiner:
    """Commits the shards of a job in their order, in a thread, until the block of `with` ends and
    all are committed.

    Args:
      shards: where they are looked for; None: all of them are delivered here.
      keep: write what is delivered here to `shards`, unless it is the next to be committed and the
        job is durable. Without it a delivery returns once it is committed.
      failure: says why a block that is waited for will never come, or None.

    Raises:
      GritError: `commit` failed, a shard is damaged, or `failure` has a reason.
    """

    def __init__(
        self,
        job: BlockJob,
        shards: BlobStore | None,
        *,
        keep: bool = False,
        failure: Callable[[int], str | None] = lambda block: None,
    ):
        self._job, self._shards, self._keep, self._failure = job, shards, keep, failure
        self._changed = threading.Condition()
        self._next = 0  # the block to be committed
        self._delivered: tuple[int, Shard] | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="joiner", daemon=True)

    def deliver(self, block: int, shard: Shard) -> None:
        """Takes the result of a block that was encoded in this process."""
        if self._keep:
            assert self._shards is not None
            with self._changed:
                taken = self._job.durable and self._next == block
                if taken:
                    self._delivered = (block, shard)
                    self._changed.notify_all()
            if not taken:
                self._shards.write(self._job.names[block], shard.to_bytes())
            return
        with self._changed:
            self._delivered = (block, shard)
            self._changed.notify_all()
            while self._next <= block and self._error is None and not self._stopped:
                self._changed.wait()
        self.check()

    def check(self) -> None:
        """Raises what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Joiner:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if error is None:
                while self._thread.is_alive():
                    self._thread.join(0.2)
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            self._thread.join()
        if error is None:
            self.check()

    def _run(self) -> None:
        try:
            for block in range(len(self._job.names)):
                shard = self._wait_for(block)
                if shard is None:
                    return
                self._job.commit(block, shard)
                if self._shards is not None and self._job.durable:
                    self._shards.delete([self._job.names[block]])
                with self._changed:
                    self._next = block + 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for(self, block: int) -> Shard | None:
        """The shard of a block; None if the work has ended before."""
        pause = FIRST_LOOK
        while True:
            with self._changed:
                if self._delivered is not None and self._delivered[0] == block:
                    shard, self._delivered = self._delivered[1], None
                    return shard
                if self._stopped:
                    return None
                if self._shards is None:
                    self._changed.wait()
                    continue
            if (stored := read_shard(self._shards, self._job.names[block])) is not None:
                return stored
            if reason := self._failure(block):
                raise GritError(reason)
            with self._changed:
                if self._delivered is None and not self._stopped:
                    self._changed.wait(pause)
            pause = min(1.5 * pause, LAST_LOOK)


def read_shard(shards: BlobStore, name: str) -> Shard | None:
    """A shard; None where there is none.

    Raises:
      GritError: it is damaged. It is removed, so that the block is encoded by the next run.
    """
    if (data := shards.read(name)) is None:
        return None
    try:
        return Shard.from_bytes(data)
    except DamagedShard:
        shards.delete([name])
        raise GritError(
            f"{shards.place}: {name} was damaged and is removed; the same command goes on"
        ) from None
