"""Checkpoints of a run: training state and data position together, by Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from grit_jax.errors import GritError
from grit_jax.runtime.hosts import wait_for_peer_failure
from grit_jax.training.run_record import RunRecord
from grit_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class FrozenBase:
    """What adapters were trained on, and how they are put to it.

    Attributes:
      model: a directory or hub id.
      weights: the hash of its weights.
      lora: the keys of that section that a checkpoint means nothing without.
    """

    model: str
    weights: str
    lora: dict[str, Any]


class Checkpoints:
    """Saves asynchronously every `every` steps, keeps the newest `keep`, restores the newest whole
    one.

    A checkpoint that a kill left half written has no final name yet and is never seen; who `writes`
    removes it.

    Attributes:
      base: what is frozen under the adapters of a run; a checkpoint holds them and names it. None:
        all is trained.
      optimizer: whose state it is (`OptimizerConfig.state_kind`); None: it is not asked.
      record: what the run was made of; it is kept in every checkpoint.
    """

    base: FrozenBase | None = None
    optimizer: str | None = None
    record: RunRecord | None = None

    def __init__(self, directory: str | Path, *, every: int, keep: int = 2, writes: bool = True):
        _quiet_orbax()
        policies = ocp.training.save_decision_policies
        self.directory, self.every = epath.Path(directory), every
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.directory if "://" in str(directory) else Path(directory).absolute(),
                save_decision_policy=policies.FixedIntervalPolicy(every),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                # one that only reads may have a living run beside it
                cleanup_tmp_directories=writes,
            )
        except OSError as error:
            reason = error.strerror or _short(error)
            raise GritError(
                f"{directory}: cannot be written ({reason}); choose another output"
            ) from None

    def latest(self) -> int | None:
        """Number of steps behind the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def due(self, step: int) -> bool:
        """Whether the interval asks for a save at `step`."""
        return step % self.every == 0

    def save(self, step: int, state: TrainState, data: Any, *, force: bool = False) -> None:
        """Starts a save when `step` is due (or `force`); returns before the bytes are on disk."""
        if force or self.due(step):
            about: dict[str, Any] = {"optimizer": self.optimizer} if self.optimizer else {}
            about |= {"base": dataclasses.asdict(self.base)} if self.base else {}
            about |= {"run": self.record.to_json()} if self.record else {}
            with self._writing():
                self._checkpointer.save_checkpointables_async(
                    step,
                    {"state": _tree(state), "data": data},
                    force=True,
                    custom_metadata=about or None,
                )

    def restore(self, step: int, like: TrainState, data: Any) -> TrainState:
        """The state at `step`, laid out as `like`; the data iterator (None: no matter) moves to the
        same place.

        Raises:
          GritError: the checkpoint belongs to another model, base or optimizer, or is damaged.
        """
        self._check_owner(step)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like)
        )
        try:
            loaded = self._checkpointer.load_checkpointables(step, {"state": abstract})
            if data is not None:
                # Every process was at the same place; there may be more of them now, or fewer.
                place = next((self.directory / str(step) / "data").glob("process_0-of-*.json"))
                data.set_state(json.loads(place.read_text()))
        except (ValueError, KeyError, OSError, StopIteration) as error:
            cause: BaseException = error
            # Orbax chains an error for each attempt; the first one has the reason.
            while earlier := cause.__cause__ or cause.__context__:
                cause = earlier
            if "Requested shape" in str(cause):
                raise GritError(
                    f"{self.directory}: the checkpoint of step {step} is of another model or"
                    f" optimizer ({_short(cause)}); use its own configuration, or another output"
                ) from None
            raise GritError(
                f"{self.directory / str(step)}: cannot be read as a checkpoint of this"
                f" configuration ({_short(cause)}); if it is damaged, remove it, and the run goes"
                " on from the one before"
            ) from None
        leaves = jax.tree.leaves(loaded["state"])
        trained = dataclasses.replace(like, frozen={})
        return dataclasses.replace(
            jax.tree.unflatten(jax.tree.structure(trained), leaves), frozen=like.frozen
        )

    def record_of(self, step: int) -> RunRecord | None:
        """What the run was made of when it saved `step`; None: an older version of this package
        saved it."""
        try:
            about = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
        except (ValueError, KeyError, TypeError, OSError):
            return None  # damaged: reading it will say so
        return RunRecord.from_json(about["run"]) if "run" in about else None

    def close(self) -> None:
        """Waits for the saves under way."""
        with self._writing():
            self._checkpointer.close()

    def _check_owner(self, step: int) -> None:
        """Raises GritError if a checkpoint has the state of another optimizer, or adapters of
        another base model."""
        try:
            about = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
            base = FrozenBase(**about["base"]) if "base" in about else None
        except (ValueError, KeyError, TypeError, OSError):
            return  # damaged: reading it will raise the error
        which = f"{self.directory}: the checkpoint of step {step}"
        saved = about.get("optimizer", self.optimizer)
        if self.optimizer and saved != self.optimizer:
            raise GritError(
                f"{which} holds the state of {saved}, this configuration has {self.optimizer}; set"
                " optimizer.name and optimizer.moments back, or choose another output"
            )
        if base is None or self.base is None:
            if base is not self.base:
                holds, asks = (
                    ("all weights", "adapters (lora)")
                    if base is None
                    else ("adapters (lora)", "all weights")
                )
                raise GritError(
                    f"{which} holds {holds}, this configuration trains {asks}; choose another"
                    " output"
                )
            return
        if base.weights != self.base.weights:
            raise GritError(
                f"{which} holds adapters to {base.model} (weights {base.weights[:8]});"
                f" {self.base.model} has other weights ({self.base.weights[:8]}): give model.path"
                " the base that it was trained on"
            )
        for key, now in self.base.lora.items():
            was = base.lora.get(key)
            if was != now:
                raise GritError(
                    f"{which} was trained with lora.{key} {was}, now it is {now}; set it back"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Reports a full disk, whichever of Orbax's writers met it; they give it no errno."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise  # other processes, not the disk
            if isinstance(error, TimeoutError) or "timed out" in str(error):
                wait_for_peer_failure()  # a part of the save that another process was to write
            raise GritError(
                f"{self.directory}: a checkpoint cannot be written ({_short(error)}); make room,"
                " and the same command goes on from the one before"
            ) from None


def _short(error: BaseException) -> str:
    """The first sentence of a message, or what the system said of a full disk."""
    for full in map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        if full in str(error):
            return full
    return (
        str(error).split(" [")[0].split(". ")[0].splitlines()[0][:300]
        if str(error)
        else type(error).__name__
    )


def _quiet_orbax() -> None:
    """Silences Orbax's logging. It logs every save; and when a read or write fails, it closes its
    event loop while others are under way, each of which logs a traceback. Errors are raised as
    well, so that nothing is lost."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def without_unfinished_reads(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed" and not inspect.iscoroutine(found.object):
            before(found)

    if getattr(before, "__name__", "") != without_unfinished_reads.__name__:
        sys.unraisablehook = without_unfinished_reads


def _tree(state: TrainState) -> dict[str, Any]:
    """Plain containers in the order of the state's own leaves, frozen ones left out: what Orbax
    stores by name."""
    trained = dataclasses.replace(state, frozen={})
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(trained))}
