"""What `grit train`, `grit import` and `grit export` print and write when all is well."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_world import run, write_lines

import grit_jax.train
from grit_jax.inference.model import GritLM
from grit_jax.models.parameters import num_parameters

pytestmark = pytest.mark.usefixtures("in_world")


def test_train_and_export(capsys, tmp_path, monkeypatch):
    write_lines(
        tmp_path / "half.jsonl",
        {"text": ["a", "b"]},
        {"text": 5},
        {"text": ["a", ""]},
        {"query": "a", "pos": ["b"]},
        {"text": ["long " * 99, "b"]},
        {"text": ["c", "d"]},
    )
    with (tmp_path / "half.jsonl").open("a") as file:
        file.write('{"text": ["a"\n')
    run_folder, steps = tmp_path / "run", "metrics.jsonl"
    train = (
        f"train run.yaml --output {run_folder} --data.on_error skip "
        f"--data.generative '[generative.jsonl, {tmp_path}/half.jsonl]'"
    )
    said = run(capsys, train)
    assert (
        said.out == f"2 steps done; model in {run_folder}/model, metrics in {run_folder}/{steps}\n"
    )
    reasons = {
        "skipped": {
            "\"text\" must be a string, got int ('5')": 1,
            "turn 2 is empty": 1,
            "an embedding example in a generative file": 1,
            "not valid JSON: Expecting ',' delimiter at column 14": 1,
        },
        "filtered": {"the first user turn fills generative_max_length (64)": 1},
    }
    counts = "; ".join(f"{count} {why}" for part in reasons.values() for why, count in part.items())
    assert [line for line in said.lines if "half.jsonl" in line] == [
        f"{tmp_path}/half.jsonl: 2 of 7 generative examples; {counts}"
    ]
    half = json.loads((run_folder / "data_summary.json").read_text())[1]
    assert (half["examples"], half["used"], half["not_sampled"]) == (7, 2, 0)
    assert {key: half[key] for key in reasons} == reasons
    assert [json.loads(line)["step"] for line in (run_folder / steps).read_text().splitlines()] == [
        0,
        1,
    ]
    said = run(capsys, train)
    assert (said.status, said.out) == (
        0,
        f"finished before: 2 steps; model in {run_folder}/model\n",
    )

    said = run(capsys, f"export {run_folder} {tmp_path}/out")
    assert said.out == f"step 2 of {run_folder} -> {tmp_path}/out\n"
    exported = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert exported == (run_folder / "model" / "model.safetensors").read_bytes()
    assert run(capsys, f"export {run_folder} {tmp_path}/out").status == 2  # never over something

    # Killed on the way to more steps, a run does not pass the model of fewer for its own.
    def interrupted(*_, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grit_jax.train, "run_loop", interrupted)
        assert run(capsys, f"{train} --train.steps 3").status == 130
    assert not (run_folder / "model" / "grit.json").exists()


def test_import_there_and_back(capsys, tiny_model, texts, tmp_path):
    said = run(capsys, f"import model {tmp_path}/same")
    assert (
        said.out
        == f"model -> {tmp_path}/same: mistral, {num_parameters(tiny_model.config):,} parameters\n"
    )
    wanted = tiny_model.encode(texts)
    np.testing.assert_array_equal(GritLM.from_pretrained(tmp_path / "same").encode(texts), wanted)
    (tmp_path / "half").mkdir()  # an empty folder will do
    assert run(capsys, f"import {tmp_path}/same {tmp_path}/half --dtype bfloat16").status == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("same", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    cosine = (GritLM.from_pretrained(tmp_path / "half").encode(texts) * wanted).sum(axis=1)
    assert (cosine > 0.99).all()
    assert {path.name for path in tmp_path.iterdir()} == {"same", "half"}
