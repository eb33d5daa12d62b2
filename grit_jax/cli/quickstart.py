"""`grit quickstart` and `grit evidence`: whole runs with a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from grit_jax.cli import flags
from grit_jax.cli.output import print_result
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError


def _quickstart_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=flags.path,
        help="folder (default: runs/quickstart, with --base runs/ and the model's name)",
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
        "--base",
        type=flags.name,
        metavar="MODEL",
        help="use this pretrained model (smollm2, a directory or a hub id) instead of training one;"
        " some 15 minutes for smollm2",
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
        help="train for N steps (default: 180; with --base: no training)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json on stdout and nothing else"
    )


def quickstart(args: argparse.Namespace) -> None:
    from grit_jax.quickstart.report import pretrained_terminal_report, terminal_report
    from grit_jax.quickstart.run import run_quickstart
    from grit_jax.quickstart.settings import PretrainedSettings, QuickstartSettings

    if args.base is not None:
        from grit_jax.quickstart.pretrained import run_pretrained

        if args.from_scratch:
            raise GritError("--from-scratch: not with --base, which names a model that is there")
        of_base = PretrainedSettings(args.base, args.seed, args.documents, args.steps)
        out = args.out or Path("runs") / Path(args.base).name
        scored = run_pretrained(out, of_base)
        print_result(scored.to_dict(), args.json, pretrained_terminal_report(scored))
        return
    settings = QuickstartSettings(args.seed, args.from_scratch, args.documents, args.steps)
    report = run_quickstart(args.out or Path("runs/quickstart"), settings)
    print_result(report.to_dict(), args.json, terminal_report(report))


def _evidence_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=flags.name,
        metavar="MODEL",
        help="the claims on this pretrained model (smollm2, a directory or a hub id) instead of"
        " models trained from nothing",
    )
    parser.add_argument(
        "--part",
        choices=("joint", "cached", "documents", "codecs", "prompts", "all"),
        default="all",
        help="with --base also documents (caches beside reading), codecs and prompts (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=flags.positive,
        metavar="N",
        help="runs of each configuration (default: 3, with --base 1)",
    )
    parser.add_argument(
        "--out",
        type=flags.path,
        help="folder (default: runs/evidence, with --base runs/evidence- and the model's name)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print evidence.json on stdout and nothing else"
    )
    pretrained = parser.add_argument_group("with --base")
    pretrained.add_argument(
        "--model",
        type=flags.name,
        metavar="MODEL",
        help="the trained model that documents, codecs and prompts score (default: the adapter that"
        " is shipped for the base, else the model that cached trains with self-distillation)",
    )
    pretrained.add_argument(
        "--data",
        type=flags.path,
        metavar="DIR",
        help="a corpus made by grit data pydocs --sentences (default: made in the folder)",
    )
    pretrained.add_argument(
        "--chat",
        type=flags.path,
        metavar="F",
        help="conversations in the base's own words, trained on with distillation from the base"
        " (default: none)",
    )
    pretrained.add_argument(
        "--chat-heldout",
        type=flags.path,
        metavar="F",
        help="conversations whose perplexity is scored (default: none)",
    )
    pretrained.add_argument(
        "--steps",
        type=flags.positive,
        metavar="N",
        help="of each training of joint and cached (default: 24)",
    )
    pretrained.add_argument(
        "--questions",
        type=flags.positive,
        metavar="N",
        help="answer at most N held-out questions (default: 64)",
    )
    pretrained.add_argument(
        "--queries",
        type=flags.positive,
        metavar="N",
        help="search for at most N held-out queries (default: 128)",
    )


def evidence(args: argparse.Namespace) -> None:
    names = ("model", "data", "chat", "chat_heldout", "steps", "questions", "queries")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.base is not None:
        from grit_jax.evidence.pretrained import run_pretrained_evidence
        from grit_jax.evidence.pretrained_run import PretrainedOptions
        from grit_jax.evidence.pretrained_tables import markdown as pretrained_markdown

        given |= {} if args.seeds is None else {"seeds": args.seeds}
        out = args.out or Path("runs") / f"evidence-{Path(args.base).name}"
        scored = run_pretrained_evidence(out, PretrainedOptions(args.base, **given), args.part)
        print_result(scored, args.json, pretrained_markdown(scored).rstrip())
        return
    if given:
        raise GritError(f"--{next(iter(given)).replace('_', '-')}: only with --base")
    if args.part in ("documents", "codecs", "prompts"):
        raise GritError(f"--part {args.part}: only with --base")
    from grit_jax.evidence.run import markdown, run_evidence

    seeds = 3 if args.seeds is None else args.seeds
    report = run_evidence(args.out or Path("runs/evidence"), seeds=seeds, part=args.part)
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
