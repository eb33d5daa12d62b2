"""The flags of every verb of the `grit` command, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from grit_jax import __version__
from grit_jax.cli import flags

RAG_MODES = (
    "none",
    "query-then-doc",
    "doc-then-query",
    "doc",
    "query",
    "query-doc",
    "doc-query",
    "auto",
)
KV_KINDS = ("native", "int8", "int4", "pca2", "none")
SEARCH_PRECISIONS = ("float32", "bfloat16", "int8")


def build_parser(verbs: Mapping[str, Callable[..., None]]) -> argparse.ArgumentParser:
    """The command line as DESIGN section 6 has it; `args.run` is the verb's function, of
    `verbs`."""
    parser = flags.Parser(
        prog="grit",
        description=(
            "One language model that embeds and generates: train it, search with it, ask it."
        ),
    )
    parser.add_argument("--version", action="version", version=f"grit_jax {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.set_defaults(run=verbs[name], parser=sub)
        return sub

    sub = verb("quickstart", "the whole job on this machine's own Python documentation, in minutes")
    sub.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder (default: %(default)s)"
    )
    sub.add_argument("--seed", type=flags.natural, default=0)
    sub.add_argument(
        "--from-scratch",
        action="store_true",
        help="train tokenizer and base model here, too (slow)",
    )
    sub.add_argument(
        "--json", action="store_true", help="print report.json on stdout and nothing else"
    )

    sub = verb(
        "train", "train from a YAML configuration; every key can be overridden: --train.steps 100"
    )
    sub.add_argument("config", metavar="CONFIG", type=Path)
    sub.add_argument("--resume", choices=("auto", "never"), default="auto")
    sub.add_argument(
        "--profile",
        type=flags.span,
        metavar="START:STOP",
        help="trace these steps with the JAX profiler",
    )

    sub = verb("encode", "texts to vectors")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--input", required=True, type=Path, metavar="F.jsonl|F.txt")
    sub.add_argument("--output", required=True, type=Path, metavar="V.npy")
    sub.add_argument("--instruction", default="", metavar="T")
    sub.add_argument("--max-length", type=flags.positive, default=512, metavar="N")
    sub.add_argument(
        "--dim",
        type=flags.positive,
        metavar="K",
        help="keep the first K dimensions, normalised again",
    )
    sub.add_argument(
        "--precision", choices=("float32", "bfloat16", "int8", "binary"), default="float32"
    )
    sub.add_argument("--json", action="store_true")

    sub = verb("generate", "chat-formatted generation")
    sub.add_argument("model", metavar="MODEL")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="T")
    source.add_argument("--input", type=Path, metavar="F.jsonl")
    sub.add_argument("--max-new-tokens", type=flags.positive, default=128, metavar="N")
    sub.add_argument(
        "--temperature", type=flags.number, default=0.0, metavar="X", help="0 (default) is greedy"
    )
    sub.add_argument("--top-p", type=flags.number, default=1.0, metavar="X")
    sub.add_argument("--top-k", type=flags.natural, default=0, metavar="N")
    sub.add_argument("--seed", type=flags.natural, default=0)
    sub.add_argument("--stream", action="store_true", help="print tokens as they come")
    sub.add_argument("--json", action="store_true")

    sub = verb("index", "one pass per document: vector and key/value cache")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--input", required=True, type=Path, metavar="corpus.jsonl")
    sub.add_argument("--output", required=True, type=Path, metavar="INDEX")
    sub.add_argument(
        "--kv",
        choices=KV_KINDS,
        default="native",
        help=(
            "caches as computed (default), at 8 or 4 bits a number, at 2 on principal axes, or none"
        ),
    )
    sub.add_argument("--max-length", type=flags.positive, default=4096, metavar="N")
    sub.add_argument(
        "--store", metavar="PATH|URL", help="keep the caches here (gs://bucket/path), not in INDEX"
    )
    sub.add_argument(
        "--vectors",
        choices=("exact", "milvus"),
        help="what searches them (default: exact, or what does)",
    )
    sub.add_argument(
        "--milvus",
        metavar="embedded|URI",
        help=(
            "where Milvus is: a file in INDEX (default), or "
            "http://host:19530; its token is read from MILVUS_TOKEN"
        ),
    )
    sub.add_argument(
        "--update", action="store_true", help="replace documents whose text has changed"
    )
    sub.add_argument(
        "--delete-missing",
        action="store_true",
        help="take out documents that are not in the corpus",
    )
    sub.add_argument("--json", action="store_true")

    sub = verb("ask", "answer a question over an index")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--index", required=True, type=Path, metavar="INDEX")
    sub.add_argument("question", metavar="QUESTION")
    sub.add_argument("--mode", choices=RAG_MODES, default="auto")
    sub.add_argument("--k", type=flags.positive, default=1, metavar="N")
    sub.add_argument(
        "--instruction", default="", metavar="T", help="instruction of the search query"
    )
    _search_flags(sub)
    sub.add_argument("--max-new-tokens", type=flags.positive, default=64, metavar="N")
    sub.add_argument("--json", action="store_true")

    sub = verb("eval", "scores: retrieval, perplexity, rag")
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="retrieval|perplexity|rag")
    for kind, what in (
        ("retrieval", "recall and nDCG over the pool of all pos and neg of an embedding file"),
        ("perplexity", "perplexity of the answers of a generative file"),
        (
            "rag",
            (
                "match, exact match and F1 of the seven layouts over a questions file, also for"
                " several k and --kv"
            ),
        ),
    ):
        one = kinds.add_parser(kind, help=what, description=what)
        one.set_defaults(parser=one)
        one.add_argument("model", metavar="MODEL")
        one.add_argument("--input", required=True, type=Path, metavar="F.jsonl")
        one.add_argument("--json", action="store_true")
        if kind != "perplexity":
            _search_flags(one)
        if kind == "rag":
            one.add_argument(
                "--modes", nargs="+", choices=RAG_MODES[:-1], default=list(RAG_MODES[:-1])
            )
            one.add_argument(
                "--k",
                type=flags.several(flags.positive),
                default=[1],
                metavar="N,...",
                help=(
                    "documents: "
                    "the row's own among distractors, those that BM25 finds best (default: 1)"
                ),
            )
            one.add_argument(
                "--kv",
                type=flags.several(flags.one_of(*KV_KINDS[:-1])),
                default=["native"],
                metavar="KIND,...",
                help=f"their records: {', '.join(KV_KINDS[:-1])}",
            )
            one.add_argument(
                "--positions",
                type=flags.several(flags.one_of("running", "colliding")),
                default=["running"],
                metavar="HOW,...",
                help="of records side by side; colliding: each from 0, as in the original",
            )
            one.add_argument(
                "--corpus",
                type=Path,
                metavar="F.jsonl",
                help="where distractors come from; default: the documents of all rows",
            )
            one.add_argument(
                "--seed",
                type=flags.natural,
                default=0,
                help="of the own documents' places among them",
            )
            one.add_argument(
                "--index",
                type=Path,
                metavar="INDEX",
                help="search here; default: the given documents",
            )
            one.add_argument("--instruction", default="", metavar="T")
            one.add_argument("--max-new-tokens", type=flags.positive, default=16, metavar="N")
            one.add_argument(
                "--output", type=Path, metavar="DIR", help="write table.md and rag.json"
            )

    sub = verb(
        "plan",
        "what a configuration takes on a TPU slice, asked of the TPU compiler; no TPU is used",
    )
    sub.add_argument("config", metavar="CONFIG", type=Path)
    sub.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5p:4x4x4, v5e:16x16, v6e:8x8, v4:4x4x4, ...",
    )
    sub.add_argument(
        "--slices",
        type=flags.positive,
        default=1,
        metavar="N",
        help="so many of them on one network, each with all weights (mesh.data goes over them)",
    )
    sub.add_argument(
        "--search", action="store_true", help="try meshes and chunk sizes for the training step"
    )
    sub.add_argument(
        "--tries",
        type=flags.positive,
        metavar="N",
        help="programs that --search compiles at most (12)",
    )
    sub.add_argument(
        "--train-only", action="store_true", help="leave the programs of the trained model out"
    )
    sub.add_argument("--json", action="store_true")

    sub = verb(
        "evidence",
        "single-task twins against the joint model: does joint training cost either task? And the "
        "cached layouts with and without training for them",
    )
    sub.add_argument(
        "--part", choices=("joint", "cached", "all"), default="all", help="(default: %(default)s)"
    )
    sub.add_argument(
        "--seeds", type=flags.positive, default=3, metavar="N", help="(default: %(default)s)"
    )
    sub.add_argument(
        "--out", type=Path, default=Path("runs/evidence"), help="folder (default: %(default)s)"
    )
    sub.add_argument(
        "--json", action="store_true", help="print evidence.json on stdout and nothing else"
    )

    sub = verb("bench", "measures this machine: encode, decode, train, rag, all of them")
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="encode|decode|train|rag|all")
    for kind, what in (
        ("encode", "texts to vectors: tokens a second, with and without their caches"),
        ("decode", "prompts to answers: tokens a second, one answer alone and several together"),
        ("train", "optimizer steps: tokens a second, both losses and each alone"),
        (
            "rag",
            (
                "seconds to an answer over a document, in every layout: a long document (A), a long"
                " question (B)"
            ),
        ),
        ("all", "all of these"),
    ):
        one = kinds.add_parser(kind, help=what, description=what)
        one.set_defaults(parser=one)
        one.add_argument("model", metavar="MODEL")
        one.add_argument(
            "--repeats", type=flags.positive, default=3, metavar="N", help="after one that compiles"
        )
        one.add_argument("--seed", type=flags.natural, default=0)
        one.add_argument("--json", action="store_true")
        if kind in ("encode", "train", "all"):
            one.add_argument(
                "--batch-tokens",
                type=flags.positive,
                default=4096,
                metavar="N",
                help="encoded at once, or of a training step",
            )
        if kind in ("rag", "all"):
            one.add_argument(
                "--kv", choices=KV_KINDS[:-1], default="native", help="how records are kept"
            )
            one.add_argument(
                "--output",
                type=Path,
                metavar="DIR",
                help="write table.md, rag.json and latency.png, the curve over five lengths",
            )
            one.add_argument(
                "--tokens", type=flags.positive, default=4000, metavar="N", help="of the long side"
            )
            one.add_argument("--new-tokens", type=flags.positive, default=16, metavar="N")

    sub = verb("import", "a Hugging Face directory or hub id into a model directory of ours")
    sub.add_argument("source", metavar="SOURCE")
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    sub = verb("export", "a training run's newest checkpoint as a Hugging Face directory")
    sub.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the run's output folder, or its gs:// address"
    )
    sub.add_argument("out", metavar="OUT", type=Path)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    sub.add_argument(
        "--adapter", action="store_true", help="a LoRA run's adapters alone, as a PEFT directory"
    )

    sub = verb("data", "data sets: prepare, pydocs, distractors, repeats")
    kinds = sub.add_subparsers(
        dest="kind", required=True, metavar="prepare|pydocs|distractors|repeats"
    )
    one = kinds.add_parser("prepare", help="JSONL files to a tfds dataset (ArrayRecord)")
    one.set_defaults(parser=one)
    one.add_argument("sources", nargs="+", metavar="SRC")
    one.add_argument("--output", required=True, type=Path, metavar="DIR")
    one = kinds.add_parser(
        "pydocs", help="the quickstart's corpus from the Python documentation installed here"
    )
    one.set_defaults(parser=one)
    one.add_argument("--output", required=True, type=Path, metavar="DIR")
    one.add_argument("--seed", type=flags.natural, default=0)
    what = (
        "questions over a document to questions over several: the other ones are those that BM25"
        " finds best"
    )
    one = kinds.add_parser("distractors", help=what, description=what)
    one.set_defaults(parser=one)
    one.add_argument(
        "--input", required=True, type=Path, metavar="F.jsonl", help='lines {"docs", "text"}'
    )
    one.add_argument("--output", required=True, type=Path, metavar="F.jsonl")
    one.add_argument(
        "--k",
        type=flags.several(flags.positive),
        default=[3],
        metavar="N,...",
        help="documents of a row, several numbers in turn (default: 3)",
    )
    one.add_argument(
        "--corpus",
        type=Path,
        metavar="F.jsonl",
        help='lines {"id", "title"?, "text"}; default: the documents of all rows',
    )
    one.add_argument(
        "--rows",
        type=flags.positive,
        metavar="N",
        help="rows to write; default: one for each question",
    )
    one.add_argument("--seed", type=flags.natural, default=0)
    what = (
        "raw texts that say a few words of documents again and again, by which a small model learns"
        " to look back"
    )
    one = kinds.add_parser("repeats", help=what, description=what)
    one.set_defaults(parser=one)
    one.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="F.jsonl",
        help='lines {"id", "title"?, "text"}',
    )
    one.add_argument("--output", required=True, type=Path, metavar="F.jsonl")
    one.add_argument("--rows", type=flags.positive, required=True, metavar="N")
    one.add_argument("--seed", type=flags.natural, default=0)
    return parser


def _search_flags(sub: argparse.ArgumentParser) -> None:
    """How vectors are searched; whatever is chosen, the best candidates are compared by their whole
    vectors."""
    sub.add_argument(
        "--search-precision",
        choices=SEARCH_PRECISIONS,
        default="float32",
        help="of the vectors on the devices: fewer bits take less memory (default: %(default)s)",
    )
    sub.add_argument(
        "--search-dim", type=flags.positive, metavar="N", help="search the first N dimensions"
    )
    sub.add_argument(
        "--search-oversampling",
        type=flags.positive,
        default=4,
        metavar="N",
        help=(
            "candidates for each "
            "result, where not the whole vectors are searched (default: %(default)s)"
        ),
    )
