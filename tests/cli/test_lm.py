"""The arguments of `grit eval lm`. Runs of it are in tests/peers/test_lm_eval.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from cli_world import run

from grit_jax.cli.lm import limit, settings, task_data
from grit_jax.cli.main import build_parser

pytestmark = pytest.mark.usefixtures("in_world")


def test_arguments():
    args = build_parser().parse_args(
        [
            "eval",
            "lm",
            "model",
            "--tasks",
            "a",
            "b/c.yaml",
            "--include",
            "x",
            "--include",
            "y",
            "--data",
            "a=d",
            "--limit",
            "0.5",
            "--gen-kwargs",
            "temperature=0.2,do_sample=true",
            "--no-fewshot-as-multiturn",
        ]
    )
    assert args.tasks == ["a", "b/c.yaml"] and args.include == [Path("x"), Path("y")]
    assert args.data == [("a", Path("d"))] and args.limit == 0.5
    assert args.gen_kwargs == {"temperature": 0.2, "do_sample": True}
    assert not args.fewshot_as_multiturn and not args.allow_code_execution
    assert limit("20") == 20 and isinstance(limit("20"), int)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (limit, "0", "between 0 and 1"),
        (limit, "1.5", "between 0 and 1"),
        (settings, "temperature", "expected KEY=VALUE"),
        (task_data, "folder", "expected TASK=DIR"),
        (task_data, "=x", "expected TASK=DIR"),
    ],
)
def test_arguments_that_are_refused(read, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read(text)


def test_usage_lists_the_folder_of_tasks(capsys):
    usage = run(capsys, "data --help").out
    assert "repeats|lm-tasks" in "".join(usage.split())


def test_values_of_settings():
    assert settings("a=1,b=1.5,c=x,d=False") == {"a": 1, "b": 1.5, "c": "x", "d": False}


def test_errors_before_a_model_is_read(capsys, monkeypatch):
    ended = run(capsys, "eval lm nowhere --tasks a --log-samples")
    assert ended.status == 2 and "name a folder with --output DIR" in ended.err
    for model, more in (("http://127.0.0.1:9", ""), ("nowhere", "--tokenizer x")):
        ended = run(capsys, f"eval lm {model} --tasks a {more}")
        assert ended.status == 2 and "--tokenizer DIR goes with a URL" in ended.err
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ended = run(capsys, "eval lm nowhere --tasks a")
    assert ended.status == 2 and "pip install 'grit-jax[eval]'" in ended.err
