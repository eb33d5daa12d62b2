"""`grit plan`: what a configuration takes on a TPU slice."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags
from grit_jax.cli.output import print_result
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError

SERVE_NUMBERS = (
    ("--slots", "as many as fit", "requests that are decoded together"),
    ("--context", "document, question and answer", "tokens of a slot"),
    ("--document-tokens", "512, or the configuration's", "the longest document"),
    ("--question-tokens", "64, or the configuration's", "the longest question"),
    ("--new-tokens", "128", "the longest answer"),
)
SERVE_FLAGS = (*(flag for flag, _, _ in SERVE_NUMBERS), "--dtype", "--chip-hour-price")


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG|MODEL",
        type=flags.path,
        help="a YAML file; with --serve also a model directory or a hub id",
    )
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
        "--serve",
        action="store_true",
        help="compile the programs that run the model instead of the training step: slots that fit,"
        " cache, time to the first token, tokens per second, size and worth of stored records",
    )
    for flag, default, text in SERVE_NUMBERS:
        parser.add_argument(
            flag,
            type=flags.positive,
            metavar="N",
            help=f"with --serve: {text} (default: {default})",
        )
    parser.add_argument(
        "--dtype",
        type=flags.one_of("float32", "bfloat16", "int8"),
        metavar="float32|bfloat16|int8",
        help="with --serve: of the weights (default: bfloat16)",
    )
    parser.add_argument(
        "--chip-hour-price",
        type=flags.number,
        metavar="X",
        help="with --serve: also give costs at this price of a chip for an hour",
    )
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="compile the training step only, not the programs that run the trained model",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def plan(args: argparse.Namespace, arguments: list[str]) -> None:
    given = [flag for flag in SERVE_FLAGS if getattr(args, _name(flag)) is not None]
    if args.serve:
        if args.search or args.train_only or args.slices > 1:
            raise GritError("--serve: not with --search, --train-only or --slices")
        _serve(args, flags.overrides(arguments, args.parser.flags()))
        return
    if given:
        raise GritError(f"{given[0]} is for the programs that run a model; add --serve")
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


def _serve(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    from grit_jax.plan.serving import make_serving_plan, serving_table
    from grit_jax.plan.serving_request import serving_request

    names = {_name(flag): getattr(args, _name(flag)) for flag in SERVE_FLAGS}
    given = {name: value for name, value in names.items() if value is not None}
    request = serving_request(args.config, overrides, given)
    result = make_serving_plan(request, args.topology)
    print_result(result.to_dict(), args.json, serving_table(result))


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


PLAN = Verb(
    "plan",
    "compile a configuration or a model for a TPU slice, without a TPU: memory, traffic, time",
    _plan_flags,
    plan,
    takes_overrides=True,
)
