"""`grit eval`: scores of a model on held-out files."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from grit_jax.cli import eval_retrieval, flags, lm, mteb
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.output import print_result
from grit_jax.cli.record import add_record_flag, check_record, report
from grit_jax.cli.search import (
    add_retrieval_flags,
    add_search_flags,
    add_where_flag,
    retrieval_settings,
    search_settings,
)
from grit_jax.cli.verb import Verb
from grit_jax.text.rag_layouts import MODES


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    add = flags.kinds(parser, "retrieval", "perplexity", "rag", "lm", "mteb", "card")
    ranked = add(
        "retrieval",
        "nDCG, recall, MRR, MAP and precision over an embedding file or a folder as BEIR's or"
        " mteb's, beside BM25 and both together",
    )
    eval_retrieval.add_flags(ranked)
    perplexity = add("perplexity", "perplexity of the answers of a generative file")
    rag = add(
        "rag",
        "match, exact match and F1 of the seven layouts over a questions file; several --k and "
        "--kv give a table",
    )
    for kind in (perplexity, rag):
        add_model(kind)
        kind.add_argument("--input", required=True, type=flags.path, metavar="F.jsonl")
        kind.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        add_record_flag(kind)
    add_retrieval_flags(rag, "dense")
    add_where_flag(rag)
    add_search_flags(rag)
    _rag_flags(rag)
    lm.add_lm_flags(add("lm", lm.HELP))
    mteb.add_mteb_flags(add("mteb", mteb.HELP))
    _card_flags(add("card", "one card of several runs, beside the paper's figures of GritLM-7B"))


def _card_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records",
        nargs="+",
        type=flags.path,
        metavar="RECORD",
        help="what grit eval KIND ... --record F.json wrote",
    )
    parser.add_argument(
        "--output", type=flags.path, metavar="DIR", help="write card.md, card.json and card.html"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _rag_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="(default: all)"
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
        default=["native"],
        metavar="KIND,...",
        help=f"how their keys and values are stored: {', '.join(flags.KV_KINDS)} (default: native)",
    )
    parser.add_argument(
        "--positions",
        type=flags.several(flags.one_of("running", "colliding")),
        default=["running"],
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
    if args.kind == "card":
        return _make_card(args)
    check_record(args)
    if args.kind == "lm":
        return lm.evaluate_lm(args)
    if args.kind == "mteb":
        return mteb.evaluate_mteb_tasks(args)
    if args.kind == "retrieval":
        return eval_retrieval.evaluate(args)
    if args.kind == "rag":
        return _evaluate_rag(args)
    from grit_jax.evaluation.perplexity import score_perplexity

    scores = dataclasses.asdict(score_perplexity(load_model(args), args.input))
    report(args, scores, _score_lines(scores))


def _make_card(args: argparse.Namespace) -> None:
    from grit_jax.evaluation.card import make_card, read_record
    from grit_jax.evaluation.card_page import markdown, write_card

    card = make_card([read_record(path) for path in args.records])
    if args.output is not None:
        write_card(args.output, card)
    print_result(card, args.json, markdown(card))


def _evaluate_rag(args: argparse.Namespace) -> None:
    from grit_jax.evaluation.rag import AnswerSettings
    from grit_jax.evaluation.rag_table import RagSweep, evaluate_table
    from grit_jax.rag.index import Index
    from grit_jax.runtime.files import writable_folder

    retrieval = retrieval_settings(args)
    model = load_model(args)
    if args.output is not None:
        writable_folder(args.output)
    search = search_settings(args)
    table = evaluate_table(
        model,
        args.input,
        RagSweep(args.modes, args.k, args.kv, args.positions),
        corpus=args.corpus,
        index=Index.open(args.index, model, search) if args.index else None,
        seed=args.seed,
        settings=AnswerSettings(
            args.max_new_tokens, instruction=args.instruction, retrieval=retrieval
        ),
    )
    if args.output is not None:
        table.write(args.output)
    if max(len(args.k), len(args.kv), len(args.positions)) > 1:
        return report(args, table.to_dict(), table.markdown().rstrip())
    scores = dict(table.by_mode())
    report(args, scores, _score_lines(scores))


def _score_lines(scores: dict[str, Any]) -> str:
    """A line for each name: its scores. A warning names the number of texts that were cut."""
    lines = []
    for name, value in scores.items():
        if name == "truncated":
            continue
        metrics = value if isinstance(value, dict) else {"": value}
        shown = [f"{key} {number:.4f}" for key, number in metrics.items() if key != "truncated"]
        lines.append(f"{name:16s}" + "  ".join(shown))
    return "\n".join(lines)


EVAL = Verb(
    "eval",
    "scores: retrieval, perplexity, rag, lm, mteb; and a card of them",
    _eval_flags,
    evaluate,
)
