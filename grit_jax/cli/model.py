"""The MODEL argument of the verbs that run a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grit_jax.cli import flags

if TYPE_CHECKING:
    from grit_jax.inference.model import GritLM


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declares MODEL."""
    parser.add_argument(
        "model", type=flags.name, metavar="MODEL", help="directory or Hugging Face hub id"
    )


def load_model(args: argparse.Namespace) -> GritLM:
    """The model that the command line names."""
    from grit_jax.inference.model import GritLM

    return GritLM.from_pretrained(args.model)
