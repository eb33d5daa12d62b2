"""GritLM: the public object, from a directory and back."""

from __future__ import annotations

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import dense_reference as dense
import jax
import numpy as np
import pytest
import tokenizer_kinds

from grit_jax import GritLM
from grit_jax.data.preparation import prepare
from grit_jax.data.sources import open_source
from grit_jax.errors import GritError
from grit_jax.inference import placement
from grit_jax.inference.blocks import model_identity
from grit_jax.inference.model import ModelOptions
from grit_jax.models.transformer import Transformer, init_params
from grit_jax.rag.index import Index, build_index
from grit_jax.text.chat import GRIT
from grit_jax.text.chat_template import ChatTemplate
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import AttentionMode, ModelOutput


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(path)
    return path


def test_a_saved_model_is_the_same_model(tiny_model, directory, sentences):
    again = GritLM.from_pretrained(directory)
    assert (
        again.chat == tiny_model.chat
        and again.pooling == "mean"
        and again.config == tiny_model.config
    )
    for name, value in tiny_model.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    np.testing.assert_array_equal(
        again.encode(sentences[:5], "Find"), tiny_model.encode(sentences[:5], "Find")
    )
    assert again.generate(sentences[:2], max_new_tokens=5) == tiny_model.generate(
        sentences[:2], max_new_tokens=5
    )
    assert again.stop_ids == tiny_model.stop_ids


def test_pooling_mode_and_dtype_survive(
    tiny_model, tiny_config, tiny_params, tiny_tokenizer, tmp_path
):
    model = GritLM(
        tiny_config,
        tiny_params,
        tiny_tokenizer,
        GRIT,
        ModelOptions("lasttoken", AttentionMode.CAUSAL),
    )
    model.save_pretrained(tmp_path / "new" / "folder", dtype="bfloat16")
    again = GritLM.from_pretrained(tmp_path / "new" / "folder", dtype="bfloat16")
    assert (again.pooling, again.mode, again.config.dtype) == (
        "lasttoken",
        AttentionMode.CAUSAL,
        "bfloat16",
    )
    assert GritLM.from_pretrained(tmp_path / "new" / "folder", pooling="cls").pooling == "cls"
    assert again.encode("amber").dtype == np.float32


def test_a_plain_hugging_face_directory_means_mean_pooling_and_grit(directory, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    model = GritLM.from_pretrained(str(tmp_path))
    assert (
        model.pooling == "mean" and model.mode is AttentionMode.BIDIRECTIONAL and model.chat == GRIT
    )


def test_sentence_transformers_gets_the_prompt_its_tokenizer_needs(directory, tiny_tokenizer):
    import tokenizers

    prompt = json.loads((directory / "config_sentence_transformers.json").read_text())["prompts"][
        "document"
    ]
    reader = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    ours = tiny_tokenizer.encode_parts([GRIT.embed_parts("", "amber river")])[0]
    assert reader.encode(prompt + "amber river").ids == [i for part in ours for i in part]


def test_encode_takes_one_text_or_many(tiny_model, sentences):
    one, many = tiny_model.encode(sentences[0]), tiny_model.encode(sentences[:3], max_length=64)
    assert one.shape == (1, tiny_model.config.hidden_size) and many.shape == (
        3,
        tiny_model.config.hidden_size,
    )
    np.testing.assert_allclose(one[0], many[0], atol=1e-5)
    many[:] = 0
    encoded = tiny_model.encode(sentences[:3], return_cache=True)
    assert encoded.vectors.shape == many.shape and len(encoded.caches) == 3


def test_a_string_is_a_user_s_turn(tiny_model, tiny_tokenizer):
    (ids,) = tiny_model.prompt_ids("Say amber")
    assert (
        tiny_tokenizer.decode(ids, skip_special=False) == "<s><|user|>\nSay amber\n<|assistant|>\n"
    )
    message = [{"role": "user", "content": "Say amber"}]
    assert (
        tiny_model.prompt_ids(message)
        == tiny_model.prompt_ids([message])
        == tiny_model.prompt_ids(["Say amber"])
        == [ids]
    )
    turns = [
        *message,
        {"role": "assistant", "content": " amber "},
        {"role": "user", "content": "Again"},
    ]
    (ids,) = tiny_model.prompt_ids([turns])
    expected = "<s><|user|>\nSay amber\n<|assistant|>\namber</s>\n<|user|>\nAgain\n<|assistant|>\n"
    assert tiny_tokenizer.decode(ids, skip_special=False) == expected


def test_generate_is_greedy_decoding_of_the_dense_pass(tiny_model, tiny_params, tiny_tokenizer):
    (ids,) = tiny_model.prompt_ids("Say amber")
    want = dense.greedy(tiny_params, tiny_model.config, [], ids, 6).tokens
    end = next((n for n, token in enumerate(want) if token in tiny_model.stop_ids), None)
    assert tiny_model.generate("Say amber", max_new_tokens=6) == [tiny_tokenizer.decode(want[:end])]


def test_generate_batches_and_streams(tiny_model, sentences):
    prompts = [sentences[0], [{"role": "user", "content": sentences[1]}], sentences[2]]
    heard = ["", "", ""]

    def hear(i: int, text: str) -> None:
        heard[i] += text

    settings = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 3}
    answers = tiny_model.generate(prompts, **settings, on_text=hear)
    assert heard == answers == tiny_model.generate(prompts, **settings)
    assert tiny_model.generate([]) == []


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_call_equals_the_dense_pass_whatever_the_padding(
    tiny_model, tiny_params, tiny_tokenizer, sentences, mode, side
):
    texts = [tiny_tokenizer.encode(text) for text in sentences[:3]]
    T = max(map(len, texts)) + 2
    ids, mask = np.full((3, T), 7), np.zeros((3, T), int)
    for r, text in enumerate(texts):
        part = slice(T - len(text), T) if side == "left" else slice(0, len(text))
        ids[r, part], mask[r, part] = text, 1
    out = tiny_model(ids, mask, mode=mode)
    assert out.hidden.shape == (3, T, tiny_model.config.hidden_size)
    assert out.logits.shape == (3, T, tiny_model.config.vocab_size)
    for r, text in enumerate(texts):
        n = len(text)
        sees = np.tril(np.ones((n, n), bool)) if mode == "causal" else np.ones((n, n), bool)
        want = dense.forward(tiny_params, tiny_model.config, text, np.arange(n), sees)
        np.testing.assert_allclose(out.hidden[r][mask[r] == 1], want.hidden, atol=1e-4)
        np.testing.assert_allclose(out.logits[r][mask[r] == 1], want.logits, atol=1e-4)


def test_call_without_a_mask(tiny_model):
    np.testing.assert_allclose(
        tiny_model([[1, 5, 6]]).logits,
        tiny_model(np.array([[1, 5, 6]]), np.ones((1, 3))).logits,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (([1, 2], None), "B, T"),
        (([[1, 2]], [[1]]), "B, T"),
        (([[1, 10**6]], None), "input_ids"),
        (([[1.5, 2.0]], None), "integers"),
        (([[1, 2]], [[0, 2]]), "attention_mask"),
        (([[1, 2]], None, "prefix"), "causal"),
        ((None,), "B, T"),
        (("amber",), "B, T"),
        (([[1, 2], [3]],), "one length"),
        (([[1, 2]], [[1, 1], [1]]), "one length"),
        (([["1", "2"]],), "integers"),
        (([[1] * 32769],), "row of 32769 tokens.*context is 32768"),
    ],
)
def test_bad_calls_are_named(tiny_model, args, words):
    with pytest.raises(GritError, match=words):
        tiny_model(*args)


@pytest.mark.parametrize("template", [False, True])
def test_bad_prompts_are_named_by_a_chat_template_too(tiny_model, template):
    model = copy.copy(tiny_model)
    if template:
        model.template = object()  # not reached
    for prompts in (None, 5, {"role": "user", "content": "a"}, [["a"]]):
        with pytest.raises(GritError, match="prompt"):
            model.prompt_ids(prompts)


def test_one_model_in_twelve_threads(tiny_model, sentences):
    """Answers and vectors are those of one thread, whoever else is at work."""
    settings = {"max_new_tokens": 6, "temperature": 0.9}
    work = [(sentences[i : i + 3], f"Say {sentences[i]}", i) for i in range(12)]

    def run(item):
        texts, prompt, seed = item
        return tiny_model.encode(texts), tiny_model.generate(prompt, seed=seed, **settings)

    alone = [run(item) for item in work]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(run, work))
    for (vectors, answer), (expected, expected_answer) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(vectors, expected)
        assert answer == expected_answer


def test_streams_equal_wholes_at_a_high_temperature(tiny_model, sentences):
    """At temperature 5 answers hold every kind of token: bytes, halves of characters, tags."""
    prompts = [f"Say {text}" for text in sentences[:8]]
    settings = {"max_new_tokens": 24, "temperature": 5.0, "seed": 3}
    streamed = [""] * len(prompts)

    def hear(number, text):
        streamed[number] += text

    assert tiny_model.generate(prompts, **settings, on_text=hear) == streamed
    assert tiny_model.generate(prompts, **settings) == streamed


def test_one_output_class_serves_transformer_and_model(tiny_model, tiny_params):
    out = tiny_model([[1, 5, 6]])
    assert type(out) is ModelOutput and out.logits is out.logits
    tokens = np.asarray([[1, 5, 6]])
    inside = Transformer(tiny_model.config, tiny_params)(
        tokens, np.arange(3)[None], np.ones_like(tokens), mode=AttentionMode.CAUSAL
    )
    assert type(inside) is ModelOutput
    with pytest.raises(AttributeError, match="Transformer.logits"):
        _ = inside.logits


@pytest.mark.parametrize("source", [None, 5, ["a"]])
def test_a_source_of_another_type_is_named(source):
    with pytest.raises(GritError, match="directory or a hub id"):
        GritLM.from_pretrained(source)


def test_a_dtype_that_is_none_is_named(directory):
    with pytest.raises(GritError, match="dtype must be.*float64"):
        GritLM.from_pretrained(directory, dtype="float64")


def test_absent_and_inconsistent_models_are_named(tiny_model, directory, tmp_path):
    with pytest.raises(GritError, match="nowhere"):
        GritLM.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(GritError, match="pooling"):
        GritLM.from_pretrained(directory, pooling="max")
    for file in directory.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    grit = json.loads((tmp_path / "grit.json").read_text())
    (tmp_path / "grit.json").write_text(json.dumps(grit | {"chat_format": "morse"}))
    with pytest.raises(GritError, match="morse"):
        GritLM.from_pretrained(tmp_path)


def test_weights_hash_follows_the_weights_and_nothing_else(
    tiny_model, tiny_config, tiny_params, tiny_tokenizer, directory
):
    same = GritLM(
        dataclasses.replace(tiny_config, remat="full", scan_layers=False),
        tiny_params,
        tiny_tokenizer,
        GRIT,
        ModelOptions("cls"),
    )
    assert (
        same.weights_hash
        == tiny_model.weights_hash
        == GritLM.from_pretrained(directory).weights_hash
    )
    assert (
        GritLM.from_pretrained(directory, dtype="bfloat16").weights_hash == tiny_model.weights_hash
    )
    changed = dict(tiny_params) | {"final_norm": tiny_params["final_norm"].at[3].add(0.1)}
    assert (
        GritLM(tiny_config, changed, tiny_tokenizer, GRIT).weights_hash != tiny_model.weights_hash
    )
    other = GritLM(
        dataclasses.replace(tiny_config, rope_theta=5e4), tiny_params, tiny_tokenizer, GRIT
    )
    assert other.weights_hash != tiny_model.weights_hash


def test_importing_the_package_does_not_import_jax():
    import subprocess
    import sys

    code = "import sys, grit_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_are_on_the_device(tiny_model):
    assert all(isinstance(value, jax.Array) for value in tiny_model.params.values())


def test_html_tags_do_not_end_an_answer(tiny_config, tiny_params, tmp_path):
    """Gemma's `<s>` and `</s>` are ordinary tokens: neither the prompt nor the end uses them."""
    (tmp_path / "tokenizer.model").write_bytes(
        tokenizer_kinds.sentencepiece_model(
            model_type="bpe",
            **tokenizer_kinds.PLAIN,
            **{"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
            **{"pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>"},
            user_defined_symbols=["<s>", "</s>"],
        )
    )
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    config = dataclasses.replace(
        tiny_config, vocab_size=tokenizer.vocab_size, bos_token_id=2, eos_token_id=1
    )
    params = init_params(config, jax.random.key(0))
    model = GritLM(config, params, tokenizer, tokenizer.format(GRIT))
    model.save_pretrained(tmp_path / "saved")
    opened = GritLM.from_pretrained(tmp_path / "saved")
    assert model.stop_ids == opened.stop_ids == (1,)
    assert json.loads((tmp_path / "saved/generation_config.json").read_text())["eos_token_id"] == 1
    for each in (model, opened):
        assert each.encoder.format(["river"]).ids[0][0] == each.prompt_ids("river")[0][0] == 2
    template = ChatTemplate.from_pretrained(tmp_path / "saved", opened.tokenizer)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = template.prompt_ids(turns, add_generation_prompt=False)
    assert (ids[0], ids[-1]) == (2, 1)


@pytest.mark.parametrize(
    "directory, message",
    [
        (None, "a path must be a string that is not empty, or a Path, got None"),
        (5, "got 5"),
        ("", "got ''"),
        ("file", "file: is a file; name a folder"),
        ("file/model", "file/model: cannot be written"),
    ],
)
def test_a_place_where_no_model_can_be_saved_is_named(
    tiny_model, tmp_path, monkeypatch, directory, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GritError, match=message):
        tiny_model.save_pretrained(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_tilde_is_the_home_folder(tiny_model, tmp_path, monkeypatch):
    """In every path of the Python interface; nothing is made in the working directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    tiny_model.save_pretrained("~/model")
    model = GritLM.from_pretrained("~/model")
    (tmp_path / "home/c.jsonl").write_text('{"id": "a", "text": "a river"}\n')
    build_index(model, "~/c.jsonl", "~/index", quiet=True)
    assert [document["id"] for document in Index.open("~/index", model).documents] == ["a"]
    (tmp_path / "home/g.jsonl").write_text('{"text": ["Where?", "Here."]}\n')
    prepare(["~/*g.jsonl"], "~/set")
    assert len(open_source("~/set")) == len(open_source("~/*g.jsonl")) == 1
    home = {path.name for path in (tmp_path / "home").iterdir()}
    assert home == {"model", "c.jsonl", "index", "g.jsonl", "set"}
    assert not list((tmp_path / "here").iterdir())


def test_an_unknown_pooling_is_one_error():
    with pytest.raises(GritError, match="pooling must be one of mean, .*cls, got 'max'"):
        ModelOptions("max")


# ---- int8, automatic placement ------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(directory):
    return GritLM.from_pretrained(directory, dtype="int8")


def test_int8_is_close_to_float32_and_is_the_same_model(int8, tiny_model, sentences):
    assert (int8.dtype, int8.config.dtype, tiny_model.dtype) == ("int8", "float32", "float32")
    own, expected = int8.encode(sentences[:9]), tiny_model.encode(sentences[:9])
    cosines = (own * expected).sum(axis=1)
    assert cosines.min() > 0.995 and (own != expected).any()
    assert int8.weights_hash == tiny_model.weights_hash
    # What one run encodes in blocks is of one dtype, however often it is resumed.
    assert model_identity(int8) != model_identity(tiny_model)
    assert len(int8.generate("Quiet engine", max_new_tokens=3)) == 1


@pytest.mark.parametrize("first, second", [("float32", "int8"), ("int8", "float32")])
def test_an_index_of_one_dtype_serves_another(first, second, int8, tiny_model, sentences, tmp_path):
    models = {"float32": tiny_model, "int8": int8}
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(sentences[:6])]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    build_index(models[first], corpus, tmp_path / "index")
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = build_index(models[second], corpus, tmp_path / "index")  # continues it
    assert (summary.encoded, summary.skipped, summary.documents) == (2, 4, 6)
    index = Index.open(tmp_path / "index", models[second])
    found = index.search(models[second].encode(sentences[:6]), 1)
    assert found.rows[:, 0].tolist() == list(range(6)) and found.scores.min() > 0.995
    [record] = index.store.fetch([index.documents[0]["key"]])
    prompt = models[second].prompt_ids(["What?"])
    answer = models[second].generate_ids(prompt, records=[[record]])
    assert answer.tokens[0]


def test_an_int8_model_whose_files_have_changed_has_no_hash(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model = GritLM.from_pretrained(tmp_path, dtype="int8")
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(GritError, match="weights have changed since they were read"):
        _ = model.weights_hash


def test_an_int8_model_is_not_saved(int8, tmp_path):
    with pytest.raises(GritError, match="int8 model cannot be saved.*float32 or bfloat16"):
        int8.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_automatic_mesh_uses_every_device(directory, tiny_model, sentences):
    model = GritLM.from_pretrained(directory, "auto", mesh="auto")
    assert dict(model.mesh.shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    assert model.dtype == "float32"
    texts = sentences[:3]
    np.testing.assert_allclose(model.encode(texts), tiny_model.encode(texts), atol=1e-5)
    for other in ("all", (2, 2)):
        with pytest.raises(GritError, match="mesh must be a Mesh, 'auto' or None"):
            GritLM.from_pretrained(directory, mesh=other)


def test_a_model_too_large_is_refused_before_it_is_read(directory, monkeypatch):
    monkeypatch.setattr(placement, "_host_memory", lambda: 8 * 2**20)
    message = r"needs 0\.\d MiB for its weights in float32.*on 8 x cpu with 1\.0 MiB of memory each"
    with pytest.raises(GritError, match=message):
        GritLM.from_pretrained(directory, mesh="auto")
