"""`GritLM.encode` of the original package (PyPI `gritlm` 1.0.2) against ours, from one model
directory."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gritlm = pytest.importorskip("gritlm")

from grit_jax.data.formats import document_text  # noqa: E402
from grit_jax.inference.model import GritLM, ModelOptions  # noqa: E402
from grit_jax.models.cache import rotate_keys  # noqa: E402
from grit_jax.types import KV, AttentionMode  # noqa: E402

pytestmark = pytest.mark.peers

POOLINGS = ("mean", "weightedmean", "lasttoken", "cls")
MODES = {"bbcc": AttentionMode.BIDIRECTIONAL, "cccc": AttentionMode.CAUSAL}
INSTRUCTION = "Find the tale that fits, größer"


def formatted(instruction: str) -> str:
    """The string that its users hand over as `instruction` (gritlm: README.md,
    rag/eval.py:37-38)."""
    return f"<|user|>\n{instruction}\n<|embed|>\n" if instruction else "<|embed|>\n"


def theirs(peer, pooling="mean", attn="bbcc", mode="embedding", **how):
    return gritlm.GritLM(
        str(peer.directory), mode=mode, pooling_method=pooling, attn=attn, device="cpu", **how
    )


def ours(peer, pooling="mean", attn="bbcc"):
    m = peer.ours
    return GritLM(m.config, m.params, m.tokenizer, m.chat, ModelOptions(pooling, MODES[attn]))


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert cosines(found, expected).min() > 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("attn", MODES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_encode(peer, texts, pooling, attn):
    """With and without an instruction, in ragged batches padded there and packed here."""
    model, mine = theirs(peer, pooling, attn), ours(peer, pooling, attn)
    for instruction in ("", INSTRUCTION):
        expected = model.encode(texts, batch_size=7, instruction=formatted(instruction))
        assert_same(mine.encode(texts, instruction), expected)


def test_what_is_compared_differs(peer, texts):
    """The attention, the instruction and whether it is pooled all show in the vectors, and so does
    the text."""
    model = theirs(peer)
    embed = lambda instruction=INSTRUCTION, **how: model.encode(
        texts, instruction=formatted(instruction), **how
    )
    vectors = embed()
    assert (
        cosines(
            vectors, theirs(peer, attn="cccc").encode(texts, instruction=formatted(INSTRUCTION))
        ).max()
        < 0.999
    )
    assert cosines(vectors, embed("")).max() < 0.999
    assert cosines(vectors, embed(embed_instruction=True)).min() < 0.999
    assert cosines(vectors, np.roll(vectors, 1, axis=0)).max() < 0.99


@pytest.mark.parametrize("max_length", [40, 24])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_truncation(peer, texts, pooling, max_length):
    """`max_length` counts the beginning of sequence, instruction and tags, and the end of the text
    is cut."""
    expected = theirs(peer, pooling).encode(
        texts, max_length=max_length, instruction=formatted("Find it")
    )
    assert_same(ours(peer, pooling).encode(texts, "Find it", max_length), expected)
    if max_length == 40:
        assert (cosines(ours(peer, pooling).encode(texts, "Find it"), expected) < 0.999).any()


def test_the_unified_class_embeds_the_same(peer, texts):
    """Mode `unified` keeps the language head; its `encode` is ours, too."""
    model = theirs(peer, mode="unified")
    assert_same(
        peer.ours.encode(texts[:8], INSTRUCTION),
        model.encode(texts[:8], instruction=formatted(INSTRUCTION)),
    )


def test_corpus_of_titles_and_texts(peer, sentences):
    corpus = [{"title": "Amber", "text": sentences[0]}, {"title": "Größe", "text": sentences[1]}]
    expected = theirs(peer).encode_corpus(corpus, instruction=formatted(""))
    assert_same(
        peer.ours.encode([document_text(document, "corpus:1") for document in corpus]), expected
    )
    query = theirs(peer).encode_queries(sentences[2], instruction=formatted(INSTRUCTION))
    assert_same(peer.ours.encode(sentences[2], INSTRUCTION)[0], query)


def test_an_empty_text_is_a_vector_with_us(peer):
    """There the mean over no token is not a number; here it is over the last tag."""
    expected = theirs(peer).encode(["", "river"], instruction=formatted(""))
    assert np.isnan(expected[0]).all()
    found = peer.ours.encode(["", "river"])
    assert_same(found[1:], expected[1:])
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attn", MODES)
@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_caches(peer, texts, attn, instruction):
    """Its keys are rotated and padded, ours neither: rotated to the places of their own pass they
    are the same."""
    chosen = texts[:14]
    vectors, cache = theirs(peer, attn=attn).encode(
        chosen, get_cache=True, instruction=formatted(instruction), max_length=64
    )
    found = ours(peer, attn=attn).encode(chosen, instruction, 64, return_cache=True)
    assert_same(found.vectors, vectors)
    lengths = []
    for i, record in enumerate(found.caches):
        T = len(record.tokens)
        lengths.append(T)
        kv, positions = KV(record.k[:, None], record.v[:, None]), np.arange(T)[None]
        rotated = np.asarray(rotate_keys(kv, positions, np.ones_like(positions), peer.ours.config))[
            :, 0
        ]
        for layer, part in enumerate(cache.layers):
            # Both are [K T H] there; here keys are [K H T].
            keys, values = (x[i, :, :T].numpy() for x in (part.keys, part.values))
            np.testing.assert_allclose(rotated[layer].swapaxes(1, 2), keys, atol=2e-5)
            np.testing.assert_allclose(record.v[layer], values, atol=2e-5)
        assert np.abs(record.k - rotated).max() > 0.1
    assert len(set(lengths)) > 4 and cache.layers[0].keys.shape[2] == max(lengths)
