"""`grit encode` and `grit generate`: texts to vectors, prompts to answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from grit_jax.cli import flags
from grit_jax.cli.hosts import add_shared, shared_run
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.output import print_json, print_result, print_text
from grit_jax.cli.shots import add_shot_flags, shots
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError
from grit_jax.text.length import MAX_LENGTH, DefaultLength


def _encode_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--input", required=True, type=flags.path, metavar="F.jsonl|F.txt")
    parser.add_argument("--output", required=True, type=flags.path, metavar="V.npy")
    parser.add_argument(
        "--input-format",
        choices=("auto", "jsonl", "txt"),
        default="auto",
        help="auto (default): txt, a text a line, for names that end in .txt, else jsonl",
    )
    parser.add_argument(
        "--instruction", default="", metavar="T", help="what the vectors are for (default: none)"
    )
    add_shot_flags(parser)
    parser.add_argument(
        "--max-length",
        type=flags.positive,
        default=MAX_LENGTH,
        metavar="N",
        help="tokens of a text, with its instruction; the rest is cut off and counted "
        "(default: %(default)s, or the model's context if that is shorter)",
    )
    parser.add_argument(
        "--dim",
        type=flags.positive,
        metavar="K",
        help="keep the first K dimensions, normalised again",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8", "binary"),
        default="float32",
        help="of the written vectors (default: %(default)s)",
    )
    add_shared(parser, "V.npy.shards, if there is more than one block of texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def encode(args: argparse.Namespace) -> None:
    from grit_jax.inference.files import read_texts
    from grit_jax.inference.vector_file import VectorOptions, encode_file
    from grit_jax.runtime.files import is_stdout, refuse_same_file
    from grit_jax.runtime.hosts import errors_together, is_first

    refuse_same_file(args.output, args.input, *Path(args.model).glob("*"))
    if args.json and is_stdout(args.output):
        raise GritError("--json and --output both write to standard output; leave one out")
    examples = shots(args)
    if examples is not None and not args.instruction.strip():
        raise GritError("--shots: examples follow an instruction; give one by --instruction")
    instruction = args.instruction if examples is None else examples.after(args.instruction)
    with shared_run(args) as open_model:
        with errors_together():
            texts = read_texts(args.input, args.input_format)
        model, cluster = open_model()
        summary = encode_file(
            model,
            texts,
            args.output,
            VectorOptions(instruction, args.max_length, args.dim, args.precision, args.shards),
            cluster=cluster,
        )
    if not is_first():
        return
    print_result(
        summary,
        args.json,
        f"{summary['texts']} texts to {args.output}, {summary['tokens_per_s']:.0f} tokens/s",
        args.output,
    )


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="T")
    source.add_argument("--input", type=flags.path, metavar="F.jsonl")
    parser.add_argument(
        "--max-new-tokens",
        type=flags.positive,
        default=DefaultLength(128),
        metavar="N",
        help="(default: %(default)s, or what the prompt leaves of the model's context)",
    )
    parser.add_argument(
        "--temperature", type=flags.number, default=0.0, metavar="X", help="0 (default) is greedy"
    )
    parser.add_argument(
        "--top-p",
        type=flags.number,
        default=1.0,
        metavar="X",
        help="sample among the most likely tokens of this total probability (default: all)",
    )
    parser.add_argument(
        "--top-k",
        type=flags.natural,
        default=0,
        metavar="N",
        help="sample among the N most likely tokens (default: all)",
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--stream", action="store_true", help="print tokens as they come")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def generate(args: argparse.Namespace) -> None:
    from grit_jax.inference.files import generate_prompts, read_prompts

    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.input)
    on_text = (lambda text: print_text(text, end="")) if args.stream and not args.json else None
    answers = generate_prompts(
        load_model(args),
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        on_text=on_text,
    )
    if args.json:
        pairs = zip(prompts, answers, strict=True)
        print_json({"generations": [{"prompt": p, "text": answer} for p, answer in pairs]})
    elif on_text:
        print_text()
    else:
        print_text("\n---\n".join(answers))


ENCODE = Verb("encode", "texts to vectors", _encode_flags, encode, resumable=True, supervised=True)
GENERATE = Verb("generate", "answer chat prompts", _generate_flags, generate)
