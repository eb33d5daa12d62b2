"""What `grit encode` and `grit generate` print and write when all is well; with `--json` one object
on stdout, and nothing else."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cli_world import run, write_lines

from grit_jax.inference.files import INT8_LEVELS, read_prompts

pytestmark = pytest.mark.usefixtures("in_world")


# ---- encode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["texts.txt", "texts.jsonl"])
@pytest.mark.parametrize("dim", [None, 24])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "binary"])
def test_encode(file, dim, precision, capsys, tiny_model, texts, tmp_path):
    output = tmp_path / "vectors"
    command = f"encode model --input {file} --output {output} --precision {precision} --json"
    said = run(capsys, command, *(("--dim", dim) if dim else ()))
    assert said.status == 0
    assert said.json.keys() == {
        "texts",
        "tokens",
        "truncated",
        "seconds",
        "tokens_per_s",
        "dim",
        "precision",
    }
    assert (said.json["texts"], said.json["dim"], said.json["precision"]) == (
        9,
        dim or 48,
        precision,
    )
    wanted = tiny_model.encode(texts)[:, :dim]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = np.load(output)
    assert found.shape == (9, (dim or 48) // 8 if precision == "binary" else dim or 48)
    if precision == "float32":
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    elif precision == "bfloat16":
        np.testing.assert_allclose(
            found.view(ml_dtypes.bfloat16).astype(np.float32), wanted, atol=4e-3
        )
    elif precision == "int8":
        assert found.dtype == np.int8 and (np.abs(found).max(axis=1) == INT8_LEVELS).all()
        cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1)
        assert (cosine > 0.999).all()
    else:
        away = np.abs(wanted) > 1e-5  # from zero, where rounding decides
        assert (np.unpackbits(found, axis=1)[away] == (wanted > 0)[away]).all()
    assert list(tmp_path.iterdir()) == [output]  # nothing beside it, and no suffix added


def test_encode_with_an_instruction_into_a_link(capsys, tiny_model, texts, tmp_path):
    (tmp_path / "old.npy").write_bytes(b"something older")
    (tmp_path / "link.npy").symlink_to(tmp_path / "old.npy")
    how = "--instruction 'Find it' --max-length 20"
    said = run(capsys, f"encode model --input texts.txt --output {tmp_path}/link.npy {how}")
    assert said.status == 0 and said.out.startswith("9 texts to ")
    wanted = tiny_model.encode(texts, "Find it", 20)
    np.testing.assert_allclose(np.load(tmp_path / "old.npy"), wanted, atol=1e-5)
    assert (tmp_path / "link.npy").is_symlink()


def test_texts_are_taken_as_they_are(capsys, tiny_model, tmp_path):
    """A line of a text file is a text, without its line end; those in JSON are kept."""
    (tmp_path / "windows.txt").write_bytes("eins\r\n\r\nzwei ü\r\n".encode())
    (tmp_path / "MAC.TXT").write_bytes(b"eins\rzwei\r")
    write_lines(tmp_path / "ends.jsonl", {"text": "one\n"}, "two\n\n", "")
    for file, wanted in (
        ("windows.txt", ["eins", "", "zwei ü"]),  # row i is line i
        ("MAC.TXT", ["eins", "zwei"]),
        ("ends.jsonl", ["one\n", "two\n\n", ""]),
    ):
        assert (
            run(capsys, f"encode model --input {tmp_path / file} --output {tmp_path}/v.npy").status
            == 0
        )
        np.testing.assert_allclose(
            np.load(tmp_path / "v.npy"), tiny_model.encode(wanted), atol=1e-5
        )


# ---- generate ------------------------------------------------------------------------------------


def test_generate(capsys, tiny_model):
    prompts = read_prompts(Path("prompts.jsonl"))
    wanted = tiny_model.generate(prompts, max_new_tokens=5)
    command = "generate model --input prompts.jsonl --max-new-tokens 5"
    generations = [{"prompt": p, "text": t} for p, t in zip(prompts, wanted, strict=True)]
    assert run(capsys, f"{command} --json").json == {"generations": generations}
    said = run(capsys, command)
    assert (said.status, said.out, said.lines) == (0, "\n---\n".join(wanted) + "\n", [])
    alone = [tiny_model.generate([prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert run(capsys, f"{command} --stream").out == "\n---\n".join(alone) + "\n"


def test_generate_one_prompt(capsys, tiny_model):
    command = "generate model --prompt 'Quiet engine' --max-new-tokens 5"
    [text] = tiny_model.generate("Quiet engine", max_new_tokens=5)
    assert run(capsys, command).out == text + "\n" == run(capsys, f"{command} --stream").out
    said = run(capsys, f"{command} --stream --json")
    assert said.json == {"generations": [{"prompt": "Quiet engine", "text": text}]}
    [wanted] = tiny_model.generate("Quiet engine", 5, 1.5, 0.9, 40, 3)
    said = run(capsys, f"{command} --temperature 1.5 --top-p 0.9 --top-k 40 --seed 3 --json")
    assert said.json["generations"][0]["text"] == wanted
