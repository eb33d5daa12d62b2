"""`grit data`: data sets for training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grit_jax.cli import flags, lm, mteb
from grit_jax.cli.output import print_result, print_summary, print_text
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError

if TYPE_CHECKING:
    from grit_jax.data.contamination import DecontaminationOptions

# data/dialects.py's DIALECTS, and the lines of data/formats.py.
FORMATS = (
    "grit",
    "bge",
    "medi",
    "tevatron",
    "triplet",
    "messages",
    "sharegpt",
    "alpaca",
    "completion",
)


def _data_flags(parser: argparse.ArgumentParser) -> None:
    add = flags.kinds(
        parser, "prepare", "decontaminate", "pydocs", "distractors", "relevance", "repeats"
    )
    _prepare_flags(add("prepare", "data files to a tfds dataset (ArrayRecord)"))
    _decontaminate_flags(
        add(
            "decontaminate",
            "training data without the examples that hold a text of an evaluation set, line for"
            " line as they were, and a report of what was removed and why",
        )
    )
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
    lm.add_task_folder_flags(add("lm-tasks", lm.TASK_FOLDER_HELP))
    mteb.add_task_folder_flags(add("mteb-tasks", mteb.TASK_FOLDER_HELP))


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        type=flags.name,
        metavar="SRC",
        help="JSONL, JSON arrays or parquet, plain or compressed (gzip, zstd), globs, prepared"
        " datasets",
    )
    parser.add_argument("--output", required=True, type=flags.path, metavar="DIR")
    parser.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="of the rows (default: %(default)s, by their keys)",
    )
    parser.add_argument(
        "--instruction", default="", metavar="T", help="of queries in a format that has none"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a row that cannot be used: stop, or skip it and count it (default: %(default)s)",
    )
    parser.add_argument(
        "--duplicates",
        choices=("keep", "exact", "near"),
        default="exact",
        help="drop rows whose texts are those of an earlier one (exact, the default; negatives do"
        " not count), or close to it as well (near)",
    )
    parser.add_argument(
        "--languages",
        type=flags.several(str),
        default=[],
        metavar="L,...",
        help="drop examples in other languages, by a small rule (docs/data-tools.md)",
    )
    parser.add_argument(
        "--min-characters",
        type=flags.natural,
        default=0,
        metavar="N",
        help="drop examples with fewer characters, negatives aside",
    )
    parser.add_argument(
        "--max-characters",
        type=flags.positive,
        metavar="N",
        help="drop examples with more characters, negatives aside",
    )
    parser.add_argument(
        "--tokenizer",
        type=flags.name,
        metavar="MODEL",
        help="report lengths in tokens of this model, too",
    )
    _against_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def _decontaminate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        type=flags.name,
        metavar="SRC",
        help="training data in the format of docs/data-formats.md: JSONL, JSON arrays or parquet,"
        " plain or compressed (gzip, zstd), globs, prepared datasets",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=flags.path,
        metavar="F.jsonl",
        help="what is left; beside it come F.jsonl.report.json and F.jsonl.contamination.jsonl, a"
        " line for each match",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a row that cannot be used: stop, or leave it out and count it (default:"
        " %(default)s)",
    )
    _against_flags(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def _against_flags(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Declares what training data are compared with, and what counts as a match.

    Args:
      required: evaluation files must be named. `--similarity` then is of them alone.
    """
    group = parser.add_argument_group(
        "decontamination", "Drops examples that hold a text of an evaluation set."
    )
    group.add_argument(
        "--against",
        nargs="+",
        required=required,
        type=flags.name,
        default=[],
        metavar="F",
        help="evaluation files: JSONL, JSON arrays, parquet, or .txt with a text a line",
    )
    group.add_argument(
        "--against-fields",
        type=flags.several(str),
        default=[],
        metavar="KEY,...",
        help="keys of the evaluation files whose texts count (default: all but ids and metadata)",
    )
    group.add_argument(
        "--ngram",
        type=flags.positive,
        default=13,
        metavar="N",
        help="words in a row that make a match (default: %(default)s, as for GPT-3)",
    )
    group.add_argument(
        "--ngram-share",
        type=flags.finite,
        default=0.0,
        metavar="X",
        help="the least share of an evaluation text's N-grams for a match (default: 0, one)",
    )
    group.add_argument(
        "--similarity",
        type=flags.finite,
        default=0.8,
        metavar="X",
        help="the least share of common word triples (Jaccard) of texts that are close"
        + ("" if required else ", for near-duplicates in the training data as well")
        + " (default: %(default)s)",
    )


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
        _prepare(args)
    elif args.kind == "decontaminate":
        _decontaminate(args)
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
    elif args.kind == "lm-tasks":
        lm.write_task_folder(args)
    elif args.kind == "mteb-tasks":
        mteb.write_task_folder(args)
    else:
        _write_pydocs(args)


def _prepare(args: argparse.Namespace) -> None:
    from grit_jax.data.preparation import PrepareOptions, prepare

    count_tokens = None
    if args.tokenizer is not None:
        from grit_jax.models.hf.sources import resolve
        from grit_jax.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_pretrained(resolve(args.tokenizer))
        count_tokens = lambda texts: list(map(len, tokenizer.encode_batch(texts)))
    options = PrepareOptions(
        dialect=args.format,
        instruction=args.instruction,
        on_error=args.on_error,
        duplicates=args.duplicates,
        similarity=args.similarity,
        languages=tuple(args.languages),
        min_characters=args.min_characters,
        max_characters=args.max_characters,
        decontamination=_decontamination(args),
        tokenizer=args.tokenizer,
    )
    report = prepare(args.sources, args.output, options, count_tokens=count_tokens)
    head = f"{report.examples} {report.kind} examples in {args.output} ({report.read} rows read)"
    print_result(report.to_dict(), args.json, f"{head}\n{report}")


def _decontaminate(args: argparse.Namespace) -> None:
    from grit_jax.data.decontamination import decontaminate

    options = _decontamination(args)
    assert options is not None
    report = decontaminate(args.sources, args.output, options, on_error=args.on_error)
    head = f"{report.kept} of {report.read} {report.kind} examples in {args.output}"
    print_result(report.to_dict(), args.json, f"{head}\n{report}".rstrip())


def _decontamination(args: argparse.Namespace) -> DecontaminationOptions | None:
    from grit_jax.data.contamination import DecontaminationOptions

    if not args.against:
        return None
    return DecontaminationOptions(
        tuple(args.against),
        tuple(args.against_fields),
        args.ngram,
        args.ngram_share,
        args.similarity,
    )


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
    if summary.missing_packages:
        print_text(f"not installed: {', '.join(summary.missing_packages)}")
    for name, rows in summary.rows.items():
        print_text(f"  {args.output / name}.jsonl: {rows} lines")


DATA = Verb(
    "data",
    "data sets: prepare, decontaminate, pydocs, distractors, relevance, repeats; tasks from them",
    _data_flags,
    data,
)
