"""`grit eval lm`: lm-eval's tasks."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_jax.cli import flags
from grit_jax.cli.endpoint import add_model_or_url, load_model_or_endpoint
from grit_jax.cli.output import print_text
from grit_jax.cli.record import add_record_flag, report
from grit_jax.errors import GritError

if TYPE_CHECKING:
    from grit_jax.evaluation.harness_backend import Backend

TASK_FOLDER_HELP = (
    "a folder of lm-eval tasks, for grit eval lm --tasks DIR, from the held-out questions and"
    " documents of grit data pydocs"
)
HELP = "scores on lm-eval's tasks, or on task files of your own (extra 'eval')"


def add_lm_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `grit eval lm`. Their names are lm-eval's where it has them."""
    add_model_or_url(parser)
    add_record_flag(parser)
    parser.add_argument(
        "--tokenizer",
        type=flags.name,
        metavar="DIR",
        help="with a URL: a directory or hub id that has the tokenizer of the model",
    )
    _task_flags(parser.add_argument_group("tasks"))
    _prompt_flags(parser.add_argument_group("prompts and answers"))
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output",
        type=flags.path,
        metavar="DIR",
        help="write lm-eval's results files here, and AlpacaEval's answers as alpaca_eval.json; or"
        " a name that ends in .json, to which lm-eval adds the date",
    )
    group.add_argument(
        "--log-samples",
        action="store_true",
        help="with --output: also write each document's prompt, answer and scores",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _task_flags(group: Any) -> None:
    group.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        type=flags.name,
        metavar="TASK",
        help="names of tasks and groups, or folders and YAML files of tasks; grit_mmlu, grit_gsm8k,"
        " grit_bbh, grit_tydiqa, grit_humaneval and grit_alpaca_eval are the GRIT paper's six as"
        " it ran them, for --apply-chat-template",
    )
    group.add_argument(
        "--include",
        action="append",
        default=[],
        type=flags.path,
        metavar="DIR",
        help="a folder of more task files, whose names may be used; may be given again",
    )
    group.add_argument(
        "--data",
        action="append",
        default=[],
        type=task_data,
        metavar="TASK=DIR",
        help="read a task's data set from a local copy of its hub repository; may be given again",
    )
    group.add_argument(
        "--num-fewshot",
        type=flags.natural,
        metavar="N",
        help="examples before each document (default: as the task says)",
    )
    group.add_argument(
        "--limit",
        type=limit,
        metavar="N",
        help="documents of each task: a number, or a fraction below 1 (default: all)",
    )
    group.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run code that the model writes, in tasks that are scored so (grit_humaneval): in a"
        " process with limits on time, memory and files, which is no safe jail",
    )
    group.add_argument(
        "--predict-only", action="store_true", help="write the answers without scoring them"
    )


def _prompt_flags(group: Any) -> None:
    group.add_argument(
        "--apply-chat-template",
        action="store_true",
        help="give prompts in the model's chat format",
    )
    group.add_argument(
        "--system-instruction", metavar="T", help="a system message before each prompt"
    )
    group.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in the chat format: examples are turns of the conversation (the default), or stand in"
        " one message of the user",
    )
    group.add_argument(
        "--gen-kwargs",
        type=settings,
        metavar="KEY=VALUE,...",
        help="generation settings that replace those of the tasks: max_gen_toks, do_sample, "
        "temperature, top_p, top_k",
    )
    group.add_argument(
        "--max-length",
        type=flags.positive,
        metavar="N",
        help="tokens of a prompt and its answer (default: the model's context)",
    )
    group.add_argument(
        "--seed",
        type=flags.natural,
        metavar="N",
        help="decides which examples stand before a document, and what sampling draws (default:"
        " lm-eval's own seeds)",
    )


def task_data(text: str) -> tuple[str, Path]:
    """Reads `TASK=DIR`."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected TASK=DIR, got '{text}'")
    return name, flags.path(folder)


def limit(text: str) -> float:
    """Reads a number of documents, or a fraction below 1."""
    value = flags.finite(text)
    if value <= 0 or (value >= 1 and value != int(value)):
        raise argparse.ArgumentTypeError(
            f"must be a whole number, or a fraction between 0 and 1, got '{text}'"
        )
    return value if value < 1 else int(value)


def settings(text: str) -> dict[str, Any]:
    """Reads `temperature=0.2,do_sample=true`.

    >>> settings("temperature=0.2,do_sample=true,max_gen_toks=64")
    {'temperature': 0.2, 'do_sample': True, 'max_gen_toks': 64}
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE,..., got '{text}'")
        values[name.strip()] = _value(value.strip())
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def add_task_folder_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `grit data lm-tasks`."""
    flags.add_task_folders(parser)
    parser.add_argument(
        "--choices",
        type=functools.partial(flags.natural, minimum=2),
        default=4,
        metavar="N",
        help="answers to choose from (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )


def write_task_folder(args: argparse.Namespace) -> None:
    """Writes the folder and prints what is in it."""
    from grit_jax.evaluation.pydocs_tasks import write_tasks
    from grit_jax.runtime.files import writable_folder

    writable_folder(args.output)
    counts = write_tasks(args.input, args.output, choices=args.choices, seed=args.seed)
    print_text(
        f"{args.output}: {counts.questions} questions and {counts.examples} examples,"
        f" {counts.documents} documents; {counts.left_out} questions left out, whose kind has"
        f" fewer than {args.choices} different answers"
    )


def evaluate_lm(args: argparse.Namespace) -> None:
    """Runs the tasks and prints their scores."""
    from grit_jax.evaluation.endpoint import is_url
    from grit_jax.evaluation.harness import (
        RunSettings,
        plain_results,
        require_lm_eval,
        results_table,
        run_tasks,
    )
    from grit_jax.evaluation.harness_tasks import TaskChoice
    from grit_jax.runtime.files import writable_folder

    if args.log_samples and args.output is None:
        raise GritError("--log-samples writes files: name a folder with --output DIR")
    if (args.tokenizer is not None) != is_url(args.model):
        raise GritError(
            "--tokenizer DIR goes with a URL, whose prompts are sent as token ids"
            + ("; name the model's directory or hub id" if is_url(args.model) else "")
        )
    require_lm_eval()
    choice = TaskChoice(args.tasks, args.include, dict(args.data))
    if args.output is not None:
        is_file = args.output.suffix == ".json"  # lm-eval adds the date to its name
        writable_folder(args.output.parent if is_file else args.output)
    backend = _backend(args)
    results = run_tasks(
        backend,
        choice,
        RunSettings(
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.apply_chat_template,
            system_instruction=args.system_instruction,
            fewshot_as_multiturn=args.fewshot_as_multiturn,
            gen_kwargs=args.gen_kwargs,
            seed=args.seed,
            predict_only=args.predict_only,
            allow_code=args.allow_code_execution,
            log_samples=args.log_samples,
        ),
        args.output,
    )
    values = {"model": backend.name, **plain_results(results)}
    if "output" in results:
        values["output"] = results["output"]
    report(args, values, results_table(results))


def _backend(args: argparse.Namespace) -> Backend:
    """The model of the command line, as lm-eval's tasks ask it."""
    from grit_jax.evaluation.endpoint import Endpoint
    from grit_jax.evaluation.harness_backend import LocalBackend
    from grit_jax.evaluation.harness_endpoint import EndpointBackend

    model = load_model_or_endpoint(args)
    if isinstance(model, Endpoint):
        return EndpointBackend(model, args.tokenizer, args.max_length)
    return LocalBackend(model, str(args.model), args.max_length)
