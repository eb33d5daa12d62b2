"""Texts to vectors and caches: packing changes nothing, formats and cuts are right, mistakes are
named."""

from __future__ import annotations

import dataclasses

import dense_reference as dense
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoder
from grit_jax.text.chat import GRIT
from grit_jax.types import AttentionMode

POOLINGS = ["mean", "weightedmean", "lasttoken", "cls"]


@pytest.fixture(scope="module")
def encoder(tiny_config, tiny_params, tiny_tokenizer) -> Encoder:
    return Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))


def with_pooling(
    encoder: Encoder, pooling: str, mode: AttentionMode = AttentionMode.BIDIRECTIONAL
) -> Encoder:
    return Encoder(encoder.config, encoder.params, encoder.tokenizer, encoder.chat, pooling, mode)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_vectors_equal_the_dense_reference_of_each_text(
    encoder, tiny_params, sentences, pooling
):
    encoder = with_pooling(encoder, pooling)
    texts = sentences[:24]
    formatted = encoder.format(texts, "Find the sentence")
    found = encoder.encode(texts, "Find the sentence").vectors
    for ids, vector in zip(formatted.ids, found, strict=True):
        expected = dense.embedding(tiny_params, encoder.config, ids, formatted.prompt, pooling)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_packed_equals_one_by_one_in_order(encoder, sentences):
    together = encoder.encode(sentences, return_cache=True)
    for i in (0, 1, 17, 150, 299):
        alone = encoder.encode([sentences[i]], return_cache=True)
        np.testing.assert_allclose(together.vectors[i], alone.vectors[0], atol=1e-5)
        np.testing.assert_array_equal(together.caches[i].tokens, alone.caches[0].tokens)
        np.testing.assert_allclose(together.caches[i].k, alone.caches[0].k, atol=1e-5)
        np.testing.assert_allclose(together.caches[i].v, alone.caches[0].v, atol=1e-5)


def test_causal_mode_is_another_program_over_the_same_weights(encoder, tiny_params, sentences):
    causal = with_pooling(encoder, "lasttoken", AttentionMode.CAUSAL)
    formatted = causal.format(sentences[:3])
    for ids, vector in zip(formatted.ids, causal.encode(sentences[:3]).vectors, strict=True):
        expected = dense.embedding(
            tiny_params, encoder.config, ids, formatted.prompt, "lasttoken", "causal"
        )
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_prefix_mode_is_a_causal_instruction_before_a_bidirectional_text(
    encoder, tiny_params, sentences
):
    """The paper's "cb": the text sees all of itself and its instruction, which sees nothing of the
    text."""
    prefix = with_pooling(encoder, "mean", AttentionMode.PREFIX)
    formatted = prefix.format(sentences[:6], "Find the sentence")
    found = prefix.encode(sentences[:6], "Find the sentence", return_cache=True)
    for ids, vector in zip(formatted.ids, found.vectors, strict=True):
        expected = dense.embedding(
            tiny_params, encoder.config, ids, formatted.prompt, "mean", "prefix"
        )
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    first, other = (cache.k[..., : formatted.prompt] for cache in found.caches[:2])
    np.testing.assert_allclose(first, other, atol=1e-5)  # the same instruction, whatever follows
    whole = encoder.encode(sentences[:6], "Find the sentence")
    assert (whole.vectors * found.vectors).sum(1).max() < 0.999


def test_vectors_are_unit_writable_float32(encoder, sentences):
    vectors = encoder.encode(sentences[:5]).vectors
    assert vectors.dtype == np.float32 and vectors.shape == (5, encoder.config.hidden_size)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    vectors[0] = 0  # a view of a JAX buffer would refuse


def test_format_is_the_original_s(encoder, tiny_tokenizer):
    formatted = encoder.format(["Amber river"], "  Find it:\n")
    assert (
        tiny_tokenizer.decode(formatted.ids[0], skip_special=False)
        == "<s><|user|>\nFind it\n<|embed|>\nAmber river"
    )
    bare = encoder.format(["Amber river"])
    assert tiny_tokenizer.decode(bare.ids[0], skip_special=False) == "<s><|embed|>\nAmber river"
    assert tiny_tokenizer.decode(bare.ids[0][bare.prompt :]) == "Amber river"


def test_special_tokens_in_a_text_are_ordinary_text(encoder, tiny_tokenizer):
    ids = encoder.format(["</s>"]).ids[0]
    assert tiny_tokenizer.eos_id not in ids


def test_truncation_counts_everything_and_cuts_the_end(encoder, sentences):
    long = " ".join(sentences)
    formatted = encoder.format([long], "Find it", max_length=64)
    assert len(formatted.ids[0]) == 64
    whole = encoder.format([long], "Find it", max_length=encoder.config.context_length)
    assert formatted.ids[0] == whole.ids[0][:64]
    cut = encoder.encode([long], "Find it", max_length=64).vectors
    same = encoder.encode_ids([whole.ids[0][:64]], [whole.prompt]).vectors
    np.testing.assert_allclose(cut, same, atol=1e-6)


def test_a_text_of_few_tokens_and_many_characters_is_read_whole(encoder):
    text = " ".join(["river"] * 40)
    for limit in range(8, 44, 6):  # few enough tokens that the cut in characters would bite
        assert (
            encoder.format([text * 30], max_length=limit).ids[0]
            == encoder.format([text * 30], max_length=9999).ids[0][:limit]
        )


@pytest.mark.slow
def test_long_text_equals_dense_reference(encoder, tiny_params, sentences):
    formatted = encoder.format([" ".join(sentences * 3)], max_length=4500)
    ids = formatted.ids[0]
    assert len(ids) == 4500
    small = dataclasses.replace(encoder.config, num_hidden_layers=1)
    first = {
        name: value[:1] if value.shape[0] == 3 else value for name, value in tiny_params.items()
    }
    found = Encoder(small, first, encoder.tokenizer, encoder.chat).encode_ids(
        [ids], [formatted.prompt]
    )
    expected = dense.embedding(first, small, ids, formatted.prompt, "mean")
    np.testing.assert_allclose(found.vectors[0], expected, atol=1e-5)


def test_nothing_and_empty_texts(encoder):
    nothing = encoder.encode([], return_cache=True)
    assert (
        nothing.vectors.shape == (0, encoder.config.hidden_size)
        and nothing.caches == []
        and nothing.tokens == 0
    )
    vectors = encoder.encode(["", "amber"]).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


# As they appear in the wild: nothing, spaces, controls, a byte order mark, emoji, special tokens.
ODD = [
    "",
    " ",
    " \t\n ",
    "\0",
    "a\0b",
    "\ufeffamber",
    "\U0001f9ff\u200d\U0001f525",
    "</s>",
    "<|embed|>\n",
]


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_odd_texts_are_the_same_alone_together_and_reversed(encoder, pooling):
    encoder = with_pooling(encoder, pooling)
    together = encoder.encode(ODD).vectors
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(ODD[::-1]).vectors[::-1], together, atol=1e-6)
    for text, vector in zip(ODD, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text]).vectors[0], vector, atol=1e-6)


def with_context(encoder: Encoder, context: int) -> Encoder:
    config = dataclasses.replace(encoder.config, max_position_embeddings=context)
    return Encoder(config, encoder.params, encoder.tokenizer, encoder.chat)


def test_what_is_cut_is_counted_and_warned_about(encoder, sentences):
    texts = ["amber", " ".join(sentences[:9]), "river", " ".join(sentences[9:18])]
    lengths = [len(ids) for ids in encoder.format(texts).ids]
    assert [n > 40 for n in lengths] == [False, True, False, True]
    with pytest.warns(UserWarning, match="^2 of 4 texts were cut to 40 tokens"):
        assert encoder.encode(texts, max_length=40).truncated == 2
    assert encoder.format(texts, max_length=40).truncated == [1, 3]
    exact = encoder.format(texts, max_length=lengths[1])
    assert 1 not in exact.truncated and 1 in encoder.format(texts, "", lengths[1] - 1).truncated
    assert encoder.encode(texts).truncated == 0


def test_the_default_length_is_lowered_to_the_context_and_a_request_is_not(encoder, sentences):
    short, text = with_context(encoder, 48), " ".join(sentences[:30])
    with pytest.warns(UserWarning, match="1 of 1 texts was cut to 48 tokens"):
        cut = short.encode([text])
    np.testing.assert_allclose(cut.vectors, encoder.encode([text], "", 48).vectors, atol=1e-6)
    with pytest.raises(GritError, match="max_length is 49 tokens.*context is 48"):
        short.encode(["amber"], max_length=49)
    with pytest.raises(GritError, match="max_length is 512 tokens.*context is 48"):
        short.encode(["amber"], max_length=512)


def test_a_vector_that_is_not_finite_names_the_text_and_the_weight(encoder, tiny_params):
    river, amber = (
        encoder.tokenizer.encode(word, continues=True)[-1] for word in ("river", "amber")
    )
    table = next(
        name for name in tiny_params if len(tiny_params[name]) == encoder.config.vocab_size
    )
    broken = tiny_params | {table: tiny_params[table].at[river, 5].set(np.nan)}
    bad = Encoder(encoder.config, broken, encoder.tokenizer, encoder.chat)
    with pytest.raises(GritError, match=f"^text 0: its vector is.*'{table}'.*index {river} of"):
        bad.encode_ids([[amber, river]])
    with pytest.raises(GritError, match="^x.jsonl:2: its vector is not finite"):
        bad.encode_ids([[river]], names=["x.jsonl:2"])
    with pytest.raises(GritError, match=r"^text 0: .*\(and those of 1 more texts\)"):
        bad.encode_ids([[river], [river]])
    assert np.isfinite(bad.encode_ids([[amber]]).vectors).all()
    huge = tiny_params | {"final_norm": tiny_params["final_norm"] * np.float32(3e38)}
    with pytest.raises(GritError, match="all weights are finite, so the computation overflows"):
        Encoder(encoder.config, huge, encoder.tokenizer, encoder.chat).encode(["amber"])


@pytest.mark.parametrize(
    ("texts", "instruction", "max_length", "words"),
    [
        ({"amber": 1}, "", 512, ["list of strings", "dict"]),
        ({"amber"}, "", 512, ["list of strings", "set"]),
        (b"amber", "", 512, ["list of strings", "bytes"]),
        (7, "", 512, ["list of strings", "int"]),
        (np.array("amber"), "", 512, ["list of strings"]),
        ([["amber"]], "", 512, ["text 0", "list"]),
        (["a", b"b"], "", 512, ["text 1", "bytes"]),
        (["a", 3], "", 512, ["text 1", "int"]),
        (["a"], None, 512, ["instruction", "NoneType"]),
        (["a"], ["b"], 512, ["instruction", "list"]),
        (["a"], "", None, ["max_length", "None"]),
        (["a"], "", 10.0, ["max_length", "10.0"]),
        (["a"], "", -1, ["max_length", "-1"]),
        (["a", None], "", 512, ["text 1", "NoneType"]),
        ("amber", "", 512, ["list"]),
        (["a"], "Find the sentence that says it", 8, ["instruction", "8"]),
        (None, "", 512, ["list", "NoneType"]),
        (["a"], "", 1, ["max_length"]),
        (["a"], 3, 512, ["instruction"]),
        (["a", "\ud800"], "", 512, ["1"]),
    ],
)
def test_mistakes_are_named(encoder, texts, instruction, max_length, words):
    with pytest.raises(GritError) as error:
        encoder.encode(texts, instruction, max_length)
    for word in words:
        assert word in str(error.value)


def test_a_cache_owns_its_memory(encoder, sentences):
    cache = encoder.encode(sentences[:40], return_cache=True).caches[3]
    assert cache.k.base is None and cache.k.shape[-1] == len(cache.tokens)
