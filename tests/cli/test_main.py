"""The table of verbs, and how quickly the command line answers."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from cli_world import run

from grit_jax import __version__
from grit_jax.cli import flags
from grit_jax.cli.main import VERBS, build_parser

HEAVY = ("jax", "numpy", "flax", "orbax", "tokenizers", "yaml")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_help_loads_no_array_library(arguments):
    """Measured by the modules that a fresh interpreter has loaded as it exits."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        "from grit_jax.cli.main import main\n"
        f"main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_verb_has_help_that_fits_a_line(capsys):
    for name, verb in VERBS.items():
        assert name == verb.name and verb.help[0].islower() and not verb.help.endswith(".")
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([name, "--help"])
        assert end.value.code == 0 and f"grit {name}" in capsys.readouterr().out


FILES = {
    "input",
    "include",
    "output",
    "out",
    "model",
    "index",
    "config",
    "sources",
    "store",
    "task_files",
    "corpus",
    "files",
    "against",
}


def test_every_argument_that_names_a_file_expands_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    actions = list(actions_of(build_parser()))
    named = [a for a in actions if a.dest in FILES | {"checkpoint"} and a.type is not None]
    assert {a.dest for a in named} == FILES | {"checkpoint"}
    for action in actions:
        assert action.type is not Path, action.dest
        if action.dest in FILES:
            assert str(action.type("~/x")) == "/home/ada/x", action.dest
            assert str(action.type("a~/x")) == "a~/x", action.dest
    assert flags.name("tfds:~/x") == "tfds:/home/ada/x"
    assert flags.name("gs://b/~") == "gs://b/~" and flags.name("org/model") == "org/model"


def actions_of(parser):
    """The arguments of a parser and of all its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions_of(sub)


def test_help_and_version(capsys):
    assert run(capsys, "--version").out == f"grit_jax {__version__}\n"
    said = run(capsys, "--help")
    for verb in VERBS:
        assert verb in said.out
        assert run(capsys, verb, "--help").status == 0
