"""The contrastive losses and their gradients beside sentence-transformers', where it has the same
one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

from grit_jax.training.contrastive import contrastive_loss, distillation_loss  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402

pytestmark = pytest.mark.peers

Q, DIM = 9, 16
TEMPERATURE = 0.05


@pytest.fixture(params=[1, 3], ids=["in-batch negatives", "hard negatives"])
def vectors(request):
    """Queries [Q, D] and passages [Q * group, D], unit, in three clusters: many negatives are near,
    some nearest."""
    rng = np.random.default_rng(request.param)
    group = request.param
    q = rng.normal(size=(3, DIM)).repeat(3, axis=0) + 0.5 * rng.normal(size=(Q, DIM))
    p = np.repeat(q, group, axis=0) + 1.2 * rng.normal(size=(Q * group, DIM))
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit(q), unit(p)


def columns(q, p):
    """Their layout: the queries, the positives, the first negatives, ... as leaves of a graph."""
    parts = [q, *p.reshape(Q, -1, DIM).transpose(1, 0, 2)]
    return [torch.tensor(part, requires_grad=True) for part in parts]


def compare(q, p, config, theirs, leaves, *, ours=None):
    """Both losses, and their gradients by the vectors."""
    theirs.backward()
    loss = ours or (lambda q, p: contrastive_loss(q, p, config))
    value, (by_q, by_p) = jax.value_and_grad(loss, argnums=(0, 1))(q, p)
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    by_column = np.asarray(by_p).reshape(Q, -1, DIM).transpose(1, 0, 2)
    for found, leaf in zip([by_q, *by_column], leaves, strict=True):
        np.testing.assert_allclose(
            along(found, leaf), along(leaf.grad, leaf), atol=2e-5 * float(np.abs(by_q).max())
        )


def along(gradient, leaf):
    """A gradient without its share along the vector: their cosine has none, our vectors come
    normalised."""
    gradient, x = np.asarray(gradient), leaf.detach().numpy()
    return gradient - (gradient * x).sum(1, keepdims=True) * x


@pytest.mark.parametrize("symmetric", [False, True])
def test_multiple_negatives_ranking(vectors, symmetric):
    q, p = vectors
    both = (
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
        if symmetric
        else {}
    )
    leaves = columns(q, p)
    kind = losses.MultipleNegativesRankingLoss(None, scale=1 / TEMPERATURE, **both)
    theirs = kind.compute_loss_from_embeddings(leaves, None)
    compare(q, p, LossConfig(temperature=TEMPERATURE, symmetric=symmetric), theirs, leaves)


class SelfGuided(losses.CachedGISTEmbedLoss):
    """Their loss without a model: its guide is the model itself, and it is handed vectors."""

    def __init__(self, strategy, margin):
        torch.nn.Module.__init__(self)
        self.margin_strategy, self.margin, self.temperature = strategy, margin, TEMPERATURE
        self.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
        self.contrast_anchors = self.contrast_positives = self.gather_across_devices = False
        self.mini_batch_size, self.show_progress_bar = 4, False
        self.cross_entropy_loss = torch.nn.CrossEntropyLoss()


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.15, -0.02])
def test_false_negatives_are_masked_by_their_margins(vectors, strategy, margin):
    q, p = vectors
    leaves = columns(q, p)
    guide = [[leaf.detach()] for leaf in leaves]
    theirs = SelfGuided(strategy, margin).calculate_loss([[leaf] for leaf in leaves], guide)
    config = LossConfig(
        temperature=TEMPERATURE, false_negatives=strategy, false_negative_margin=margin
    )
    compare(q, p, config, theirs, leaves)
    assert (
        theirs.item() < float(contrastive_loss(q, p, LossConfig(temperature=TEMPERATURE))) - 1e-3
    )  # some were


class Table(torch.nn.Module):
    """A model whose texts are their vectors."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return DIM


def test_matryoshka(vectors):
    q, p = vectors
    leaves, model = columns(q, p), Table()
    inner = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    dims, weights = [DIM, 8, 3], [1.0, 0.5, 0.25]
    theirs = losses.MatryoshkaLoss(model, inner, dims, weights)(
        [{"vectors": leaf} for leaf in leaves], None
    )
    config = LossConfig(temperature=TEMPERATURE, matryoshka_dims=dims, matryoshka_weights=weights)
    compare(q, p, config, theirs, leaves)


@pytest.mark.parametrize("teacher_temperature", [1.0, 4.0])
def test_distillation(vectors, teacher_temperature):
    q, p = vectors
    if len(p) == Q:
        pytest.skip("one passage has no distribution")
    scores = np.random.default_rng(0).normal(scale=4, size=len(p)).astype(np.float32)
    leaves = columns(q, p)
    kind = losses.DistillKLDivLoss(
        None,
        student_temperature=TEMPERATURE,
        teacher_temperature=teacher_temperature,
        similarity_fct=torch.nn.CosineSimilarity(dim=-1),
    )
    theirs = kind.compute_loss_from_embeddings(leaves, torch.tensor(scores.reshape(Q, -1)))
    theirs = theirs / TEMPERATURE**2  # they give the student's temperature back
    config = LossConfig(temperature=TEMPERATURE, distillation_temperature=teacher_temperature)
    compare(q, p, config, theirs, leaves, ours=lambda q, p: distillation_loss(q, p, scores, config))
