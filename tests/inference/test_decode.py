"""Generation: equal to full recomputation without a cache, with cached documents, in any company;
sampling."""

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
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import init_params
from grit_jax.text.chat import GRIT
from grit_jax.types import DocumentKV

NEW = 9


def check(found, expected: list[dense.DenseGeneration]) -> None:
    for tokens, logits, want in zip(found.tokens, found.logits, expected, strict=True):
        assert tokens == want.tokens
        np.testing.assert_allclose(logits, want.logits, atol=1e-4)


def test_greedy_equals_recomputation_without_a_cache(tiny_config, tiny_params, prompts):
    found = generate(tiny_params, tiny_config, prompts, sampling=Sampling(NEW), return_logits=True)
    check(found, [dense.greedy(tiny_params, tiny_config, [], prompt, NEW) for prompt in prompts])
    assert found.finished == ["length"] * len(prompts)


@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0], [2, 5, 3], [3, 2, 5]])
def test_cached_documents_equal_one_dense_pass(tiny_config, tiny_params, documents, prompts, order):
    rows = [documents[i] for i in order]
    found = generate(
        tiny_params,
        tiny_config,
        [prompts[0]],
        records=[rows],
        sampling=Sampling(NEW),
        return_logits=True,
    )
    check(
        found,
        [dense.greedy(tiny_params, tiny_config, [piece.tokens for piece in rows], prompts[0], NEW)],
    )


def test_colliding_documents_equal_one_dense_pass_at_those_positions(
    tiny_config, tiny_params, documents, prompts
):
    """Each from 0, as the original's; the prompt goes on after all of them. One document alone is
    where it always is."""
    chosen = [[documents[2], documents[5], documents[3]], [documents[3]], []]
    run = lambda **how: generate(
        tiny_params,
        tiny_config,
        prompts[:3],
        records=chosen,
        sampling=Sampling(NEW),
        return_logits=True,
        **how,
    )
    found, running = run(positions="colliding"), run()
    expected = [
        dense.greedy(
            tiny_params, tiny_config, [piece.tokens for piece in row], prompt, NEW, colliding=True
        )
        for row, prompt in zip(chosen, prompts, strict=False)
    ]
    check(found, expected)
    assert np.abs(found.logits[0] - running.logits[0]).max() > 0.1
    np.testing.assert_allclose(found.logits[1:], running.logits[1:], atol=1e-4)


def test_ragged_batch_with_and_without_documents(tiny_config, tiny_params, documents, prompts):
    chosen = [
        [documents[3]],
        [],
        [documents[1], documents[0], documents[4]],
        [documents[0], documents[3]],
    ]
    found = generate(
        tiny_params,
        tiny_config,
        prompts,
        records=chosen,
        sampling=Sampling(NEW),
        return_logits=True,
    )
    expected = [
        dense.greedy(tiny_params, tiny_config, [piece.tokens for piece in row], prompt, NEW)
        for row, prompt in zip(chosen, prompts, strict=True)
    ]
    check(found, expected)
    alone = generate(
        tiny_params, tiny_config, prompts[2:3], records=chosen[2:3], sampling=Sampling(NEW)
    )
    assert alone.tokens[0] == found.tokens[2]


def test_calls_of_few_rows_keep_the_order(tiny_config, tiny_params, prompts):
    whole = generate(tiny_params, tiny_config, prompts, sampling=Sampling(NEW), return_logits=True)
    split = generate(
        tiny_params,
        tiny_config,
        prompts,
        sampling=Sampling(NEW),
        return_logits=True,
        rows_per_call=2,
    )
    assert split.tokens == whole.tokens
    np.testing.assert_allclose(split.logits, whole.logits, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"sliding_window": 9}, {"attention_bias": True, "qk_norm": True, "tie_word_embeddings": True}],
)
def test_other_families_equal_the_dense_pass(
    tiny_config, tiny_tokenizer, prompts, sentences, change
):
    config = dataclasses.replace(tiny_config, num_hidden_layers=2, **change)
    params = init_params(config, jax.random.key(1))
    encoder = Encoder(config, params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    rows = encoder.encode(sentences[2:4], return_cache=True).caches
    found = generate(
        params, config, [prompts[1]], records=[rows], sampling=Sampling(4), return_logits=True
    )
    check(found, [dense.greedy(params, config, [piece.tokens for piece in rows], prompts[1], 4)])


def test_a_long_cache_is_read_in_blocks(
    tiny_config, tiny_params, tiny_tokenizer, sentences, prompts
):
    encoder = Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))
    rows = encoder.encode([" ".join(sentences[:70])], max_length=1300, return_cache=True).caches
    assert len(rows[0].tokens) == 1300
    found = generate(
        tiny_params,
        tiny_config,
        [prompts[0]],
        records=[rows],
        sampling=Sampling(3),
        return_logits=True,
    )
    check(found, [dense.greedy(tiny_params, tiny_config, [rows[0].tokens], prompts[0], 3)])


def test_answers_stop_where_the_model_ends_them(tiny_config, tiny_params, prompts):
    free = generate(tiny_params, tiny_config, prompts, sampling=Sampling(NEW)).tokens
    end = free[1][4]
    found = generate(
        tiny_params,
        tiny_config,
        prompts,
        sampling=Sampling(NEW),
        eos_ids=[end, -5],
        return_logits=True,
    )
    for tokens, whole, why in zip(found.tokens, free, found.finished, strict=True):
        cut = whole.index(end) if end in whole else None
        assert tokens == whole[:cut] and why == ("length" if cut is None else "stop")
    ignoring = Sampling(NEW, ignore_eos=True)
    assert (
        generate(tiny_params, tiny_config, prompts, sampling=ignoring, eos_ids=[end]).tokens == free
    )


def test_the_loop_ends_with_the_last_row(tiny_config, tiny_params, prompts):
    first = generate(tiny_params, tiny_config, prompts[:1], sampling=Sampling(1)).tokens[0][0]
    found = generate(
        tiny_params,
        tiny_config,
        prompts[:1],
        sampling=Sampling(300),
        eos_ids=[first],
        return_logits=True,
    )
    assert found.tokens == [[]] and found.finished == ["stop"] and found.logits.shape[1] == 1


def test_each_prompt_has_its_own_limit(tiny_config, tiny_params, prompts):
    free = generate(tiny_params, tiny_config, prompts, sampling=Sampling(NEW)).tokens
    limits = [1, 7, 3, NEW]
    found = generate(tiny_params, tiny_config, prompts, sampling=[Sampling(n) for n in limits])
    assert found.tokens == [tokens[:n] for tokens, n in zip(free, limits, strict=True)]


def test_streaming_gives_the_same_tokens(tiny_config, tiny_params, prompts, documents):
    pieces = [documents[:1]] * len(prompts)
    sampling = [Sampling(n, temperature=0.8, seed=n) for n in (1, 7, 3, NEW)]
    whole = generate(tiny_params, tiny_config, prompts, records=pieces, sampling=sampling)
    for every in (1, 4):
        heard: list[list[int]] = [[] for _ in prompts]
        again = generate(
            tiny_params,
            tiny_config,
            prompts,
            records=pieces,
            sampling=sampling,
            stream_every=every,
            on_tokens=lambda i, tokens: heard[i].extend(tokens),  # noqa: B023
        )
        assert heard == again.tokens == whole.tokens


def test_seeds_do_not_depend_on_the_company(tiny_config, tiny_params, prompts):
    settings = [
        Sampling(NEW, temperature=t, top_p=p, seed=s)
        for t, p, s in ((1, 1, 5), (0, 1, 0), (0.7, 0.9, 5), (1.3, 1, 9))
    ]
    together = generate(tiny_params, tiny_config, prompts, sampling=settings).tokens
    for i in range(4):
        assert generate(tiny_params, tiny_config, [prompts[i]], sampling=settings[i]).tokens == [
            together[i]
        ]
    backwards = generate(tiny_params, tiny_config, prompts[::-1], sampling=settings[::-1]).tokens
    assert backwards == together[::-1]
    other = dataclasses.replace(settings[0], seed=6)
    assert generate(tiny_params, tiny_config, [prompts[0]], sampling=other).tokens != [together[0]]


@pytest.mark.parametrize(
    ("prompt", "words"), [([], "empty"), ([5, 10**6], "vocabulary"), ([-1], "vocabulary")]
)
def test_bad_prompts_are_named(tiny_config, tiny_params, prompt, words):
    with pytest.raises(GritError, match=f"prompt 1.*{words}"):
        generate(tiny_params, tiny_config, [[1], prompt])


def test_a_record_of_another_model_is_refused(tiny_config, tiny_params, documents):
    wrong = DocumentKV(documents[0].tokens, documents[0].k[:2], documents[0].v[:2])
    with pytest.raises(GritError, match="another model"):
        generate(tiny_params, tiny_config, [[1]], records=[[wrong]])


def test_numpy_numbers_are_settings(tiny_config, tiny_params, prompts):
    settings = Sampling(np.int64(3), np.float32(0.5), np.float64(0.9), np.int32(5), np.uint8(7))
    same = Sampling(3, 0.5, 0.9, 5, 7)
    run = lambda sampling: generate(tiny_params, tiny_config, prompts[:1], sampling=sampling).tokens
    assert run(settings) == run(same)


def with_context(config: ModelConfig, context: int) -> ModelConfig:
    return dataclasses.replace(config, max_position_embeddings=context)


def test_an_answer_ends_where_the_context_does(tiny_config, tiny_params, documents):
    config = with_context(tiny_config, 40)
    whole = generate(tiny_params, tiny_config, [[1, 5, 6]], sampling=Sampling(37)).tokens[0]
    found = generate(tiny_params, config, [[1, 5, 6]])
    assert found.tokens[0] == whole and found.finished == ["length"]
    for prompt, sampling, words in (
        ([1, 5, 6], Sampling(38), "prompt 0 has 3 tokens, and 38 new.*context of 40"),
        ([5] * 40, Sampling(), "prompt 0 has 40 tokens.*context of 40"),
    ):
        with pytest.raises(GritError, match=words):
            generate(tiny_params, config, [prompt], sampling=sampling)
    cached = len(documents[0].tokens)
    with pytest.raises(
        GritError, match=rf"prompt 0 has {cached + 3} tokens \({cached} of them from"
    ):
        generate(
            tiny_params,
            with_context(tiny_config, cached + 4),
            [[1, 5, 6]],
            records=[documents[:1]],
            sampling=Sampling(2),
        )


def test_logits_that_are_not_finite_are_an_error(tiny_config, tiny_params, documents):
    table = next(n for n, value in tiny_params.items() if len(value) == tiny_config.vocab_size)
    broken = tiny_params | {table: tiny_params[table].at[9, 3].set(np.nan)}
    for records in (None, [documents[:1], documents[:1]]):
        with pytest.raises(GritError, match=f"prompt 1: .*not finite: the weight '{table}'"):
            generate(broken, tiny_config, [[5, 6], [5, 9]], records=records, sampling=Sampling(4))
    # A token's row makes logits NaN later, too, when it is the one chosen.
    first = generate(tiny_params, tiny_config, [[5, 6]], sampling=Sampling(3)).tokens[0]
    assert generate(broken, tiny_config, [[5, 6]], sampling=Sampling(3)).tokens[0] == first
    huge = tiny_params | {"final_norm": tiny_params["final_norm"] * np.float32(3e38)}
    with pytest.raises(GritError, match="prompt 0: .*overflows float32"):
        generate(huge, tiny_config, [[5, 6]], sampling=Sampling(3, temperature=1.0))


# --- sampling ---


def test_top_k_one_is_greedy(tiny_config, tiny_params, prompts):
    greedy = generate(tiny_params, tiny_config, prompts, sampling=Sampling(NEW)).tokens
    top = generate(
        tiny_params, tiny_config, prompts, sampling=Sampling(NEW, temperature=2.0, top_k=1, seed=4)
    ).tokens
    assert top == greedy


def test_decode_reads_bfloat16_too(tiny_config, tiny_params, prompts, documents):
    config: ModelConfig = dataclasses.replace(tiny_config, dtype="bfloat16")
    found = generate(
        tiny_params,
        config,
        prompts,
        records=[documents[:2]] * 4,
        sampling=Sampling(4),
        return_logits=True,
    )
    exact = generate(
        tiny_params,
        tiny_config,
        prompts,
        records=[documents[:2]] * 4,
        sampling=Sampling(4),
        return_logits=True,
    )
    assert (
        np.abs(found.logits[:, 0] - exact.logits[:, 0]).max()
        < 0.1 * np.abs(exact.logits[:, 0]).max()
    )
