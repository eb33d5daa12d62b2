"""`--shots`: of encoding, the vectors of the instruction with its examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_world import run
from retrieval_folders import beir_folder

pytestmark = pytest.mark.usefixtures("in_world")


@pytest.fixture
def shots_file(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"query": "copper", "pos": ["lantern"]}) + "\n")
    return path


def test_encode_with_examples(capsys, tmp_path, tiny_model, texts, shots_file):
    command = f"encode model --input texts.txt --output {tmp_path}/v.npy --instruction Find"
    said = run(capsys, f"{command} --shots 1 --shots-file {shots_file} --shots-format match")
    assert said.status == 0, said.err
    instruction = 'Find\n\nFor example given "copper", it would match with "lantern"'
    expected = tiny_model.encode(texts, instruction)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--instruction Find --shots 1", "--shots N and --shots-file F.jsonl go together"),
        ("--instruction Find --shots-file FILE", "go together"),
        ("--instruction Find --shots 2 --shots-file FILE", "--shots 2, and there are 1 examples"),
        ("--shots 1 --shots-file FILE", "examples follow an instruction"),
    ],
)
def test_mistakes_are_named(capsys, tmp_path, shots_file, flags, message):
    command = f"encode model --input texts.txt --output {tmp_path}/v.npy {flags}"
    said = run(capsys, command.replace("FILE", str(shots_file)))
    assert said.status != 0 and message in said.err


def test_retrieval_by_domain_with_examples(capsys, tmp_path, shots_file):
    folder = beir_folder(tmp_path / "task")
    (tmp_path / "i.tsv").write_text("metal\tFind metals\nnature\tFind nature\n")
    command = (
        f"eval retrieval model --input {folder} --instructions {tmp_path}/i.tsv --k 3 --resamples 9"
        f" --shots 1 --shots-file {shots_file}"
    )
    found = run(capsys, f"{command} --json").json
    table = found["instructions"]
    assert table["metric"] == "ndcg@3" and found["settings"]["shots"] == 1
    assert list(table["domains"]["metal"]["scores"]) == ["metal", "nature", "(none)"]
    # With every query's own instruction, as the table of scores.
    own = [table["domains"][d]["right"] * table["domains"][d]["queries"] for d in table["domains"]]
    assert sum(own) / 3 == pytest.approx(found["model"]["ndcg@3"])
    shown = run(capsys, command).out
    assert "ndcg@3 of the search by vectors, by domain and instruction:" in shown
    assert "the wrong domain's instruction costs" in shown
