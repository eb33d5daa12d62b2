"""`grit data`: data sets for training."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags
from grit_jax.cli.output import print_summary, print_text
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError


def _data_flags(parser: argparse.ArgumentParser) -> None:
    add = flags.kinds(parser, "prepare", "pydocs", "distractors", "relevance", "repeats")
    _prepare_flags(add("prepare", "JSONL files to a tfds dataset (ArrayRecord)"))
    _pydocs_flags(
        add("pydocs", "the quickstart's corpus from the Python documentation installed here")
    )
    _distractors_flags(
        add(
            "distractors",
            "turn questions over one document into questions over several: the others are those "
            "that BM25 finds best",
        )
    )
    _relevance_flags(
        add(
            "relevance",
            "turn pairs of query and passage into rows that train reranking from caches",
        )
    )
    _repeats_flags(
        add(
            "repeats",
            "texts that repeat short spans of documents; a small model learns from them to copy",
        )
    )


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=flags.name, metavar="SRC")
    parser.add_argument("--output", required=True, type=flags.path, metavar="DIR")


def _pydocs_flags(parser: argparse.ArgumentParser) -> None:
    from grit_jax.pydocs.documents import MAX_CHARACTERS

    parser.add_argument("--output", required=True, type=flags.path, metavar="DIR")
    parser.add_argument(
        "--documents",
        type=flags.positive,
        metavar="N",
        help="use at most N documents (default: all)",
    )
    parser.add_argument(
        "--packages",
        type=flags.several(flags.name),
        metavar="NAME,...",
        help="installed packages to read; python is the standard library (default:"
        " those that the quickstart reads)",
    )
    parser.add_argument(
        "--held-out-packages",
        type=flags.several(flags.name),
        metavar="NAME,...",
        help="packages whose documents are held out whole, in DIR/heldout_packages (default: those"
        " of the quickstart, or none with --packages)",
    )
    parser.add_argument(
        "--documents-per-package",
        type=flags.positive,
        metavar="N",
        help="use at most N documents of a package (default: all)",
    )
    parser.add_argument(
        "--characters",
        type=flags.positive,
        default=MAX_CHARACTERS,
        metavar="N",
        help="characters of a document; longer ones are cut (default: %(default)s)",
    )
    parser.add_argument(
        "--sentences",
        action="store_true",
        help="answer questions in sentences, not by the span of the document alone",
    )
    _seed_flag(parser)


def _distractors_flags(parser: argparse.ArgumentParser) -> None:
    _file_flags(parser, 'lines {"docs", "text"}')
    parser.add_argument(
        "--k",
        type=flags.several(flags.positive),
        default=[3],
        metavar="N,...",
        help="documents of a row; several numbers take turns (default: 3)",
    )
    parser.add_argument(
        "--corpus",
        type=flags.path,
        metavar="F.jsonl",
        help='lines {"id", "title"?, "text"} (default: the documents of all rows)',
    )
    parser.add_argument(
        "--rows",
        type=flags.positive,
        metavar="N",
        help="rows to write (default: one for each question)",
    )
    _seed_flag(parser)


def _relevance_flags(parser: argparse.ArgumentParser) -> None:
    _file_flags(parser, 'lines {"query", "pos", "neg"}')
    parser.add_argument(
        "--negatives",
        type=flags.positive,
        default=1,
        metavar="N",
        help="the most negatives of a query, beside one positive (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=flags.positive,
        metavar="N",
        help="rows to write (default: those of all queries)",
    )
    _seed_flag(parser)


def _repeats_flags(parser: argparse.ArgumentParser) -> None:
    _file_flags(parser, 'lines {"id", "title"?, "text"}')
    parser.add_argument(
        "--rows", type=flags.positive, required=True, metavar="N", help="rows to write"
    )
    _seed_flag(parser)


def _file_flags(parser: argparse.ArgumentParser, lines: str) -> None:
    parser.add_argument("--input", required=True, type=flags.path, metavar="F.jsonl", help=lines)
    parser.add_argument("--output", required=True, type=flags.path, metavar="F.jsonl")


def _seed_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )


def data(args: argparse.Namespace) -> None:
    if args.kind == "prepare":
        from grit_jax.data.sources import prepare

        prepared = prepare(args.sources, args.output)
        print_text(f"{len(prepared)} {prepared.kind} examples in {args.output}")
    elif args.kind == "distractors":
        from grit_jax.data.distractors import write_rows

        rows = write_rows(
            args.input, args.output, args.k, corpus=args.corpus, rows=args.rows, seed=args.seed
        )
        print_summary(f"{rows} rows in {args.output}", args.output)
    elif args.kind == "relevance":
        from grit_jax.data.relevance import write_relevance_rows

        rows = write_relevance_rows(
            args.input, args.output, negatives=args.negatives, rows=args.rows, seed=args.seed
        )
        print_summary(f"{rows} rows in {args.output}", args.output)
    elif args.kind == "repeats":
        from grit_jax.pydocs.repeats import write_repeats

        rows = write_repeats(args.input, args.output, args.rows, args.seed)
        print_summary(f"{rows} rows in {args.output}", args.output)
    else:
        _write_pydocs(args)


def _write_pydocs(args: argparse.Namespace) -> None:
    from grit_jax.pydocs.corpus import CorpusOptions, write_corpus
    from grit_jax.pydocs.docstrings import DEFAULT_HELD_OUT_PACKAGES, DEFAULT_PACKAGES
    from grit_jax.runtime.files import writable_folder

    writable_folder(args.output)
    given = args.packages is not None
    options = CorpusOptions(
        packages=args.packages if given else DEFAULT_PACKAGES,
        held_out_packages=args.held_out_packages or (() if given else DEFAULT_HELD_OUT_PACKAGES),
        documents=args.documents,
        documents_per_package=args.documents_per_package,
        characters=args.characters,
        sentences=args.sentences,
    )
    try:
        summary = write_corpus(args.output, args.seed, options)
    except ValueError as error:
        raise GritError(str(error)) from None
    print_text(
        f"{summary.documents} documents: {summary.train} to train on, {summary.held_out} held out"
        f" by name, {summary.held_out_in_packages} in packages that are held out whole,"
        f" {summary.dropped} duplicates left out"
    )
    from_packages = ", ".join(f"{name} {count}" for name, count in summary.packages.items())
    print_text(f"from: {from_packages}")
    for name, rows in summary.rows.items():
        print_text(f"  {args.output / name}.jsonl: {rows} lines")


DATA = Verb(
    "data", "data sets: prepare, pydocs, distractors, relevance, repeats", _data_flags, data
)
