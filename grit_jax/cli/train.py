"""`grit train`, `grit import` and `grit export`: models and where they come from."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from pathlib import Path

from grit_jax.cli import flags
from grit_jax.cli.hosts import join_run
from grit_jax.cli.output import print_text
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=flags.path, help="a YAML file")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="continue from the newest checkpoint, or start again (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        type=flags.span,
        metavar="START:STOP",
        help="trace these steps with the JAX profiler",
    )


def train(args: argparse.Namespace, arguments: list[str]) -> None:
    from grit_jax.runtime.hosts import is_first
    from grit_jax.train import read_run_config
    from grit_jax.train import train as run

    config = read_run_config(args.config, flags.overrides(arguments, args.parser.flags()))
    join_run()
    result = run(config, resume=args.resume, profile=args.profile)
    if not is_first():
        return
    if result.already_finished:
        print_text(f"finished before: {result.steps} steps; model in {result.model}")
    else:
        print_text(
            f"{result.steps} steps done; model in {result.model}, metrics in"
            f" {result.output}/metrics.jsonl"
        )


def _import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=flags.name,
        metavar="SOURCE",
        help="directory, Hugging Face hub id, a GGUF file, or smollm2 or smollm2-grit",
    )
    parser.add_argument("out", metavar="OUT", type=flags.path)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the written weights (default: %(default)s)",
    )


def import_(args: argparse.Namespace) -> None:
    from grit_jax.inference.model import GritLM
    from grit_jax.models.hf import gguf
    from grit_jax.models.parameters import num_parameters
    from grit_jax.runtime.files import new_folder

    source = Path(args.model).expanduser()
    with new_folder(args.out) as folder, contextlib.ExitStack() as stack:
        if gguf.is_gguf(source):
            # Beside OUT: a large model may not fit where temporary files usually are.
            plain = stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent))
            gguf.write_directory(source, Path(plain))
            source = Path(plain)
        model = GritLM.from_pretrained(source if source.is_dir() else args.model)
        model.save_pretrained(folder, dtype=args.dtype)
    size, family = num_parameters(model.config), model.config.architecture
    print_text(f"{args.model} -> {args.out}: {family}, {size:,} parameters")


def _export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=flags.name,
        metavar="CHECKPOINT",
        help="the run's output folder, or its gs:// address; or smollm2 or smollm2-grit",
    )
    parser.add_argument("out", metavar="OUT", type=flags.path)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the written weights (default: as the run trained them; adapters and models known"
        " by name: float32)",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="only the adapters of a LoRA run or of smollm2-grit, in PEFT's format",
    )


def export(args: argparse.Namespace) -> None:
    from grit_jax.inference.model import GritLM
    from grit_jax.models.hf.sources import ADAPTED, NAMES, adapter_folder
    from grit_jax.runtime.files import new_folder
    from grit_jax.train import export_checkpoint

    if args.checkpoint in NAMES and not Path(args.checkpoint).exists():
        with new_folder(args.out) as folder:
            if not args.adapter:
                GritLM.from_pretrained(args.checkpoint).save_pretrained(folder, args.dtype)
            elif args.checkpoint in ADAPTED:
                shutil.copytree(adapter_folder(args.checkpoint), folder, dirs_exist_ok=True)
            else:
                raise GritError(f"{args.checkpoint}: has no adapters; leave --adapter out")
        print_text(f"{args.checkpoint} -> {args.out}")
        return
    step = export_checkpoint(args.checkpoint, args.out, dtype=args.dtype, adapter=args.adapter)
    print_text(f"step {step} of {args.checkpoint} -> {args.out}")


TRAIN = Verb(
    "train",
    "train from a YAML configuration; every key can be overridden: --train.steps 100",
    _train_flags,
    train,
    takes_overrides=True,
    resumable=True,
    supervised=True,
)
IMPORT = Verb(
    "import",
    "read a Hugging Face directory, hub id or GGUF file and write a model directory",
    _import_flags,
    import_,
)
EXPORT = Verb(
    "export",
    "write a training run's newest checkpoint as a Hugging Face directory",
    _export_flags,
    export,
)
