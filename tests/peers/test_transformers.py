"""Live comparison with transformers and sentence-transformers: their checkpoints in ours, ours in theirs.

Run with `pytest -m peers tests/peers` where the `peers` extra is installed; skipped elsewhere.
"""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grit_jax.inference.model import GritLM  # noqa: E402
from grit_jax.inference.sampling import Sampling  # noqa: E402
from grit_jax.models.huggingface import read_model_directory, write_model_directory  # noqa: E402
from grit_jax.models.transformer import Transformer, init_params  # noqa: E402
from grit_jax.types import AttentionMode  # noqa: E402

pytestmark = pytest.mark.peers

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
TOLERANCE = 2e-4
INSTRUCTION = "Find the tale that fits"


def _load_make_golden():
    path = Path(__file__).parent.parent / "models" / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_golden = _load_make_golden()


def ours(folder, ids, mask, mode):
    """Hidden states and logits of padded rows."""
    model = Transformer(
        folder.config, {name: jax.numpy.asarray(value) for name, value in folder.params.items()}
    )
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    arrays = [jax.numpy.asarray(x, "int32") for x in (ids, positions, mask)]

    @jax.jit
    def run(tokens, positions, segments):
        hidden = model(tokens, positions, segments, mode=mode).hidden
        return hidden, model.logits(hidden)

    return [np.asarray(x) for x in run(*arrays)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", make_golden.FAMILIES)
def test_their_checkpoints_in_ours(tmp_path, name, attention):
    """Saved by transformers, once in shards, with other weights and inputs than the golden files."""
    model = make_golden.make_model(name, seed=1)
    model.set_attn_implementation(attention)
    ids, mask = make_golden.make_inputs(seed=1)
    expected = make_golden.run_model(model, ids, mask)
    model.save_pretrained(tmp_path, max_shard_size="50KB" if attention == "eager" else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (attention == "eager")
    folder = read_model_directory(tmp_path)
    chosen = mask == 1
    logits = ours(folder, ids, mask, CAUSAL)[1]
    hidden = ours(folder, ids, mask, BIDIRECTIONAL)[0]
    np.testing.assert_allclose(logits[chosen], expected["causal_logits"][chosen], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        hidden[chosen], expected["bidirectional_hidden"][chosen], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", make_golden.FAMILIES)
def test_our_export_in_theirs(tmp_path, name, dtype):
    """Causal logits, although sentence-transformers will embed bidirectionally from the same directory."""
    make_golden.make_model(name, seed=2).save_pretrained(tmp_path / "theirs")
    folder = read_model_directory(tmp_path / "theirs")
    # What a config can say beside the defaults must arrive, too.
    config = dataclasses.replace(folder.config, rope_theta=5000.0, max_position_embeddings=77, pad_token_id=3)
    write_model_directory(tmp_path / "ours", config, folder.params, dtype=dtype, max_shard_bytes=60_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto").eval()
    assert model.dtype == getattr(torch, dtype)
    c = model.config
    assert (c.max_position_embeddings, c.pad_token_id, c.bos_token_id, c.eos_token_id) == (77, 3, 1, 2)
    for key in ("num_key_value_heads", "tie_word_embeddings", "num_hidden_layers"):
        assert getattr(c, key) == getattr(config, key)
    assert c.rope_parameters["rope_theta"] == 5000.0 and c.is_causal is True
    again = read_model_directory(tmp_path / "ours")
    assert again.config == dataclasses.replace(config, dtype="float32")
    ids, mask = make_golden.make_inputs(seed=2)
    with torch.no_grad():
        expected = model.float()(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    chosen = mask == 1
    np.testing.assert_allclose(
        ours(again, ids, mask, CAUSAL)[1][chosen], expected[chosen], atol=TOLERANCE, rtol=0
    )


@pytest.fixture(scope="module", params=["mistral", "llama", "qwen2", "qwen3"])
def exported(request, tmp_path_factory, tiny_config, tiny_tokenizer):
    """`GritLM` of a family with an own tokenizer, and the directory it saved."""
    from grit_jax.data.chat import GRIT

    name = request.param
    config = dataclasses.replace(
        tiny_config, architecture=name, qk_norm=name == "qwen3", tie_word_embeddings=name != "mistral",
        attention_bias=name == "qwen2",
    )  # fmt: skip
    model = GritLM(
        config, init_params(config, jax.random.key(1)), tiny_tokenizer, tiny_tokenizer.format(GRIT)
    )
    directory = tmp_path_factory.mktemp(name)
    model.save_pretrained(directory)
    return model, directory


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_sentence_transformers_embeds_as_we_do(exported, sentences):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, directory = exported
    peer = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    texts = sentences[:12]
    theirs = peer.encode(texts, batch_size=4)  # the default prompt is the embedding tag
    assert np.abs(np.linalg.norm(theirs, axis=-1) - 1).max() < 1e-5
    assert cosines(theirs, model.encode(texts)).min() > 0.99999
    assert np.abs(theirs - model.encode(texts)).max() < 1e-4
    for kind in ("query", "document"):
        np.testing.assert_allclose(peer.encode(texts[:3], prompt_name=kind), theirs[:3], atol=1e-5)
    prompt = f"<|user|>\n{INSTRUCTION}\n<|embed|>\n"
    assert cosines(peer.encode(texts, prompt=prompt), model.encode(texts, INSTRUCTION)).min() > 0.99999
    # Not by chance: the same texts embedded causally are others.
    causal = GritLM(model.config, model.params, model.tokenizer, model.chat, mode=CAUSAL).encode(texts)
    assert cosines(theirs, causal).min() < 0.999


@pytest.mark.parametrize("pooling, mode", [("cls", BIDIRECTIONAL), ("lasttoken", CAUSAL), ("mean", CAUSAL)])
def test_sentence_transformers_with_other_poolings(tmp_path, tiny_model, sentences, pooling, mode):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    m = tiny_model
    model = GritLM(m.config, m.params, m.tokenizer, m.chat, pooling, mode=mode)
    model.save_pretrained(tmp_path)
    peer = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert cosines(peer.encode(sentences[:6]), model.encode(sentences[:6])).min() > 0.99999


def test_transformers_generates_as_we_do(exported):
    """Greedy, through its own cache; and its tokenizer gives a conversation the same ids."""
    model, directory = exported
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "river stone, a quiet forest?"}]
    prompt = model.prompt_ids([messages])[0]
    theirs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert list(theirs["input_ids"]) == prompt
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = peer(ids).logits[0].numpy()
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    np.testing.assert_allclose(model(ids.numpy()).logits[0], logits, atol=TOLERANCE, rtol=0)
    answer = model.generate_ids([prompt], sampling=Sampling(max_new_tokens=12)).tokens[0]
    theirs = [i for i in out[0, len(prompt) :].tolist() if i not in model.stop_ids]
    assert [i for i in answer if i not in model.stop_ids] == theirs and theirs
