"""`grit plan`: what a configuration takes on a TPU slice."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags
from grit_jax.cli.output import print_result
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=flags.path, help="a YAML file")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5p:4x4x4, v5e:16x16, v6e:8x8, v4:4x4x4, ...",
    )
    parser.add_argument(
        "--slices",
        type=flags.positive,
        default=1,
        metavar="N",
        help="this many slices on one network, each holding all weights; mesh.data spans them "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, chunks of rows and rematerialisation policies (model.remat) for the"
        " training step; prints what was compiled, best first, and the keys to set",
    )
    parser.add_argument(
        "--tries",
        type=flags.positive,
        metavar="N",
        help="programs that --search compiles at most (default: 12)",
    )
    parser.add_argument(
        "--margin",
        type=flags.number,
        metavar="X",
        help="share of a chip's memory that --search leaves free (default: 0.05)",
    )
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="compile the training step only, not the programs that run the trained model",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def plan(args: argparse.Namespace, arguments: list[str]) -> None:
    from grit_jax.plan.plan import make_plan, plan_table
    from grit_jax.plan.search import MARGIN, MAX_TRIES, candidate_table, search_settings
    from grit_jax.run_config import read_run_config

    config = read_run_config(args.config, flags.overrides(arguments, args.parser.flags()))
    if args.search:
        tries, margin = args.tries or MAX_TRIES, MARGIN if args.margin is None else args.margin
        if not 0 <= margin < 1:
            raise GritError(f"--margin {margin}: expected a share of the memory from 0 to below 1")
        candidates = search_settings(
            config, args.topology, tries, slices=args.slices, margin=margin
        )
        values = {
            "topology": args.topology,
            "slices": args.slices,
            "margin": margin,
            "candidates": [candidate.to_dict() for candidate in candidates],
        }
        print_result(values, args.json, candidate_table(candidates))
    elif args.tries or args.margin is not None:
        flag = "--tries" if args.tries else "--margin"
        raise GritError(f"{flag} limits what --search compiles; add --search or leave it out")
    else:
        result = make_plan(config, args.topology, slices=args.slices, serving=not args.train_only)
        print_result(result.to_dict(), args.json, plan_table(result))


PLAN = Verb(
    "plan",
    "compile a configuration for a TPU slice, without a TPU: memory, FLOPs, traffic, step time",
    _plan_flags,
    plan,
    takes_overrides=True,
)
