"""The `grit` command: its verbs, its entry point, and what becomes of errors.

A `GritError` becomes one line on stderr and exit status 2, as does a wrong flag; any other
traceback is a bug. A training run that SIGTERM ends exits with `PREEMPTED`.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from grit_jax import __version__
from grit_jax.cli import bench, data, encode, eval, flags, mine, plan, quickstart, rag, serve, train
from grit_jax.cli.output import STDOUT, discard_stdout, escape_unprintable
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError, out_of_memory
from grit_jax.runtime.compilation_cache import keep_compiled_programs
from grit_jax.runtime.preemption import PREEMPTED, Preempted

# In the order of `grit --help`.
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        quickstart.QUICKSTART,
        train.TRAIN,
        encode.ENCODE,
        encode.GENERATE,
        rag.INDEX,
        rag.ASK,
        serve.SERVE,
        eval.EVAL,
        plan.PLAN,
        quickstart.EVIDENCE,
        bench.BENCH,
        train.IMPORT,
        train.EXPORT,
        data.DATA,
        mine.MINE,
    )
}
# The flags by which a verb's memory grows, if it has them.
SIZE_FLAGS = ("--max-length", "--max-new-tokens", "--batch-tokens", "--tokens")
# Failures of the operating system that the user can do something about, and what. Others are bugs.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = {
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
    args, rest = build_parser().parse_known_args(argv)
    args.command_line = shlex.join(["grit", *argv])
    verb = VERBS[args.verb]
    escape_unprintable()
    if rest and not verb.takes_overrides:
        args.parser.refuse(rest[0])
    if _owns_process(argv):
        keep_compiled_programs(os.environ)
        _use_huge_pages(argv)
    run = lambda: _run(verb, args, rest)
    if verb.supervised:
        from grit_jax.runtime.hosts import asks_for_hosts
        from grit_jax.runtime.supervision import watched

        if asks_for_hosts():
            return watched(run, verb.name)
    run()


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs. Each parsed verb also carries its own parser, as `parser`."""
    parser = flags.Parser(
        prog="grit",
        description=(
            "One language model that embeds and generates: train it, search with it, ask it."
        ),
    )
    parser.add_argument("--version", action="version", version=f"grit_jax {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS.values():
        sub = subparsers.add_parser(verb.name, help=verb.help, description=verb.help)
        sub.set_defaults(parser=sub)
        verb.add_flags(sub)
    return parser


def _run(verb: Verb, args: argparse.Namespace, rest: list[str]) -> None:
    """Runs the verb; what the user or the machine caused becomes one line and an exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            verb.run(args, rest) if verb.takes_overrides else verb.run(args)
    except GritError as error:
        _fail(args, str(error))
    except KeyboardInterrupt:
        hint = "; the same command continues where it stopped" if verb.resumable else ""
        print(f"\ngrit {verb.name}: interrupted{hint}", file=sys.stderr)
        sys.exit(130)
    except Preempted as preempted:
        print(f"grit {verb.name}: {preempted}; the same command continues", file=sys.stderr)
        # With its cause: whether the other hosts know of it decides how this process leaves.
        raise SystemExit(PREEMPTED) from preempted
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        discard_stdout()
        sys.exit(141)
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        if error.filename == STDOUT:
            discard_stdout()
        _fail(args, f"{error.filename or _output(args)}: {error.strerror}{ADVICE[error.errno]}")
    except RuntimeError as error:  # what writers outside Python raise: Orbax, TensorStore, XLA
        if full := out_of_memory(error):
            lower = [f"lower {f}" for f in SIZE_FLAGS if f[2:].replace("-", "_") in args][:1]
            if "mesh_data" in args and args.dtype != "int8":
                lower.append("use --dtype int8")
            lower = [*lower, "or "] if lower else []
            _fail(
                args,
                f"the devices' memory is full ({full}); {', '.join(lower)}take a smaller model or"
                " larger devices",
            )
        if not any(os.strerror(number) in str(error) for number in FULL):
            raise
        _fail(args, f"{_output(args)}: {str(error).partition('; ')[0]}{ADVICE[errno.ENOSPC]}")


def _fail(args: argparse.Namespace, message: str) -> NoReturn:
    print(f"{args.parser.prog}: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)


def _output(args: argparse.Namespace) -> Any:
    """Where a verb writes."""
    return getattr(args, "output", None) or getattr(args, "out", None) or args.verb


def _show_warning(
    message: Warning | str, category: type[Warning], *location: Any, **options: Any
) -> None:
    """Prints a warning as one line without file and line; those for programmers are left out."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _owns_process(argv: list[str]) -> bool:
    """Whether this process is the `grit` command. Called as a function (tests, notebooks) it is
    another program's, whose settings are not ours."""
    named = sys.argv and Path(sys.argv[0]).name in ("grit", "__main__.py")
    return bool(named) and argv == sys.argv[1:] and not sys.flags.interactive


def _use_huge_pages(argv: list[str]) -> None:
    """Starts this process again with huge pages for malloc: XLA on a CPU then runs 20 to 40%
    faster.

    glibc reads the setting only at start-up. A setting that is there already is left alone.
    """
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    if sys.stdout is not None:
        sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "grit_jax", *argv])


if __name__ == "__main__":
    main()
