"""Backward passes in parts: chunks, one loss after the other, one side after the other; and what
they need of memory."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.token_texts import TokenCached, TokenText
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import init_params
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.types import AttentionMode, Batch

VOCAB, WIDTH = 64, 24
LOSSES = {
    "token": LossConfig(generative="token", generative_factor=0.5, cached_factor=2.0),
    "mixed": LossConfig(generative="mixed", generative_factor=0.5),
    "mixed in groups": LossConfig(
        generative="mixed", mix_group_size=3, cached_distillation=0.5, logits_block=16
    ),
}


def ids(rng, low, high):
    return rng.integers(1, VOCAB, rng.integers(low, high)).tolist()


def text(rng):
    tokens = ids(rng, 4, 16)
    answer = rng.integers(1, len(tokens))
    return TokenText(tokens, [i >= answer for i in range(len(tokens))])


def make_batch(separate=True, prefix=False):
    """A joint batch of ragged texts: rows of different fill, empty rows, sequences that chunks cut
    apart."""
    rng = np.random.default_rng(0)
    queries, passages = [ids(rng, 3, 9) for _ in range(7)], [ids(rng, 4, 15) for _ in range(14)]
    return Batch(
        embedding_batch(
            queries,
            passages,
            [2] * 21,
            EmbeddingPacking(row_length=WIDTH, row_multiple=4, separate=separate),
        ),
        generative_batch(
            [text(rng) for _ in range(11)],
            GenerativePacking(row_length=WIDTH, row_multiple=3, prefix=prefix),
        ),
        cached_batch(
            [
                with_teacher(
                    TokenCached([ids(rng, 3, 8) for _ in range(rng.integers(0, 3))], text(rng))
                )
                for _ in range(8)
            ],
            CachedPacking(
                cached_row_length=20, row_length=WIDTH, row_multiple=2, teacher_row_length=36
            ),
        ),
    )


def with_teacher(example):
    """A teacher that reads the documents, in another order, and the continuation in one; none
    without documents."""
    documents = [i for document in reversed(example.cached_texts) for i in [0, *document]]
    if not documents:
        return example
    text = example.text
    read = TokenText([*documents, *text.ids], [False] * len(documents) + [*text.targets])
    return dataclasses.replace(example, teacher=read)


@pytest.fixture(scope="module")
def setting(config):
    """One layer: whether gradients add up does not hang on more, and each program is compiled in
    half the time."""
    config = dataclasses.replace(config, num_hidden_layers=1, scan_layers=False)
    return config, init_params(config, jax.random.key(0)), make_batch()


def gradient(params, batch, config):
    return jax.jit(lambda p, b: joint_gradient(p, b, config))(params, batch)


def close(one, other, tolerance=1e-5):
    """Loss, parts and every weight's gradient: within `tolerance` of the largest entry."""
    (loss, parts), grads = one
    (other_loss, other_parts), other_grads = other
    np.testing.assert_allclose(other_loss, loss, rtol=tolerance)
    assert parts.keys() == other_parts.keys()
    for name in parts:
        np.testing.assert_allclose(other_parts[name], parts[name], rtol=tolerance, err_msg=name)
    for name in grads:
        scale = np.abs(grads[name]).max()
        np.testing.assert_allclose(
            other_grads[name], grads[name], atol=tolerance * scale, err_msg=name
        )


def joint(params, batch, config):
    """The gradient in one backward pass, by the loss alone."""
    return jax.jit(jax.value_and_grad(lambda p: joint_loss(p, batch, config), has_aux=True))(params)


@pytest.fixture(scope="module")
def plain(setting):
    config, params, batch = setting
    return joint(params, batch, StepConfig(config, LOSSES["mixed in groups"]))


@pytest.mark.parametrize(
    "how",
    [
        {"backward": "split", "embedding_chunk": 2, "generative_chunk": 5, "cached_chunk": 3},
        {"backward": "separate"},
        pytest.param({"backward": "split"}, marks=pytest.mark.slow),
        pytest.param({"generative_chunk": 3, "cached_chunk": 2}, marks=pytest.mark.slow),
        pytest.param({"backward": "separate", "generative_chunk": 100}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_backward_passes_in_parts_add_up_to_the_joint_one(setting, plain, how):
    config, params, batch = setting
    close(plain, gradient(params, batch, StepConfig(config, LOSSES["mixed in groups"], **how)))


@pytest.mark.parametrize(
    "loss", ["token", "mixed in groups", pytest.param("mixed", marks=pytest.mark.slow)]
)
def test_chunks_of_rows_give_the_loss_and_gradient_of_all(setting, loss):
    """They cut through the groups of a mixed loss, and the last one is filled up with empty
    rows."""
    config, params, batch = setting
    only = Batch(generative=batch.generative)
    how = StepConfig(config, LOSSES[loss], generative_chunk=4)
    assert only.generative.targets.shape[0] % 4
    close(joint(params, only, how), gradient(params, only, how))


def test_accumulation_is_by_tokens_of_the_batch_and_not_a_mean_over_chunks(setting):
    """Rows one by one, put together by their targets in plain arithmetic; and what a mean over
    chunks would give."""
    config, params, _ = setting
    rng = np.random.default_rng(5)
    texts = [
        TokenText(t := ids(rng, 16, 22), [i >= len(t) - n for i in range(len(t))])
        for n in (1, 14, 2, 12)
    ]
    batch = generative_batch(texts, GenerativePacking(row_length=WIDTH, row_multiple=1))
    assert batch.targets.shape[0] == 4
    alone = jax.jit(lambda p, b: joint_gradient(p, b, StepConfig(config, LOSSES["mixed"])))
    row = lambda i: Batch(generative=jax.tree.map(lambda x: x[i : i + 1], batch))
    found = [alone(params, row(i)) for i in range(4)]
    share = np.asarray(batch.targets, np.float64).sum(axis=1) / 29
    assert sorted(share * 29) == [1, 2, 12, 14]
    (loss, _), grads = gradient(
        params, Batch(generative=batch), StepConfig(config, LOSSES["mixed"], generative_chunk=2)
    )
    expected = jax.tree.map(
        lambda *rows: sum(s * np.asarray(r, np.float64) for s, r in zip(share, rows)),
        *[g for _, g in found],
    )
    losses = np.asarray([float(one) for (one, _), _ in found])
    assert float(loss) == pytest.approx(float(share @ losses), rel=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(
            grads[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name
        )
    by_chunk = [(share[i : i + 2] @ losses[i : i + 2]) / share[i : i + 2].sum() for i in (0, 2)]
    assert abs(np.mean(by_chunk) / float(loss) - 1) > 1e-3


@pytest.mark.parametrize("chunk", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_embedding_chunks_give_the_loss_and_gradient_of_all(setting, chunk):
    config, params, _ = setting
    only = Batch(embedding=make_batch(separate=False).embedding)
    found = gradient(params, only, StepConfig(config, LossConfig(), embedding_chunk=chunk))
    close(joint(params, only, StepConfig(config, LossConfig())), found)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["embedding", "generative", "cached"])
def test_a_batch_without_one_part(setting, missing):
    config, params, batch = setting
    some = dataclasses.replace(batch, **{missing: None})
    how = StepConfig(config, LOSSES["mixed"], backward="split", generative_chunk=2, cached_chunk=2)
    close(joint(params, some, how), gradient(params, some, how))


def test_queries_and_passages_in_rows_of_their_own_are_the_same_loss(setting):
    config, params, batch = setting
    shared = make_batch(separate=False).embedding
    assert shared.query_rows == 0 < batch.embedding.query_rows
    one, other = (
        joint(params, Batch(b), StepConfig(config, LossConfig())) for b in (shared, batch.embedding)
    )
    close(one, other)


@pytest.mark.parametrize("separate", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_sides_gradients_add_up_and_each_leaves_the_other_fixed(setting, separate):
    """By finite differences, too: with one side's vectors held fixed, the loss moves as that side's
    gradient says."""
    config, params, _ = setting
    batch = Batch(embedding=make_batch(separate).embedding)
    sides = {
        side: gradient(
            params, batch, StepConfig(config, LossConfig(temperature=0.1), gradient=side)
        )
        for side in ("both", "query", "passage")
    }
    (loss, _), both = sides["both"]
    total = jax.tree.map(lambda a, b: a + b, sides["query"][1], sides["passage"][1])
    close(((loss, {}), both), ((loss, {}), total))
    for side in ("query", "passage"):
        assert float(sides[side][0][0]) == pytest.approx(float(loss), rel=1e-6)
        assert (
            np.abs(sides[side][1]["query"] - both["query"]).max()
            > 1e-2 * np.abs(both["query"]).max()
        )


def test_a_side_moves_the_loss_as_its_gradient_says(setting):
    """Finite differences along the gradient of the queries' side: the passages encoded with the
    weights as they are."""
    from grit_jax.training.joint import Sides, embed_sides, embedding_losses

    config, params, batch = setting
    batch = batch.embedding
    how = StepConfig(config, LossConfig(temperature=0.1), gradient="query")
    grads = gradient(params, Batch(embedding=batch), how)[1]
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    moved = lambda by: {name: p + by / norm * grads[name] for name, p in params.items()}

    @jax.jit
    def loss(queries_by, passages_by):
        queries = embed_sides(moved(queries_by), batch, how).queries
        return embedding_losses(
            Sides(queries, embed_sides(moved(passages_by), batch, how).passages), batch, how
        )[0]

    step = 2e-3
    slope = (float(loss(step, 0.0)) - float(loss(-step, 0.0))) / (2 * step)
    assert slope == pytest.approx(norm, rel=2e-3)
    both = (float(loss(step, step)) - float(loss(-step, -step))) / (2 * step)
    assert abs(both - norm) > 0.01 * norm  # the passages' share is not in it


@pytest.mark.slow
def test_emb_grad_scale_goes_with_split_backward(setting):
    config, params, batch = setting
    only = Batch(embedding=batch.embedding)
    scaled = gradient(
        params, only, StepConfig(config, LossConfig(emb_grad_scale=0.125), backward="split")
    )
    (loss, parts), full = gradient(params, only, StepConfig(config, LossConfig()))
    close(((loss, parts), jax.tree.map(lambda g: g / 8, full)), scaled)


def test_routers_are_balanced_over_the_whole_batch(config):
    """The load-balancing loss of experts is no mean over chunks: it is the same number, chunks or
    not."""
    experts = dataclasses.replace(
        config,
        num_hidden_layers=1,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.5,
        architecture="mixtral",
        remat="none",
    )
    params, batch = (
        init_params(experts, jax.random.key(0)),
        Batch(generative=make_batch().generative),
    )
    whole = joint(params, batch, StepConfig(experts, LossConfig()))
    assert whole[0][1]["loss_router"] > 1
    close(whole, gradient(params, batch, StepConfig(experts, LossConfig(), generative_chunk=4)))


def test_prefix_attention_takes_the_same_ways(setting):
    """Blocks of rows are cut, padded and encoded with their rows."""
    config, params, _ = setting
    prefix = AttentionMode.PREFIX
    batch = dataclasses.replace(make_batch(prefix=True), cached=None)
    pool = np.asarray(batch.embedding.pool).astype(np.int32)
    rows = dataclasses.replace(batch.embedding.rows, blocks=pool)
    batch = dataclasses.replace(batch, embedding=dataclasses.replace(batch.embedding, rows=rows))
    modes = {"embedding_mode": prefix, "generation_mode": prefix}
    how = StepConfig(
        config, LossConfig(), **modes, backward="split", generative_chunk=4, embedding_chunk=2
    )
    expected = joint(params, batch, how)
    close(expected, gradient(params, batch, how))


def temporary_bytes(batch, **how) -> int:
    """What the compiled gradient needs beside its inputs and outputs, by the compiler's own
    account."""
    model = ModelConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        dtype="float32",
        remat="none",
    )
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    config = StepConfig(model, LossConfig(logits_block=256), **how)
    lowered = jax.jit(lambda p, b: joint_gradient(p, b, config)).lower(shapes, batch)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_what_the_ways_need_of_memory():
    """Each way that is there for its memory needs clearly less of it than the joint backward pass.

    Rows are long and many enough that activations are nearly all of it.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)  # the program as it is run
    try:
        rng = np.random.default_rng(0)
        some = lambda count, length: [rng.integers(1, 256, length).tolist() for _ in range(count)]
        embedding = lambda separate: embedding_batch(
            some(16, 64),
            some(16, 64),
            [2] * 32,
            EmbeddingPacking(row_length=64, row_multiple=16, separate=separate),
        )
        generative = generative_batch(
            [TokenText(t, [True] * 64) for t in some(32, 64)],
            GenerativePacking(row_length=64, row_multiple=16),
        )
        both, sides = Batch(embedding(False), generative), Batch(embedding(True), None)
        need = {
            "joint": temporary_bytes(both),
            "separate": temporary_bytes(both, backward="separate"),
            "language in chunks": temporary_bytes(Batch(None, generative), generative_chunk=8),
            "language": temporary_bytes(Batch(None, generative)),
            "sides": temporary_bytes(sides),
            "split": temporary_bytes(sides, backward="split"),
            "query": temporary_bytes(sides, gradient="query"),
            "contrastive in chunks": temporary_bytes(sides, embedding_chunk=8),
        }
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert need["separate"] < 0.7 * need["joint"]
    assert need["language in chunks"] < 0.5 * need["language"]
    assert need["split"] < 0.7 * need["sides"] and need["query"] < 0.7 * need["sides"]
    assert need["contrastive in chunks"] < 0.5 * need["sides"]


def test_what_cannot_be(setting):
    config, params, _ = setting
    with pytest.raises(ValueError, match="rows of their own"):
        joint_gradient(
            params,
            Batch(make_batch(False).embedding),
            StepConfig(config, LossConfig(), backward="split"),
        )
    with pytest.raises(ValueError, match="without any part"):
        joint_gradient(params, Batch(), StepConfig(config, LossConfig()))
