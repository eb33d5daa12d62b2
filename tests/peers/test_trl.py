"""KTO and DPO against TRL's trainers: from the same lines to the loss, its metrics and the gradient
of every weight."""

from __future__ import annotations

import copy
import dataclasses
import json
import types

import numpy as np
import parity
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

import original  # noqa: E402
from peer_models import load_make_golden  # noqa: E402

from grit_jax.data.config import BatchNeeds, DataConfig  # noqa: E402
from grit_jax.data.pipeline import JointBatches  # noqa: E402
from grit_jax.text.chat import GRIT  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.step import StepConfig  # noqa: E402
from grit_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.peers
make_golden = load_make_golden()

say = lambda role, content: {"role": role, "content": content}
PROMPTS = [
    [say("user", "Who wrote Faust?")],
    [say("user", "Name a river."), say("assistant", "The Rhine."), say("user", "Another one.")],
    [say("user", "What is 7 times 6?")],
    [say("system", "Be brief."), say("user", "Why is the sky blue?")],
    [say("user", "Say nothing.")],
    [say("user", "größer, naïve café 北京?")],
]
GOOD = ["Goethe.", "The Danube, which is long.", "42", "Rayleigh scattering.", "...", "Ja, 北京."]
BAD = ["Nobody wrote it.", "A", "It is 41, I think.", "Because.", "Something else then", "no"]
LENGTH = 48  # tokens: some of the texts are truncated


@dataclasses.dataclass
class Compared:
    """The loss, its metrics and the gradients of one side."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, np.ndarray]


def lines(loss: str) -> list[dict]:
    if loss == "dpo":
        return [
            {"prompt": p, "chosen": [say("assistant", c)], "rejected": [say("assistant", r)]}
            for p, c, r in zip(PROMPTS, GOOD, BAD, strict=True)
        ]
    labels = [True, False, False, True, True, False]
    return [
        {"prompt": p, "completion": [say("assistant", c if label else r)], "label": label}
        for p, c, r, label in zip(PROMPTS, GOOD, BAD, labels, strict=True)
    ]


@pytest.fixture(scope="module")
def reference(peer):
    """The peer's model with other weights near its own."""
    model = copy.deepcopy(peer.model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for weight in model.parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


def theirs(peer, reference, kind, tmp_path, **settings) -> Compared:
    """A trainer's loss of its first batch, through its own data preparation."""
    config, trainer_type = {
        "kto": (trl.KTOConfig, trl.KTOTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[kind]
    args = config(
        str(tmp_path),
        per_device_train_batch_size=len(PROMPTS),
        max_length=LENGTH,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        train_sampling_strategy="sequential",
        **settings,
    )
    model = copy.deepcopy(peer.model)
    trainer = trainer_type(
        model,
        copy.deepcopy(reference),
        args=args,
        train_dataset=datasets.Dataset.from_list(lines(kind)),
        processing_class=peer.tokenizer,
    )
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss, gradients = original.gradients(
        trainer.model, lambda: trainer.compute_loss(trainer.model, batch)
    )
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
    return Compared(loss, metrics, make_golden.as_ours(trainer.model, gradients))


def ours(peer, reference, kind, tmp_path, loss: LossConfig) -> Compared:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(kind)))
    config = DataConfig(
        preference=[str(path)],
        preference_batch=len(PROMPTS),
        preference_max_length=LENGTH,
        row_multiple=2,
        shuffle=False,
    )
    data = JointBatches(config, peer.ours.tokenizer, GRIT, needs=BatchNeeds(preference=kind))
    batch = Batch(preference=data[0].preference)
    state = {name: w.detach() for name, w in reference.named_parameters()}
    near = make_golden.as_ours(reference, types.MappingProxyType(state))
    settings = StepConfig(peer.ours.config, loss, base_weights_of=lambda params: near)
    found = parity.joint_gradients(peer.ours.params, batch, settings)
    return Compared(found.loss, found.parts, found.gradients)


def assert_equal(found: Compared, expected: Compared, metrics: dict[str, str]) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, theirs in metrics.items():
        assert found.metrics[name] == pytest.approx(expected.metrics[theirs], rel=1e-4), name
    parity.assert_gradients_agree(found.gradients, expected.gradients, relative=1e-4)


REWARDS = {
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "rewards_margin": "rewards/margins",
}


@pytest.mark.parametrize("swapped", [False, True])
def test_kto(peer, reference, tmp_path, swapped):
    """With the two models' places changed, the reference point has the other sign: once it is above
    0, once it is clamped."""
    weights = {"beta": 0.3, "desirable_weight": 1.33, "undesirable_weight": 0.8}
    if swapped:
        from grit_jax.inference.model import GritLM

        peer.model.save_pretrained(tmp_path / "a")
        reference.save_pretrained(tmp_path / "b")
        peer.ours.tokenizer.save(tmp_path / "b", GRIT)
        peer, reference = (
            dataclasses.replace(peer, model=reference, ours=GritLM.from_pretrained(tmp_path / "b")),
            peer.model,
        )
    expected = theirs(peer, reference, "kto", tmp_path, **weights)
    found = ours(peer, reference, "kto", tmp_path, LossConfig(preference="kto", **weights))
    assert (expected.metrics["kl"] > 0) != swapped
    assert_equal(found, expected, REWARDS | {"preference_kl": "kl"})


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(peer, reference, tmp_path, smoothing):
    """TRL has the conservative loss as a sum of two others: with `s(x) = -log sigmoid(x)`, its
    `robust` one is `((1 - e) s(x) - e s(-x)) / (1 - 2 e)`."""
    kinds = {"loss_type": ["sigmoid"], "loss_weights": [1.0]}
    if smoothing:
        kinds = {
            "loss_type": ["sigmoid", "robust"],
            "loss_weights": [2 * (1 - smoothing), -(1 - 2 * smoothing)],
            "label_smoothing": smoothing,
        }
    expected = theirs(peer, reference, "dpo", tmp_path, beta=0.3, **kinds)
    loss = LossConfig(preference="dpo", beta=0.3, label_smoothing=smoothing)
    found = ours(peer, reference, "dpo", tmp_path, loss)
    assert_equal(found, expected, REWARDS | {"rewards_accuracy": "rewards/accuracies"})
