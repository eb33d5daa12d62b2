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
RERANK = (
    "candidates of a search judged from their records, beside reading them: seconds for all of them"
)
SERVE = (
    "mixed requests to a running server from many clients at once, some of them cancelled or"
    " malformed: throughput beside one client alone, latencies, memory"
)


def _bench_flags(parser: argparse.ArgumentParser) -> None:
    add = flags.kinds(parser, *HELP, "rerank", "serve")
    _rerank_flags(add("rerank", RERANK))
    _serve_flags(add("serve", SERVE))
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


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of a running grit serve, http://HOST:PORT")
    for name, default, text in (
        ("requests", 5000, "requests that all clients send together"),
        ("connections", 32, "clients, each with a connection of its own"),
        (
            "alone",
            None,
            "requests of one client alone, to compare (default: a tenth of --requests)",
        ),
        ("warm-up", 100, "requests before anything is measured"),
        ("new-tokens", 128, "tokens of an answer, at most; half of it on average"),
    ):
        shown = text if default is None else f"{text} (default: %(default)s)"
        parser.add_argument(
            f"--{name}", type=flags.positive, default=default, metavar="N", help=shown
        )
    parser.add_argument(
        "--store",
        dest="served_store",  # `store` elsewhere is a path
        metavar="NAME",
        help="a store of the server, to answer from",
    )
    parser.add_argument(
        "--api-keys", type=flags.path, metavar="FILE", help="send the first key of this file"
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def _rerank_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, default, text in (
        ("candidates", 50, "documents that are judged"),
        ("tokens", 200, "tokens of each document"),
        ("query-tokens", 12, "tokens of the query"),
        ("repeats", 3, "measured runs, after one that compiles; the quickest counts"),
    ):
        parser.add_argument(
            f"--{name}",
            type=flags.positive,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--kv",
        choices=flags.KV_KINDS,
        default="native",
        help="how keys and values are stored (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


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


def _bench_serve(args: argparse.Namespace) -> None:
    from grit_jax.bench.load import LoadOptions, bench_serve, lines
    from grit_jax.bench.traffic import TrafficOptions
    from grit_jax.serving.settings import read_api_keys

    traffic = TrafficOptions(args.served_store, args.new_tokens, seed=args.seed)
    key = read_api_keys(args.api_keys)[0] if args.api_keys is not None else None
    options = LoadOptions(
        args.requests, args.connections, args.alone or 0, args.warm_up, key, traffic
    )
    result = bench_serve(args.url, options)
    if args.json:
        print_json(result)
    else:
        print_text("\n".join(lines(result)))


def _bench_rerank(args: argparse.Namespace) -> None:
    from grit_jax.bench.rerank import RerankBenchOptions, bench_rerank, lines

    options = RerankBenchOptions(
        args.candidates, args.tokens, args.query_tokens, args.kv, args.repeats, args.seed
    )
    result = bench_rerank(load_model(args), options)
    if args.json:
        print_json(result)
    else:
        print_text("\n".join(lines(result)))


def bench(args: argparse.Namespace) -> None:
    if args.kind == "rerank":
        return _bench_rerank(args)
    if args.kind == "serve":
        return _bench_serve(args)
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


BENCH = Verb(
    "bench",
    "measure this machine: encode, decode, train, rag, rerank; a running server: serve",
    _bench_flags,
    bench,
)
