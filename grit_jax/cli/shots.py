"""Few-shot examples after an instruction: `--shots`, `--shots-file` and `--shots-format`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from grit_jax.cli import flags
from grit_jax.errors import GritError
from grit_jax.text.few_shot import SHOT_FORMATS

if TYPE_CHECKING:
    from grit_jax.evaluation.query_instructions import Shots


def add_shot_flags(parser: Any) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--shots",
        type=flags.natural,
        default=0,
        metavar="N",
        help="examples after the instruction, in the GRIT paper's format (default: 0)",
    )
    parser.add_argument(
        "--shots-file",
        type=flags.path,
        metavar="F.jsonl",
        help='where they come from: the first N lines of an embedding file, each "query" with its '
        'first "pos"; the first N of each domain, if lines have a "domain"',
    )
    parser.add_argument(
        "--shots-format",
        choices=tuple(SHOT_FORMATS),
        default="retrieval",
        help="what they say: that a query should retrieve its text (default), that both match, or "
        "in the words of MEDI2",
    )


def shots(args: argparse.Namespace) -> Shots | None:
    """The examples that the flags ask for.

    Raises:
      GritError: one of `--shots` and `--shots-file` without the other, or as `read_shots`.
    """
    if (args.shots_file is None) != (args.shots == 0):
        raise GritError("--shots N and --shots-file F.jsonl go together")
    if args.shots_file is None:
        return None
    from grit_jax.evaluation.query_instructions import read_shots

    return read_shots(args.shots_file, args.shots, args.shots_format)
