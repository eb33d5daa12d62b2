"""GGUF files: the weights that a file was written from, and clear errors."""

from __future__ import annotations

import numpy as np
import pytest

gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.models.hf.directory import read_model_directory
from grit_jax.models.hf.gguf import is_gguf, write_directory
from grit_jax.models.hf.sources import resolve


@pytest.mark.parametrize("name", gguf_files.MODELS)
def test_a_file_gives_the_model_that_it_was_written_from(name, tmp_path):
    config, params = gguf_files.write(tmp_path / "model.gguf", name)
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    read = read_model_directory(tmp_path / "out")
    same = ("architecture", "hidden_size", "head_dim", "rope_theta", "num_experts", "qk_norm")
    for field in (*same, "sliding_window", "layer_kinds", "eos_token_id", "tie_word_embeddings"):
        assert getattr(read.config, field) == getattr(config, field), field
    assert read.params.keys() == params.keys()
    for key, value in params.items():
        np.testing.assert_allclose(read.params[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_import_writes_a_model_directory(tmp_path, capsys):
    gguf_files.write(tmp_path / "model.gguf", "qwen3")
    main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "out")])
    assert "qwen3" in capsys.readouterr().out
    assert {"config.json", "grit.json", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["out"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split__count": 3}, "one part of 3; merge them first"),
        ({"llama__expert_count": 4}, "expert_used_count' is missing"),
    ],
)
def test_metadata_that_cannot_be_read_is_named(changed, message, tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama", **changed)
    with pytest.raises(GritError, match=message):
        write_directory(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_end_of_a_turn_ends_an_answer_too(tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama", tokenizer__ggml__eot_token_id=3)
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    assert read_model_directory(tmp_path / "out").settings.stop_token_ids == (2, 3)


def test_other_verbs_and_missing_files_are_told_what_to_do(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(GritError, match=r"model.gguf: import it first: grit import"):
        resolve(tmp_path / "model.gguf")
    with pytest.raises(GritError, match=r"^none.gguf: no such file$"):
        resolve("none.gguf")


def test_a_truncated_file_and_one_of_another_format(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama")
    whole = path.read_bytes()
    for size in (10, 200, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(GritError, match="not a whole GGUF file"):
            write_directory(path, tmp_path / "out")
    path.write_bytes(b"something else" * 100)
    with pytest.raises(GritError, match="not a whole GGUF file"):
        write_directory(path, tmp_path / "out")
    path = path.rename(tmp_path / "weights")
    path.write_bytes(whole)
    assert is_gguf(path) and not is_gguf(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(GritError, match="'mamba' is not supported, only llama, qwen2"):
        write_directory(path, tmp_path / "out")
