"""Other families through the public machinery: vectors, records and answers are those of the dense
pass."""

from __future__ import annotations

import dataclasses

import dense_reference as dense
import jax
import numpy as np
import pytest
from generation import generate

from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoder
from grit_jax.inference.sampling import Sampling
from grit_jax.models.config import FULL, SLIDING, RopeScaling
from grit_jax.models.transformer import init_params
from grit_jax.text.chat import GRIT

GEMMA3 = dict(
    num_hidden_layers=4,
    sliding_window=8,
    layer_types=(SLIDING, FULL, SLIDING, FULL),
    rope_local_base_freq=100.0,
    rope_scaling=RopeScaling("linear", 2.0),
    qk_norm=True,
    hidden_act="gelu_pytorch_tanh",
    zero_centered_norm=True,
    post_norms=True,
    scale_embeddings=True,
    attn_logit_softcapping=8.0,
    final_logit_softcapping=6.0,
    tie_word_embeddings=True,
)
EXPERTS = dict(num_hidden_layers=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


@pytest.mark.parametrize("changes", [GEMMA3, EXPERTS], ids=["gemma3", "experts"])
def test_vectors_records_and_answers(tiny_config, tiny_tokenizer, sentences, changes):
    config = dataclasses.replace(tiny_config, **changes)
    params = init_params(config, jax.random.key(3))
    encoder = Encoder(config, params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    formatted = encoder.format(sentences[:6], "Find the sentence")
    found = encoder.encode(sentences[:6], "Find the sentence", return_cache=True)
    for ids, vector in zip(formatted.ids, found.vectors, strict=True):
        np.testing.assert_allclose(
            vector, dense.embedding(params, config, ids, formatted.prompt, "mean"), atol=1e-5
        )
    pieces, prompt = found.caches[1:3], formatted.ids[0][:9]
    answer = generate(
        params,
        config,
        [prompt],
        records=[pieces],
        sampling=Sampling(6, ignore_eos=True),
        eos_ids=[],
        return_logits=True,
    )
    expected = dense.greedy(params, config, [piece.tokens for piece in pieces], prompt, 6)
    assert answer.tokens[0] == expected.tokens
    np.testing.assert_allclose(answer.logits[0], expected.logits, atol=2e-4)


def test_scaling_by_length_has_no_records(tiny_config, tiny_params, tiny_tokenizer, sentences):
    config = dataclasses.replace(
        tiny_config, rope_scaling=RopeScaling("dynamic", 2.0), max_position_embeddings=16
    )
    encoder = Encoder(config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    together = encoder.encode(
        sentences[:8]
    ).vectors  # without records it embeds, each text by its own length
    alone = encoder.encode(sentences[3:4]).vectors
    np.testing.assert_allclose(together[3], alone[0], atol=1e-5)
    with pytest.raises(GritError, match="dynamic.*documents cannot be cached"):
        encoder.encode(sentences[:2], return_cache=True)
    record = Encoder(tiny_config, tiny_params, tiny_tokenizer, encoder.chat).encode(
        sentences[:1], return_cache=True
    )
    with pytest.raises(GritError, match="dynamic.*documents cannot be cached"):
        generate(
            tiny_params, config, [[5, 6]], records=[record.caches], sampling=Sampling(2), eos_ids=[]
        )
