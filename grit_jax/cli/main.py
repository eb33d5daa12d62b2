"""The `grit` command: one function a verb, which parses, calls and prints.

A `GritError` becomes one line on stderr and exit status 2, as does a wrong flag; any other
traceback is a bug. A run that SIGTERM ends exits with `PREEMPTED`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from grit_jax.cli import flags
from grit_jax.cli.parser import build_parser
from grit_jax.errors import GritError, out_of_memory
from grit_jax.runtime.preemption import PREEMPTED, Preempted

TAKES_KEYS = ("train", "plan")
RESUMABLE = ("quickstart", "train", "index", "evidence")
SIZES = (
    "--max-length",
    "--max-new-tokens",
    "--batch-tokens",
    "--tokens",
)  # what a verb's memory goes by, if it has it
STDOUT = "standard output"
# What the machine may refuse, and what to do about it. Other errors of the system are bugs of ours.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSALS = {
    **dict.fromkeys(FULL, "; make room or choose another place"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "; choose another place or change its permissions"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), "; choose another name"
    ),
    **dict.fromkeys((errno.EIO, errno.EMFILE, errno.ENFILE), ""),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `grit` command."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = build_parser(VERBS).parse_known_args(argv)
    if rest and args.verb not in TAKES_KEYS:
        args.parser.refuse(rest[0])
    _use_huge_pages(argv)
    if args.verb == "train":
        from grit_jax.runtime.hosts import asks_for_hosts
        from grit_jax.runtime.supervision import watched

        if asks_for_hosts():
            return watched(lambda: _run(args, rest))
    _run(args, rest)


def _run(args: argparse.Namespace, rest: list[str]) -> None:
    """Runs the verb; what went wrong by the person's or the machine's doing becomes a line and an
    exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args.run(args, rest) if args.verb in TAKES_KEYS else args.run(args)
    except GritError as error:
        _fail(args, str(error))
    except KeyboardInterrupt:
        hint = "; the same command goes on where it stopped" if args.verb in RESUMABLE else ""
        print(f"\ngrit {args.verb}: interrupted{hint}", file=sys.stderr)
        sys.exit(130)
    except Preempted as told:
        print(f"grit {args.verb}: {told}; the same command goes on", file=sys.stderr)
        raise SystemExit(
            PREEMPTED
        ) from told  # whether the others know of it decides how a process of several leaves
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        _drop_stdout()
        sys.exit(141)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        if error.filename == STDOUT:
            _drop_stdout()
        _fail(args, f"{error.filename or _output(args)}: {error.strerror}{REFUSALS[error.errno]}")
    except RuntimeError as error:  # so say the writers that are not Python's
        if full := out_of_memory(error):
            lower = next(
                (f"lower {flag}, or " for flag in SIZES if flag[2:].replace("-", "_") in args), ""
            )
            _fail(
                args,
                f"the devices' memory is full ({full}); {lower}take a smaller model or larger"
                " devices",
            )
        if not any(os.strerror(number) in str(error) for number in FULL):
            raise
        _fail(args, f"{_output(args)}: {str(error).partition('; ')[0]}{REFUSALS[errno.ENOSPC]}")


# ---- verbs ---------------------------------------------------------------------------------------


def quickstart(args: argparse.Namespace) -> None:
    from grit_jax.quickstart.report import terminal_report
    from grit_jax.quickstart.run import run_quickstart

    report = run_quickstart(args.out, seed=args.seed, from_scratch=args.from_scratch)
    _print(json.dumps(report) if args.json else terminal_report(report))


def train(args: argparse.Namespace, arguments: list[str]) -> None:
    import jax

    from grit_jax.runtime.hosts import is_first, join_hosts
    from grit_jax.runtime.supervision import joined_others
    from grit_jax.train import read_run_config
    from grit_jax.train import train as run

    config = read_run_config(args.config, flags.overrides(arguments, args.parser.flags()))
    join_hosts()
    if jax.process_count() > 1:
        joined_others()
    result = run(config, resume=args.resume, profile=args.profile)
    if not is_first():
        return
    if result.already_finished:
        _print(f"finished before: {result.steps} steps; model in {result.model}")
    else:
        _print(
            f"{result.steps} steps done; model in {result.model}, metrics in"
            f" {result.output}/metrics.jsonl"
        )


def encode(args: argparse.Namespace) -> None:
    from grit_jax.inference.files import encode_file, read_texts

    texts = read_texts(args.input)
    summary = encode_file(
        _model(args.model),
        texts,
        args.output,
        instruction=args.instruction,
        max_length=args.max_length,
        dim=args.dim,
        precision=args.precision,
    )
    _show(
        summary,
        args.json,
        f"{summary['texts']} texts to {args.output}, {summary['tokens_per_s']:.0f} tokens/s",
    )


def generate(args: argparse.Namespace) -> None:
    from grit_jax.inference.files import generate_prompts, read_prompts

    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.input)
    on_text = (lambda text: _print(text, end="")) if args.stream and not args.json else None
    answers = generate_prompts(
        _model(args.model),
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        on_text=on_text,
    )
    if args.json:
        _print(
            json.dumps(
                {
                    "generations": [
                        {"prompt": p, "text": a} for p, a in zip(prompts, answers, strict=True)
                    ]
                }
            )
        )
    elif on_text:
        _print()
    else:
        _print("\n---\n".join(answers))


def index(args: argparse.Namespace) -> None:
    from grit_jax.rag.index import build_index

    summary = build_index(
        _model(args.model),
        args.input,
        args.output,
        kv=args.kv,
        max_length=args.max_length,
        store=args.store,
        vectors=args.vectors,
        milvus=args.milvus,
        update=args.update,
        delete_missing=args.delete_missing,
    )
    _show(summary.to_dict(), args.json, str(summary))


def ask(args: argparse.Namespace) -> None:
    from grit_jax.rag.answer import Asker
    from grit_jax.rag.index import Index

    model = _model(args.model)
    asker = Asker(model, Index.open(args.index, model, _search(args)))
    answer = asker.ask(
        args.question,
        mode=args.mode,
        k=args.k,
        instruction=args.instruction,
        max_new_tokens=args.max_new_tokens,
    )[0]
    total = answer.timings["total"]
    sources = ", ".join(f"{d['id']} ({d['score']:.2f})" for d in answer.documents)
    _show(
        answer.to_dict(), args.json, f"{answer.answer}\n\n[{answer.mode}, {total:.2f} s] {sources}"
    )


def evaluate(args: argparse.Namespace) -> None:
    model = _model(args.model)
    if args.kind == "retrieval":
        from grit_jax.evaluation.retrieval import bm25_retrieval, evaluate_retrieval

        scores: dict[str, Any] = {
            "model": evaluate_retrieval(model, args.input, search=_search(args)),
            "bm25": bm25_retrieval(args.input),
        }
    elif args.kind == "perplexity":
        from grit_jax.evaluation.perplexity import evaluate_perplexity

        scores = {"perplexity": evaluate_perplexity(model, args.input)}
    else:
        from grit_jax.evaluation.rag_table import evaluate_table
        from grit_jax.rag.index import Index
        from grit_jax.runtime.files import writable_folder

        if args.output is not None:
            writable_folder(args.output)
        search = _search(args)
        table = evaluate_table(
            model,
            args.input,
            args.modes,
            args.k,
            args.kv,
            args.positions,
            corpus=args.corpus,
            seed=args.seed,
            index=Index.open(args.index, model, search) if args.index else None,
            instruction=args.instruction,
            max_new_tokens=args.max_new_tokens,
        )
        if args.output is not None:
            table.write(args.output)
        if max(len(args.k), len(args.kv), len(args.positions)) > 1:
            return _show(table.to_dict(), args.json, table.markdown().rstrip())
        scores = dict(table.by_mode())
    lines = []
    for name, value in scores.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        lines.append(f"{name:16s}" + "  ".join(f"{key} {number:.4f}" for key, number in inner))
    _show(scores, args.json, "\n".join(lines))


def plan(args: argparse.Namespace, arguments: list[str]) -> None:
    from grit_jax.plan.mesh_search import MOST_TRIES, search, search_table
    from grit_jax.plan.plan import plan as run
    from grit_jax.plan.plan import table
    from grit_jax.run_config import read_run_config

    config = read_run_config(args.config, flags.overrides(arguments, args.parser.flags()))
    if args.search:
        found = search(config, args.topology, args.tries or MOST_TRIES, slices=args.slices)
        candidates = {
            "topology": args.topology,
            "slices": args.slices,
            "candidates": [one.to_dict() for one in found],
        }
        _show(candidates, args.json, search_table(found))
    elif args.tries:
        raise GritError(
            "--tries says how many programs --search compiles at most; there is no --search"
        )
    else:
        one = run(config, args.topology, slices=args.slices, serving=not args.train_only)
        _show(one.to_dict(), args.json, table(one))


def evidence(args: argparse.Namespace) -> None:
    from grit_jax.evidence.run import markdown, run_evidence

    report = run_evidence(args.out, seeds=args.seeds, part=args.part)
    _show(report, args.json, markdown(report).rstrip())


def bench(args: argparse.Namespace) -> None:
    from grit_jax.bench.rag import bench_rag
    from grit_jax.bench.show import markdown, write
    from grit_jax.bench.throughput import bench_decode, bench_encode, bench_train, lines
    from grit_jax.runtime.files import writable_folder

    output, how = getattr(args, "output", None), {"repeats": args.repeats, "seed": args.seed}
    if output is not None:
        writable_folder(output)
    model, shown = _model(args.model), []
    found: dict[str, Any] = {}
    for name, measure in (
        ("encode", bench_encode),
        ("decode", bench_decode),
        ("train", bench_train),
    ):
        if args.kind in (name, "all"):
            size = {} if name == "decode" else {"batch_tokens": args.batch_tokens}
            found[name] = measure(model, **size, **how)
            shown += [name, *lines(found[name]), ""]
    if args.kind in ("rag", "all"):
        bench = bench_rag(
            model,
            args.kv,
            tokens=args.tokens,
            new_tokens=args.new_tokens,
            curve=output is not None,
            folder=output,
            **how,
        )
        if output is not None:
            write(bench, model, output)
        found["rag"] = bench.rows()
        shown.append(markdown(bench, model))
    _print(
        json.dumps(found if args.kind == "all" else found[args.kind])
        if args.json
        else "\n".join(shown).rstrip()
    )


def import_(args: argparse.Namespace) -> None:
    from grit_jax.models.parameters import num_parameters
    from grit_jax.runtime.files import new_folder

    with new_folder(args.out) as folder:
        model = _model(args.source)
        model.save_pretrained(folder, dtype=args.dtype)
    size, family = num_parameters(model.config), model.config.architecture
    _print(f"{args.source} -> {args.out}: {family}, {size:,} parameters")


def export(args: argparse.Namespace) -> None:
    from grit_jax.train import export_checkpoint

    step = export_checkpoint(args.checkpoint, args.out, dtype=args.dtype, adapter=args.adapter)
    _print(f"step {step} of {args.checkpoint} -> {args.out}")


def data(args: argparse.Namespace) -> None:
    if args.kind == "prepare":
        from grit_jax.data.sources import prepare

        prepared = prepare(args.sources, args.output)
        _print(f"{len(prepared)} {prepared.kind} examples in {args.output}")
    elif args.kind == "distractors":
        from grit_jax.data.distractors import write_rows

        rows = write_rows(
            args.input, args.output, args.k, corpus=args.corpus, rows=args.rows, seed=args.seed
        )
        _print(f"{rows} rows in {args.output}")
    elif args.kind == "repeats":
        from grit_jax.pydocs.repeats import write_repeats

        _print(
            f"{write_repeats(args.input, args.output, args.rows, args.seed)} rows in {args.output}"
        )
    else:
        from grit_jax.pydocs.corpus import write_corpus
        from grit_jax.runtime.files import writable_folder

        writable_folder(args.output)
        try:
            summary = write_corpus(args.output, args.seed)
        except ValueError as error:
            raise GritError(str(error)) from None
        _print(
            f"{summary.documents} documents: {summary.train} to train on, {summary.held_out}"
            " held out"
        )
        for name, rows in summary.rows.items():
            _print(f"  {args.output / name}.jsonl: {rows} lines")


VERBS = {
    "quickstart": quickstart,
    "train": train,
    "encode": encode,
    "generate": generate,
    "index": index,
    "ask": ask,
    "eval": evaluate,
    "evidence": evidence,
    "bench": bench,
    "plan": plan,
    "import": import_,
    "export": export,
    "data": data,
}


# ---- helpers -------------------------------------------------------------------------------------


def _model(name: str) -> Any:
    from grit_jax.inference.model import GritLM

    return GritLM.from_pretrained(name)


def _search(args: argparse.Namespace) -> Any:
    from grit_jax.rag.search.exact import SearchSettings

    settings = SearchSettings(args.search_precision, args.search_dim, args.search_oversampling)
    if settings != SearchSettings() and "index" in args and args.index is None:
        raise GritError("--search-... says how an index is searched, and no --index is given")
    return settings


def _show(values: dict[str, Any], as_json: bool, text: str) -> None:
    _print(json.dumps(values) if as_json else text)


def _print(text: str = "", end: str = "\n") -> None:
    try:
        print(text, end=end, flush=True)  # at once: what cannot be said is to be told in time
    except OSError as error:
        error.filename = STDOUT
        raise


def _fail(args: argparse.Namespace, message: str) -> NoReturn:
    print(f"{args.parser.prog}: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)


def _output(args: argparse.Namespace) -> Any:
    """Where a verb writes."""
    return getattr(args, "output", None) or getattr(args, "out", None) or args.verb


def _drop_stdout() -> None:
    """Or the interpreter tries again at its end, and says so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
    """In the words for the person, without our file and line; warnings to programmers are left
    out."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _use_huge_pages(argv: list[str]) -> None:
    """Starts this process over with huge pages for malloc, once: XLA on a CPU then runs 20 to 40%
    faster.

    glibc reads the setting only at start-up. A setting that is there already is left alone.
    """
    if (
        not sys.platform.startswith("linux")
        or "GLIBC_TUNABLES" in os.environ
        or sys.flags.interactive
    ):
        return
    if not (
        sys.argv and Path(sys.argv[0]).name in ("grit", "__main__.py") and argv == sys.argv[1:]
    ):
        return  # called as a function (tests, notebooks): the process is not ours to restart
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    if sys.stdout is not None:
        sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "grit_jax", *argv])


if __name__ == "__main__":
    main()
