"""The single-task twins against the joint model: configurations, arithmetic, folder, resuming; (slow) a small whole."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_world import run as grit

from grit_jax import evidence, quickstart
from grit_jax.config import build, read_yaml
from grit_jax.data.pipeline import JointBatches
from grit_jax.run_config import RunConfig, read_run_config
from grit_jax.train import TrainResult
from grit_jax.training import loop
from grit_jax.types import GritError

SHIPPED = Path(__file__).parent.parent / "configs" / "evidence"


# ---- configurations ------------------------------------------------------------------------------------------------


def test_the_files_in_configs_are_what_is_run():
    made = evidence.configs("../../runs/evidence", "../../grit_jax/base")
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == made.keys()
    for name, config in made.items():
        path = SHIPPED / f"{name}.yaml"
        assert path.read_text().startswith(f"# grit train configs/evidence/{name}.yaml")
        assert build(RunConfig, read_yaml(path), str(path)) == config
    assert (SHIPPED / made["base"].tokenizer.path / "tokenizer.json").exists()


def test_twins_differ_in_their_losses_and_in_what_is_tuned_alone():
    twins = {name: evidence.twin_config(name) for name in evidence.TWINS}
    plain = {
        name: dataclasses.replace(
            config, output="", data=None, optimizer=dataclasses.replace(config.optimizer, lr=0.0),
            train=dataclasses.replace(config.train, loss=None),
        )
        for name, config in twins.items()
    }  # fmt: skip
    assert plain["unified"] == plain["embedding"] == plain["generative"]
    joint = twins["unified"].data
    assert dataclasses.replace(joint, generative=[], generative_batch=0) == twins["embedding"].data
    assert dataclasses.replace(joint, embedding=[], embedding_batch=0) == twins["generative"].data
    assert joint.embedding_batch and joint.generative_batch and not joint.cached_batch
    base = evidence.base_config().data
    assert base.generative_batch and not base.embedding and not base.cached


def test_twins_see_the_same_examples_in_the_same_order(tmp_path, sentences, tiny_tokenizer):
    rows = [
        {"query": ["find it", a], "pos": [["", b]], "neg": [["", c], ["", a]]}
        for a, b, c in zip(sentences[:60], sentences[60:120], sentences[120:180], strict=True)
    ]
    (tmp_path / "data" / "train").mkdir(parents=True)
    texts = [{"text": [a, b]} for a, b in zip(sentences[:50], sentences[50:100], strict=True)]
    for name, lines in (("embedding_summary", rows), ("generative", texts)):
        path = tmp_path / "data" / "train" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batches = {
        name: JointBatches(evidence.twin_config(name, str(tmp_path)).data, tiny_tokenizer, seed=3, num_steps=9)
        for name in evidence.TWINS
    }
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    for step in (0, 4, 8):
        unified, embedding, generative = (batches[name][step] for name in evidence.TWINS)
        assert embedding.generative is None and generative.embedding is None
        same(unified.embedding, embedding.embedding)
        same(unified.generative, generative.generative)
    other = JointBatches(evidence.twin_config("unified", str(tmp_path)).data, tiny_tokenizer, seed=4, num_steps=9)
    assert other.ids(0) != batches["unified"].ids(0)


# ---- arithmetic and words ------------------------------------------------------------------------------------------


def scores(unified, embedding, generative):
    """By twin, a dictionary a seed, from (nDCG, perplexity) pairs."""
    row = lambda pair: {"ndcg@10": pair[0], "recall@10": 0.5, "perplexity": pair[1], "steps": 240, "seconds": 9.0}
    named = {"unified": unified, "embedding": embedding, "generative": generative}
    return {name: [row(pair) for pair in pairs] for name, pairs in named.items()}


def report(found):
    seeds = len(found["unified"])
    return {
        "corpus": {"held_out": 1187}, "seeds": list(range(seeds)), "commands": ["grit train base.yaml"],
        "joint": {"base": found["unified"][0], "twins": found, **evidence.compare(found)},
    }  # fmt: skip


def test_spread_and_paired_differences():
    found = evidence.compare(scores([(0.40, 50.0), (0.50, 40.0)], [(0.42, 99.0), (0.49, 99.0)], [(0.1, 40.0), (0.1, 50.0)]))
    assert found["summary"]["unified"]["ndcg@10"] == pytest.approx({"mean": 0.45, "min": 0.40, "max": 0.50})
    assert found["summary"]["embedding"]["perplexity"] == {"mean": 99.0, "min": 99.0, "max": 99.0}
    finding, writing = found["differences"]["ndcg@10"], found["differences"]["perplexity"]
    assert (finding["twin"], writing["twin"]) == ("embedding", "generative")
    assert finding["per_seed"] == pytest.approx([0.02, -0.01])  # twin - unified, seed by seed
    assert finding["cost_per_seed"] == pytest.approx([0.02, -0.01])
    assert finding["cost"] == pytest.approx({"mean": 0.005, "min": -0.01, "max": 0.02})
    assert writing["per_seed"] == pytest.approx([-10.0, 10.0])
    assert writing["cost_per_seed"] == pytest.approx([0.25, -0.2])  # more perplexity is worse: relative to the twin's
    assert writing["cost"]["mean"] == pytest.approx(0.025)
    assert finding["holds"] and not writing["holds"] and not found["holds"]


@pytest.mark.parametrize(
    "unified, holds, words",
    [
        ((0.391, 50.4), True, ["The claim holds", "Finding loses 0.90 points", "Writing loses 0.80% of perplexity"]),
        ((0.389, 50.4), False, ["The claim does not hold", "Finding loses 1.10 points", "the margin is 1 point"]),
        ((0.391, 50.6), False, ["The claim does not hold", "Writing loses 1.20% of perplexity", "the margin is 1%"]),
        ((0.500, 40.0), True, ["The claim holds", "Finding gains 10.00 points", "Writing gains 20.00% of perplexity"]),
    ],
)  # fmt: skip
def test_the_verdict(unified, holds, words):
    found = evidence.compare(scores([unified], [(0.4, 99.0)], [(0.1, 50.0)]))
    assert found["holds"] is holds
    said = evidence.verdict(found)
    assert all(word in said for word in words), said
    assert "one seed" in said and "by seed" not in said


def test_the_verdict_says_what_the_seeds_do():
    twins = scores([(0.40, 50.0), (0.40, 50.0)], [(0.402, 9.0), (0.415, 9.0)], [(0.1, 50.0), (0.1, 50.1)])
    said = evidence.verdict(evidence.compare(twins))
    assert "Finding loses 0.85 points of nDCG@10 (cost by seed +0.20 to +1.50, within the margin in 1 of 2)" in said
    assert said.count("differ by more than that") == 1 and "within the margin in 2 of 2" in said


def test_the_table():
    twins = scores([(0.40, 50.0), (0.41, 52.0)], [(0.42, 90.0), (0.40, 94.0)], [(0.02, 50.5), (0.04, 51.5)])
    said = evidence.markdown(report(twins))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows[:6]}) == 1 and len({len(row) for row in rows[6:]}) == 1
    cells = {row[0]: row[1:] for row in rows}
    assert cells["unified"] == ["both losses", "240", "40.50 (40.00 to 41.00)", "51.000 (50.000 to 52.000)"]
    assert cells["generative"][2:] == ["3.00 (2.00 to 4.00)", "51.000 (50.500 to 51.500)"]
    assert cells["nDCG@10, points (embedding)"] == ["+2.00", "-1.00", "+0.50"]
    assert cells["perplexity (generative)"] == ["+0.500", "-0.500", "+0.000"]
    assert evidence.verdict(report(twins)["joint"]) in said and "grit train base.yaml" in said
    alone = evidence.markdown(report(scores([(0.4, 50.0)], [(0.4, 50.0)], [(0.4, 50.0)])))
    assert "| 40.00 | 50.000 |" in alone and "over 1 seed," in alone


# ---- the folder and what is redone ---------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working directory without a corpus, in which `train` only writes scores; the runs that it made, in order."""
    made: list[tuple[str, int]] = []

    def train(config):
        folder = Path(config.output)
        if not (folder / "metrics.jsonl").exists():
            folder.mkdir(parents=True)
            made.append(("/".join(folder.absolute().parts[len(tmp_path.parts) + 1 :]), config.train.seed))
            last = {"eval_ndcg@10": 0.4, "eval_recall@10": 0.5, "eval_perplexity": 50.0, "seconds": 1.0}
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **last}) + "\n")
        return TrainResult(folder, folder / "model", 1)

    monkeypatch.setattr(evidence, "train", train)
    monkeypatch.setattr(evidence, "prepare_corpus", lambda data, seed: {"held_out": 1187})
    monkeypatch.chdir(tmp_path)
    return made


def test_finished_runs_are_not_redone(world, tmp_path, monkeypatch):
    out, train = tmp_path / "x", evidence.train
    once = lambda config: (_ for _ in ()).throw(KeyboardInterrupt) if len(world) == 3 else train(config)
    monkeypatch.setattr(evidence, "train", once)
    with pytest.raises(KeyboardInterrupt):
        evidence.run_evidence(out, seeds=2)
    assert world == [("base", 0), ("seed-0/unified", 0), ("seed-0/embedding", 0)]
    assert not (out / "evidence.json").exists() and not (out / "table.md").exists()
    monkeypatch.setattr(evidence, "train", train)
    first = evidence.run_evidence(out, seeds=2)
    assert world[3:] == [("seed-0/generative", 0)] + [(f"seed-1/{name}", 1) for name in evidence.TWINS]
    assert json.loads((out / "evidence.json").read_text()) == first
    assert (out / "table.md").read_text() == evidence.markdown(first)
    # Again, and with more seeds: only those are new.
    assert evidence.run_evidence(out, seeds=2) == first and len(world) == 7
    third = evidence.run_evidence(out, seeds=3)
    assert world[7:] == [(f"seed-2/{name}", 2) for name in evidence.TWINS]
    assert third["joint"]["twins"]["unified"][:2] == first["joint"]["twins"]["unified"]


def test_no_seed_at_all(world, tmp_path):
    with pytest.raises(GritError, match="--seeds must be at least 1, is 0"):
        evidence.run_evidence(tmp_path / "x", seeds=0)
    assert not (tmp_path / "x").exists()


def test_its_commands_are_the_runs(world, tmp_path):
    """A person who types a command gets the configuration that was run."""
    found = evidence.run_evidence(Path("x"), seeds=2)["commands"]
    assert len(found) == 2 + 2 * len(evidence.TWINS)
    assert found[0] == "grit data pydocs --output x/data --seed 0" and found[1] == "grit train x/base.yaml"
    verb, action, path, seed, number, output, folder = found[-2].split()
    assert (verb, action, seed, output) == ("grit", "train", "--train.seed", "--output")
    typed = read_run_config(path, {"train.seed": number, "output": folder})
    assert (typed.train.seed, typed.data.generative_batch) == (1, 0)
    assert (tmp_path / typed.output / "metrics.jsonl").exists()
    assert typed.data.embedding == [str(tmp_path / "x/data/train/embedding_summary.jsonl")]


def test_it_prints_one_object_or_the_table(world, capsys):
    said = grit(capsys, "evidence --seeds 1 --out x --json")
    assert said.status == 0 and said.json == json.loads(Path("x/evidence.json").read_text())
    assert {"version", "corpus", "seeds", "joint", "commands"} <= said.json.keys()
    said = grit(capsys, "evidence --seeds 1 --out x")
    assert said.out == Path("x/table.md").read_text() and "The claim holds" in said.out


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--seeds 0", "--seeds: must be at least 1, is 0"),
        ("--seeds three", "--seeds: must be a whole number, is 'three'"),
        ("--seed 3", "unknown flag --seed, did you mean --seeds?"),
        ("--out file", "file: is a file; name a folder"),
        ("--out file/x", "file/x: cannot be written (Not a directory)"),
        ("--out /proc/x", "/proc/x: cannot be written"),
        ("--out strange", "strange: the folder is not empty and holds no evidence; choose another --out"),
        ("--out other", "other/unified.yaml: is another configuration than this version's; choose another --out"),
        ("--out broken", "broken/base.yaml:1: not valid YAML"),
        ("--out unscored", "metrics.jsonl: lacks the final scores; remove unscored/seed-0/unified to train"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(flags, words, world, capsys, tmp_path):
    Path("file").write_text("")
    Path("strange").mkdir()
    Path("strange/report.json").write_text("{}")
    for name in ("other", "unscored"):
        evidence._claim(Path(name))
    text = Path("other/unified.yaml").read_text()
    Path("other/unified.yaml").write_text(text.replace("embedding_batch: ", "embedding_batch: 9"))
    Path("broken").mkdir()
    Path("broken/base.yaml").write_text("output: [")
    for run in ("base", "seed-0/unified"):
        line = {"step": 0, "eval_ndcg@10": 0.4, "eval_recall@10": 0.5}
        line |= {"eval_perplexity": 50.0} if run == "base" else {}
        Path("unscored", run).mkdir(parents=True)
        Path("unscored", run, "metrics.jsonl").write_text(json.dumps(line) + "\n")
    said = grit(capsys, f"evidence --json {flags}")
    assert (said.status, said.out) == (2, "")
    assert words in said.lines[-1] and said.lines[-1].startswith("grit evidence: "), said.lines
    assert not world and not list(tmp_path.glob("*/evidence.json"))


# ---- a small whole -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_one_from_end_to_end_also_after_an_interruption(tmp_path, monkeypatch):
    base_config, twin_config = evidence.base_config, evidence.twin_config

    def short(config):
        train = dataclasses.replace(config.train, steps=4, checkpoint_every=2)
        data = dataclasses.replace(
            config.data, embedding_batch=min(config.data.embedding_batch, 4),
            generative_batch=min(config.data.generative_batch, 4),
        )  # fmt: skip
        return dataclasses.replace(config, train=train, data=data)

    monkeypatch.setattr(evidence, "base_config", lambda *where: short(base_config(*where)))
    monkeypatch.setattr(evidence, "twin_config", lambda *which: short(twin_config(*which)))
    small = functools.partial(quickstart.write_corpus, max_documents=250, progress=False)
    monkeypatch.setattr(quickstart, "write_corpus", small)

    whole = evidence.run_evidence(tmp_path / "whole", seeds=1)
    found = whole["joint"]["twins"]
    assert all(found[name][0]["steps"] == 4 for name in evidence.TWINS)
    assert whole["joint"]["base"]["perplexity"] > found["generative"][0]["perplexity"] > 1
    losses = {
        name: set(json.loads((tmp_path / f"whole/seed-0/{name}/metrics.jsonl").read_text().splitlines()[0]))
        & {"loss_emb", "loss_gen", "loss_cached"}
        for name in evidence.TWINS
    }
    assert losses == {"unified": {"loss_emb", "loss_gen"}, "embedding": {"loss_emb"}, "generative": {"loss_gen"}}
    for name in evidence.TWINS:
        assert (tmp_path / f"whole/seed-0/{name}/model/config.json").exists()

    # A twin that is stopped after its first checkpoint goes on from there, those before it stay as they are.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("evidence.json", "table.md"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut/seed-0/generative")
    put_rows, calls = loop.put_rows, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return put_rows(*args)

    monkeypatch.setattr(loop, "put_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        evidence.run_evidence(tmp_path / "cut", seeds=1)
    assert (tmp_path / "cut/seed-0/generative/checkpoints/2").exists()
    kept = (tmp_path / "cut/seed-0/unified/metrics.jsonl").stat().st_mtime_ns
    again = evidence.run_evidence(tmp_path / "cut", seeds=1)
    assert len(calls) == 6  # steps 2 and 3, once more
    assert (tmp_path / "cut/seed-0/unified/metrics.jsonl").stat().st_mtime_ns == kept

    def without_clock(value):
        if isinstance(value, dict):
            return {key: without_clock(item) for key, item in value.items() if key not in ("seconds", "commands")}
        return [without_clock(item) for item in value] if isinstance(value, list) else value

    assert without_clock(again) == without_clock(whole)
