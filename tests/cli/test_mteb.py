"""The arguments of `grit eval mteb`, and its instructions, which need neither a model nor mteb. Runs
are in tests/peers/test_mteb.py."""

from __future__ import annotations

import json
import sys
from typing import get_args

import pytest
from cli_world import run

from grit_jax.cli import mteb
from grit_jax.cli.main import build_parser
from grit_jax.evaluation.mteb import MtebProtocol, MtebSettings
from grit_jax.evaluation.mteb_instructions import BENCHMARK


@pytest.fixture(autouse=True)
def without_mteb(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)


def test_flags():
    assert get_args(MtebProtocol) == mteb.PROTOCOLS
    words = ["eval", "mteb", "http://h/v1", "--tasks", "A", BENCHMARK, "--json"]
    args = build_parser().parse_args([*words, "--task-files", "a", "b.py", "--endpoint-model", "m"])
    assert (args.model, args.tasks) == ("http://h/v1", ["A", BENCHMARK])
    assert [str(path) for path in args.task_files] == ["a", "b.py"]
    default = build_parser().parse_args(["eval", "mteb", "m", "--tasks", "A"])
    assert default.rerank == MtebSettings().rerank and default.prompts == MtebSettings().prompts


def test_instructions_are_shown_without_model_and_mteb(capsys, tmp_path):
    shown = run(capsys, "eval mteb --show-instructions")
    assert shown.status == 0 and len(shown.out.splitlines()) == 41
    assert "FEVERHardNegatives" in shown.out
    said = run(capsys, "eval mteb --show-instructions --json --tasks NFCorpus STS12").json
    assert [entry["task"] for entry in said["instructions"]] == ["NFCorpus", "STS12"]
    assert said["instructions"][1] == {
        "task": "STS12",
        "type": "STS",
        "query": "Retrieve semantically similar text.",
        "document": "",
        "source": "grit",
        "like": "",
    }
    (tmp_path / "mine.json").write_text(json.dumps({"STS12": "Mine"}))
    file = f"--prompts {tmp_path}/mine.json"
    shown = run(capsys, f"eval mteb --show-instructions --tasks STS12 {file}")
    assert shown.out == "STS12  STS  Mine\n"
    paper = run(capsys, "eval mteb --show-instructions --tasks MindSmallReranking --prompts paper")
    assert "[documents: Retrieve relevant news" in paper.out


def test_what_needs_mteb_says_so(capsys):
    for command in (
        "eval mteb absent --tasks STS12",
        "eval mteb --show-instructions --prompts mteb",
        "eval mteb --show-instructions --tasks SomethingNew",
    ):
        ended = run(capsys, command)
        assert ended.status == 2 and "pip install 'grit-jax[mteb]'" in ended.err, command
