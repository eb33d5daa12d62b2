"""`grit quickstart` and `grit evidence`: whole runs with a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from grit_jax.cli import flags
from grit_jax.cli.output import print_result
from grit_jax.cli.verb import Verb


def _quickstart_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=flags.path,
        default=Path("runs/quickstart"),
        help="folder (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="also train the tokenizer and the base model here (slow)",
    )
    parser.add_argument(
        "--documents",
        type=flags.positive,
        metavar="N",
        help="use at most N documents, to try it out quickly (default: all, some 12,000)",
    )
    parser.add_argument(
        "--steps",
        type=flags.positive,
        metavar="N",
        help="train for N steps (default: 180)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json on stdout and nothing else"
    )


def quickstart(args: argparse.Namespace) -> None:
    from grit_jax.quickstart.report import terminal_report
    from grit_jax.quickstart.run import run_quickstart
    from grit_jax.quickstart.settings import QuickstartSettings

    settings = QuickstartSettings(args.seed, args.from_scratch, args.documents, args.steps)
    report = run_quickstart(args.out, settings)
    print_result(report.to_dict(), args.json, terminal_report(report))


def _evidence_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part", choices=("joint", "cached", "all"), default="all", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=flags.positive,
        default=3,
        metavar="N",
        help="runs of each configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=flags.path,
        default=Path("runs/evidence"),
        help="folder (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print evidence.json on stdout and nothing else"
    )


def evidence(args: argparse.Namespace) -> None:
    from grit_jax.evidence.run import markdown, run_evidence

    report = run_evidence(args.out, seeds=args.seeds, part=args.part)
    print_result(report, args.json, markdown(report).rstrip())


QUICKSTART = Verb(
    "quickstart",
    "the whole job on this machine's own Python documentation, in minutes",
    _quickstart_flags,
    quickstart,
    resumable=True,
)
EVIDENCE = Verb(
    "evidence",
    "train single-task models beside the joint model, and the cached layouts with and without "
    "training for them; print the comparison",
    _evidence_flags,
    evidence,
    resumable=True,
)
