"""`grit eval rag`: answers over documents, by a model or by a server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from grit_jax.cli import flags
from grit_jax.cli.endpoint import load_model_or_endpoint
from grit_jax.cli.record import report
from grit_jax.cli.search import (
    add_retrieval_flags,
    add_search_flags,
    add_where_flag,
    retrieval_settings,
    search_settings,
)
from grit_jax.errors import GritError
from grit_jax.text.rag_layouts import MODES

if TYPE_CHECKING:
    from grit_jax.evaluation.endpoint import Endpoint
    from grit_jax.evaluation.rag import AnswerSettings
    from grit_jax.evaluation.rag_table import RagTable
    from grit_jax.inference.model import GritLM
    from grit_jax.rag.search.hybrid import Retrieval

KV, POSITIONS = ["native"], ["running"]  # defaults


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments, MODEL|URL, `--input`, `--json` and `--record` aside."""
    add_retrieval_flags(parser, "dense")
    add_where_flag(parser)
    add_search_flags(parser)
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help="(default: all; with a URL and without --store, those that read documents as text)",
    )
    parser.add_argument(
        "--store",
        type=flags.name,
        metavar="NAME",
        help="with the URL of a grit serve: the store where it finds documents and their records",
    )
    parser.add_argument(
        "--k",
        type=flags.several(flags.positive),
        default=[1],
        metavar="N,...",
        help="documents of a question: its own among the distractors that BM25 finds best "
        "(default: 1)",
    )
    parser.add_argument(
        "--kv",
        type=flags.several(flags.one_of(*flags.KV_KINDS)),
        default=KV,
        metavar="KIND,...",
        help=f"how their keys and values are stored: {', '.join(flags.KV_KINDS)} (default: native)",
    )
    parser.add_argument(
        "--positions",
        type=flags.several(flags.one_of("running", "colliding")),
        default=POSITIONS,
        metavar="KIND,...",
        help="of documents side by side: running one after another (default), or colliding, each "
        "from 0 as in the original",
    )
    parser.add_argument(
        "--corpus",
        type=flags.path,
        metavar="F.jsonl",
        help="where distractors come from (default: the documents of all rows)",
    )
    parser.add_argument(
        "--seed",
        type=flags.natural,
        default=0,
        metavar="N",
        help="decides where among the distractors a question's own document stands "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--index",
        type=flags.path,
        metavar="INDEX",
        help="search the documents here (default: the documents of the row)",
    )
    parser.add_argument(
        "--instruction", default="", metavar="T", help="instruction of the search query"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=flags.positive,
        default=16,
        metavar="N",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=flags.path, metavar="DIR", help="write table.md and rag.json"
    )


def evaluate(args: argparse.Namespace) -> None:
    """Scores the layouts, writes the table and prints it."""
    from grit_jax.evaluation.endpoint import Endpoint, is_url
    from grit_jax.evaluation.rag import AnswerSettings
    from grit_jax.runtime.files import writable_folder

    if is_url(args.model):
        retrieval = _served_retrieval(args)
    elif args.store is not None:
        raise GritError(
            f"--store {args.store}: names a store of the URL of a grit serve; a MODEL reads --index"
        )
    else:
        retrieval = retrieval_settings(args)
    settings = AnswerSettings(
        args.max_new_tokens, instruction=args.instruction, retrieval=retrieval
    )
    model = load_model_or_endpoint(args)
    if args.output is not None:
        writable_folder(args.output)
    if isinstance(model, Endpoint):
        table = _served(args, model, settings)
    else:
        table = _in_process(args, model, settings)
    if args.output is not None:
        table.write(args.output)
    if max(len(args.k), len(args.kv), len(args.positions)) > 1:
        return report(args, table.to_dict(), table.markdown().rstrip())
    scores = dict(table.by_mode())
    report(args, scores, score_lines(scores))


def _in_process(args: argparse.Namespace, model: GritLM, settings: AnswerSettings) -> RagTable:
    from grit_jax.evaluation.rag_table import RagSweep, evaluate_table
    from grit_jax.rag.index import Index

    search = search_settings(args)
    return evaluate_table(
        model,
        args.input,
        RagSweep(args.modes or MODES, args.k, args.kv, args.positions),
        corpus=args.corpus,
        index=Index.open(args.index, model, search) if args.index else None,
        seed=args.seed,
        settings=settings,
    )


def _served_retrieval(args: argparse.Namespace) -> Retrieval:
    """How the server finds documents.

    Raises:
      GritError: flags of which a URL knows nothing.
    """
    from grit_jax.rag.search.exact import SearchSettings
    from grit_jax.rag.search.hybrid import Retrieval

    searching = SearchSettings(args.search_precision, args.search_dim, args.search_oversampling)
    for is_given, flag in (
        (args.index is not None, "--index"),
        (args.kv != KV, "--kv"),
        (args.positions != POSITIONS, "--positions"),
        (searching != SearchSettings(), "--search-..."),
        (args.fusion != "scores", "--fusion"),
    ):
        if is_given:
            raise GritError(
                f"{flag}: of a MODEL in this process; a server has its own stores, which --store"
                " names"
            )
    retrieval = Retrieval(args.search, where=args.where, rerank=args.rerank)
    if args.store is None and (retrieval != Retrieval() or args.instruction):
        raise GritError(
            "--search, --where, --rerank and --instruction say how a store is searched, and no"
            " --store is given"
        )
    return retrieval


def _served(args: argparse.Namespace, endpoint: Endpoint, settings: AnswerSettings) -> RagTable:
    from grit_jax.evaluation.rag_endpoint import ServedQuestions, evaluate_served_table

    return evaluate_served_table(
        endpoint,
        args.input,
        ServedQuestions(args.modes, args.k, args.store, args.corpus),
        seed=args.seed,
        settings=settings,
    )


def score_lines(scores: dict[str, Any]) -> str:
    """A line for each name: its scores. A warning names the number of texts that were cut."""
    lines = []
    for name, value in scores.items():
        if name == "truncated":
            continue
        metrics = value if isinstance(value, dict) else {"": value}
        shown = [f"{key} {number:.4f}" for key, number in metrics.items() if key != "truncated"]
        lines.append(f"{name:16s}" + "  ".join(shown))
    return "\n".join(lines)
