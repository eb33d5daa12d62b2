"""Runs with the options of training: each is trained, told of and kept in the model directory."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from training_run import SHAPE

from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.token_texts import TokenCached, TokenText
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.models.config import ModelConfig
from grit_jax.models.projection import PROJECTION
from grit_jax.models.transformer import init_params
from grit_jax.rag.index import build_index
from grit_jax.runtime.files import write_jsonl
from grit_jax.runtime.metrics import read_lines
from grit_jax.train import export_checkpoint, read_run_config, train
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.types import AttentionMode, Batch

# What other libraries cannot do with these directories is told in a warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore:embedding_mode prefix", "ignore:generation_mode prefix"
)

EMBEDDING = {
    "model.attention": "cbbc",
    "model.projection": 12,
    "data.positives_per_query": 2,
    "train.embedding_chunk": 6,  # over eight devices: 8
    "train.loss": {
        "symmetric": True,
        "false_negatives": "absolute",
        "false_negative_margin": -0.1,
        "mask_duplicates": True,
        "matryoshka_dims": [12, 4],
        "matryoshka_weights": [1, 0.5],
        "distillation_factor": 0.5,
        "mix_group_size": 3,
    },
}
EVERYTHING = EMBEDDING | {
    "train.backward": "split",
    "train.generative_chunk": 8,
    "train.cached_chunk": 8,
    "train.loss": EMBEDDING["train.loss"] | {"cached_distillation": 0.5},
}
HALVED = ("loss_distill", "loss_cached_kl")  # parts of the loss with a factor of 0.5
ALONE = {
    kind: {
        f"data.{other}_batch": 0 for other in ("embedding", "generative", "cached") if other != kind
    }
    for kind in ("embedding", "generative", "cached")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    """A configuration with all three kinds of data, a teacher's scores, lines that nobody can read
    and an instruction that is too long."""
    root = tmp_path_factory.mktemp("options")
    short = [" ".join(sentence.split()[:8]) for sentence in sentences]
    files = {
        "embedding": [
            {
                "query": ["find it", a],
                "pos": [["", b], ["", c]][: 1 + i % 2],
                "neg": [["", d]],
                "scores": [2.0, 1.0, 0.0][: 2 + i % 2],
            }
            for i, (a, b, c, d) in enumerate(
                zip(short[:40], short[40:80], short[80:120], short[120:160])
            )
        ],
        "generative": [
            {"text": [a, b, c, d]}
            for a, b, c, d in zip(short[:20], short[20:], short[40:], short[60:])
        ],
        "cached": [
            {"docs": [a], "text": [b, c]} for a, b, c in zip(short[:30], short[30:60], short[60:90])
        ],
        "documents": [{"id": str(i), "text": text} for i, text in enumerate(sentences)],
    }
    for name, lines in files.items():
        write_jsonl(root / f"{name}.jsonl", lines)
    long = {"query": ["find " * 99, "a"], "pos": ["b"], "neg": ["c"], "scores": [1, 0]}
    for name, lines in (
        ("generative", ['{"text": null}']),
        ("embedding", ['{"query": "q"', json.dumps(long)]),
    ):
        with (root / f"{name}.jsonl").open("a") as file:
            file.write("".join(line + "\n" for line in lines))
    shape = SHAPE | {"num_hidden_layers": 1}
    config = {
        "model": {"shape": shape, "dtype": "float32", "remat": "none", "scan_layers": False},
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 480},
        "data": {
            "embedding": ["embedding.jsonl"],
            "generative": ["generative.jsonl"],
            "cached": ["cached.jsonl"],
            "embedding_batch": 6,
            "generative_batch": 4,
            "cached_batch": 4,
            "query_max_length": 64,
            "on_error": "skip",
            "passage_max_length": 64,
            "generative_max_length": 160,
            "document_max_length": 64,
            "layouts": ["doc"],
        },
        "train": {"steps": 4, "checkpoint_every": 4},
        "optimizer": {"lr": 1e-3},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "out",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def run(folder, output, **overrides):
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    keys = {
        key: json.dumps(value) if isinstance(value, (dict, list)) else str(value)
        for key, value in keys.items()
    }
    return read_run_config(folder / "config.yaml", {**keys, "output": str(folder / output)})


def evaluated(folder) -> dict:
    """Keys of an evaluation on held-out data every two steps."""
    for kind in ("embedding", "generative"):
        lines = (folder / f"{kind}.jsonl").read_text().splitlines()[:12]
        (folder / f"held_{kind}.jsonl").write_text("\n".join(lines))
    files = {
        f"train.eval_{kind}": str(folder / f"held_{kind}.jsonl")
        for kind in ("embedding", "generative")
    }
    return files | {"train.eval_every": 2}


def check_parts(lines, generated) -> None:
    """Every part of the loss is there and their sum is the loss."""
    parts = {"loss_emb", "loss_distill", *generated}
    for line in lines:
        assert {key for key in line if key.startswith("loss_")} == parts
        assert all(np.isfinite(line[part]) for part in parts)
        assert line["loss"] == pytest.approx(
            sum(line[part] * (0.5 if part in HALVED else 1) for part in parts), rel=1e-5
        )


@pytest.fixture(scope="module")
def embedding_run(folder):
    """The embedding side with all of its options, evaluated every two steps."""
    more = {"data.num_samples": {str(folder / "embedding.jsonl"): 30}, "train.checkpoint_every": 9}
    return train(
        run(folder, "embedding_run", **EMBEDDING, **ALONE["embedding"], **evaluated(folder), **more)
    )


def test_metrics_carry_every_part_and_an_evaluation_every_so_many_steps(embedding_run):
    lines = read_lines(embedding_run.output / "metrics.jsonl")
    check_parts(lines, [])
    for line in lines:
        due = line["step"] in (1, 3)  # after two steps and after four
        assert ("eval_ndcg@10" in line) == ("eval_perplexity" in line) == due
        assert not due or (0 < line["eval_ndcg@10"] <= 1 and line["eval_perplexity"] > 1)
    assert (
        lines[1]["eval_perplexity"] != lines[3]["eval_perplexity"]
    )  # of the weights as they are at that step


def test_the_summary_of_the_data_counts_what_is_left_out_and_why(embedding_run):
    [found] = json.loads((embedding_run.output / "data_summary.json").read_text())
    assert found["skipped"] == {"not valid JSON: Expecting ',' delimiter at column 14": 1}
    assert found["filtered"] == {"an instruction fills query_max_length (64)": 1}
    assert (found["examples"], found["used"], found["not_sampled"]) == (42, 30, 10)


@pytest.mark.slow
def test_every_option_at_once(folder):
    """All three losses, attention, chunks and backward passes of each; both sides of the data in
    the summary."""
    output = train(run(folder, "everything", **EVERYTHING, **evaluated(folder))).output
    check_parts(read_lines(output / "metrics.jsonl"), ["loss_gen", "loss_cached", "loss_cached_kl"])
    found = {
        entry["kind"]: entry for entry in json.loads((output / "data_summary.json").read_text())
    }
    assert found["generative"]["skipped"] == {'"text" must be a string, got null': 1}
    assert found["cached"]["used"] == found["cached"]["examples"] == 30


def test_the_model_directory_has_what_was_trained(embedding_run, tmp_path):
    """Attention and projection, which encoding and an index go by as well."""
    model = GritLM.from_pretrained(embedding_run.model)
    assert model.mode is model.generation_mode is AttentionMode.PREFIX
    vectors = model.encode(["a river", "a stone"])
    assert vectors.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": f"text {i}"}) + "\n" for i in range(3))
    )
    build_index(model, corpus, tmp_path / "index", quiet=True)
    assert json.loads((tmp_path / "index" / "index.json").read_text())["dim"] == 12
    assert export_checkpoint(embedding_run.output, tmp_path / "export") == 4
    again = GritLM.from_pretrained(tmp_path / "export")
    np.testing.assert_array_equal(again.encode(["a river", "a stone"]), vectors)
    assert np.abs(np.asarray(model.params[PROJECTION])).max() > 0


@pytest.fixture(scope="module")
def more(embedding_run, folder) -> Path:
    """A configuration that trains on from the model of that run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"] = {
        "path": str(embedding_run.model),
        "dtype": "float32",
        "remat": "none",
        "attention": "cbbc",
    }
    config["data"] |= {"generative_batch": 0, "cached_batch": 0}
    config["train"]["steps"] = 1
    (folder / "more.yaml").write_text(yaml.safe_dump(config))
    return folder / "more.yaml"


@pytest.mark.slow
def test_a_projection_is_trained_on_from_its_directory(embedding_run, more, tmp_path):
    result = train(read_run_config(more, {"output": str(tmp_path / "more")}))
    before, after = (
        GritLM.from_pretrained(embedding_run.model),
        GritLM.from_pretrained(result.model),
    )
    moved = np.abs(
        np.asarray(after.params[PROJECTION]) - np.asarray(before.params[PROJECTION])
    ).max()
    assert 0 < moved < 0.01 and after.embedding_width == 12


def test_a_projection_of_another_width_is_refused(more, tmp_path):
    wrong = read_run_config(more, {"output": str(tmp_path / "wrong"), "model.projection": "16"})
    with pytest.raises(GritError, match="model.projection is 16, but .* has 12 dimensions"):
        train(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "generative", "cached"])
def test_each_kind_alone_trains(folder, kind):
    """What is trained follows from the batch sizes; an absent side has no loss and no examples."""
    config = run(folder, kind, **ALONE[kind], **{"optimizer.lr": 3e-2, "train.steps": 8})
    result = train(config)
    lines = read_lines(result.output / "metrics.jsonl")
    name = {"embedding": "loss_emb", "generative": "loss_gen", "cached": "loss_cached"}[kind]
    assert {key for key in lines[0] if key.startswith("loss_")} == {name}
    assert lines[-1][name] < lines[0][name]
    assert {
        entry["kind"] for entry in json.loads((result.output / "data_summary.json").read_text())
    } == {kind}


@pytest.mark.slow
def test_one_side_alone_trains(folder):
    """Passages held fixed: the loss falls by what the queries learn, and rows are those of the
    sides."""
    only = ALONE["embedding"] | {"train.steps": 6, "optimizer.lr": 1e-2}
    losses = {}
    for gradient in ("query", "passage"):
        lines = read_lines(
            train(run(folder, gradient, **only, **{"train.gradient": gradient})).output
            / "metrics.jsonl"
        )
        assert lines[-1]["loss_emb"] < lines[0]["loss_emb"]
        losses[gradient] = [line["loss_emb"] for line in lines]
    assert losses["query"][0] == losses["passage"][0] and losses["query"][2] != losses["passage"][2]


def test_what_only_a_run_can_tell(folder):
    with pytest.raises(GritError, match="matryoshka_dims: 64 is more than the 32 dimensions"):
        train(run(folder, "told", **{"train.loss.matryoshka_dims": [64, 8]}))
    assert not (folder / "told" / "metrics.jsonl").exists()


def test_scores_are_asked_for_by_their_line(folder, tmp_path):
    lines = (folder / "embedding.jsonl").read_text().splitlines()
    lines[4] = json.dumps(
        {key: value for key, value in json.loads(lines[4]).items() if key != "scores"}
    )
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    settings = {"data.embedding": [str(tmp_path / "some.jsonl")], "data.on_error": "stop"}
    settings |= {
        "data.generative_batch": 0,
        "data.cached_batch": 0,
        "train.loss.distillation_factor": 1,
    }
    with pytest.raises(GritError, match=r'some.jsonl:5: no "scores"'):
        train(run(folder, "scores", **settings))


def test_an_absent_side_costs_nothing(folder):
    """The step's matrix products are exactly those of the parts that are there."""
    config = ModelConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        dtype="float32",
        remat="none",
        tie_word_embeddings=False,
    )
    params = init_params(config, jax.random.key(0))
    text = TokenText([1, 2, 3, 4], [False, False, True, True])
    whole = Batch(
        embedding_batch(
            [[5, 6, 7]] * 2,
            [[8, 9, 3]] * 4,
            [1] * 6,
            EmbeddingPacking(row_length=8, row_multiple=2),
        ),
        generative_batch([text] * 3, GenerativePacking(row_length=8, row_multiple=2)),
        cached_batch(
            [TokenCached([[1, 2]], text)] * 2,
            CachedPacking(cached_row_length=8, row_length=8, row_multiple=2),
        ),
    )

    def products(batch, **how):
        """(multiplications, whether the vocabulary is in any of them) of the traced gradient."""
        jaxpr = jax.make_jaxpr(
            lambda p: joint_gradient(p, batch, StepConfig(config, LossConfig(), **how))
        )(params)
        dots = list(dot_shapes(jaxpr.jaxpr))
        return sum(size for size, _ in dots), any(96 in shape for _, shape in dots)

    parts = {
        kind: Batch(**{kind: getattr(whole, kind)})
        for kind in ("embedding", "generative", "cached")
    }
    counts = {kind: products(batch)[0] for kind, batch in parts.items()}
    assert min(counts.values()) > 0 and products(whole)[0] == sum(counts.values())
    assert not products(parts["embedding"])[
        1
    ]  # nor is the vocabulary touched without a language loss
    assert products(parts["generative"])[1]


def dot_shapes(jaxpr, times=1):
    """(multiplications, shape of the result) of every matrix product, those in loops counted as
    often as they run."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            shape = equation.outvars[0].aval.shape
            yield int(times * length * np.prod(shape)), shape
        inner_times = (
            times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        )
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from dot_shapes(inner, inner_times)
