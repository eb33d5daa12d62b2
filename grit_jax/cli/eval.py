"""`grit eval`: scores of a model on held-out files."""

from __future__ import annotations

import argparse
import dataclasses

from grit_jax.cli import eval_rag, eval_retrieval, flags, lm, mteb
from grit_jax.cli.endpoint import add_model_or_url, load_model_or_endpoint
from grit_jax.cli.output import print_result
from grit_jax.cli.record import add_record_flag, check_record, report
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError
from grit_jax.text.chat import FORMATS
from grit_jax.text.length import DefaultLength

MAX_LENGTH = DefaultLength(2048)  # evaluation/perplexity.py's, whose module imports JAX


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
        add_model_or_url(kind)
        kind.add_argument("--input", required=True, type=flags.path, metavar="F.jsonl")
        kind.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        add_record_flag(kind)
    _perplexity_flags(perplexity)
    eval_rag.add_flags(rag)
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


def _perplexity_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer",
        type=flags.name,
        metavar="DIR",
        help="with a URL: a directory or hub id that has the tokenizer of the model. Prompts are"
        " then token ids, and the score is that of the model in this process; without it they are"
        " texts",
    )
    parser.add_argument(
        "--max-length",
        type=flags.positive,
        default=MAX_LENGTH,
        metavar="N",
        help="tokens of a sequence; longer ones are cut, and counted (default: %(default)s, or the"
        " model's context if that is shorter)",
    )
    parser.add_argument(
        "--chat-format",
        choices=list(FORMATS),
        help="with a URL and without --tokenizer: of conversations (default: grit)",
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
        return eval_rag.evaluate(args)
    return _evaluate_perplexity(args)


def _evaluate_perplexity(args: argparse.Namespace) -> None:
    from grit_jax.evaluation.endpoint import Endpoint, is_url
    from grit_jax.evaluation.perplexity import score_perplexity
    from grit_jax.evaluation.perplexity_endpoint import score_served_perplexity

    if not is_url(args.model) and (args.tokenizer or args.chat_format):
        raise GritError(
            f"--tokenizer and --chat-format say how a URL is asked, and {args.model} is none"
        )
    model = load_model_or_endpoint(args)
    if isinstance(model, Endpoint):
        score = score_served_perplexity(
            model,
            args.input,
            tokenizer=args.tokenizer,
            max_length=args.max_length,
            chat_format=args.chat_format,
        )
    else:
        score = score_perplexity(model, args.input, max_length=args.max_length)
    scores = dataclasses.asdict(score)
    report(args, scores, eval_rag.score_lines(scores))


def _make_card(args: argparse.Namespace) -> None:
    from grit_jax.evaluation.card import make_card, read_record
    from grit_jax.evaluation.card_page import markdown, write_card

    card = make_card([read_record(path) for path in args.records])
    if args.output is not None:
        write_card(args.output, card)
    print_result(card, args.json, markdown(card))


EVAL = Verb(
    "eval",
    "scores: retrieval, perplexity, rag, lm, mteb; and a card of them",
    _eval_flags,
    evaluate,
)
