"""`grit mine`: hard negatives from an index."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.output import print_result
from grit_jax.cli.search import SEARCHES, add_search_flags, add_where_flag, search_settings
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError


def _mine_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--input",
        required=True,
        type=flags.path,
        metavar="F",
        help='lines {"query", "pos", "neg"?}: JSONL, a glob, or a prepared dataset',
    )
    parser.add_argument("--output", required=True, type=flags.path, metavar="F.jsonl")
    parser.add_argument(
        "--index",
        type=flags.path,
        metavar="INDEX",
        help="the documents to mine from, made by grit index; with --corpus it is made here first"
        " (default: OUTPUT.index)",
    )
    parser.add_argument(
        "--corpus",
        type=flags.path,
        metavar="corpus.jsonl",
        help="documents to mine from, encoded once into --index (default, without --index: the"
        " passages of the input)",
    )
    parser.add_argument(
        "--range",
        type=flags.span,
        default=(0, 100),
        metavar="LOW:HIGH",
        help="ranks of the search to take negatives from, counted from 0, HIGH not included"
        " (default: 0:100)",
    )
    parser.add_argument(
        "--margin",
        type=flags.finite,
        metavar="X",
        help="leave out documents that score higher than the positive's score minus X",
    )
    parser.add_argument(
        "--relative-margin",
        type=flags.number_or_none,
        default=0.05,
        metavar="X|none",
        help="leave out documents that score higher than the positive's score minus X of it"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--negatives",
        type=flags.positive,
        default=8,
        metavar="N",
        help="the most that are mined for a query (default: %(default)s)",
    )
    parser.add_argument(
        "--sampling",
        choices=("random", "top"),
        default="random",
        help="draw negatives from what is left of the range, or take the best of it (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="drop the negatives that the input has (default: keep them before the mined ones)",
    )
    parser.add_argument(
        "--keep-without",
        action="store_true",
        help="write queries for which no negative is left, too (default: leave them out)",
    )
    parser.add_argument(
        "--judge",
        type=flags.finite,
        nargs="?",
        const=0.5,
        metavar="P",
        help="have the model judge candidates from their keys and values, leave out those that it"
        ' takes for relevant with a probability above P (0.5), and write its scores as "scores"',
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="dense",
        help="by vectors, by words (BM25), or by both together (default: %(default)s)",
    )
    add_where_flag(parser)
    add_search_flags(parser)
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def mine(args: argparse.Namespace) -> None:
    from grit_jax.rag.index import Index
    from grit_jax.rag.mining import mine, mining_index
    from grit_jax.rag.mining_options import MiningOptions
    from grit_jax.rag.search.hybrid import Retrieval
    from grit_jax.runtime.files import is_stdout

    if args.json and is_stdout(args.output):
        raise GritError("--json and --output both write to standard output; leave one out")
    options = MiningOptions(
        ranks=args.range,
        margin=args.margin,
        relative_margin=args.relative_margin,
        negatives=args.negatives,
        sampling=args.sampling,
        seed=args.seed,
        retrieval=Retrieval(args.search, where=args.where),
        replace=args.replace,
        keep_without=args.keep_without,
        judge=args.judge,
    )
    folder = args.index or args.output.with_name(f"{args.output.name}.index")
    settings = search_settings(argparse.Namespace(**{**vars(args), "index": folder}))
    model = load_model(args)
    if args.corpus is not None or args.index is None:
        mining_index(model, args.input, args.corpus, folder, records=args.judge is not None)
    index = Index.open(folder, model, settings)
    summary = mine(model, args.input, index, args.output, options)
    print_result(summary.to_dict(), args.json, f"{summary}\n{args.output}", args.output)


MINE = Verb("mine", "hard negatives from an index", _mine_flags, mine, resumable=True)
