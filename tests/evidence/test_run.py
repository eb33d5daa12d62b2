"""`grit evidence`: configurations of the joint part, folder, resuming; (slow) a small whole of both
parts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from cli_world import run as grit
from evidence_rows import rows

from grit_jax.cli.main import build_parser
from grit_jax.config import build, dump_yaml
from grit_jax.data.config import DataConfig
from grit_jax.data.pipeline import JointBatches
from grit_jax.errors import GritError
from grit_jax.evaluation.rag import read_questions
from grit_jax.evaluation.rag_table import evaluate_table
from grit_jax.evidence import cached, recipes, run
from grit_jax.models.config import ModelConfig
from grit_jax.pydocs import corpus
from grit_jax.pydocs.corpus import CorpusOptions
from grit_jax.quickstart import configs as quickstart
from grit_jax.run_config import RunConfig, read_run_config
from grit_jax.train import TrainResult
from grit_jax.training import loop
from grit_jax.training.losses import LossConfig

KINDS, LOSSES = ("embedding", "generative", "cached"), ("loss_emb", "loss_gen", "loss_cached")


# ---- configurations ------------------------------------------------------------------------------


def recipe(name: str, folder: str = "") -> RunConfig:
    """A recipe as it is read from `folder`; paths stay relative without one."""
    text = recipes.recipe_texts()[name].replace("data/train", str(Path(folder, "data/train")))
    return build(RunConfig, yaml.safe_load(text), name)


def test_the_recipes_are_copied_and_their_paths_are_of_the_folder(tmp_path):
    run._claim(tmp_path / "x")
    run._claim(tmp_path / "x")
    texts = recipes.recipe_texts()
    assert {path.name for path in (tmp_path / "x").iterdir()} == {f"{name}.yaml" for name in texts}
    shape = yaml.safe_load(texts["base"])["model"]["shape"]
    for name, text in texts.items():
        path = tmp_path / "x" / f"{name}.yaml"
        assert path.read_text() == text and yaml.safe_load(text)["model"]["shape"] == shape
        config = read_run_config(path)
        files = [*config.data.embedding, *config.data.generative, *config.data.cached]
        assert files and all(Path(file).is_relative_to(tmp_path / "x/data/train") for file in files)
        assert Path(config.output).is_relative_to(tmp_path / "x")
    assert ModelConfig(**shape) == quickstart.SHAPE
    run._copy_tokenizer(tmp_path / "x/tokenizer")
    tokenizer = read_run_config(tmp_path / "x/base.yaml").tokenizer.path
    assert tokenizer == str(tmp_path / "x/tokenizer")


def test_joint_models_differ_in_their_losses_and_learning_rates_alone():
    twins = {name: recipe(name) for name in recipes.JOINT_MODELS}
    plain = {
        name: dataclasses.replace(
            config,
            output="",
            data=DataConfig(),
            optimizer=dataclasses.replace(config.optimizer, lr=0.0),
            train=dataclasses.replace(config.train, loss=LossConfig()),
        )
        for name, config in twins.items()
    }
    assert plain["unified"] == plain["embedding"] == plain["generative"]
    joint = twins["unified"].data
    assert dataclasses.replace(joint, generative=[], generative_batch=0) == twins["embedding"].data
    assert dataclasses.replace(joint, embedding=[], embedding_batch=0) == twins["generative"].data
    assert joint.embedding_batch and joint.generative_batch and not joint.cached_batch
    base = recipe("base").data
    assert base.generative_batch and not base.embedding and not base.cached


def test_joint_models_see_the_same_examples_in_the_same_order(tmp_path, sentences, tiny_tokenizer):
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
        name: JointBatches(recipe(name, str(tmp_path)).data, tiny_tokenizer, seed=3, num_steps=9)
        for name in recipes.JOINT_MODELS
    }
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    for step in (0, 4, 8):
        unified, embedding, generative = (batches[name][step] for name in recipes.JOINT_MODELS)
        assert embedding.generative is None and generative.embedding is None
        same(unified.embedding, embedding.embedding)
        same(unified.generative, generative.generative)
    other = JointBatches(recipe("unified", str(tmp_path)).data, tiny_tokenizer, seed=4, num_steps=9)
    assert other.ids(0) != batches["unified"].ids(0)


# ---- the folder and what is redone ---------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working directory without a corpus, in which `train` only writes scores; the runs that it
    made, in order."""
    made: list[tuple[str, int]] = []

    def train(config):
        folder = Path(config.output)
        if not (folder / "metrics.jsonl").exists():
            folder.mkdir(parents=True)
            made.append(
                ("/".join(folder.absolute().parts[len(tmp_path.parts) + 1 :]), config.train.seed)
            )
            last = {
                "eval_ndcg@10": 0.4,
                "eval_recall@10": 0.5,
                "eval_perplexity": 50.0,
                "seconds": 1.0,
            }
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **last}) + "\n")
        return TrainResult(folder, folder / "model", 1)

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(
        run,
        "prepare_corpus",
        lambda data, seed: (
            (data / "train").mkdir(parents=True, exist_ok=True) or {"held_out": 1187}
        ),
    )
    monkeypatch.setattr(
        run, "write_rows", lambda source, output, *ks, **how: output.write_text("{}\n")
    )
    monkeypatch.setattr(
        run, "write_repeats", lambda source, output, *how: output.write_text("{}\n")
    )
    monkeypatch.setattr(cached, "score", lambda folder, held_out: rows(lambda case: 80))
    monkeypatch.chdir(tmp_path)
    return made


def test_finished_runs_are_not_redone(world, tmp_path, monkeypatch):
    out, train = tmp_path / "x", run.train
    once = lambda config: (
        (_ for _ in ()).throw(KeyboardInterrupt) if len(world) == 3 else train(config)
    )
    monkeypatch.setattr(run, "train", once)
    with pytest.raises(KeyboardInterrupt):
        run.run_evidence(out, seeds=2, part="joint")
    assert world == [("base", 0), ("seed-0/unified", 0), ("seed-0/embedding", 0)]
    assert not (out / "evidence.json").exists() and not (out / "table.md").exists()
    monkeypatch.setattr(run, "train", train)
    first = run.run_evidence(out, seeds=2, part="joint")
    assert world[3:] == [("seed-0/generative", 0)] + [
        (f"seed-1/{name}", 1) for name in recipes.JOINT_MODELS
    ]
    assert json.loads((out / "evidence.json").read_text()) == first
    assert (out / "table.md").read_text() == run.markdown(first)
    # Again, and with more seeds: only those are new.
    assert run.run_evidence(out, seeds=2, part="joint") == first and len(world) == 7
    third = run.run_evidence(out, seeds=3, part="joint")
    assert world[7:] == [(f"seed-2/{name}", 2) for name in recipes.JOINT_MODELS]
    assert third["joint"]["twins"]["unified"][:2] == first["joint"]["twins"]["unified"]
    # The other part goes on from the same base, and both together need nothing more.
    other = run.run_evidence(out, seeds=1, part="cached")
    assert world[10:] == [
        ("copier", 0),
        ("reader", 0),
        *((f"seed-0/{name}", 0) for name in recipes.CACHED_MODELS),
    ]
    assert "joint" not in other and other["cached"]["targets"]
    assert (out / "data/train/several.jsonl").exists() and (
        out / "data/train/repeats.jsonl"
    ).exists()
    both = run.run_evidence(out, seeds=1)
    assert (
        len(world) == 14
        and both["cached"] == other["cached"]
        and both["joint"]["base"] == first["joint"]["base"]
    )
    said = (out / "table.md").read_text()
    assert (
        "## Does joint training" in said
        and "## Do cached layouts" in said
        and "The claim holds" in said
    )


def test_no_seed_at_all(world, tmp_path):
    with pytest.raises(GritError, match="--seeds: must be at least 1, got 0"):
        run.run_evidence(tmp_path / "x", seeds=0)
    with pytest.raises(GritError, match="--part: must be joint, cached or all, got 'both'"):
        run.run_evidence(tmp_path / "x", part="both")
    assert not (tmp_path / "x").exists()


def test_its_commands_are_the_runs(world, tmp_path):
    """A person who types a command gets the configuration that was run."""
    found = run.run_evidence(Path("x"), seeds=2, part="joint")["commands"]
    assert len(found) == 2 + 2 * len(recipes.JOINT_MODELS)
    assert (
        found[0] == "grit data pydocs --output x/data --seed 0"
        and found[1] == "grit train x/base.yaml"
    )
    verb, action, path, seed, number, output, folder = found[-2].split()
    assert (verb, action, seed, output) == ("grit", "train", "--train.seed", "--output")
    typed = read_run_config(path, {"train.seed": number, "output": folder})
    assert (typed.train.seed, typed.data.generative_batch) == (1, 0)
    assert (tmp_path / typed.output / "metrics.jsonl").exists()
    assert typed.data.embedding == [str(tmp_path / "x/data/train/embedding_summary.jsonl")]
    found = run.run_evidence(Path("x"), seeds=2, part="cached")["commands"]
    assert len(found) == 6 + 2 * len(recipes.CACHED_MODELS) * (1 + len(cached.SWEEPS))
    parsed = [
        build_parser().parse_args(line.split()[1:]) for line in found if " train " not in line
    ]
    assert [one.kind for one in parsed] == ["pydocs", "repeats", "distractors", *["rag"] * 8]
    assert (parsed[1].rows, parsed[1].seed) == (recipes.REPEATS, run.CORPUS_SEED)
    assert (parsed[2].k, parsed[2].rows) == ([*recipes.SEVERAL_DOCUMENTS], recipes.SEVERAL_ROWS)
    assert [(one.modes, one.k, one.kv, one.positions) for one in parsed[3:5]] == [
        (list(modes), list(ks), list(kvs), list(placements))
        for modes, ks, kvs, placements in cached.SWEEPS
    ]


def test_it_prints_one_object_or_the_table(world, capsys):
    said = grit(capsys, "evidence --seeds 1 --out x --json")
    assert said.status == 0 and said.json == json.loads(Path("x/evidence.json").read_text())
    assert {"version", "corpus", "seeds", "joint", "cached", "commands"} <= said.json.keys()
    said = grit(capsys, "evidence --seeds 1 --out x")
    assert said.out == Path("x/table.md").read_text() and "The claim holds" in said.out


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--seeds 0", "--seeds: must be at least 1, got 0"),
        ("--seeds three", "--seeds: must be a whole number, got 'three'"),
        ("--part both", "--part: invalid choice: 'both'"),
        ("--seed 3", "unknown flag --seed, did you mean --seeds?"),
        ("--out file", "file: is a file; name a folder"),
        ("--out file/x", "file/x: cannot be written (Not a directory)"),
        ("--out /proc/x", "/proc/x: cannot be written"),
        (
            "--out strange",
            "strange: the folder is not empty and holds no evidence; choose another --out",
        ),
        (
            "--out other",
            "other/unified.yaml: differs from this version's recipe; choose another --out",
        ),
        ("--out broken", "broken/base.yaml:1: not valid YAML"),
        (
            "--out unscored",
            "metrics.jsonl: lacks the final scores; remove unscored/seed-0/unified to train",
        ),
    ],
)
def test_bad_input_ends_in_one_line(flags, words, world, capsys, tmp_path):
    Path("file").write_text("")
    Path("strange").mkdir()
    Path("strange/report.json").write_text("{}")
    for name in ("other", "unscored"):
        run._claim(Path(name))
    text = Path("other/unified.yaml").read_text()
    Path("other/unified.yaml").write_text(text.replace("embedding_batch: ", "embedding_batch: 9"))
    Path("broken").mkdir()
    Path("broken/base.yaml").write_text("output: [")
    for folder in ("base", "seed-0/unified"):
        line = {"step": 0, "eval_ndcg@10": 0.4, "eval_recall@10": 0.5}
        line |= {"eval_perplexity": 50.0} if folder == "base" else {}
        Path("unscored", folder).mkdir(parents=True)
        Path("unscored", folder, "metrics.jsonl").write_text(json.dumps(line) + "\n")
    said = grit(capsys, f"evidence --json {flags}")
    assert (said.status, said.out) == (2, "")
    assert words in said.lines[-1] and said.lines[-1].startswith("grit evidence: "), said.lines
    assert not world and not list(tmp_path.glob("*/evidence.json"))


# ---- a small whole -------------------------------------------------------------------------------


def make_small(monkeypatch):
    """Runs of four steps of one layer on a small corpus, scored by six questions."""
    texts = recipes.recipe_texts()

    def short(text):
        config = build(RunConfig, yaml.safe_load(text), "a recipe")
        train = dataclasses.replace(config.train, steps=4, checkpoint_every=2)
        batches = {f"{kind}_batch": min(getattr(config.data, f"{kind}_batch"), 4) for kind in KINDS}
        data = dataclasses.replace(config.data, **batches, probe_steps=1)
        shape = dataclasses.replace(config.model.shape, num_hidden_layers=1)
        model = dataclasses.replace(config.model, shape=shape)
        return dump_yaml(dataclasses.replace(config, train=train, data=data, model=model))

    def few(model, path, *how, **more):
        return evaluate_table(model, read_questions(path)[:6], *how, quiet=True, **more)

    monkeypatch.setattr(
        run, "recipe_texts", lambda: {name: short(text) for name, text in texts.items()}
    )
    monkeypatch.setattr(run, "SEVERAL_ROWS", 60)
    monkeypatch.setattr(run, "REPEATS", 200)
    monkeypatch.setattr(cached, "evaluate_table", few)
    write = corpus.write_corpus
    monkeypatch.setattr(
        corpus,
        "write_corpus",
        lambda out, seed, _: write(out, seed, CorpusOptions(documents=250), progress=False),
    )


@pytest.mark.slow
def test_a_small_one_of_the_cached_layouts_from_end_to_end(tmp_path, monkeypatch):
    make_small(monkeypatch)
    out = tmp_path / "whole"
    report = run.run_evidence(out, seeds=1, part="cached")
    found = report["cached"]
    losses = {
        name: (
            set(json.loads((out / name / "metrics.jsonl").read_text().splitlines()[0])) & {*LOSSES}
        )
        for name in ("base", "copier", "reader", "seed-0/trained", "seed-0/untrained")
    }
    assert losses["base"] == losses["copier"] == {"loss_gen"} and losses["reader"] == {
        "loss_gen",
        "loss_cached",
    }
    assert losses["seed-0/trained"] == losses["seed-0/untrained"] == {*LOSSES}
    for name in recipes.CACHED_MODELS:
        assert found["twins"][name][0]["steps"] == 4 and found["twins"][name][0]["questions"] == 6
        scored = json.loads((out / "seed-0" / name / "rag.json").read_text())["rows"]
        assert (
            len(scored) == len({cached._case(row) for row in scored}) == 1 + 6 + 3 + 5 + 6 + 6 + 9
        )
        assert all(row["match"] == pytest.approx(row["hits"].count("1") / 6) for row in scored)
    lines = [
        json.loads(line) for line in (out / "data/train/several.jsonl").read_text().splitlines()
    ]
    assert [len(line["docs"]) for line in lines] == 15 * [*recipes.SEVERAL_DOCUMENTS]
    assert (out / "table.md").read_text() == run.markdown(
        report
    ) and "12 targets hold" in run.markdown(report)
    # Done, and not done again.
    monkeypatch.setattr(cached, "evaluate_table", None)
    assert run.run_evidence(out, seeds=1, part="cached") == report


@pytest.mark.slow
def test_a_small_one_from_end_to_end_also_after_an_interruption(tmp_path, monkeypatch):
    make_small(monkeypatch)
    whole = run.run_evidence(tmp_path / "whole", seeds=1, part="joint")
    found = whole["joint"]["twins"]
    assert all(found[name][0]["steps"] == 4 for name in recipes.JOINT_MODELS)
    assert whole["joint"]["base"]["perplexity"] > found["generative"][0]["perplexity"] > 1
    losses = {
        name: (
            set(
                json.loads(
                    (tmp_path / f"whole/seed-0/{name}/metrics.jsonl").read_text().splitlines()[0]
                )
            )
            & {*LOSSES}
        )
        for name in recipes.JOINT_MODELS
    }
    assert losses == {
        "unified": {"loss_emb", "loss_gen"},
        "embedding": {"loss_emb"},
        "generative": {"loss_gen"},
    }
    for name in recipes.JOINT_MODELS:
        assert (tmp_path / f"whole/seed-0/{name}/model/config.json").exists()

    # A twin that is stopped after its first checkpoint goes on from there, those before it stay as
    # they are.
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
        run.run_evidence(tmp_path / "cut", seeds=1, part="joint")
    assert (tmp_path / "cut/seed-0/generative/checkpoints/2").exists()
    kept = (tmp_path / "cut/seed-0/unified/metrics.jsonl").stat().st_mtime_ns
    again = run.run_evidence(tmp_path / "cut", seeds=1, part="joint")
    assert len(calls) == 6  # steps 2 and 3, once more
    assert (tmp_path / "cut/seed-0/unified/metrics.jsonl").stat().st_mtime_ns == kept

    def without_clock(value):
        if isinstance(value, dict):
            return {
                key: without_clock(item)
                for key, item in value.items()
                if key not in ("seconds", "commands")
            }
        return [without_clock(item) for item in value] if isinstance(value, list) else value

    assert without_clock(again) == without_clock(whole)
