"""What the command line knows of one verb."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the `grit` command.

    `add_flags` declares its arguments and `run` is called with them; neither may import JAX before
    `run` is called. With `takes_overrides`, `run` also gets the arguments that argparse does not
    know: the keys of a configuration. `resumable`: the same command continues an interrupted run.
    `supervised`: on several hosts a parent process watches this one (`runtime/supervision.py`).
    """

    name: str
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., None]
    takes_overrides: bool = False
    resumable: bool = False
    supervised: bool = False
