"""`grit evidence --base MODEL`: its folder, its flags, its commands, and (slow) a whole run of a tiny
model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from cli_world import run as grit
from evidence_corpus import write_corpus

from grit_jax.cli.main import build_parser
from grit_jax.errors import GritError
from grit_jax.evidence import answers, pretrained, prompt_variants
from grit_jax.evidence.pretrained import PretrainedOptions, run_pretrained_evidence


@pytest.fixture
def world(tiny_model, sentences, tmp_path, monkeypatch):
    """A working directory with a model, a corpus, and a short budget of new tokens."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "model")
    write_corpus(tmp_path / "data", sentences)
    return tmp_path


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--model model", "--model: only with --base"),
        ("--data data", "--data: only with --base"),
        ("--questions 3", "--questions: only with --base"),
        ("--part codecs", "--part codecs: only with --base"),
        ("--base model --part both", "--part: invalid choice: 'both'"),
        ("--base model --questions 0", "--questions: must be at least 1, got 0"),
        ("--base ./none", "./none: model not found: no such directory"),
        ("--base model --data model", "--data model: heldout/embedding.jsonl is missing; expected"),
        ("--base model --data data --out data", "data: the folder is not empty and holds no"),
        ("--base model --data data --out x", "x was started with --base other, not with --base"),
        (
            "--base other --out x",
            "x was started with --data /elsewhere, not without --data; choose",
        ),
    ],
)
def test_bad_input_ends_in_one_line(flags, words, world, capsys):
    (world / "x").mkdir()
    (world / "other").mkdir()
    (world / "x/settings.json").write_text('{"base": "other", "data": "/elsewhere"}')
    said = grit(capsys, f"evidence --json {flags}")
    assert (said.status, said.out) == (2, "")
    assert words in said.lines[-1] and said.lines[-1].startswith("grit evidence: "), said.lines
    assert not (world / "runs").exists()


def test_a_part_of_another_kind(tmp_path):
    with pytest.raises(GritError, match="--part: with --base, must be documents, codecs"):
        run_pretrained_evidence(tmp_path / "x", PretrainedOptions("m"), "both")


def test_the_printed_commands_can_be_typed():
    options = PretrainedOptions("smollm2", "runs/a b", Path("d"), questions=8, queries=9)
    [command] = pretrained.commands(Path("x"), options, ["codecs"])
    typed = build_parser().parse_args(shlex.split(command)[1:])
    assert (typed.base, typed.model, typed.data) == ("smollm2", "runs/a b", Path("d"))
    assert (typed.questions, typed.queries, typed.part) == (8, 9, "codecs")
    corpus, command = pretrained.commands(Path("x"), PretrainedOptions("m"), ["prompts"])
    parsed = build_parser().parse_args(shlex.split(corpus)[1:])
    assert (parsed.characters, parsed.sentences) == (500, True) and "--model" not in command


@pytest.mark.slow  # every layout, and every prompt, compiles
def test_a_whole_run_by_parts(world, capsys, monkeypatch):
    for module in (answers, prompt_variants):
        monkeypatch.setattr(
            module.score_cases if module is answers else module.score_prompts,
            "__kwdefaults__",
            {"max_new_tokens": 6, "quiet": True},
        )
    base = "evidence --base model --data data --queries 6 --out x"
    said = grit(capsys, f"{base} --questions 2 --part codecs --json")
    assert said.status == 0, said.err
    first = said.json
    assert set(first) >= {"version", "base", "data", "corpus", "codecs", "commands"}
    assert (first["codecs"]["questions"], first["codecs"]["questions_all"]) == (2, 6)
    assert len(first["codecs"]["scores"]) == 12 and len(first["codecs"]["costs"]) == 9
    [file] = Path("x/scores").glob("*/answers.json")
    native = lambda: json.loads(file.read_text())["cases"]["doc, k = 1"]["f1"]
    before = native()
    # The other parts go on from there: native records over one document are not scored again.
    said = grit(capsys, f"{base} --questions 3")
    assert said.status == 0 and said.out == Path("x/table.md").read_text()
    assert native()[:2] == before and len(native()) == 3
    report = json.loads(Path("x/evidence.json").read_text())
    assert report["codecs"]["questions"] == 3 == report["prompts"]["answers"]["questions"]
    assert len(report["documents"]["scores"]) == 24
    search = report["prompts"]["search"]
    assert (search["queries"], search["queries_all"]) == (6, 12) and len(search["variants"]) == 6
    # Done, and not done again.
    monkeypatch.setattr(answers, "row_documents", None)
    monkeypatch.setattr(prompt_variants, "_answers", None)
    again = grit(capsys, f"{base} --questions 3 --json").json
    drop = lambda value: {
        name: {k: v for k, v in part.items() if k != "seconds"} if isinstance(part, dict) else part
        for name, part in value.items()
    }
    assert drop(again) == drop(report)
