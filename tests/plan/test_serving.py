"""Inference planned for a slice: what is too large, the figures and the table; and, with the TPU's
compiler installed, a small model."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.presets import PRESETS
from grit_jax.plan.answers import Workload
from grit_jax.plan.chips import Slices
from grit_jax.plan.plan import CompiledProgram
from grit_jax.plan.serving import (
    ServingPlan,
    ServingRequest,
    make_serving_plan,
    serving_table,
)
from grit_jax.plan.serving_programs import ServingModel, ServingSizes
from grit_jax.runtime.chips import CHIPS, GIB

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
REQUEST = ServingRequest("tiny", ServingModel(CONFIG, "bfloat16"), chip_hour_price=1.8)


def a_serving_plan(**changes) -> ServingPlan:
    """Calls that are bound by memory, of known length."""
    seconds = {"encode": 0.2, "prefill": 0.3, "insert_layer": 0.01, "prefill_layer": 0.04}
    programs = {
        name: CompiledProgram(True, 5 * GIB, 4 * GIB, GIB, 1.0, seconds={"memory": value})
        for name, value in (seconds | {"decode": 0.04}).items()
    }
    plan = ServingPlan(
        request=REQUEST,
        topology="v5e:2x4",
        chip=CHIPS["v5e"],
        mesh={"data": 4, "fsdp": 1, "context": 1, "tensor": 2},
        sizes=ServingSizes(8, 704, 512, 64, 2048),
        workload=Workload(512, 64, 128, 256, 2, 8, 4, 8, 8192),
        weight_bytes=3 * GIB,
        cache_bytes=GIB,
        cache_bytes_per_slot=GIB,
        slots_that_fit=40,
        peak_bytes=5 * GIB,
        programs=programs,
    )
    return dataclasses.replace(plan, **changes)


def test_figures_of_a_plan():
    values = a_serving_plan().to_dict()
    assert values["fits"] and (values["slots"], values["slots_that_fit"]) == (8, 40)
    assert values["cache_bytes"] == 8 * GIB and values["chips"] == 8
    assert values["first_token_seconds"] == {
        "read": pytest.approx(0.9),
        "cached": pytest.approx(0.1),
    }
    assert values["tokens_per_second"] == {"slot": pytest.approx(25), "all": pytest.approx(200)}
    assert values["encode_tokens_per_second"] == pytest.approx(8192 / 0.2)
    # Keys and values of 2 layers and 2 heads of 64, in two bytes each, and a little around them.
    native = values["store_bytes_per_1000_documents"]["native"]
    assert native == pytest.approx(1000 * 512 * 2 * 2 * 2 * 64 * 2, rel=0.01)
    rate = values["break_even_bytes_per_second_per_chip"]["native"]
    assert rate == pytest.approx(native / 1000 / 0.8 / 2)
    used = values["chip_seconds_per_1000_answers"]
    assert used["read"] == pytest.approx(1000 * 8 * (0.9 / 4 + 128 * 0.04 / 8))
    assert values["cost_per_1000_answers"]["read"] == pytest.approx(used["read"] * 1.8 / 3600)
    json.dumps(values)


def test_a_plan_as_text():
    text = serving_table(a_serving_plan())
    assert "v5e:2x4, rented as v5litepod-8: 8 chips of 16.00 GiB" in text
    assert "fits: 5.00 GiB per chip, 3.00 GiB of it weights and 1.00 GiB cache" in text
    assert "slots: 8 of 704 tokens, 1.00 GiB each, 8.00 GiB in all; 40 fit" in text
    assert "first token after at least 0.9 s with the document read, and 0.1 s from" in text
    assert "tokens per second: 25 in a slot, 200 in all" in text
    assert "at 1.8 an hour" in text and "pca2" in text


def test_a_plan_that_does_not_fit():
    too_large = CompiledProgram(False, 20 * GIB, 4 * GIB, 16 * GIB, 1.0)
    programs = a_serving_plan().programs | {"encode": too_large}
    plan = a_serving_plan(programs=programs, peak_bytes=20 * GIB)
    values = plan.to_dict()
    assert not values["fits"] and values["tokens_per_second"] is None
    assert values["cost_per_1000_answers"] is None and values["store_bytes_per_1000_documents"]
    assert "DOES NOT FIT: 20.00 GiB" in serving_table(plan)
    unpriced = dataclasses.replace(REQUEST, chip_hour_price=None)
    assert a_serving_plan(request=unpriced).to_dict()["cost_per_1000_answers"] is None


@pytest.fixture
def absent_slice(monkeypatch):
    """Simulated devices in place of a slice of this chip: nothing is compiled for them."""

    def of(chip, count):
        slices = Slices("v5e:2x2", CHIPS[chip], jax.devices()[:count])
        monkeypatch.setattr("grit_jax.plan.serving.open_slices", lambda name: slices)

    return of


def test_a_model_that_cannot_fit_says_what_would(absent_slice):
    absent_slice("v5e", 1)
    large = ServingRequest("large", ServingModel(PRESETS["mistral_7b"], "float32"))
    with pytest.raises(GritError) as error:
        make_serving_plan(large, "v5e:1x1")
    message = str(error.value)
    assert "large needs 27.0 GiB for its weights in float32" in message
    assert "--dtype int8 needs 6.8 GiB and fits" in message and "\n" not in message


def test_slots_that_cannot_fit(absent_slice):
    """One slot of 32,768 tokens takes 4 GiB of what 13.5 GiB of weights leave of 16."""
    absent_slice("v5e", 1)
    model = ServingModel(PRESETS["mistral_7b"], "int8")
    with pytest.raises(GritError, match="--context 40000: long reads 32768 tokens at most"):
        make_serving_plan(ServingRequest("long", model, context=40000), "v5e:1x1")
    wide = dataclasses.replace(PRESETS["mistral_7b"], num_key_value_heads=32)
    request = ServingRequest("wide", ServingModel(wide, "int8"), context=32768)
    with pytest.raises(GritError) as error:
        make_serving_plan(request, "v5e:1x1")
    assert "wide: a slot of 32768 tokens takes 16.00 GiB per chip" in str(error.value)
    assert "would fit, or more or larger chips" in str(error.value)


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_a_small_model_on_a_slice(config, capsys):
    arguments = ["--topology", "v5e:2x2", "--slots", "8", "--dtype", "int8", "--mesh.tensor", "2"]
    main(["plan", str(config), "--serve", *arguments, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] and values["slots"] == 8 <= values["slots_that_fit"]
    assert values["mesh"] == {"data": 2, "fsdp": 1, "context": 1, "tensor": 2}
    programs = values["programs"]
    assert all(program["peak_bytes_per_chip"] > 0 for program in programs.values())
    # 256 tokens of a document, 128 of a question, 128 of an answer, as blocks of 256: of each a key
    # and a value of two layers, for two heads of 128 in two bytes each.
    kv = 2 * 2 * 2 * 128 * 2 * 512
    assert kv < values["cache_bytes_per_slot"] < 1.02 * kv
    weights = values["weight_bytes_per_chip"]
    assert programs["decode"]["argument_bytes_per_chip"] > weights
    assert programs["decode"]["memory_traffic_bytes_per_chip"] > 0
    assert values["first_token_seconds"]["read"] > 0
    assert values["tokens_per_second"]["all"] == pytest.approx(
        8 * values["tokens_per_second"]["slot"]
    )
