"""Blocks of texts on all processes of a run: each process encodes its share on its own devices and
writes shards; process 0 joins them.

No process waits for another before the end, and none takes part in another's computation. What the
processes agree on before they start is in a plan, which process 0 writes beside the shards.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from grit_jax.errors import GritError
from grit_jax.inference.blocks import (
    BlockEncoder,
    BlockJob,
    BlockSettings,
    Joiner,
    encode_blocks,
)
from grit_jax.inference.model import GritLM
from grit_jax.runtime.blobs import BlobStore
from grit_jax.runtime.hosts import (
    FOLDER_SECONDS,
    check_hosts_agree,
    errors_together,
    fail_together,
    gather_text,
    is_first,
)
from grit_jax.runtime.outcomes import Outcomes

PLAN = "plan-"  # and a random name
SHARD_SECONDS = 60  # in which a shard that another host has written is there for process 0


def agree(values: Mapping[str, Any]) -> None:
    """Compares settings, inputs and versions among the processes.

    Raises:
      GritError: they differ (`check_hosts_agree`).
    """
    versions = {"grit_jax": importlib.metadata.version("grit_jax"), "jax": jax.__version__}
    check_hosts_agree({**values, **versions})


def share_plan(shards: BlobStore | None, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """The plan that process 0 gives, in every process.

    Raises:
      GritError: a process does not see the place of the shards that process 0 sees.
    """
    if jax.process_count() == 1:
        assert plan is not None
        return dict(plan)
    assert shards is not None
    name = gather_text(PLAN + uuid.uuid4().hex)[0]
    with errors_together():
        if is_first():
            shards.write(name, json.dumps(plan).encode())
    gather_text("written")
    data = shards.read(name)
    ends = time.monotonic() + FOLDER_SECONDS
    while data is None and time.monotonic() < ends:
        time.sleep(0.2)
        data = shards.read(name)
    seen = gather_text("yes" if data is not None else "no")
    if is_first():
        shards.delete([name])
    if blind := [str(number) for number, answer in enumerate(seen) if answer != "yes"]:
        fail_together(
            f"{shards.place} is not the same place on process {', '.join(blind)}; put the output"
            " where all hosts see it, or name a folder or bucket that they share with --shards"
        )
    assert data is not None
    return json.loads(data)


class BlockHosts:
    """The processes of a run while they encode blocks, each for itself."""

    def __init__(self) -> None:
        self._outcomes = Outcomes()
        self._waiting: tuple[int, float] | None = None  # for a block, since when

    def lead(
        self,
        job: BlockJob,
        encoder: BlockEncoder,
        shards: BlobStore,
        missing: list[int],
        finish: Callable[[], Any],
    ) -> Any:
        """Process 0: encodes its share, joins all shards, and returns what `finish` does.

        Raises:
          GritError: its own, or that of the first process found to have one.
        """
        share = self._share(missing)
        owner = {block: i % self._outcomes.processes for i, block in enumerate(missing)}
        joiner = Joiner(
            job, shards, keep=True, failure=lambda block: self._reason(block, owner.get(block))
        )
        try:
            with joiner:
                encode_blocks(share, job, encoder, joiner.deliver, joiner.check)
            result = finish()
        except GritError as error:
            self._outcomes.report(json.dumps({"error": str(error)}))
            self._outcomes.wait_for_others()
            raise
        self._outcomes.report(json.dumps({"result": result}))
        return result

    def help(
        self, job: BlockJob, encoder: BlockEncoder, shards: BlobStore, missing: list[int]
    ) -> Any:
        """Another process: encodes its share, and returns what process 0 makes of all.

        Raises:
          GritError: its own, or that of another process.
        """
        write = lambda block, shard: shards.write(job.names[block], shard.to_bytes())
        try:
            encode_blocks(self._share(missing), job, encoder, write, self._check)
        except GritError as error:
            self._outcomes.report(json.dumps({"error": str(error)}))
            raise
        self._outcomes.report(json.dumps({}))
        return self._verdict(self._outcomes.wait(0))

    def _share(self, missing: list[int]) -> list[int]:
        return missing[self._outcomes.number :: self._outcomes.processes]

    def _check(self) -> None:
        if (report := self._outcomes.of(0)) is not None:
            self._verdict(report)

    def _verdict(self, report: str) -> Any:
        message = json.loads(report)
        if (error := message.get("error")) is not None:
            raise GritError(error if error.startswith("process ") else f"process 0: {error}")
        return message["result"]

    def _reason(self, block: int, owner: int | None) -> str | None:
        """Why a block will never come."""
        for process in range(1, self._outcomes.processes):
            report = self._outcomes.of(process)
            error = json.loads(report).get("error") if report is not None else None
            if error is not None:
                return f"process {process}: {error}"
        if owner is not None and owner and self._outcomes.of(owner) is None:
            return None  # at work
        if self._waiting is None or self._waiting[0] != block:
            self._waiting = (block, time.monotonic())
        if owner != 0 and time.monotonic() - self._waiting[1] > SHARD_SECONDS:
            return (
                f"a block that process {owner} has written is not seen by process 0 after"
                f" {SHARD_SECONDS} s; the processes must see the same files"
            )
        return None


class BlockCluster(Protocol):
    """Computers that encode blocks for this process and write their shards."""

    def encode(
        self,
        blocks: list[int],
        job: BlockJob,
        settings: BlockSettings,
        shards: BlobStore,
        check: Callable[[], None],
    ) -> None:
        """Encodes blocks; `check` raises what ends the work."""
        ...


def run_blocks(
    job: BlockJob,
    settings: BlockSettings,
    model: GritLM,
    missing: list[int],
    shards: BlobStore | None,
    finish: Callable[[], Any],
    cluster: BlockCluster | None = None,
) -> Any:
    """Encodes and joins all blocks: in this process, in all processes of the run, or on a cluster.

    Args:
      missing: the blocks without a shard, the same in every process.
      shards: None: a single process keeps what it has encoded in memory until it is committed.
      finish: called by process 0 when all is committed; what it returns, JSON, is returned in every
        process.

    Raises:
      GritError: of any process.
    """
    if cluster is not None:
        assert shards is not None
        encoded: list[float] = []
        with Joiner(job, shards, failure=lambda block: _not_seen(shards, encoded)) as joiner:
            cluster.encode(missing, job, settings, shards, joiner.check)
            encoded.append(time.monotonic())
        return finish()
    encoder = settings.encoder(model)
    if jax.process_count() == 1:
        with Joiner(job, shards, keep=shards is not None and not job.durable) as joiner:
            encode_blocks(missing, job, encoder, joiner.deliver, joiner.check)
        return finish()
    assert shards is not None
    if is_first():
        return BlockHosts().lead(job, encoder, shards, missing, finish)
    return BlockHosts().help(job, encoder, shards, missing)


def _not_seen(shards: BlobStore, encoded: list[float]) -> str | None:
    """Why a shard is not there, once all blocks have been encoded for a while."""
    if not encoded or time.monotonic() - encoded[0] < SHARD_SECONDS:
        return None
    return f"{shards.place}: a block that was encoded on the cluster is not there; start again"
