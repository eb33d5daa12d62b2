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
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evidence import answers, pretrained, prompt_variants
from grit_jax.evidence.pretrained import run_pretrained_evidence
from grit_jax.evidence.pretrained_run import PretrainedOptions
from grit_jax.inference.model import GritLM
from grit_jax.runtime.files import write_jsonl


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
        ("--steps 3", "--steps: only with --base"),
        ("--chat-heldout f", "--chat-heldout: only with --base"),
        ("--base model --part codecs", "--model: expected the trained model to score, because no"),
        ("--base model --part joint --chat no.jsonl", "no.jsonl: no such file"),
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
    options = PretrainedOptions(
        "smollm2", "runs/a b", Path("d"), Path("c"), Path("h"), 12, seeds=2, questions=8, queries=9
    )
    command = pretrained.part_command(Path("x"), options, "cached")
    typed = build_parser().parse_args(shlex.split(command)[1:])
    assert (typed.base, typed.model, typed.data) == ("smollm2", "runs/a b", Path("d"))
    assert (typed.questions, typed.queries, typed.part) == (8, 9, "cached")
    assert (typed.chat, typed.chat_heldout) == (Path("c"), Path("h"))
    assert (typed.steps, typed.seeds) == (12, 2)
    plain = pretrained.part_command(Path("x"), PretrainedOptions("m"), "prompts")
    assert plain == "grit evidence --base m --part prompts --questions 64 --queries 128 --out x"
    parsed = build_parser().parse_args(shlex.split(pretrained.corpus_command(Path("x")))[1:])
    assert (parsed.characters, parsed.sentences) == (500, True)


def few_tokens(monkeypatch):
    """Answers of six tokens."""
    for scored in (answers.score_cases, prompt_variants.score_prompts):
        monkeypatch.setitem(scored.__kwdefaults__, "max_new_tokens", 6)


def without_seconds(report: dict) -> dict:
    """A report whose parts lack the seconds that they took."""
    return {
        name: {k: v for k, v in part.items() if k != "seconds"} if isinstance(part, dict) else part
        for name, part in report.items()
    }


@pytest.mark.slow  # every layout, and every prompt, compiles
def test_a_trained_model_by_parts(world, capsys, monkeypatch):
    few_tokens(monkeypatch)
    base = "evidence --base model --model model --data data --queries 6 --out x"
    said = grit(capsys, f"{base} --questions 2 --part codecs --json")
    assert said.status == 0, said.err
    first = said.json
    assert set(first) >= {"version", "base", "data", "corpus", "codecs", "commands"}
    assert (first["codecs"]["questions"], first["codecs"]["questions_all"]) == (2, 6)
    assert len(first["codecs"]["scores"]) == 12 and len(first["codecs"]["costs"]) == 12
    [file] = Path("x/scores").glob("*/answers.json")
    native = lambda: json.loads(file.read_text())["cases"]["doc, k = 1"]["f1"]
    before = native()
    # The other parts go on from there: native records over one document are not scored again.
    for part in ("documents", "codecs", "prompts"):
        said = grit(capsys, f"{base} --questions 3 --part {part}")
        assert said.status == 0 and said.out == Path("x/table.md").read_text()
    assert native()[:2] == before and len(native()) == 3
    report = json.loads(Path("x/evidence.json").read_text())
    assert report["codecs"]["questions"] == 3 == report["prompts"]["answers"]["questions"]
    assert len(report["documents"]["scores"]) == 24
    search = report["prompts"]["search"]
    assert (search["queries"], search["queries_all"]) == (6, 12) and len(search["variants"]) == 6
    # Each part has the command that it was run with.
    commands = [report[part]["command"] for part in ("documents", "codecs", "prompts")]
    assert report["commands"] == commands and all("--questions 3" in line for line in commands)
    # Done, and not done again.
    monkeypatch.setattr(answers, "row_documents", None)
    monkeypatch.setattr(prompt_variants, "_answers", None)
    again = grit(capsys, f"{base} --questions 3 --part documents --json").json
    assert without_seconds(again) == without_seconds(report)


@pytest.mark.slow  # trains five variants for two steps
def test_variants_are_trained_scored_and_not_trained_again(world, sentences, capsys, monkeypatch):
    few_tokens(monkeypatch)
    chat = [{"text": [a, b]} for a, b in zip(sentences[:20], sentences[20:40], strict=True)]
    write_jsonl(world / "chat.jsonl", chat)
    command = (
        "evidence --base model --data data --chat chat.jsonl --chat-heldout chat.jsonl --steps 2"
        " --queries 6 --questions 2 --out x"
    )
    said = grit(capsys, f"{command} --part joint --json")
    assert said.status == 0, said.err
    joint = said.json["joint"]
    assert list(joint["models"]) == ["base", "unified", "embedding", "generative"]
    assert joint["texts"] == {"documentation": 40, "chat": 20} and joint["queries"] == 6
    model = GritLM.from_pretrained("x/seed-0/generative/model")
    expected = evaluate_perplexity(model, "chat.jsonl", quiet=True)
    scored = joint["models"]["generative"]
    assert scored["perplexity"]["chat"] == pytest.approx(expected, rel=1e-5)
    assert scored["training"][0]["steps"] == 2 and joint["models"]["base"]["training"] == []
    of_base = joint["models"]["base"]["perplexity"]["chat"]
    [rise] = [
        c for c in joint["costs"] if c["claim"] == "perplexity of chat, %: unified beside base"
    ]
    unified = joint["models"]["unified"]["perplexity"]["chat"]
    assert rise["mean"] == pytest.approx(100 * (unified / of_base - 1), rel=1e-4)
    losses = lambda name: {
        key
        for key in json.loads(Path(f"x/seed-0/{name}/metrics.jsonl").read_text().splitlines()[0])
        if key.startswith("loss_")
    }
    assert {"loss_emb", "loss_gen"} <= losses("unified") and "loss_gen" not in losses("embedding")
    said = grit(capsys, f"{command} --part cached --json")
    assert said.status == 0, said.err
    cached = said.json["cached"]
    assert list(cached["models"]) == ["distilled", "undistilled"] and "joint" in said.json
    assert len(losses("distilled") - losses("undistilled")) == 1
    # What is trained and scored stays, and is the model that the other parts score.
    changed = Path("x/seed-0/distilled/metrics.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(answers, "row_documents", None)
    said = grit(capsys, f"{command} --part documents --json")
    assert said.json["documents"]["scores"] == cached["models"]["distilled"]["scores"]
    assert (
        without_seconds(grit(capsys, f"{command} --part cached --json").json)["cached"]
        == (without_seconds({"cached": cached})["cached"])
    )
    assert Path("x/seed-0/distilled/metrics.jsonl").stat().st_mtime_ns == changed
    said = grit(capsys, f"{command.replace('--steps 2', '--steps 3')} --part joint")
    assert said.status == 2 and "unified.yaml: differs from what this version and" in said.lines[-1]
