"""`grit eval retrieval`: searches of an embedding file or a folder of queries and documents."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from grit_jax.cli import flags
from grit_jax.cli.endpoint import add_model_or_url, load_model_or_endpoint
from grit_jax.cli.record import add_record_flag, report
from grit_jax.cli.search import (
    SEARCHES,
    add_retrieval_flags,
    add_search_flags,
    retrieval_settings,
    search_settings,
)
from grit_jax.cli.shots import add_shot_flags, shots
from grit_jax.errors import GritError
from grit_jax.text.length import MAX_LENGTH, DefaultLength

if TYPE_CHECKING:
    from grit_jax.evaluation.embedders import Embedder
    from grit_jax.evaluation.judges import Judge
    from grit_jax.evaluation.query_instructions import Shots
    from grit_jax.evaluation.retrieval_data import RetrievalTask
    from grit_jax.evaluation.retrieval_run import RetrievalRun, RunSettings

SPLIT = "test"
KS = (1, 3, 5, 10, 100)  # evaluation/retrieval_run.py's
RERANK_PROMPTS = ("records", "paper", "paper-arguana")  # evaluation/judges.py's


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_model_or_url(parser)
    parser.add_argument(
        "--input",
        required=True,
        type=flags.path,
        metavar="F.jsonl|FOLDER",
        help="an embedding file, or a folder with corpus, queries and qrels as BEIR's or mteb's",
    )
    parser.add_argument("--split", metavar="NAME", help=f"of a folder's qrels (default: {SPLIT})")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument(
        "--k",
        nargs="+",
        type=flags.positive,
        default=list(KS),
        metavar="N",
        help=f"cuts of the scores (default: {' '.join(map(str, KS))})",
    )
    parser.add_argument(
        "--depth",
        type=flags.positive,
        metavar="N",
        help="documents of each ranking (default: the largest --k, or --rerank if that is larger)",
    )
    parser.add_argument(
        "--identical-ids",
        choices=("drop", "keep"),
        default="drop",
        help="what to do with a document whose id is the query's: leave it out of the ranking, as "
        "BEIR's evaluation does (default), or keep it",
    )
    parser.add_argument(
        "--max-length",
        type=flags.positive,
        default=MAX_LENGTH,
        metavar="N",
        help="tokens of a text, with its instruction (default: %(default)s, or the model's context "
        "if that is shorter)",
    )
    parser.add_argument(
        "--instruction",
        metavar="T",
        help="of every query (default: its own, where it has one)",
    )
    parser.add_argument(
        "--instructions",
        type=flags.path,
        metavar="FILE",
        help='one for each domain of the queries, in lines of {"name": ..., "instruction": ...} or '
        "of a name, a tab and an instruction; also prints nDCG by instruction and domain, and what "
        "another domain's instruction costs",
    )
    add_shot_flags(parser)
    parser.add_argument(
        "--vectors",
        type=flags.path,
        metavar="DIR",
        help="keep the vectors of a folder's documents here: a run that was killed goes on, and "
        "another run over the same documents reads them (default: in a temporary folder)",
    )
    add_retrieval_flags(parser, None)
    parser.add_argument(
        "--rerank-prompt",
        choices=RERANK_PROMPTS,
        default="records",
        help="how --rerank asks the model: after each document's keys and values (default), or by "
        "the GRIT paper's prompt with query and passage, or by its prompt for ArguAna; the paper's "
        "candidates are those of --search dense --rerank 10",
    )
    add_search_flags(parser)
    add_record_flag(parser)
    output = parser.add_argument_group("files, and comparison with another run")
    output.add_argument(
        "--per-query",
        type=flags.path,
        metavar="F.jsonl",
        help="write each query's scores and rankings",
    )
    output.add_argument(
        "--run-files",
        type=flags.path,
        metavar="DIR",
        help="write each search's rankings in TREC's format, as SEARCH.trec",
    )
    output.add_argument(
        "--compare",
        type=flags.path,
        metavar="F.jsonl",
        help="compare with the run that wrote this by --per-query: difference, 95%% interval and "
        "p-value of each score, by paired bootstrap over the queries",
    )
    output.add_argument(
        "--resamples",
        type=flags.positive,
        default=10_000,
        metavar="N",
        help="of --compare and --instructions (default: %(default)s)",
    )
    output.add_argument(
        "--seed",
        type=flags.natural,
        default=0,
        metavar="N",
        help="of --compare and --instructions (default: %(default)s)",
    )


def evaluate(args: argparse.Namespace) -> None:
    """Runs the searches, writes the files and prints the scores."""
    from grit_jax.evaluation.query_instructions import (
        instruction_table,
        instruction_variants,
        read_instructions,
        with_instructions,
    )
    from grit_jax.evaluation.retrieval_data import read_task
    from grit_jax.evaluation.retrieval_run import RunSettings, run_retrieval
    from grit_jax.evaluation.run_files import compare_runs, write_per_query, write_trec_runs
    from grit_jax.runtime.files import writable_file, writable_folder

    settings = RunSettings(
        SEARCHES if args.search is None else [args.search],
        retrieval_settings(args),
        search_settings(args),
        list(dict.fromkeys(args.k)),
        args.depth,
        args.identical_ids == "drop",
        args.vectors,
    )
    if args.split is not None and args.input.is_file():
        raise GritError(
            f"--split {args.split}: of a folder's judgements; {args.input} is a file, whose rows"
            " say what is to be found"
        )
    _ = settings.ranked  # a depth that is too small is said before the work
    instructions = read_instructions(args.instructions) if args.instructions is not None else {}
    if instructions and "dense" not in settings.searches:
        raise GritError("--instructions: its table is of the search by vectors; leave --search out")
    examples = shots(args)
    task = with_instructions(
        read_task(args.input, args.split or SPLIT), args.instruction, instructions, examples
    )
    if examples is not None:
        _warn_evaluated(examples, task)
    variants = instruction_variants(task, instructions, examples) if instructions else {}
    if args.per_query is not None:
        if args.per_query == args.record:
            raise GritError(f"{args.record}: named by --record and --per-query; name two files")
        writable_file(args.per_query, args.input, args.compare)
    if args.run_files is not None:
        writable_folder(args.run_files)
    embedder, judge = _model(args, settings)
    run = run_retrieval(task, embedder, settings, judge, variants)
    if args.per_query is not None:
        write_per_query(args.per_query, run)
    if args.run_files is not None:
        write_trec_runs(args.run_files, run)
    result = _result(args, run, settings.ranked)
    if embedder is not None and not embedder.counts_truncated:
        for name in ("model", "hybrid"):
            if "truncated" in result.get(name, {}):
                result[name]["truncated"] = None
    if instructions:
        result["instructions"] = {
            "metric": (metric := f"ndcg@{10 if 10 in settings.ks else max(settings.ks)}"),
            "texts": instructions,
            **instruction_table(
                task,
                instructions,
                {
                    name: [scores[metric] for scores in ranked.scores]
                    for name, ranked in run.variants.items()
                },
                resamples=args.resamples,
                seed=args.seed,
            ),
        }
    if args.compare is not None:
        result["comparison"] = compare_runs(
            run, args.compare, resamples=args.resamples, seed=args.seed
        )
    report(args, result, "\n".join(_lines(result)))


def _model(args: argparse.Namespace, settings: RunSettings) -> tuple[Embedder | None, Judge | None]:
    """The model or server, and what reranks; neither for a search by words alone.

    Raises:
      GritError: as `load_model_or_endpoint`; fewer dimensions than are searched; or the paper's
        prompt for a server.
    """
    from grit_jax.evaluation.embedders import EndpointEmbedder, ModelEmbedder
    from grit_jax.evaluation.endpoint import Endpoint
    from grit_jax.evaluation.judges import EndpointJudge, PromptJudge, RecordJudge

    judge: Judge | None = None
    if settings.searches == ["lexical"] and not args.rerank:
        return None, None
    model = load_model_or_endpoint(args)
    if isinstance(model, Endpoint):
        if args.rerank and args.rerank_prompt != "records":
            raise GritError(
                f"--rerank-prompt {args.rerank_prompt}: needs the logits of a MODEL; a URL reranks"
                " in its own way"
            )
        is_default = isinstance(args.max_length, DefaultLength)
        if args.rerank:
            judge = EndpointJudge(model)
        return EndpointEmbedder(model, None if is_default else args.max_length), judge
    search_settings(args).check(model.embedding_width)
    if args.rerank:
        by_records = args.rerank_prompt == "records"
        judge = (
            RecordJudge(model, args.max_length)
            if by_records
            else PromptJudge(model, args.rerank_prompt)
        )
    return ModelEmbedder(model, args.model, args.max_length), judge


def _result(args: argparse.Namespace, run: RetrievalRun, depth: int) -> dict[str, Any]:
    """The scores of each search, and what was searched how."""
    from grit_jax.evaluation.retrieval_run import RERANKED

    task = run.task
    result: dict[str, Any] = {}
    reranked: dict[str, Any] = {}
    for name, ranked in run.searches.items():
        if name.endswith(RERANKED):
            reranked[name.removesuffix(RERANKED)] = ranked.means
        else:
            result[name] = ranked.means
    for name in [name for name in result if name != "bm25"][:1]:
        result[name] = {**result[name], "truncated": run.truncated}
    if reranked:
        result["reranked"] = list(reranked.values())[-1]
        result["reranked_by_search"] = reranked
    result["task"] = {
        "name": task.name,
        "split": (args.split or SPLIT) if task.has_ids else None,
        "queries": len(task.queries),
        "documents": len(task.documents),
        "unjudged_queries": task.unjudged_queries,
        "missing_queries": task.missing_queries,
        "missing_documents": task.missing_documents,
        "queries_without_relevant": task.without_relevant,
    }
    result["settings"] = {
        "k": list(dict.fromkeys(args.k)),
        "depth": depth,
        "identical_ids": args.identical_ids,
        "instruction": args.instruction,
        "shots": args.shots,
        "shots_format": args.shots_format if args.shots else None,
        "fusion": args.fusion,
        "rerank": args.rerank,
        "rerank_prompt": args.rerank_prompt if args.rerank else None,
        "search_precision": args.search_precision,
    }
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    """A table with a row for each score and a column for each search, and what it leaves out."""
    searches: tuple[str, ...] = ("model", "bm25", "hybrid")
    columns = {name: result[name] for name in searches if name in result}
    for name, scores in result.get("reranked_by_search", {}).items():
        columns[f"{name}+rerank"] = scores
    width = max(14, *(len(name) + 2 for name in columns))
    metrics = [name for name in next(iter(columns.values())) if name != "truncated"]
    lines = [" " * 14 + "".join(f"{name:>{width}s}" for name in columns)]
    lines += [
        f"{metric:14s}" + "".join(f"{scores[metric]:{width}.4f}" for scores in columns.values())
        for metric in metrics
    ]
    task = result["task"]
    lines.append(f"{task['queries']} queries, {task['documents']} documents")
    for key, what in (
        ("unjudged_queries", "queries without judgements were left out"),
        ("missing_queries", "queries with judgements are not among the queries"),
        ("missing_documents", "judged documents are not in the corpus"),
        ("queries_without_relevant", "queries have no relevant document and score 0"),
    ):
        if task[key]:
            lines.append(f"{task[key]} {what}")
    if "instructions" in result:
        lines += _by_instruction(result["instructions"])
    if "comparison" in result:
        lines += _compared(result["comparison"])
    return lines


def _warn_evaluated(examples: Shots, task: RetrievalTask) -> None:
    """Warns of examples that are also evaluated: the model is shown their answers."""
    queries = {query.text for query in task.queries}
    shown = {query for of_domain in examples.examples.values() for query, _ in of_domain}
    if both := len(queries & shown):
        warnings.warn(f"{both} of the examples are queries that are evaluated", stacklevel=2)


def _by_instruction(table: dict[str, Any]) -> list[str]:
    """A row for each domain, a column for each instruction; the cost of the wrong one."""
    names = list(next(iter(table["domains"].values()))["scores"])
    width = max(10, *(len(name) + 2 for name in names))
    lines = [
        f"{table['metric']} of the search by vectors, by domain and instruction:",
        " " * 20 + "".join(f"{name:>{width}s}" for name in names) + "      cost",
    ]
    for domain, row in table["domains"].items():
        cost = f"{row['cost']:+10.4f}" if row["cost"] is not None else " " * 9 + "-"
        shown = "".join(f"{row['scores'][name]:{width}.4f}" for name in names)
        lines.append(f"{domain or '(no domain)':20s}{shown}{cost}")
    if (every := table["all"]) is not None:
        lines.append(
            f"the wrong domain's instruction costs {every['cost']:.4f}: {every['right']:.4f} with"
            f" the right one, {every['wrong']:.4f} with the others'"
            f"  [{every['low']:+.4f}, {every['high']:+.4f}]  p = {every['p']:.4f}"
        )
    return lines


def _compared(comparison: dict[str, Any]) -> list[str]:
    """A line for each search and score: the difference and its p-value."""
    lines = [f"against {comparison['file']}, {comparison['queries']} queries in common:"]
    lines += [
        f"{name:16s}{metric:14s}{c['this']:.4f} - {c['other']:.4f} = {c['difference']:+.4f}"
        f"  [{c['low']:+.4f}, {c['high']:+.4f}]  p = {c['p']:.4f}"
        for name, scores in comparison["searches"].items()
        for metric, c in scores.items()
    ]
    return lines
