"""Directories of sentence-transformers: its vectors, and refusals of what is not followed.

`golden/embedding_gemma` was made by `make_sentence_golden.py`; tests/peers/ compares live.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_models import PROMPTS, TEXTS

from grit_jax import GritLM
from grit_jax.errors import GritError
from grit_jax.inference.model import ModelOptions
from grit_jax.models.hf.directory import read_model_directory
from grit_jax.models.hf.sentence_transformers import read_modules
from grit_jax.models.projection import ACTIVATIONS, layers_of, project, read_projection
from grit_jax.types import AttentionMode

GOLDEN = Path(__file__).parent / "golden" / "embedding_gemma"


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="without a prompt; it has other prompts"):
        return GritLM.from_pretrained(GOLDEN)


def test_embedding_gemma_gives_the_vectors_of_sentence_transformers(model, tmp_path):
    vectors = load_file(GOLDEN / "vectors.safetensors")
    assert model.mode is AttentionMode.BIDIRECTIONAL and model.prompts == PROMPTS
    np.testing.assert_allclose(model.encode(TEXTS), vectors["plain"], atol=2e-5)
    # The prompt goes before the text as it is: its space and the first word are one token.
    for name, prompt in PROMPTS.items():
        np.testing.assert_allclose(model.encode(TEXTS, prompt), vectors[name], atol=2e-5)
    assert np.abs(vectors["plain"] - vectors["query"]).max() > 0.1
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="it has other prompts"):
        again = GritLM.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.encode(TEXTS), vectors["plain"], atol=2e-5)
    assert again.prompts == PROMPTS
    assert json.loads((tmp_path / "modules.json").read_text())[2]["path"] == "2_Dense"
    arguments = json.loads((tmp_path / "sentence_bert_config.json").read_text())["config_args"]
    assert arguments == {"use_bidirectional_attention": True}


def test_caches_and_vectors_are_of_one_pass(model):
    encoded = model.encode(TEXTS, PROMPTS["document"], return_cache=True)
    np.testing.assert_allclose(encoded.vectors, model.encode(TEXTS, PROMPTS["document"]), atol=1e-6)
    ids = model.encoder.format(TEXTS, PROMPTS["document"]).ids
    assert [record.tokens.tolist() for record in encoded.caches] == ids


def test_an_export_without_grit_json_is_the_same_model(tiny_model, tmp_path, sentences):
    """What sentence-transformers keeps of our export when it saves it again."""
    for pooling in ("mean", "weightedmean", "lasttoken", "cls"):
        for mode in (AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL):
            ours = GritLM(
                tiny_model.config,
                tiny_model.params,
                tiny_model.tokenizer,
                tiny_model.chat,
                ModelOptions(pooling, mode),
            )
            if pooling == "weightedmean":
                with pytest.warns(UserWarning, match="weightedmean"):
                    ours.save_pretrained(tmp_path)
            else:
                ours.save_pretrained(tmp_path)
            (tmp_path / "grit.json").unlink()
            again = GritLM.from_pretrained(tmp_path)
            assert (again.pooling, again.mode, again.chat) == (pooling, mode, ours.chat)
    np.testing.assert_array_equal(
        again.encode(sentences[:3], "Find"), ours.encode(sentences[:3], "Find")
    )


def changed(tmp_path, name, **values):
    """The golden directory without its weights, and a JSON file of it changed."""
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**file, **values}))
    return folder


def with_modules(tmp_path, *modules):
    folder = changed(tmp_path, "config.json")
    path = folder / "modules.json"
    path.write_text(json.dumps([{"type": kind, "path": where} for kind, where in modules]))
    return folder


ST = "sentence_transformers.models."
TRANSFORMER, POOLING = (ST + "Transformer", ""), (ST + "Pooling", "1_Pooling")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling 'max' is not supported"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": None, "pooling_mode_max_tokens": True},
            "pooling 'max' is not supported, only one of mean",
        ),
        (
            "1_Pooling/config.json",
            {
                "pooling_mode": None,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": True,
            },
            "pooling 'cls [+] mean' is not supported",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "cls", "include_prompt": False},
            "cls pooling of the first token after the prompt",
        ),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "activation 'torch.nn.modules.activation.Mish' is not supported; known: Identity, Tanh",
        ),
        ("2_Dense/config.json", {"activation_function": "mine.Tanh"}, "activation 'mine.Tanh'"),
        ("2_Dense/config.json", {"use_residual": True}, "residual connection"),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "'module_input_name' is 'token_embeddings'; only Dense modules after Pooling",
        ),
        ("2_Dense/config.json", {"in_features": "many"}, "'in_features' must be a number"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "'do_lower_case' is true"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "text-generation"},
            "'transformer_task' is 'text-generation'",
        ),
        (
            "sentence_bert_config.json",
            {"config_args": {"sliding_window": 9}},
            "'config_args' changes sliding_window",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "passage"},
            "'default_prompt_name' is 'passage', but 'prompts' has only document, query",
        ),
    ],
)
def test_what_is_not_followed_is_refused_by_name(tmp_path, name, values, words):
    with pytest.raises(GritError, match=f"{name}: .*{words}"):
        read_model_directory(changed(tmp_path, name, **values), with_params=False)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([(ST + "Router", "")], "expected the modules Transformer, Pooling, .* got Router"),
        ([(ST + "WordEmbeddings", ""), POOLING], "got WordEmbeddings, Pooling"),
        ([TRANSFORMER, POOLING, (ST + "LayerNorm", "2")], "LayerNorm modules are not supported"),
        (
            [TRANSFORMER, POOLING, (ST + "Normalize", "2"), (ST + "Dense", "2_Dense")],
            "a Normalize module before a Dense one",
        ),
        ([TRANSFORMER, POOLING, ("mine.Dense", "2_Dense")], "'mine.Dense', code of the directory"),
        ([(ST + "Transformer", "0_Transformer"), POOLING], "lies in '0_Transformer'; move"),
        ([TRANSFORMER, (ST + "Pooling", "../1_Pooling")], "lies outside the directory"),
    ],
)
def test_modules_that_are_not_followed_are_refused_by_name(tmp_path, modules, words):
    with pytest.raises(GritError, match=f"modules.json: .*{words}"):
        read_model_directory(with_modules(tmp_path, *modules), with_params=False)


def test_settings_of_the_transformer(tmp_path):
    """Causal unless config.json, or what is changed of it, says otherwise."""
    path = "sentence_bert_config.json"
    for hf, arguments, expected in (
        ({"model_type": "qwen3"}, {}, False),
        ({"model_type": "qwen3", "is_causal": False}, {}, True),
        ({"model_type": "qwen3", "is_causal": True}, {"is_causal": False}, True),
        # transformers changes no key that config.json lacks
        ({"model_type": "qwen3"}, {"is_causal": False}, False),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, {}, True),
        # of the families here only Gemma 3 looks at it
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, {}, False),
    ):
        folder = changed(tmp_path, path, config_args=arguments)
        assert read_modules(folder, hf).bidirectional is expected


def test_without_normalize_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="no Normalize module"):
        modules = read_modules(with_modules(tmp_path, TRANSFORMER, POOLING), {})
    assert not modules.normalizes and modules.dense == ()


def test_the_original_s_own_directories_are_read_as_grit(tmp_path):
    """GritLM-7B has files of sentence-transformers, which would embed causally and without tags."""
    auto_map = {"AutoModel": "modeling_gritlm7b.MistralModel"}
    folder = changed(tmp_path, "config.json", auto_map=auto_map)
    settings = read_model_directory(folder, with_params=False).settings
    assert settings.sentence is None and settings.embedding_mode is AttentionMode.BIDIRECTIONAL


def test_dense_modules_with_activations(tiny_model, tmp_path):
    """Linear neighbours are one map; the others keep their activation, through a directory and
    back."""
    rng = np.random.default_rng(0)
    layers = [(48, 16, "identity"), (16, 12, "tanh"), (12, 9, "relu"), (9, 5, "identity")]
    expected = x = rng.normal(size=(4, 48))
    modules = []
    from grit_jax.models.projection import Dense

    for number, (before, after, activation) in enumerate(layers, start=2):
        folder = tmp_path / f"{number}_Dense"
        folder.mkdir()
        weight = rng.normal(size=(after, before)).astype(np.float32)
        bias = rng.normal(size=after).astype(np.float32)
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")
        modules.append(Dense(folder.name, before, after, True, activation))
        expected = expected @ weight.T.astype(np.float64) + bias
        expected = {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}.get(
            activation, lambda v: v
        )(expected)
    params = read_projection(tmp_path, modules, 48, "float32")
    assert [activation for *_, activation in layers_of(params)] == ["tanh", "relu", "identity"]
    np.testing.assert_allclose(project(params, x), expected, rtol=1e-4, atol=1e-4)
    model = GritLM(
        tiny_model.config, {**tiny_model.params, **params}, tiny_model.tokenizer, tiny_model.chat
    )
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/grit.json").read_text())["projection"] == [
        "2_Dense",
        "3_Dense",
        "4_Dense",
    ]
    again = GritLM.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert again.weights_hash == model.weights_hash and again.encode("a").shape == (1, 5)
    with pytest.raises(GritError, match="'in_features' is 12, but what comes before has 48"):
        read_projection(tmp_path, modules[2:], 48, "float32")


def test_activations_are_those_of_torch():
    """Values of torch.nn at -1.5 and 0.5."""
    expected = {
        "identity": [-1.5, 0.5],
        "tanh": [-0.9051483, 0.4621172],
        "relu": [0.0, 0.5],
        "gelu": [-0.1002108, 0.3457312],
        "sigmoid": [0.1824255, 0.6224593],
        "silu": [-0.2736383, 0.3112297],
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(function(np.float32([-1.5, 0.5])), expected[name], atol=1e-6)


def test_a_peft_folder_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(GritError, match=r"a PEFT adapter, not a model .*'some/base'.*merge_and"):
        read_model_directory(tmp_path)
