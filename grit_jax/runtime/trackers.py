"""Where else a run's numbers go while it runs: TensorBoard and Weights & Biases, where they are
asked for."""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any, Protocol

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_text

WANDB_ID_FILE = "wandb_id"  # in the output folder: a run that goes on is the same one there, too


class Tracker(Protocol):
    """Takes the numbers of each step."""

    def write(self, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_trackers(
    output: Path,
    first_step: int,
    *,
    tensorboard: bool = False,
    wandb: str | None = None,
    config: Any = None,
) -> list[Tracker]:
    """Those that are asked for, ready to go on at `first_step`.

    Args:
      wandb: the project's name. Its environment variables are heard (`WANDB_MODE=offline`).
      config: what W&B shows as the run's configuration.

    Raises:
      GritError: a library is not installed, or W&B has no access.
    """
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(_TensorBoard(output / "tensorboard", first_step))
    if wandb:
        trackers.append(_Wandb(wandb, output, config))
    return trackers


class _TensorBoard:
    """Event files in `output/tensorboard`; steps that are taken again replace those of before."""

    def __init__(self, directory: Path, first_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _not_installed("train.tensorboard", "tensorboard") from None
        # A file of its own each time: the library names them by the second.
        self._writer = SummaryWriter(
            str(directory), purge_step=first_step or None, filename_suffix=f".from{first_step:08d}"
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run an output folder. Steps that are taken again are the same numbers; W&B keeps
    those it has."""

    def __init__(self, project: str, output: Path, config: Any):
        try:
            import wandb
        except ImportError:
            raise _not_installed("train.wandb", "wandb") from None
        file = output / WANDB_ID_FILE
        if not file.exists():
            write_text(file, uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=project,
                name=output.name,
                dir=str(output),
                id=file.read_text(),
                resume="allow",
                config=config,
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise GritError(
                f"train.wandb: {project}: {reason}; log in (wandb login), or set WANDB_MODE=offline"
            ) from None

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(_numbers(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """What can be drawn."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _not_installed(key: str, extra: str) -> GritError:
    return GritError(f"{key} needs the extra '{extra}': pip install 'grit_jax[{extra}]'")
