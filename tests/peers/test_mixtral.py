"""The joint step of a mixture of experts against torch: the router's loss stands outside of the
factor, on the language pass alone."""

from __future__ import annotations

import dataclasses

import parity
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402
from peer_models import load_make_golden  # noqa: E402

from grit_jax.models.hf.directory import read_model_directory  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.step import StepConfig  # noqa: E402
from grit_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.peers

make_golden = load_make_golden()
FACTOR, COEFFICIENT = 0.003, 0.02  # the published factor, and a coefficient that shows beside it
LOSS = LossConfig(generative="token", generative_factor=FACTOR)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Mixtral of four experts, two a token, in three layers; its weights as ours; a padded batch
    and a packed one."""
    sizes = make_golden.SIZES | dict(
        num_hidden_layers=3,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=COEFFICIENT,
    )
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).eval()
    make_golden.randomised(model, seed=5, common=0.35)
    directory = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(directory)
    padded = make_golden.make_batch(seed=5)
    packed = Batch(
        parity.embedding(padded["queries"], padded["passages"], 48),
        parity.generative(padded["sequences"], 48),
    )
    return model, read_model_directory(directory), make_golden.tensors(padded), packed


def ours(folder, batch, **changes) -> parity.Gradients:
    config = dataclasses.replace(folder.config, **changes)
    return parity.joint_gradients(folder.params, batch, StepConfig(config, LOSS))


def test_our_formula_of_the_balance_is_the_one_of_transformers(world):
    model, _, padded, _ = world
    batch = padded["sequences"]
    with torch.no_grad():
        out = model(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
        )
    restated = original.load_balancing(out.router_logits, batch["attention_mask"], 2)
    assert restated.item() == pytest.approx(out.aux_loss.item(), rel=1e-6)
    assert len(out.router_logits) == 3 and abs(restated.item() - 2) > 0.01  # 2: all experts alike


def test_language_and_router_loss_and_gradients(world):
    model, folder, padded, packed = world
    assert folder.config.num_experts == 4 and folder.config.router_aux_loss_coef == COEFFICIENT
    found = ours(folder, Batch(generative=packed.generative))
    loss, gradients = original.gradients(
        model, lambda: original.mixtral_language(model, padded["sequences"], FACTOR)[0]
    )
    with torch.no_grad():
        router = original.mixtral_language(model, padded["sequences"], FACTOR)[1].item()
    assert found.parts["loss_router"] == pytest.approx(router, rel=1e-5)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.loss == pytest.approx(
        FACTOR * found.parts["loss_gen"] + COEFFICIENT * router, rel=1e-6
    )
    expected = make_golden.as_ours(model, gradients)
    parity.assert_gradients_agree(found.gradients, expected)
    assert (
        any(name.startswith("expert_") for name in found.gradients) and "router" in found.gradients
    )
    # The router's loss is seen in the gradients, and so is that the factor leaves it alone.
    without = ours(folder, Batch(generative=packed.generative), router_aux_loss_coef=0.0)
    scaled = ours(
        folder, Batch(generative=packed.generative), router_aux_loss_coef=FACTOR * COEFFICIENT
    )
    for other in (without, scaled):
        assert parity.norm_gap(other.gradients["router"], expected["router"]) > 0.1


def test_the_embedding_pass_has_no_router_loss(world):
    model, folder, padded, packed = world
    found = ours(folder, packed)

    def both():
        vectors = [original.embed(model, padded[side]) for side in ("queries", "passages")]
        return (
            original.contrastive(*vectors)
            + original.mixtral_language(model, padded["sequences"], FACTOR)[0]
        )

    loss, gradients = original.gradients(model, both)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(found.gradients, make_golden.as_ours(model, gradients))
    alone = ours(folder, Batch(embedding=packed.embedding)).parts
    assert set(alone) == {"loss_emb"} and alone["loss_emb"] == pytest.approx(
        found.parts["loss_emb"], rel=1e-6
    )
