"""Experiment trackers: a run's metrics in TensorBoard and in Weights & Biases, if configured."""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any, Protocol

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_text

WANDB_ID_FILE = "wandb_id"  # in the output folder, so that a resumed run continues its W&B run


class Tracker(Protocol):
    """Receives the metrics of each step."""

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
    """Opens the configured trackers; the first step that they receive is `first_step`.

    Args:
      tensorboard: write event files to `output/tensorboard`.
      wandb: the name of a W&B project; W&B's environment variables apply (`WANDB_MODE=offline`).
      config: shown by W&B as the run's configuration.

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
    """Event files in `output/tensorboard`; repeated steps replace the earlier ones."""

    def __init__(self, directory: Path, first_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _not_installed("train.tensorboard", "tensorboard") from None
        # The suffix keeps file names distinct: the library names them by the second.
        self._writer = SummaryWriter(
            str(directory), purge_step=first_step or None, filename_suffix=f".from{first_step:08d}"
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run for each output folder. Repeated steps have the same values; W&B keeps the
    first."""

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
    """The finite numbers among the values."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _not_installed(key: str, extra: str) -> GritError:
    return GritError(f"{key} needs the extra '{extra}': pip install 'grit_jax[{extra}]'")
