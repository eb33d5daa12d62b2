"""Live comparison with transformers and sentence-transformers: their checkpoints in ours, ours in
theirs.

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

from grit_jax.inference.model import GritLM, ModelOptions  # noqa: E402
from grit_jax.inference.sampling import Sampling  # noqa: E402
from grit_jax.models.config import RopeScaling  # noqa: E402
from grit_jax.models.hf.directory import read_model_directory, write_model_directory  # noqa: E402
from grit_jax.models.hf.read_config import config_from_hf  # noqa: E402
from grit_jax.models.rotary import attention_factor, inverse_frequencies  # noqa: E402
from grit_jax.models.transformer import Transformer, init_params  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.step import StepConfig, joint_loss  # noqa: E402
from grit_jax.types import AttentionMode, Batch, GenerativeBatch, Rows  # noqa: E402

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


KERNELS = [
    (name, attention)
    for name in make_golden.FAMILIES
    for attention in ("eager", "sdpa")
    if attention == "eager" or name != "gemma2"  # sdpa has no soft cap
]


@pytest.mark.parametrize("name, attention", KERNELS)
def test_their_checkpoints_in_ours(tmp_path, name, attention):
    """Saved by transformers, once in shards, with other weights and inputs than the golden
    files."""
    model = make_golden.make_model(name, seed=1)
    model.set_attn_implementation(attention)
    ids, mask = make_golden.make_inputs(name, seed=1)
    expected = make_golden.run_model(model, ids, mask)
    model.save_pretrained(tmp_path, max_shard_size="50KB" if attention == "eager" else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (attention == "eager")
    folder = read_model_directory(tmp_path)
    chosen = mask == 1
    logits = ours(folder, ids, mask, CAUSAL)[1]
    hidden = ours(folder, ids, mask, BIDIRECTIONAL)[0]
    np.testing.assert_allclose(
        logits[chosen], expected["causal_logits"][chosen], atol=TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(
        hidden[chosen], expected["bidirectional_hidden"][chosen], atol=TOLERANCE, rtol=0
    )


def test_their_multimodal_checkpoint(tmp_path):
    """Gemma 3 with an image part: the text part of what transformers saves is what its own text
    model computes."""
    text = make_golden.make_model("gemma3", seed=1)
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
    )
    config = transformers.Gemma3Config(text_config=text.config.to_dict(), vision_config=vision)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.save_pretrained(tmp_path)
    ids, mask = make_golden.make_inputs("gemma3", seed=1)
    with pytest.warns(UserWarning, match="multimodal"):
        folder = read_model_directory(tmp_path)
    expected = make_golden.run_model(text, ids, mask)["causal_logits"][mask == 1]
    np.testing.assert_allclose(
        ours(folder, ids, mask, CAUSAL)[1][mask == 1], expected, atol=TOLERANCE, rtol=0
    )


ROPES = {
    "llama 3.1": (
        500000.0,
        128,
        131072,
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "qwen 2.5 at 128k": (
        1e6,
        128,
        131072,
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768),
    ),
    "yarn, all said": (
        1e4,
        64,
        8192,
        dict(
            rope_type="yarn",
            factor=16.0,
            original_max_position_embeddings=512,
            beta_fast=40.0,
            beta_slow=2.0,
            truncate=False,
            mscale=0.8,
            mscale_all_dim=0.5,
        ),
    ),
    "yarn, own factor": (
        1e4,
        64,
        8192,
        dict(
            rope_type="yarn",
            factor=2.0,
            original_max_position_embeddings=4096,
            attention_factor=0.9,
        ),
    ),
    "linear": (1e6, 256, 131072, dict(rope_type="linear", factor=8.0)),
}


@pytest.mark.parametrize("case", ROPES)
def test_rotary_frequencies_of_published_models(case):
    theta, head_dim, length, values = ROPES[case]
    theirs = transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters={"rope_theta": theta, **values},
    )
    expected, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[values["rope_type"]](
        theirs, "cpu"
    )
    config = config_from_hf(theirs.to_dict() | {"model_type": "llama"})
    np.testing.assert_allclose(inverse_frequencies(config), expected.numpy(), rtol=2e-6)
    assert attention_factor(config.rope_scaling) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_loss_and_gradients_with_the_router_s(tmp_path, name):
    """The language loss plus the load-balancing loss, and the gradient of every weight, as torch
    has them."""
    model = make_golden.make_model(name, seed=3)
    model.save_pretrained(tmp_path / "weights")
    folder = read_model_directory(tmp_path / "weights")
    ids, mask = make_golden.make_inputs(name, seed=3)
    labels = np.where(mask == 1, ids, -100)
    loss = model(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        output_router_logits=True,
    ).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(
        tmp_path / "gradients"
    )  # so that the gradients get the names of weights on disk
    expected = read_model_directory(tmp_path / "gradients").params

    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    rows = Rows(*(jax.numpy.asarray(x, "int32") for x in (ids, positions, mask)))
    targets = jax.numpy.asarray(mask * (positions > 0), "float32")
    batch = Batch(generative=GenerativeBatch(rows, targets, rows.segments * 0, 1))
    step = StepConfig(folder.config, LossConfig())
    found, gradients = jax.jit(jax.value_and_grad(lambda p: joint_loss(p, batch, step)[0]))(
        folder.params
    )
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    for weight, gradient in gradients.items():
        scale = np.abs(expected[weight]).max()
        np.testing.assert_allclose(
            gradient / scale, expected[weight] / scale, atol=2e-5, err_msg=weight
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", make_golden.FAMILIES)
def test_our_export_in_theirs(tmp_path, name, dtype):
    """Causal logits, although sentence-transformers will embed bidirectionally from the same
    directory."""
    make_golden.make_model(name, seed=2).save_pretrained(tmp_path / "theirs")
    folder = read_model_directory(tmp_path / "theirs")
    # What a config can say beside the defaults must arrive, too.
    config = dataclasses.replace(
        folder.config, rope_theta=5000.0, max_position_embeddings=77, pad_token_id=3
    )
    write_model_directory(
        tmp_path / "ours", config, folder.params, dtype=dtype, max_shard_bytes=60_000
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto"
    ).eval()
    assert model.dtype == getattr(torch, dtype)
    c = model.config
    assert (c.max_position_embeddings, c.pad_token_id, c.bos_token_id, c.eos_token_id) == (
        77,
        3,
        1,
        2,
    )
    for key in ("num_key_value_heads", "tie_word_embeddings", "num_hidden_layers"):
        assert getattr(c, key) == getattr(config, key)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    assert rope["rope_theta"] == 5000.0 and c.is_causal is True
    again = read_model_directory(tmp_path / "ours")
    assert again.config == dataclasses.replace(config, dtype="float32")
    ids, mask = make_golden.make_inputs(name, seed=2)
    # Read anew in float32: what was read in bfloat16 has rounded Gemma's scale of the embeddings,
    # which is no weight.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    ).eval()
    expected = make_golden.run_model(model, ids, mask)["causal_logits"]
    chosen = mask == 1
    np.testing.assert_allclose(
        ours(again, ids, mask, CAUSAL)[1][chosen], expected[chosen], atol=TOLERANCE, rtol=0
    )


GEMMA = dict(
    hidden_act="gelu_pytorch_tanh",
    zero_centered_norm=True,
    post_norms=True,
    scale_embeddings=True,
    query_pre_attn_scalar=20.0,
    tie_word_embeddings=True,
    final_logit_softcapping=8.0,
    # Wider than the texts: on a CPU transformers' own bidirectional window is one wider than ours.
    sliding_window=512,
    layer_types=("sliding_attention", "full_attention", "sliding_attention"),
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96)
# What a family's models have beside the sizes of `tiny_config`.
FEATURES: dict[str, dict] = {
    "mistral": {},
    "llama": dict(tie_word_embeddings=True),
    "qwen2": dict(tie_word_embeddings=True, attention_bias=True),
    "qwen3": dict(tie_word_embeddings=True, qk_norm=True),
    "mixtral": EXPERTS,
    "qwen3_moe": dict(EXPERTS, qk_norm=True, moe_intermediate_size=32, mlp_only_layers=(0,)),
    "gemma2": dict(GEMMA, attn_logit_softcapping=10.0),
    "gemma3_text": dict(
        GEMMA, qk_norm=True, rope_local_base_freq=100.0, rope_scaling=RopeScaling("linear", 2.0)
    ),
}


@pytest.fixture(scope="module", params=FEATURES)
def exported(request, tmp_path_factory, tiny_config, tiny_tokenizer):
    """`GritLM` of a family with an own tokenizer, and the directory it saved."""
    from grit_jax.text.chat import GRIT

    name = request.param
    config = dataclasses.replace(tiny_config, architecture=name, **FEATURES[name])
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
    assert (
        cosines(peer.encode(texts, prompt=prompt), model.encode(texts, INSTRUCTION)).min() > 0.99999
    )
    # Not by chance: the same texts embedded causally are others.
    causal = GritLM(
        model.config, model.params, model.tokenizer, model.chat, ModelOptions(mode=CAUSAL)
    ).encode(texts)
    assert cosines(theirs, causal).min() < 0.999


@pytest.mark.parametrize(
    "pooling, mode", [("cls", BIDIRECTIONAL), ("lasttoken", CAUSAL), ("mean", CAUSAL)]
)
def test_sentence_transformers_with_other_poolings(tmp_path, tiny_model, sentences, pooling, mode):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    m = tiny_model
    model = GritLM(m.config, m.params, m.tokenizer, m.chat, ModelOptions(pooling, mode))
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
        out = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
    np.testing.assert_allclose(model(ids.numpy()).logits[0], logits, atol=TOLERANCE, rtol=0)
    answer = model.generate_ids([prompt], sampling=Sampling(max_new_tokens=12)).tokens[0]
    theirs = [i for i in out[0, len(prompt) :].tolist() if i not in model.stop_ids]
    assert [i for i in answer if i not in model.stop_ids] == theirs and theirs


def test_dynamic_scaling_generates_as_transformers_does(tmp_path, tiny_config, tiny_tokenizer):
    """Beyond `max_position_embeddings`, where the base of a token's rotation grows with every
    step."""
    from grit_jax.text.chat import GRIT

    config = dataclasses.replace(
        tiny_config,
        architecture="llama",
        rope_scaling=RopeScaling("dynamic", 3.0),
        max_position_embeddings=12,
    )
    model = GritLM(
        config, init_params(config, jax.random.key(1)), tiny_tokenizer, tiny_tokenizer.format(GRIT)
    )
    model.save_pretrained(tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = np.random.default_rng(0).integers(10, config.vocab_size, 9).tolist()
    ids = torch.tensor([prompt])
    options = dict(
        max_new_tokens=14,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    with torch.no_grad():
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), **options)
    found = model.generate_ids(
        [prompt], sampling=Sampling(max_new_tokens=14, ignore_eos=True), return_logits=True
    )
    assert found.tokens[0] == out.sequences[0, len(prompt) :].tolist()
    expected = torch.cat(out.logits).numpy()
    np.testing.assert_allclose(found.logits[0], expected, atol=TOLERANCE, rtol=0)
