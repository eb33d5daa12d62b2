"""`grit bench`: how fast this machine runs a model."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from grit_jax.cli import flags
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.output import print_json, print_text
from grit_jax.cli.verb import Verb

HELP = {
    "encode": "texts to vectors: tokens per second, with and without their caches",
    "decode": "prompts to answers: tokens per second, one answer alone and several together",
    "train": "optimizer steps: tokens per second, with both losses and with each alone",
    "rag": "seconds to an answer over a document in every layout, for a long document (A) and a "
    "long question (B)",
    "all": "all of these",
}


def _bench_flags(parser: argparse.ArgumentParser) -> None:
    add = flags.kinds(parser, *HELP)
    for name, text in HELP.items():
        kind = add(name, text)
        # Training starts from float32 weights and chooses its own mesh.
        add_model(kind, placed=name != "train")
        kind.add_argument(
            "--repeats",
            type=flags.positive,
            default=3,
            metavar="N",
            help="measured runs, after one that compiles (default: %(default)s)",
        )
        kind.add_argument(
            "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
        )
        kind.add_argument("--json", action="store_true", help="print JSON on stdout")
        if name in ("encode", "train", "all"):
            kind.add_argument(
                "--batch-tokens",
                type=flags.positive,
                default=4096,
                metavar="N",
                help="tokens encoded at once, or in a training step (default: %(default)s)",
            )
        if name in ("rag", "all"):
            _rag_flags(kind)


def _rag_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv",
        choices=flags.KV_KINDS,
        default="native",
        help="how keys and values are stored (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=flags.path,
        metavar="DIR",
        help="write table.md, rag.json and latency.png, the curve over five lengths",
    )
    parser.add_argument(
        "--tokens",
        type=flags.positive,
        default=4000,
        metavar="N",
        help="tokens of the long document or question (default: %(default)s)",
    )
    parser.add_argument(
        "--new-tokens",
        type=flags.positive,
        default=16,
        metavar="N",
        help="tokens of an answer (default: %(default)s)",
    )


def bench(args: argparse.Namespace) -> None:
    from grit_jax.bench.rag import RagBenchOptions, bench_rag
    from grit_jax.bench.show import markdown, write
    from grit_jax.bench.throughput import bench_decode, bench_encode, bench_train, lines
    from grit_jax.inference.model import GritLM
    from grit_jax.runtime.files import writable_folder

    output = getattr(args, "output", None)
    if output is not None:
        writable_folder(output)
    in_float32 = functools.partial(GritLM.from_pretrained, args.model)
    model = in_float32() if args.kind == "train" else load_model(args)
    results: dict[str, Any] = {}
    shown: list[str] = []
    for name, measure in (
        ("encode", bench_encode),
        ("decode", bench_decode),
        ("train", bench_train),
    ):
        if args.kind in (name, "all"):
            size = {} if name == "decode" else {"batch_tokens": args.batch_tokens}
            measured = in_float32() if (args.kind, name) == ("all", "train") else model
            results[name] = measure(measured, **size, repeats=args.repeats, seed=args.seed)
            shown += [name, *lines(results[name]), ""]
    if args.kind in ("rag", "all"):
        latencies = bench_rag(
            model,
            RagBenchOptions(
                kv=args.kv,
                tokens=args.tokens,
                new_tokens=args.new_tokens,
                repeats=args.repeats,
                seed=args.seed,
                curve=output is not None,
            ),
            folder=output,
        )
        if output is not None:
            write(latencies, model, output)
        results["rag"] = latencies.rows()
        shown.append(markdown(latencies, model))
    if args.json:
        print_json(results if args.kind == "all" else results[args.kind])
    else:
        print_text("\n".join(shown).rstrip())


BENCH = Verb("bench", "measure this machine: encode, decode, train, rag", _bench_flags, bench)
