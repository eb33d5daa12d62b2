"""`grit index` and `grit ask`: documents to an index, questions to answers."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags
from grit_jax.cli.hosts import add_shared, shared_run
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.output import print_result
from grit_jax.cli.search import (
    add_retrieval_flags,
    add_search_flags,
    add_where_flag,
    retrieval_settings,
    search_settings,
)
from grit_jax.cli.verb import Verb
from grit_jax.rag.document_length import LONGEST_DOCUMENT, ROOM_FOR_QUESTION
from grit_jax.text.rag_layouts import MODES


def _index_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--input", required=True, type=flags.path, metavar="corpus.jsonl")
    parser.add_argument("--output", required=True, type=flags.path, metavar="INDEX")
    parser.add_argument(
        "--kv",
        choices=(*flags.KV_KINDS, "none"),
        default="native",
        help="keys and values: as computed (default), in 8 or 4 bits a number, in 2 bits on "
        "principal axes, or not stored",
    )
    parser.add_argument(
        "--max-length",
        type=flags.positive,
        metavar="N",
        help=f"tokens of a document, the rest is cut off and counted (default: {LONGEST_DOCUMENT},"
        f" or what leaves {ROOM_FOR_QUESTION} tokens of the model's context, at most a quarter of"
        " it, for question and answer; an existing INDEX keeps its own)",
    )
    parser.add_argument(
        "--store",
        type=flags.place,
        metavar="PATH|URL",
        help="keep the keys and values of this index here (gs://bucket/path) instead of in INDEX;"
        " a path is relative to the working directory and kept absolute",
    )
    parser.add_argument(
        "--vectors",
        choices=("exact", "milvus"),
        help="what searches the vectors (default: exact, or what an existing INDEX uses)",
    )
    parser.add_argument(
        "--milvus",
        metavar="embedded|URI",
        help="where Milvus is: a file in INDEX (default), or http://host:19530; "
        "its token is read from MILVUS_TOKEN",
    )
    parser.add_argument(
        "--update", action="store_true", help="replace documents whose text has changed"
    )
    parser.add_argument(
        "--delete-missing", action="store_true", help="delete documents that the corpus lacks"
    )
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="at a line that is no document (an empty one, say): fail before the work, or skip it "
        "and count it (default: %(default)s)",
    )
    parser.add_argument(
        "--quality-questions",
        type=flags.natural,
        metavar="N",
        help="measure what answers lose by starting from the records, on N questions that the "
        "model asks itself (default: 32 for an index of 32 documents or more; 0: do not)",
    )
    add_shared(parser, "INDEX/shards")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def index(args: argparse.Namespace) -> None:
    import jax

    from grit_jax.rag.index import Index, IndexOptions, build_index
    from grit_jax.rag.quality import FEWEST, QUESTIONS, SMALLEST, check_questions, keep_receipt
    from grit_jax.runtime.hosts import is_first
    from grit_jax.runtime.progress import say

    options = IndexOptions(
        kv=args.kv,
        max_length=args.max_length,
        store=args.store,
        vectors=args.vectors,
        milvus=args.milvus,
        update=args.update,
        delete_missing=args.delete_missing,
        on_error=args.on_error,
        shards=args.shards,
    )
    questions = args.quality_questions
    if questions:
        check_questions(questions)
    receipt = None
    with shared_run(args) as open_model:
        model, cluster = open_model()
        summary = build_index(model, args.input, args.output, options, cluster=cluster)
        # One process answers: on several hosts the others would wait for it.
        alone = cluster is None and jax.process_count() == 1
        if questions or (questions is None and summary.documents >= SMALLEST):
            if alone:
                built = Index.open(args.output, model)
                receipt = keep_receipt(model, built, questions or QUESTIONS)[0]
                if receipt is None and built.kv != "none":
                    say(
                        f"warning: {args.output}: no quality receipt: it takes {FEWEST} documents"
                        f" with records about which the model asks a question, and found fewer"
                    )
            elif is_first():
                say("quality: not measured by several processes; the same command on one does it")
    if not is_first():
        return
    text = str(summary) if receipt is None else f"{summary}\n{receipt}"
    kept = receipt.to_dict() if receipt is not None else None
    print_result({**summary.to_dict(), "quality": kept}, args.json, text)


def _ask_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--index", required=True, type=flags.path, metavar="INDEX")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument(
        "--mode",
        choices=(*MODES, "auto"),
        default="auto",
        help="how the documents are read; auto chooses by measured cost (default: %(default)s)",
    )
    parser.add_argument(
        "--k",
        type=flags.positive,
        default=1,
        metavar="N",
        help="documents to read (default: %(default)s)",
    )
    parser.add_argument(
        "--instruction", default="", metavar="T", help="instruction of the search query"
    )
    add_retrieval_flags(parser, "dense")
    add_where_flag(parser)
    add_search_flags(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=flags.positive,
        default=64,
        metavar="N",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--quality",
        type=flags.finite,
        metavar="POINTS",
        help="auto takes no layout that loses more by the index's receipt (default: 2)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def ask(args: argparse.Namespace) -> None:
    from grit_jax.rag.answer import Asker
    from grit_jax.rag.index import Index
    from grit_jax.rag.quality import POINTS

    retrieval = retrieval_settings(
        args
    )  # a mistake in --where is reported before the model is loaded
    model = load_model(args)
    quality = POINTS if args.quality is None else args.quality
    index = Index.open(args.index, model, search_settings(args))
    asker = Asker(model, index, quality=quality)
    answer = asker.ask(
        args.question,
        mode=args.mode,
        k=args.k,
        retrieval=retrieval,
        instruction=args.instruction,
        max_new_tokens=args.max_new_tokens,
    )[0]
    total = answer.timings["total"]
    sources = ", ".join(f"{d['id']} ({d['score']:.2f})" for d in answer.documents)
    print_result(
        answer.to_dict(), args.json, f"{answer.answer}\n\n[{answer.mode}, {total:.2f} s] {sources}"
    )


INDEX = Verb(
    "index",
    "read each document once: its vector, its key/value cache",
    _index_flags,
    index,
    resumable=True,
    supervised=True,
)
ASK = Verb("ask", "answer a question over an index", _ask_flags, ask)
