"""`grit eval mteb`: mteb's tasks on a model, or on one behind a URL."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from grit_jax.cli import flags
from grit_jax.cli.endpoint import add_model_or_url, load_model_or_endpoint
from grit_jax.cli.output import print_result, print_text
from grit_jax.cli.record import add_record_flag, report
from grit_jax.cli.search import FUSIONS, SEARCHES, add_search_flags, search_settings
from grit_jax.errors import GritError

HELP = "mteb's tasks and benchmarks, local tasks too, of a model or of one behind a URL"
TASK_FOLDER_HELP = (
    "folders of mteb tasks, for grit eval mteb --task-files DIR, from the held-out documents of"
    " grit data pydocs"
)
PROTOCOLS = ("encoder", "search", "cross-encoder")  # evaluation/mteb.py's
RESULTS = "runs/mteb"


def add_mteb_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `grit eval mteb`."""
    add_model_or_url(parser, optional=True)
    add_record_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks and benchmarks, such as STSBenchmark or 'MTEB(eng, v2)' (default: all of"
        " --task-files)",
    )
    parser.add_argument(
        "--task-files",
        nargs="+",
        type=flags.path,
        default=[],
        metavar="PATH",
        help="local tasks: folders with a task.json and data, or Python files that define mteb's"
        " tasks, which are run; see docs/evaluation.md",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="encoder",
        help="encoder: mteb searches the model's vectors; search: an index of this package is"
        " searched in retrieval and reranking; cross-encoder: the generative head judges the"
        " candidates of reranking, and the encoder's best of retrieval (default: %(default)s)",
    )
    parser.add_argument(
        "--rerank",
        type=flags.positive,
        default=10,
        metavar="N",
        help="documents of a retrieval task that --protocol cross-encoder judges (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=flags.name,
        default="grit",
        metavar="grit|paper|mteb|none|F.json",
        help="instructions of queries: GRIT's, documents without one (default); paper: the same,"
        " and the paper's of documents in reranking; mteb's own; none; or those of a file",
    )
    parser.add_argument(
        "--show-instructions",
        action="store_true",
        help="print the instructions of --tasks (default: of MTEB(eng, v2)) and end; GRIT's need"
        " neither MODEL nor mteb",
    )
    parser.add_argument(
        "--max-length",
        type=flags.positive,
        metavar="N",
        help="tokens kept of a text, instruction and tags included (default: 512)",
    )
    parser.add_argument(
        "--output",
        type=flags.path,
        default=Path(RESULTS),
        metavar="DIR",
        help="mteb's results folder; what it has of this model is not evaluated again (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="evaluate again what the results have"
    )
    parser.add_argument(
        "--name", metavar="ORG/NAME", help="of the model in the results (default: by MODEL)"
    )
    parser.add_argument(
        "--revision",
        metavar="R",
        help="of the model in the results (default: the hash of its weights; behind a URL none is"
        " known, and results are only used again where one is given)",
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="dense",
        help="of --protocol search: by vectors, by words (BM25), or by both together (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--fusion",
        choices=FUSIONS,
        default="scores",
        help="of --search hybrid (default: %(default)s)",
    )
    add_search_flags(parser)


def add_task_folder_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `grit data mteb-tasks`."""
    flags.add_task_folders(parser)
    parser.add_argument(
        "--rows",
        type=flags.positive,
        default=200,
        metavar="N",
        help="the most queries, pairs or texts that a task scores (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=flags.natural, default=0, metavar="N", help="(default: %(default)s)"
    )


def write_task_folder(args: argparse.Namespace) -> None:
    """Writes the folders and prints what is in them."""
    from grit_jax.evaluation.pydocs_mteb import write_mteb_tasks

    tasks = write_mteb_tasks(args.input, args.output, rows=args.rows, seed=args.seed)
    print_text(f"{args.output}: {len(tasks)} tasks")
    for task in tasks:
        print_text(f"  {task.name}: {task.type}, {task.rows} scored")


def evaluate_mteb_tasks(args: argparse.Namespace) -> None:
    """Runs `grit eval mteb`.

    Raises:
      GritError: no MODEL, or as `evaluate_mteb`.
    """
    if args.show_instructions:
        return _show_instructions(args)
    if args.model is None:
        raise GritError("name a MODEL or a URL, or --show-instructions")
    from grit_jax.evaluation.mteb import MtebSettings, evaluate_mteb, require_mteb
    from grit_jax.rag.search.hybrid import Retrieval
    from grit_jax.runtime.files import writable_folder

    require_mteb()
    if not (args.tasks or args.task_files):
        raise GritError("--tasks: name tasks or benchmarks, or give --task-files")
    settings = MtebSettings(
        args.protocol,
        args.prompts,
        args.max_length,
        args.name,
        args.revision,
        args.overwrite,
        args.rerank,
        Retrieval(args.search, args.fusion),
        search_settings(args),
    )
    writable_folder(args.output)
    scores = evaluate_mteb(
        load_model_or_endpoint(args),
        args.model,
        args.tasks,
        args.output,
        settings,
        task_files=args.task_files,
        progress=not args.json,
    )
    report(args, scores.to_dict(), scores.lines())


def _show_instructions(args: argparse.Namespace) -> None:
    """Prints the instructions of the tasks; with GRIT's own table alone where that has them all."""
    from grit_jax.evaluation.mteb_instructions import (
        BENCHMARK,
        PROMPTS,
        TaskPrompt,
        grit_table,
        instruction_for,
        instruction_lines,
        read_instructions,
    )

    table = grit_table()
    known = {**table["others"], **table[BENCHMARK]}
    names: list[str] = []
    for name in args.tasks or ([] if args.task_files else [BENCHMARK]):
        names += table[BENCHMARK] if name == BENCHMARK else [name]
    if args.prompts != "mteb" and not args.task_files and all(name in known for name in names):
        file = None if args.prompts in PROMPTS else read_instructions(Path(args.prompts))
        found = [
            instruction_for(TaskPrompt(name, known[name].type), args.prompts, file)
            for name in dict.fromkeys(names)
        ]
    else:
        from grit_jax.evaluation.mteb import require_mteb, task_instructions
        from grit_jax.evaluation.mteb_tasks import tasks_named

        require_mteb()
        tasks = tasks_named(names, args.task_files)
        found = list(task_instructions(tasks, args.prompts).values())
    values: dict[str, Any] = {"prompts": args.prompts, "instructions": [i.to_dict() for i in found]}
    print_result(values, args.json, instruction_lines(found))
