"""The contrastive loss and its options against loops over single pairs, closed forms and finite
differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grit_jax.errors import GritError
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.contrastive import check_dimensions, contrastive_loss, distillation_loss
from grit_jax.training.losses import LossConfig


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(rng, count, dim=8):
    return unit(rng.normal(size=(count, dim))).astype(np.float32)


def by_hand(q, p, config, positives=1, present=None, texts=None):
    """The loss pair by pair in float64: what is a negative of a pair is decided one candidate at a
    time."""
    q, p = q.astype(np.float64), p.astype(np.float64)
    group = len(p) // len(q)
    present = np.ones(len(p), bool) if present is None else present
    mine = lambda i: [j for j in range(i * group, i * group + positives) if present[j]]

    def too_similar(s, positive):
        m = config.false_negative_margin
        limit = {"none": np.inf, "absolute": positive - m, "relative": positive - m * abs(positive)}
        return s > limit[config.false_negatives]

    def entropy(anchor, target, others):
        """Cross-entropy of the target among itself and the others that are not too similar."""
        kept = [c for c in others if not too_similar(anchor @ c, anchor @ target)]
        total = 0.0
        dims = config.matryoshka_dims or [q.shape[1]]
        for d, weight in zip(dims, config.matryoshka_weights or [1] * len(dims)):
            cut = lambda x: x if d == len(x) else unit(x[:d])  # noqa: B023
            score = lambda c: cut(anchor) @ cut(c) / config.temperature  # noqa: B023
            total += weight * (
                np.log(sum(np.exp(score(c)) for c in [target, *kept])) - score(target)
            )
        return total

    means = []
    for i in range(len(q)):
        pairs = []
        for j in mine(i):
            same = lambda a, b: config.mask_duplicates and texts[a] == texts[b]
            negatives = [
                p[c]
                for c in range(len(p))
                if present[c] and c not in mine(i) and not any(same(c, m) for m in mine(i))
            ]
            loss = entropy(q[i], p[j], negatives)
            if config.symmetric:
                others = [
                    q[k] for k in range(len(q)) if k != i and not any(same(j, m) for m in mine(k))
                ]
                loss = (loss + entropy(p[j], q[i], others)) / 2
            pairs.append(loss)
        means.append(np.mean(pairs))
    return np.mean(means)


OPTIONS = {
    "plain": {},
    "symmetric": {"symmetric": True},
    "absolute": {"false_negatives": "absolute", "false_negative_margin": 0.1},
    "absolute, beyond the positive": {"false_negatives": "absolute", "false_negative_margin": -0.3},
    "relative": {"false_negatives": "relative", "false_negative_margin": 0.25, "symmetric": True},
    "duplicates": {"mask_duplicates": True, "symmetric": True},
    "matryoshka": {"matryoshka_dims": [8, 3, 2], "matryoshka_weights": [1.0, 0.5, 0.25]},
    "matryoshka without the whole": {"matryoshka_dims": [4]},
    "everything": {
        "symmetric": True,
        "false_negatives": "relative",
        "false_negative_margin": 0.1,
        "mask_duplicates": True,
        "matryoshka_dims": [8, 5],
    },
}


def example(positives, group):
    """Queries near their positives, some passages twice, and with several positives some of them
    absent."""
    rng = np.random.default_rng(group)
    q = draw(rng, 7)
    p = unit(np.repeat(q, group, 0) + 0.8 * rng.normal(size=(7 * group, 8))).astype(np.float32)
    texts = np.arange(7 * group, dtype=np.int32)
    for first, second in ((0, 2 * group), (group, 4 * group + group - 1), (3 * group, 5 * group)):
        p[second], texts[second] = p[first], texts[first]
    present = None
    if positives > 1:
        present = np.ones(7 * group, bool)
        present[[group + 1, 3 * group + 1, 3 * group + positives - 1]] = False
        p[~present] = 0  # what pooling gives for a text that is not there
    return q, p, present, texts


@pytest.mark.parametrize("positives, group", [(1, 3), (3, 4)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_is_the_one_by_hand(options, positives, group):
    config = LossConfig(temperature=0.2, similarity_block=4, **options)
    q, p, present, texts = example(positives, group)
    expected = by_hand(q, p, config, positives, present, texts)
    loss = lambda q, p: contrastive_loss(
        q, p, config, positives=positives, present=present, texts=texts
    )
    assert float(jax.jit(loss)(q, p)) == pytest.approx(expected, rel=2e-5)
    if options and "matryoshka_dims" not in options:
        plain = by_hand(q, p, LossConfig(temperature=0.2), positives, present)
        assert abs(expected - plain) > 1e-3  # the option is one


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_gradient_is_that_of_finite_differences(name):
    config = LossConfig(temperature=0.2, similarity_block=4, **OPTIONS[name])
    q, p, present, texts = example(2, 3)
    loss = lambda q, p: contrastive_loss(q, p, config, positives=2, present=present, texts=texts)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(q, p)
    rng = np.random.default_rng(1)
    for side in (0, 1):
        for _ in range(4):
            step = 1e-6 * rng.normal(size=(q, p)[side].shape)
            if side == 1:
                step[~present] = 0
            moved = [
                by_hand(
                    *((q + s * step, p) if side == 0 else (q, p + s * step)),
                    config,
                    2,
                    present,
                    texts,
                )
                for s in (1, -1)
            ]
            expected = (moved[0] - moved[1]) / 2
            found = float((np.asarray(gradients[side], np.float64) * step).sum())
            assert found == pytest.approx(expected, rel=2e-3, abs=1e-9)
    assert np.isfinite(gradients[1]).all() and not np.asarray(gradients[1])[~present].any()


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_blocks_change_neither_loss_nor_gradient(name):
    q, p, present, texts = example(2, 3)

    def run(block):
        config = LossConfig(similarity_block=block, **OPTIONS[name])
        loss = lambda q: contrastive_loss(q, p, config, positives=2, present=present, texts=texts)
        return jax.jit(jax.value_and_grad(loss))(q)

    whole, parts = run(100), run(3)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-4, atol=1e-5)


def test_without_hard_negatives():
    config = LossConfig(temperature=0.2, symmetric=True)
    q, p, _, _ = example(1, 1)
    found = jax.jit(lambda q, p: contrastive_loss(q, p, config))(q, p)
    assert float(found) == pytest.approx(by_hand(q, p, config), rel=2e-5)


def test_orthogonal_pairs_are_a_closed_form():
    eye = np.eye(4, dtype=np.float32)
    # Each query meets itself (score 1/t) and three orthogonal ones (0), and so does each passage.
    expected = np.log(1 + 3 * np.exp(-2))
    for options in ({}, {"symmetric": True}):
        found = contrastive_loss(eye, eye, LossConfig(temperature=0.5, **options))
        assert float(found) == pytest.approx(expected, rel=1e-5)
    # Cut to two dimensions, queries 2 and 3 are nothing; 0 and 1 meet one that is orthogonal and
    # two that are nothing.
    config = LossConfig(temperature=0.5, matryoshka_dims=[4, 2], matryoshka_weights=[1.0, 0.5])
    cut = (2 * np.log(1 + 3 * np.exp(-2)) + 2 * np.log(4)) / 4
    assert float(contrastive_loss(eye, eye, config)) == pytest.approx(expected + cut / 2, rel=1e-5)


def test_a_masked_negative_is_as_if_it_were_not_there():
    """Three candidates at similarities 0.6 (the positive), 0.9 and 0.5: by margin, two, one or none
    are left."""
    q = np.array([[1, 0]], np.float32)
    p = np.array([[c, np.sqrt(1 - c * c)] for c in (0.6, 0.9, 0.5)], np.float32)
    score = lambda *cs: np.log(sum(np.exp(c / 0.1) for c in cs)) - 0.6 / 0.1
    for rule, margin, kept in (
        ("none", 0.0, (0.6, 0.9, 0.5)),
        ("absolute", 0.0, (0.6, 0.5)),
        ("absolute", 0.2, (0.6,)),
        ("absolute", -0.35, (0.6, 0.9, 0.5)),
        ("relative", 0.1, (0.6, 0.5)),
        ("relative", 0.2, (0.6,)),
    ):
        config = LossConfig(temperature=0.1, false_negatives=rule, false_negative_margin=margin)
        assert float(contrastive_loss(q, p, config)) == pytest.approx(score(*kept), abs=1e-5), (
            rule,
            margin,
        )


def test_several_positives_are_as_many_rows_that_do_not_see_each_other():
    """By another way: each pair as a batch of its own query, the query's other positives taken out
    of it."""
    q, p, present, texts = example(3, 4)
    there, plain = present.reshape(7, 4), jax.jit(lambda q, p: contrastive_loss(q, p, LossConfig()))
    losses = []
    for i in range(7):
        each = []
        for k in range(3):
            if there[i, k]:
                rest = [j for j in range(28) if present[j] and not 4 * i <= j < 4 * i + 3]
                each.append(plain(q[i : i + 1], np.stack([p[4 * i + k], *p[rest]])))
        losses.append(np.mean(each))
    found = contrastive_loss(q, p, LossConfig(), positives=3, present=present)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def teacher_kl(q, p, scores, student, teacher, present):
    group, total = len(p) // len(q), 0.0
    for i in range(len(q)):
        here = [j for j in range(i * group, (i + 1) * group) if present is None or present[j]]
        t = np.exp(scores[here] / teacher)
        s = np.exp(np.array([q[i].astype(np.float64) @ p[j] for j in here]) / student)
        t, s = t / t.sum(), s / s.sum()
        total += (t * np.log(t / s)).sum()
    return total / len(q)


@pytest.mark.parametrize("positives, group", [(1, 3), (2, 4)])
def test_distillation_is_the_divergence_from_the_teacher(positives, group):
    q, p, present, _ = example(positives, group)
    scores = np.random.default_rng(3).normal(size=len(p)).astype(np.float32) * 3
    config = LossConfig(temperature=0.3, distillation_temperature=2.0, distillation_factor=1.0)
    loss = lambda q, p: distillation_loss(q, p, scores, config, present=present)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(q, p)
    assert float(value) == pytest.approx(teacher_kl(q, p, scores, 0.3, 2.0, present), rel=1e-5)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)
    narrow = LossConfig(
        temperature=0.3, distillation_temperature=2.0, matryoshka_dims=[4], matryoshka_weights=[0.5]
    )
    cut = lambda x: unit(np.where(np.abs(x).sum(1, keepdims=True) > 0, x, 1)[:, :4])
    expected = 0.5 * teacher_kl(cut(q), cut(p), scores, 0.3, 2.0, present)
    assert float(distillation_loss(q, p, scores, narrow, present=present)) == pytest.approx(
        expected, rel=1e-5
    )


def test_distillation_vanishes_where_the_student_is_its_teacher():
    q, p, _, _ = example(1, 3)
    scores = jnp.einsum("qd,qgd->qg", q, p.reshape(7, 3, 8)).reshape(-1)
    config = LossConfig(temperature=0.3, distillation_temperature=0.3)
    value, gradient = jax.value_and_grad(lambda q: distillation_loss(q, p, scores, config))(q)
    assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-5
    assert float(distillation_loss(q, p, scores[::-1], config)) > 0.01


def test_only_a_block_of_the_similarity_exists():
    """Nothing of the traced loss and its gradient has queries times passages entries, whatever the
    options."""
    q, p = np.zeros((64, 8), np.float32), np.zeros((192, 8), np.float32)
    texts = np.arange(192)
    for options in OPTIONS.values():
        config = LossConfig(similarity_block=4, **options)
        loss = lambda q, p: contrastive_loss(q, p, config, texts=texts)  # noqa: B023
        sizes = [
            v.aval.size
            for jaxpr in walk(jax.make_jaxpr(jax.grad(loss))(q, p).jaxpr)
            for e in jaxpr.eqns
            for v in e.outvars
        ]
        assert max(sizes) <= max(4 * 192, 192 * 8), options


@pytest.mark.usefixtures("full_optimization")
def test_memory_is_linear_in_the_batch_and_passages_are_gathered_block_by_block():
    """Loss and gradient of 16384 and of 65536 queries with two passages each, compiled for eight
    devices."""
    mesh, dim = make_mesh(MeshConfig(), jax.devices()[:8]), 512
    lie = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    loss = lambda q, p: contrastive_loss(q, p, LossConfig())
    temporary = {}
    for queries in (16_384, 65_536):
        texts = [
            jax.ShapeDtypeStruct((count, dim), jnp.float32, sharding=lie)
            for count in (queries, 2 * queries)
        ]
        with jax.set_mesh(mesh):
            run = jax.jit(
                jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(None, (lie, lie))
            )
            compiled = run.lower(*texts).compile()
        temporary[queries] = compiled.memory_analysis().temp_size_in_bytes
        moved = program_costs(compiled.as_text()).collective_bytes
        passages = 2 * queries * dim * 4
        assert moved["all_gather"] < 2.1 * passages  # forwards and backwards
        assert moved["all_reduce"] + moved["reduce_scatter"] < 1.1 * passages
    assert temporary[65_536] < 4.2 * temporary[16_384]
    # Four arrays of a block's size (4096 by 2 * 65536 numbers over eight devices) and two of the
    # texts'.
    assert temporary[65_536] < (4 * 4096 * 2 * 65_536 + 2 * 3 * 65_536 * dim) * 4 / 8


def walk(jaxpr):
    """A traced program and all programs inside it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


def test_dimensions_are_looked_at_before_a_run(capsys):
    check_dimensions(LossConfig(matryoshka_dims=[8, 4]), 8)
    assert not capsys.readouterr().err
    check_dimensions(LossConfig(matryoshka_dims=[4, 2]), 8)
    assert "4, 2) leave out the vectors' own 8" in "".join(capsys.readouterr())
    with pytest.raises(GritError, match="matryoshka_dims: 16 is more than the 8 dimensions"):
        check_dimensions(LossConfig(matryoshka_dims=[16, 8]), 8)


def test_duplicates_need_to_be_known():
    with pytest.raises(ValueError, match="texts"):
        contrastive_loss(np.eye(2), np.eye(2), LossConfig(mask_duplicates=True))


def test_a_teacher_that_is_certain_stays_finite():
    """Scores of 1e29: the teacher's softmax has all its mass in one place, and the divergence is the
    student's cross entropy there."""
    rng = np.random.default_rng(3)
    q, p = (rng.normal(size=(n, 8)).astype(np.float32) for n in (2, 6))
    q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, p))
    scores = np.array([0, 1e29, 5e28, -1e29, 3e28, 1e28], np.float32)
    config = LossConfig(temperature=0.3, distillation_factor=1.0)
    value, gradient = jax.value_and_grad(lambda x: distillation_loss(x, p, scores, config))(q)
    logits = np.einsum("qd,qgd->qg", q, p.reshape(2, 3, 8)).astype(np.float64) / 0.3
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], [1, 1]]
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)
    assert np.isfinite(gradient).all()
