"""The original's other ways of training against torch: one side's gradient, split and separate
backward passes, the projection head, and the paper's mixed attention."""

from __future__ import annotations

import numpy as np
import parity
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402
from peer_models import load_make_golden  # noqa: E402

from grit_jax.models.hf.directory import read_model_directory  # noqa: E402
from grit_jax.models.projection import PROJECTION, PROJECTION_BIAS  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.step import StepConfig  # noqa: E402
from grit_jax.types import AttentionMode, Batch  # noqa: E402

pytestmark = pytest.mark.peers

make_golden = load_make_golden()
ROW = 48
PREFIX = AttentionMode.PREFIX


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """transformers' model, our directory of it, and one batch as arrays and as tensors."""
    model = make_golden.make_model(seed=7, common=0.35)
    directory = tmp_path_factory.mktemp("options")
    model.save_pretrained(directory)
    arrays = make_golden.make_batch(seed=7)
    return model, read_model_directory(directory), arrays, make_golden.tensors(arrays)


def ours(folder, batch, params=None, **how) -> parity.Gradients:
    loss = LossConfig(mix_group_size=make_golden.GROUP)
    return parity.joint_gradients(
        params or folder.params, batch, StepConfig(folder.config, loss, **how)
    )


def theirs(model, loss):
    value, gradients = original.gradients(model, loss)
    return value, make_golden.as_ours(model, gradients)


def embedding(arrays, **how):
    return parity.embedding(arrays["queries"], arrays["passages"], ROW, **how)


def without_head(gradients):
    assert not np.abs(gradients["head"]).any()
    return {name: gradient for name, gradient in gradients.items() if name != "head"}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_the_gradient_of_one_side(world, side, separate):
    """`emb_q_only` and `emb_p_only` there (gritlm:
    gritlm/training/gradcache_trainer.py:649-663)."""
    model, folder, arrays, padded = world
    found = ours(folder, Batch(embedding=embedding(arrays, separate=separate)), gradient=side)

    def one_side():
        queries, passages = (
            original.embed(model, padded[name]) for name in ("queries", "passages")
        )
        return original.contrastive(
            queries if side == "query" else queries.detach(),
            passages if side == "passage" else passages.detach(),
        )

    loss, expected = theirs(model, one_side)
    assert found.parts["loss_emb"] == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(without_head(found.gradients), without_head(expected))


@pytest.mark.parametrize("backward", ["separate", "split"])
def test_backward_passes_in_parts(world, backward):
    """`no_gen_gas no_emb_gas` and `split_emb` there, gradients added up over the passes."""
    model, folder, arrays, padded = world
    batch = Batch(embedding(arrays, separate=True), parity.generative(arrays["sequences"], ROW))
    found = ours(folder, batch, backward=backward)
    emb, gradient = original.split_step(model, padded["queries"], padded["passages"])
    embedded = make_golden.as_ours(model, gradient)
    gen, generated = theirs(model, lambda: make_golden.grouped(model, padded["sequences"]))
    assert found.loss == pytest.approx(emb + gen, rel=1e-5)
    parity.assert_gradients_agree(
        found.gradients, {name: embedded[name] + generated[name] for name in embedded}
    )


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_projection(world, pooling):
    """Of each token before it is pooled there, of the pooled vector here: the same loss, the same
    gradients."""
    model, folder, arrays, padded = world
    torch.manual_seed(0)
    projection = torch.nn.Linear(make_golden.SIZES["hidden_size"], 11)
    weights = {
        PROJECTION: projection.weight.detach().numpy().T.copy(),
        PROJECTION_BIAS: projection.bias.detach().numpy(),
    }
    found = ours(
        folder, Batch(embedding=embedding(arrays)), folder.params | weights, pooling=pooling
    )
    vectors = lambda side: original.embed(model, padded[side], pooling, projection=projection)
    loss, expected = theirs(
        model, lambda: original.contrastive(vectors("queries"), vectors("passages"))
    )
    expected |= {
        PROJECTION: projection.weight.grad.numpy().T,
        PROJECTION_BIAS: projection.bias.grad.numpy(),
    }
    assert found.parts["loss_emb"] == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(without_head(found.gradients), without_head(expected))


def test_a_causal_instruction_and_a_bidirectional_text(world):
    """The paper's "cb" when embedding."""
    model, folder, arrays, padded = world
    found = ours(folder, Batch(embedding=embedding(arrays, blocks=True)), embedding_mode=PREFIX)
    vectors = lambda side, code: original.embed(model, padded[side], attention=code)
    loss_of = lambda code: original.contrastive(vectors("queries", code), vectors("passages", code))
    loss, expected = theirs(model, lambda: loss_of("cb"))
    assert found.parts["loss_emb"] == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(without_head(found.gradients), without_head(expected))
    with torch.no_grad():
        assert min(abs(loss_of(code).item() - loss) for code in ("bb", "cc")) > 1e-2


def test_a_prefix_language_model(world):
    """The paper's "bc" when generating."""
    model, folder, arrays, padded = world
    batch = Batch(generative=parity.generative(arrays["sequences"], ROW, prefix=True))
    loss, expected = theirs(model, lambda: original.prefix_language(model, padded["sequences"]))
    found = parity.joint_gradients(
        folder.params, batch, StepConfig(folder.config, LossConfig(), generation_mode=PREFIX)
    )
    assert found.loss == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(found.gradients, expected)
    with torch.no_grad():
        assert abs(original.language(model, padded["sequences"]).item() - loss) > 1e-2
