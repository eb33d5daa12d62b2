"""Answers over cached documents, distilled from the model's own reading of them: the divergence and
its gradient against a dense formulation."""

from __future__ import annotations

import dataclasses
import functools

import dense_reference as dense
import jax
import jax.numpy as jnp
import lora_state
import numpy as np
import pytest

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.packing import CachedPacking, cached_batch
from grit_jax.data.pipeline import JointBatches
from grit_jax.data.token_texts import TokenCached, TokenText
from grit_jax.models.lora import LoraConfig, attach
from grit_jax.models.transformer import Transformer, init_params
from grit_jax.runtime.files import write_jsonl
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.text.rag_layouts import compose
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, make_optimizer
from grit_jax.training.step import make_step
from grit_jax.types import AttentionMode, Batch

LOSS = LossConfig(cached_factor=0.0, cached_distillation=0.5)
TEACHER_ORDER = {
    "doc": "doc-then-query",
    "query-doc": "query-then-doc",
    "doc-query": "doc-then-query",
}


@pytest.fixture(scope="module")
def lines(sentences):
    """Questions over one to three documents."""
    short = [" ".join(sentence.split()[:7]) for sentence in sentences]
    return [
        {"docs": short[n : n + 1 + n % 3], "text": [f"{short[40 + n]}?", short[60 + n]]}
        for n in range(8)
    ]


@pytest.fixture(scope="module")
def batches(lines, tiny_tokenizer, tiny_model, tmp_path_factory):
    """Batches of these lines in a layout."""
    path = tmp_path_factory.mktemp("distilled") / "rag.jsonl"
    write_jsonl(path, lines)

    def of(*layouts: str, teacher: bool = True, seed: int = 5) -> JointBatches:
        config = DataConfig(
            cached=[str(path)],
            cached_batch=6,
            layouts=list(layouts),
            document_max_length=48,
            query_max_length=48,
            generative_max_length=160,
            row_multiple=4,
            probe_steps=0,
        )
        needs = BatchNeeds(teacher_rows=teacher)
        return JointBatches(config, tiny_tokenizer, tiny_model.chat, seed, needs=needs)

    return of


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def divergence(teacher, student):
    """KL(teacher, student) of each row of logits."""
    p, q = log_softmax(teacher), log_softmax(student)
    return (np.exp(p) * (p - q)).sum(-1)


def ids_of(tokenizer, text):
    """The ids of a whole string."""
    return tokenizer._template.encode(text, add_special_tokens=False).ids


def teacher_logits(model, mode, line):
    """Those that predict the answer, of the public model on the concatenated text."""
    prompt = ids_of(model.tokenizer, compose(mode, line["text"][0], line["docs"], model.chat).text)
    answer = ids_of(model.tokenizer, line["text"][1] + model.chat.eos)
    ids = np.array([prompt + answer])
    logits = model(ids, np.ones_like(ids), mode="causal").logits[0]
    return np.asarray(logits[len(prompt) - 1 : -1])


def students(batch, number):
    """The cached texts and the continuation of an example of a batch, and how many tokens answer."""
    text = batch.text
    here = (text.sequence == number) & (text.rows.segments > 0)
    r = int(np.flatnonzero((here & (text.targets > 0)).any(1))[0])
    owner = text.rows.segments[r, here[r]][0]
    mine = batch.cached_owner[r] == owner
    numbers = batch.cached_texts.segments[r]
    pieces = [batch.cached_texts.tokens[r, numbers == n].tolist() for n in np.unique(numbers[mine])]
    return pieces, text.rows.tokens[r, here[r]].tolist(), int(text.targets[r, here[r]].sum())


@pytest.mark.parametrize("mode", TEACHER_ORDER)
def test_the_divergence_is_that_of_reading_from_caches(mode, batches, lines, tiny_model):
    """Teacher: the public model on the text. Student: one dense pass whose documents are blind to
    each other."""
    made = batches(mode)
    batch, params, config = made[3].cached, tiny_model.params, tiny_model.config
    _, parts = jax.jit(lambda p, b: joint_loss(p, Batch(cached=b), StepConfig(config, LOSS)))(
        params, batch
    )
    total, tokens = [], 0
    for number, place in enumerate(made.ids(3)["cached"]):
        line = lines[int(place.rsplit(":", 1)[1]) - 1]
        pieces, continuation, answer = students(batch, number)
        student = dense.layout(params, config, pieces, continuation).logits[-answer - 1 : -1]
        total.append(divergence(teacher_logits(tiny_model, TEACHER_ORDER[mode], line), student))
        tokens += answer
    assert sum(map(len, total)) == tokens
    expected = np.concatenate(total).mean()
    assert expected > 0.01
    assert float(parts["loss_cached_kl"]) == pytest.approx(expected, rel=2e-5)


def test_the_loss_adds_the_divergence_to_the_cross_entropy(batches, tiny_model):
    batch = Batch(cached=batches("doc", "query", "none")[0].cached)
    loss = lambda **factors: jax.jit(
        lambda p: joint_loss(p, batch, StepConfig(tiny_model.config, LossConfig(**factors)))
    )(tiny_model.params)
    total, parts = loss(cached_factor=2.0, cached_distillation=0.5)
    expected = 2 * parts["loss_cached"] + 0.5 * parts["loss_cached_kl"]
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    plain, alone = loss(cached_factor=2.0)
    assert alone.keys() == {"loss_cached"}
    assert float(alone["loss_cached"]) == pytest.approx(float(parts["loss_cached"]), rel=1e-6)


@pytest.fixture(scope="module")
def small(config):
    """One layer and a batch of two examples, one of them without a teacher; the tokens are known."""
    config = dataclasses.replace(config, num_hidden_layers=1, scan_layers=False)
    answered = TokenText([9, 8, 7, 6, 5], [False, False, True, True, True])
    first = TokenCached(
        [[1, 2, 3], [4, 5, 6, 7]],
        answered,
        1,
        TokenText([3, 4, 5, 6, 1, 2, 9, 7, 6, 5], [False] * 7 + [True] * 3),
    )
    second = TokenCached([[8, 9]], TokenText([2, 3, 4], [False, True, True]), 1)
    packing = CachedPacking(16, 12, row_multiple=1, teacher_row_length=16)
    batch = cached_batch([first, second], packing)
    return config, init_params(config, jax.random.key(0)), batch, first


def test_the_gradient_is_the_students_alone(small):
    """By jax.grad of a dense formulation in which the teacher's logits are constants: the cached
    documents' part of it included."""
    config, params, batch, example = small
    pieces, text, teacher = example.cached_texts, example.text, example.teacher
    ids = [i for piece in pieces for i in piece] + list(text.ids)
    mask = dense.composition_mask([len(piece) for piece in pieces], len(text.ids))

    def logits(params, ids, mask):
        return dense.forward(params, config, ids, np.arange(len(ids)), mask, xp=jnp).logits

    length = len(teacher.ids)
    fixed = log_softmax(logits(params, teacher.ids, np.tril(np.ones((length, length), bool))))
    fixed = fixed[-4:-1]

    def loss(params):
        student = jax.nn.log_softmax(logits(params, ids, mask)[-4:-1])
        # Over the three tokens with a teacher, of five that are predicted.
        return 0.5 * (np.exp(fixed) * (fixed - student)).sum() / 5

    expected, slope = jax.value_and_grad(loss)(params)
    how = StepConfig(config, LOSS)
    found, gradient = jax.jit(
        jax.value_and_grad(lambda p: joint_loss(p, Batch(cached=batch), how)[0])
    )(params)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for name, value in slope.items():
        size = float(np.abs(value).max())
        np.testing.assert_allclose(gradient[name], value, atol=2e-5 * size, err_msg=name)
    # Word 1 stands in a document and in no continuation: its gradient came through the cache.
    assert float(jnp.abs(gradient["embed"][1]).max()) > 1e-4


def test_a_teacher_with_other_weights_gets_no_gradient(small):
    config, params, batch, _ = small
    other = init_params(config, jax.random.key(1))

    def loss(student, teacher):
        how = StepConfig(
            config, LOSS, weights_of=lambda p: p["s"], teacher_weights_of=lambda p: p["t"]
        )
        return joint_loss({"s": student, "t": teacher}, Batch(cached=batch), how)[0]

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, other)
    assert not any(np.any(value) for value in slopes[1].values())
    assert all(np.abs(value).max() > 0 for name, value in slopes[0].items())
    same, apart = jax.jit(loss)(params, params), jax.jit(loss)(params, other)
    assert abs(float(same) - float(apart)) > 1e-3


def test_a_student_that_reads_as_its_teacher_does_has_no_divergence(small):
    """A layout without a cache, over one document: no loss, and no gradient."""
    config, params, _, _ = small
    text = TokenText([5, 6, 7, 8, 9], [False] * 2 + [True] * 3)
    packing = CachedPacking(8, 16, row_multiple=1, teacher_row_length=24)
    batch = Batch(cached=cached_batch([TokenCached([], text, 0, text)] * 4, packing))
    loss = lambda p: joint_loss(p, batch, StepConfig(config, LOSS))[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert abs(float(value)) < 1e-6
    assert max(float(jnp.abs(g).max()) for g in gradient.values()) < 1e-6


def test_in_bfloat16_the_divergence_is_summed_in_float32(small):
    """It is near that of float32 and no rounder than float32."""
    config, params, batch, _ = small

    def value(dtype):
        how = StepConfig(dataclasses.replace(config, dtype=dtype), LOSS)
        loss = jax.jit(lambda p: joint_loss(p, Batch(cached=batch), how)[1]["loss_cached_kl"])
        return np.asarray(loss(params))

    narrow, wide = value("bfloat16"), value("float32")
    assert narrow.dtype == np.float32 and 0 < abs(narrow / wide - 1) < 0.1


def test_the_teacher_of_adapters_has_no_dropout():
    """A student that reads as its teacher does differs from it by the dropout of its adapters."""
    config = dataclasses.replace(lora_state.CONFIG, num_hidden_layers=1, scan_layers=False)
    lora = LoraConfig(rank=2, dropout=0.5, targets=("q_proj", "v_proj"))
    text = TokenText([5, 6, 7, 8, 9], [False] * 2 + [True] * 3)
    packing = CachedPacking(8, 8, row_multiple=1, teacher_row_length=8)
    batch = Batch(cached=cached_batch([TokenCached([], text, 0, text)], packing))
    schedule = lambda step: 0.0
    optimizer, mesh = (
        make_optimizer(OptimizerConfig(), schedule),
        make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]),
    )
    step = make_step(StepConfig(config, LOSS, lora=lora), optimizer, schedule)
    rows = batch.cached.text.rows
    with jax.set_mesh(mesh):
        state = lora_state.start(config, lora, optimizer, mesh)
        # So that the adapters' addition is not zero.
        state.params = {name: a + 0.1 for name, a in state.params.items()}

        @functools.partial(jax.jit, static_argnums=1)
        def logits(params, dropout):
            key = jax.random.fold_in(jax.random.key(0), 0) if dropout else None
            model = Transformer(config, attach(state.frozen, params, lora, key))
            out = model(rows.tokens, rows.positions, rows.segments, mode=AttentionMode.CAUSAL)
            return model.logits(out.hidden)[0, 1:4]

        teacher, student = logits(state.params, False), logits(state.params, True)
        _, metrics = step(state, batch)
    expected = divergence(teacher, student).mean()
    assert expected > 1e-3
    assert float(metrics["loss_cached_kl"]) == pytest.approx(expected, rel=1e-3)


def test_without_the_factor_nothing_is_read_by_a_teacher(batches, tiny_model):
    """The same jaxpr and the same batches as without any of it; a teacher's rows are asked for."""
    plain = batches("doc", "query", teacher=False)[2].cached
    assert plain.teacher is None
    with pytest.raises(ValueError, match="cached_distillation needs the batch's `teacher`"):
        joint_loss(tiny_model.params, Batch(cached=plain), StepConfig(tiny_model.config, LOSS))
