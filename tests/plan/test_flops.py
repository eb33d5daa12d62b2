"""Model FLOPs: by hand, and against what the compiler makes of the same work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import parameter_shapes
from grit_jax.models.transformer import Transformer
from grit_jax.plan.abstract_step import abstract_step
from grit_jax.plan.flops import Texts, forward_flops, step_flops
from grit_jax.plan.program_costs import program_costs
from grit_jax.run_config import read_run_config
from grit_jax.types import AttentionMode

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
SHAPE = ModelConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    dtype="float32",
    remat="none",
)
RUN = """
model:
  shape: {vocab_size: 100, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8}
  dtype: float32
  remat: none
data: {embedding: [a.jsonl], embedding_batch: 4, query_max_length: 16, passage_max_length: 16, row_multiple: 4,
       generative: [b.jsonl], generative_batch: 3, generative_max_length: 24}
output: out
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    return lambda **overrides: read_run_config(
        tmp_path / "run.yaml", {k.replace("__", "."): v for k, v in overrides.items()}
    )


def test_a_tiny_model_by_hand():
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # query, key and value, output
    token = 3 * 2 * (attention + 3 * 32 * 48)  # three layers
    scores = lambda pairs: 3 * 2 * 2 * 32 * pairs  # scores and weighted values, of 4 heads of 8
    assert forward_flops(SHAPE, Texts(2, 10, BIDIRECTIONAL)) == 2 * (10 * token + scores(100))
    assert forward_flops(SHAPE, Texts(1, 10, CAUSAL, predicted=True)) == 10 * (
        token + 2 * 32 * 100
    ) + scores(55)
    assert forward_flops(SHAPE, Texts(1, 10, CAUSAL, cached=7)) == 10 * token + scores(55 + 70)
    experts = dataclasses.replace(
        SHAPE, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48
    )
    routed = token + 3 * 2 * (3 * 32 * 48 + 32 * 8)  # twice the feed-forward, and a router
    assert forward_flops(experts, Texts(1, 10, BIDIRECTIONAL)) == 10 * routed + scores(100)


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("scan", [True, False])
def test_a_forward_pass_as_compiled(scan):
    config = dataclasses.replace(SHAPE, scan_layers=scan)
    shapes = {
        name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in parameter_shapes(config).items()
    }
    ids = jax.ShapeDtypeStruct((2, 16), jnp.int32)

    def program(params, tokens, positions, segments):
        model = Transformer(config, params)
        return model.logits(model(tokens, positions, segments, mode=BIDIRECTIONAL).hidden)

    compiled = jax.jit(program).lower(shapes, ids, ids, ids).compile()
    expected = forward_flops(config, Texts(2, 16, BIDIRECTIONAL, predicted=True))
    assert program_costs(compiled.as_text()).flops == expected
    if (
        not scan
    ):  # the compiler counts elementwise work as well, much of a model as small as this one
        assert expected < compiled.cost_analysis()["flops"] < 1.5 * expected


@pytest.mark.usefixtures("full_optimization")
def test_a_training_step_as_compiled(run):
    config = run()
    abstract = abstract_step(config)
    model_flops = step_flops(config, abstract.model)
    # Of 12 rows of one text, with places for more: a product forward, and the gradient of the
    # factor that varies.
    pooling = 2 * 2 * 12 * 16 * 32 * abstract.batch.embedding.segments_per_row
    masked = (
        3 * 3 * 4 * 32 * 3 * (24 * 24 - 24 * 25 // 2)
    )  # the CPU's kernel computes what a causal mask hides
    # ... of 3 texts, one of 4 rows being empty: its products are padding.
    padding = 3 * (
        24 * 3 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
        + 24 * 2 * 32 * 100
        + 3 * 4 * 32 * 24 * 24
    )
    text = abstract.step.lower(abstract.state, abstract.batch).compile().as_text()
    assert program_costs(text).flops == model_flops + pooling + masked + padding


def test_the_published_7b_batch():
    """By the rule of thumb, 6 FLOPs a weight and token and 12 a pair, layer and head's width (arXiv
    2204.02311, B)."""
    run = read_run_config(Path(__file__).parents[2] / "configs" / "gritlm_7b.yaml")
    weights, table = (
        7_241_732_096,
        32_000 * 4096,
    )  # Mistral-7B's own count, of which a table is looked up
    queries, passages, texts = 2048, 4096, 256
    tokens = queries * 256 + passages * 2048 + texts * 2048
    pairs = queries * 256**2 + passages * 2048**2 + texts * 2048**2 / 2
    by_hand = 6 * (weights - 2 * table) * tokens + 6 * table * texts * 2048 + 12 * 32 * 4096 * pairs
    assert step_flops(run, run.model.known_shape) == pytest.approx(by_hand, rel=1e-4)


def test_frozen_weights_and_constant_sides_have_no_gradient(run):
    model = abstract_step(run()).model
    everything, queries = run(), run(train__gradient="query", train__backward="separate")
    one_side = forward_flops(model, Texts(8, 16, BIDIRECTIONAL))
    assert (
        step_flops(everything, model) - step_flops(queries, model) == 2 * one_side + 2 * 4 * 8 * 32
    )
    lora = run(model__path="somewhere", lora="{rank: 2, targets: [q_proj]}")
    saved = step_flops(everything, model) - step_flops(lora, model)
    tokens = 12 * 16 + 3 * 24
    weights = 3 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) * tokens + 2 * 32 * 100 * 72
    assert saved == weights - 3 * (3 * 2 * (32 * 2 + 2 * 32)) * tokens


def test_a_teacher_of_cached_documents_reads_forward_alone(run):
    """Documents, question and answer in a row; logits where the student has its own."""
    cached = {
        "data__cached": "[c.jsonl]",
        "data__cached_batch": "2",
        "data__pieces_row_length": "40",
        "data__cached_row_length": "24",
    }
    plain, taught = run(**cached), run(**cached, train__loss__cached_distillation="0.5")
    abstract = abstract_step(taught)
    rise = step_flops(taught, abstract.model) - step_flops(plain, abstract.model)
    assert rise == forward_flops(abstract.model, Texts(2, 64, CAUSAL)) + 2 * 24 * 2 * 32 * 100
    _, metrics = jax.eval_shape(abstract.step, abstract.state, abstract.batch)
    assert "loss_cached_kl" in metrics


def test_a_base_that_teaches_reads_forward_alone(run):
    lora = {"model__path": "somewhere", "lora": "{rank: 2, targets: [q_proj]}"}
    model = abstract_step(run()).model
    plain, taught = run(**lora), run(**lora, train__loss__generative_distillation="0.5")
    rise = step_flops(taught, model) - step_flops(plain, model)
    assert rise == forward_flops(model, Texts(3, 24, CAUSAL, predicted=True))
    abstract = abstract_step(
        run(
            **lora,
            train__loss__generative_distillation="0.5",
            model__shape="{vocab_size: 100, hidden_size: 32, intermediate_size: 48,"
            " num_hidden_layers: 1, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8}",
        )
    )
    _, metrics = jax.eval_shape(abstract.step, abstract.state, abstract.batch)
    assert "loss_gen_kl" in metrics


def test_a_preference_loss_has_a_reference_model(run):
    """DPO: both answers of a pair, which the reference model reads forward. KTO: both models read
    as many mismatched texts."""
    rows = {"data__preference": "[p.jsonl]", "data__preference_max_length": "20"}
    model = abstract_step(run()).model
    for kind, batch, count, forward in (("dpo", "2", 4, 1), ("kto", "6", 6, 3)):
        tuned = run(**rows, data__preference_batch=batch, train__loss__preference=kind)
        once = forward_flops(model, Texts(count, 20, CAUSAL, predicted=True))
        assert step_flops(tuned, model) - step_flops(run(), model) == (3 + forward) * once
        abstract = abstract_step(tuned)
        size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        assert size(abstract.state.frozen) == size(abstract.state.params)  # float32, both
        _, metrics = jax.eval_shape(abstract.step, abstract.state, abstract.batch)
        assert ("preference_kl" in metrics) == (kind == "kto")
