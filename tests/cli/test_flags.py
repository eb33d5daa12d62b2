"""Types of flags, the strict parser, and the keys of a configuration as flags."""

from __future__ import annotations

import argparse

import pytest

from grit_jax.cli import flags
from grit_jax.errors import GritError
from grit_jax.rag.codecs.codecs import KINDS


def test_kinds_of_caches_are_those_of_the_codecs():
    """Their module imports JAX, the command line does not."""
    assert flags.KV_KINDS == KINDS


@pytest.mark.parametrize(
    "read, text, value",
    [
        (flags.natural, "0", 0),
        (flags.natural, "-1", "must be at least 0, got -1"),
        (flags.positive, "0", "must be at least 1, got 0"),
        (flags.positive, "1.5", "must be a whole number, got '1.5'"),
        (flags.positive, "", "must be a whole number, got ''"),
        (flags.number, "1e-3", 0.001),
        (flags.number, "a", "must be a number, got 'a'"),
        (flags.span, "10:15", (10, 15)),
        (flags.span, "0:1", (0, 1)),
        *(
            (flags.span, text, f"expected START:STOP, two step numbers such as 10:15, got '{text}'")
            for text in ("10", "15:10", "3:3", "-1:3", "1:2:3", ":3", "")
        ),
        (flags.several(flags.positive), "3, 1,3,2", [3, 1, 2]),
        (flags.several(flags.positive), "3,,1", "must be a whole number, got ''"),
        (flags.several(str), "a, b,a", ["a", "b"]),
        (flags.several(str), "", "must be words with commas between, got ''"),
        (flags.several(flags.name), "a,,b", "must be words with commas between, got 'a,,b'"),
        (flags.one_of("a", "b"), "b", "b"),
        (flags.one_of("a", "b"), "c", "must be one of a, b, got 'c'"),
    ],
)
def test_types(read, text, value):
    if isinstance(value, str) and value != text:
        with pytest.raises(argparse.ArgumentTypeError) as error:
            read(text)
        assert str(error.value) == value
    else:
        assert read(text) == value


@pytest.fixture
def parser():
    parser = flags.Parser(prog="grit try")
    parser.add_argument("--max-length", type=flags.positive)
    parser.add_argument("--mode", choices=("doc", "query"))
    return parser


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-length", "x"], "argument --max-length: must be a whole number, got 'x'"),
        (["--max-length"], "argument --max-length: expected one argument"),
        (["--mode", "docs"], "argument --mode: invalid choice: 'docs'"),
    ],
)
def test_an_error_is_one_line(arguments, message, parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"grit try: {message}") and line.endswith("; see grit try --help\n")


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--max-lenght=3", "unknown flag --max-lenght, did you mean --max-length?"),
        ("--zebra", "unknown flag --zebra"),
        ("word", "unexpected argument 'word'"),
    ],
)
def test_an_unknown_argument_names_the_nearest_flag(argument, message, parser, capsys):
    args, rest = parser.parse_known_args(["--mode", "doc", argument])
    assert (args.mode, rest) == ("doc", [argument])
    with pytest.raises(SystemExit):
        parser.refuse(argument)
    assert capsys.readouterr().err == f"grit try: {message}; see grit try --help\n"


def test_a_flag_is_not_abbreviated(parser):
    args, rest = parser.parse_known_args(["--max", "3"])
    assert (args.max_length, rest) == (None, ["--max", "3"])
    assert parser.flags() == ["--max-length", "--mode"]


def test_subcommands_carry_their_name_and_their_parser():
    parser = flags.Parser(prog="grit try")
    add = flags.kinds(parser, "one", "two")
    add("one", "the first").add_argument("--n", type=int)
    second = add("two", "the second")
    args = parser.parse_args(["one", "--n", "3"])
    assert (args.kind, args.n, args.parser.prog) == ("one", 3, "grit try one")
    assert parser.parse_args(["two"]).parser is second
    assert "usage: grit try [-h] one|two ..." in parser.format_help()


def test_keys_of_a_configuration():
    arguments = ["--train.steps", "100", "--data.embedding=[a, b]", "--output=", "--optimizer.lr"]
    assert flags.overrides([*arguments, "-1"]) == {
        "train.steps": "100",
        "data.embedding": "[a, b]",
        "output": "",
        "optimizer.lr": "-1",
    }
    assert flags.overrides(["--a=1=2", "--a", "3"]) == {"a": "3"} and flags.overrides([]) == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train.steps=1"], "unexpected 'train.steps=1'; overrides look like --train.steps 100"),
        (["--train.steps"], "--train.steps needs a value"),
        (["--train.steps", "--train.seed", "1"], "--train.steps needs a value"),
        (["--resum", "never"], "unknown flag --resum; did you mean --resume?"),
        (["-x"], "unexpected '-x'"),
    ],
)
def test_what_is_no_key(arguments, message):
    with pytest.raises(GritError) as error:
        flags.overrides(arguments, ["--resume", "--profile"])
    assert str(error.value).startswith(message)
