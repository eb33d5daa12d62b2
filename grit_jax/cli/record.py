"""`--record`: the result of a `grit eval` run and its command, for `grit eval card`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from grit_jax.cli import flags
from grit_jax.cli.output import print_result


def add_record_flag(parser: argparse.ArgumentParser) -> None:
    """Declares `--record`."""
    parser.add_argument(
        "--record",
        type=flags.path,
        metavar="F.json",
        help="write what --json prints, with the command, for grit eval card",
    )


def check_record(args: argparse.Namespace) -> None:
    """Tests that `--record` can be written, before the work.

    Raises:
      GritError: it cannot, or it is the input.
    """
    if args.record is not None:
        from grit_jax.runtime.files import writable_file

        writable_file(args.record, getattr(args, "input", None))


def report(args: argparse.Namespace, values: Mapping[str, Any], text: str) -> None:
    """Prints a result (`print_result`) and writes it where `--record` says."""
    print_result(values, args.json, text)  # first: a full disk loses the record alone
    if args.record is not None:
        from grit_jax.evaluation.card import write_record

        write_record(args.record, args.kind, str(args.model), args.command_line, values)
