"""GGUF files: logits and ids of transformers, which reads the same file."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")

import numpy as np

from grit_jax.models.hf.directory import read_model_directory
from grit_jax.models.hf.gguf import write_directory
from grit_jax.models.transformer import Transformer
from grit_jax.types import AttentionMode

pytestmark = pytest.mark.peers
TEXTS = [gguf_files.TEXT, " the  quick\n\n1999's 12345<|im_end|>the", "größer 北京 🙂", ""]


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
