"""GGUF files: the weights that a file was written from, and clear errors."""

from __future__ import annotations

import re
from pathlib import Path

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


def dequantised(kind) -> bool:
    try:
        gguf_files.gguf.dequantize(
            np.zeros((1, gguf_files.gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind
        )
    except NotImplementedError:
        return False
    return True


TYPES = [kind for kind in gguf_files.gguf.GGMLQuantizationType if dequantised(kind)]


def test_every_type_that_the_library_dequantises(tmp_path):
    """A tensor of each type in one file."""
    gguf, shape = gguf_files.gguf, dict(hidden_size=256, intermediate_size=256, head_dim=64)
    stems = ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    layers = -(-len(TYPES) // len(stems))
    names = [f"blk.{layer}.{stem}.weight" for layer in range(layers) for stem in stems]
    kinds = dict(zip(names, TYPES, strict=False))
    path = tmp_path / "model.gguf"
    sizes = dict(shape, num_hidden_layers=layers)
    _, params = gguf_files.write(path, "llama", types=kinds, sizes=sizes)
    write_directory(path, tmp_path / "out")
    read = read_model_directory(tmp_path / "out").params
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = dict(zip(stems, ("value", "attention_out", "gate", "up", "down"), strict=True))
    for name, kind in kinds.items():
        _, layer, stem, _ = name.split(".")
        array, key = read[ours[stem]][int(layer)].T, ours[stem]
        expected = gguf.dequantize(stored[name].data, kind)
        assert array.std() > 0, kind
        np.testing.assert_array_equal(array, expected, err_msg=kind.name)
        if kind.name in ("F16", "BF16", "Q8_0", "Q5_1", "Q4_0"):  # close to what was written
            original = params[key][int(layer)].T
            assert np.abs(array - original).max() < 0.1 * np.abs(original).max(), kind
    usual = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS IQ2_S TQ1_0 MXFP4"
    assert {*usual.split()} <= {kind.name for kind in kinds.values()}


def test_experts_of_a_quantised_file(tmp_path):
    gguf = gguf_files.gguf
    kinds = {f"blk.{layer}.ffn_up_exps.weight": gguf.GGMLQuantizationType.Q8_0 for layer in (0, 1)}
    path = tmp_path / "model.gguf"
    _, params = gguf_files.write(path, "mixtral", types=kinds)
    write_directory(path, tmp_path / "out")
    read = read_model_directory(tmp_path / "out").params
    np.testing.assert_allclose(read["expert_up"], params["expert_up"], atol=0.01)
    np.testing.assert_array_equal(read["expert_down"], params["expert_down"])


def test_files_with_a_tensor_for_each_expert(tmp_path):
    """As converters wrote them until April 2024."""
    path, single = tmp_path / "model.gguf", {}
    _, params = gguf_files.write(path, "mixtral")
    for name in ("gate", "up", "down"):
        for layer, expert in np.ndindex(2, 4):
            array = params[f"expert_{name}"][layer, expert].T
            single[f"blk.{layer}.ffn_{name}.{expert}.weight"] = array
    gguf_files.write(path, "mixtral", extra=single, without="_exps")
    write_directory(path, tmp_path / "out")
    read = read_model_directory(tmp_path / "out").params
    for key in ("expert_gate", "expert_up", "expert_down"):
        np.testing.assert_array_equal(read[key], params[key])


def test_types_that_the_library_cannot_read_are_named(tmp_path):
    gguf, path = gguf_files.gguf, tmp_path / "model.gguf"
    sizes = dict(hidden_size=256, intermediate_size=256)
    for kind in (gguf.GGMLQuantizationType.Q8_K, gguf.GGMLQuantizationType.F64):
        gguf_files.write(path, "llama", types={"blk.1.ffn_up.weight": kind}, sizes=sizes)
        with pytest.raises(GritError, match=f"blk.1.ffn_up.weight has the type {kind.name}, which"):
            write_directory(path, tmp_path / "out")
    # A type newer than the library: a number after the name, the dimensions' count and themselves.
    gguf_files.write(path, "llama")
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_up.weight"
    content[content.index(name) + len(name) + 4 + 2 * 8] = 99
    path.write_bytes(content)
    with pytest.raises(GritError, match="blk.1.ffn_up.weight has the type 99, which the installed"):
        write_directory(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistral_with_a_window(tmp_path):
    """The file says llama; the rows of queries and keys are reordered as a Llama's are."""
    window = dict(ARCH__attention__sliding_window=16)
    _, params = gguf_files.write(tmp_path / "model.gguf", "llama", **window)
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    read = read_model_directory(tmp_path / "out")
    assert (read.config.architecture, read.config.sliding_window) == ("mistral", 16)
    for key, value in params.items():
        np.testing.assert_allclose(read.params[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_rotary_factors_in_a_tensor(tmp_path):
    """Llama 3.2 with heads of 8 dimensions, worked out by hand: wavelengths 2 pi * 5e5 ** (i / 4)
    are 6.28, 167.1, 4443 and 118143, of which 4443 lies between 8192 / 4 and 8192;
    s = (8192 / 4443 - 1) / 3 = .28128, and 1 / ((1 - s) / 32 + s) = 3.2923."""
    factors = {"rope_freqs.weight": np.array([1, 1, 3.2923, 32])}
    sizes = dict(rope_theta=500000.0)
    gguf_files.write(tmp_path / "model.gguf", "llama", extra=factors, sizes=sizes)
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    scaling = read_model_directory(tmp_path / "out").config.rope_scaling
    assert (scaling.rope_type, scaling.factor, scaling.high_freq_factor) == ("llama3", 32.0, 4.0)
    assert scaling.original_max_position_embeddings == 8192
    factors["rope_freqs.weight"][2] = 5.0
    gguf_files.write(tmp_path / "model.gguf", "llama", extra=factors, sizes=sizes)
    with pytest.raises(GritError, match="its rotary factors .* are not those of Llama 3's"):
        write_directory(tmp_path / "model.gguf", tmp_path / "out2")


def test_a_model_that_embeds_keeps_its_pooling(tmp_path):
    """As Qwen3-Embedding's files say: the last token, causal, texts as they are."""
    gguf_files.write(tmp_path / "model.gguf", "qwen3", ARCH__pooling_type=3)
    main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "out")])
    settings = read_model_directory(tmp_path / "out", with_params=False).settings
    assert (settings.pooling, settings.embedding_mode.value) == ("lasttoken", "causal")
    assert settings.chat_format == "sentence-transformers"


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
    with pytest.raises(GritError, match=r"no config.json there; import .*model.gguf first: grit"):
        read_model_directory(tmp_path)


def refused(path: Path, message: str) -> None:
    """`grit import` of a file ends with one line, and leaves nothing."""
    with pytest.raises(GritError, match=f"^{re.escape(str(path))}: {message}") as error:
        write_directory(path, path.parent / "out")
    assert "\n" not in str(error.value)
    assert not (path.parent / "out").exists()


def test_a_truncated_file(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama")
    whole = path.read_bytes()
    for size, message in (
        (10, "truncated after 10 bytes"),
        (200, "not a whole GGUF file"),
        (len(whole) // 2, r"truncated: blk.\d.\w+.weight ends at byte \d+, but the file has \d+"),
        (len(whole) - 1000, "truncated: "),
    ):
        path.write_bytes(whole[:size])
        refused(path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; download it again"),
        (b"something else" * 100, "not a GGUF file .it begins with b'some', not b'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(90), "GGUF version 1, only 2 and 3 are"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 90, "not a whole GGUF file"),
    ],
)
def test_files_of_other_formats(content, message, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    refused(tmp_path / "model.gguf", message)


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    gguf_files.write(tmp_path / "weights", "llama")
    assert is_gguf(tmp_path / "weights") and not is_gguf(tmp_path)


def test_a_file_in_big_endian_order(tmp_path):
    gguf, path = gguf_files.gguf, tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(path, "in big-endian order, which is not supported; convert it first: gguf-convert")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split__count": 3}, "one part of 3; merge them first: llama-gguf-split --merge"),
        ({"general__type": "adapter"}, "a LoRA adapter, not a model; merge it into its base"),
        ({"general__type": "imatrix"}, "an importance matrix, not a model"),
        ({"general__type": "mmproj"}, "the vision or audio part of a model"),
        ({"llama__expert_count": 4}, "'llama.expert_used_count' is missing"),
    ],
)
def test_files_without_a_whole_model(changed, message, tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama", **changed)
    refused(tmp_path / "model.gguf", message)


def test_a_part_a_projector_and_a_vocabulary(tmp_path):
    """Only the first part of several has the metadata of the model; it is named."""
    gguf, path = gguf_files.gguf, tmp_path / "m-00002-of-00003.gguf"

    def write(path: Path, architecture: str, **keys: int) -> None:
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in keys.items():
            writer.add_uint16(key.replace("__", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()

    write(path, "", split__no=1, split__count=3)
    refused(path, "one part of 3; .* --merge m-00001-of-00003.gguf OUT.gguf")
    write(tmp_path / "mmproj.gguf", "clip")
    refused(tmp_path / "mmproj.gguf", "the vision or audio part of a model; import the file")
    write(tmp_path / "vocab.gguf", "llama")
    refused(tmp_path / "vocab.gguf", "it has no weights; take the file of the whole model")
    write(tmp_path / "mamba.gguf", "mamba")
    refused(tmp_path / "mamba.gguf", "the architecture 'mamba' is not supported, only llama, qwen2")


def test_tensors_that_are_missing_or_unknown(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", extra={"blk.0.attn_q.bias": np.zeros(32)})
    refused(
        path, r"unknown tensors for a llama model: blk.0.attn_q.bias .1 in all.; such a model is"
    )
    gguf_files.write(path, "llama", ARCH__block_count=3)
    refused(path, "the tensor blk.2.attn_norm.weight is missing")
    gguf_files.write(path, "llama", ARCH__feed_forward_length=40)
    refused(path, r"blk.0.ffn_gate.weight has the shape .48, 32., but the metadata mean .40, 32.")
    gguf_files.write(path, "mixtral", ARCH__expert_count=3)
    refused(path, r"blk.0.ffn_gate_inp.weight has the shape .4, 32., but the metadata mean .3, 32.")
