"""Rotary embedding in config.json: both spellings, published scalings, refusals."""

from __future__ import annotations

import pytest
from golden_models import MODELS, golden_config, raises, read_golden

from grit_jax.models.config import RopeScaling
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.rope import rope_to_hf
from grit_jax.models.hf.write_config import config_to_hf

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("name", [name for name in MODELS if "rope" in name or name == "gemma3"])
def test_either_spelling_is_enough(name):
    config = config_from_hf(golden_config(name))
    both = config_to_hf(config)
    new = {
        key: value
        for key, value in both.items()
        if key not in ("rope_theta", "rope_scaling", "rope_local_base_freq")
    }
    old = {key: value for key, value in both.items() if key != "rope_parameters"}
    older = old | {
        "rope_scaling": {k: v for k, v in old["rope_scaling"].items() if k != "rope_type"}
    }  # only `type`
    assert config_from_hf(new) == config_from_hf(old) == config_from_hf(older) == config
    assert (
        config.rope_scaling is not None
        and both["rope_scaling"]["rope_type"] == config.rope_scaling.rope_type
    )


def test_scalings_of_published_models():
    llama = config_from_hf(
        golden_config(
            "llama",
            rope_parameters=...,
            rope_theta=500000.0,
            max_position_embeddings=131072,
            rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192},
        )
    )
    assert llama.rope_scaling == RopeScaling("llama3", 8.0, original_max_position_embeddings=8192)
    yarn = {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }  # as Qwen's model cards say
    assert config_from_hf(golden_config("qwen3", rope_scaling=yarn)).rope_scaling == RopeScaling(
        "yarn", 4.0, 32768
    )
    # What is not said is the model's own length; yarn's factor is the ratio of the two.
    assert (
        config_from_hf(
            golden_config("llama", rope_scaling=LLAMA3)
        ).rope_scaling.original_max_position_embeddings
        == 64
    )
    ratio = {"type": "yarn", "original_max_position_embeddings": 16}
    assert config_from_hf(golden_config("llama", rope_scaling=ratio)).rope_scaling.factor == 4
    with pytest.warns(UserWarning, match="novelty unknown"):
        config_from_hf(golden_config("llama", rope_scaling=LLAMA3 | {"novelty": 1}))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_holds_what_transformers_wrote(name):
    theirs = golden_config(name)["rope_parameters"]
    written = rope_to_hf(read_golden(name).config)["rope_parameters"]
    for key, value in theirs.items():
        assert written[key] == value, key


@pytest.mark.parametrize(
    "tree, words",
    [
        (
            golden_config(rope_parameters={"rope_type": "longrope", "factor": 8.0}),
            ("rope_parameters", "longrope", "known: linear"),
        ),
        (
            golden_config(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
            ("rope_parameters", "_freq_factor' is missing"),
        ),
        (golden_config(rope_scaling={"type": "dynamic"}), ("rope_scaling", "'factor' is missing")),
        (
            golden_config(rope_scaling={"type": "linear", "factor": 0.5}),
            ("rope_scaling", "factor: must be at least 1"),
        ),
        (
            golden_config(rope_scaling={"type": "linear", "factor": "2"}),
            ("rope_scaling", "'factor' must be a positive number"),
        ),
        (
            golden_config(
                rope_parameters={"rope_type": "linear", "factor": 2.0},
                rope_scaling={"type": "linear", "factor": 3.0},
            ),
            ("contradict each other",),
        ),
        (
            golden_config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
            ("a part of each head",),
        ),
        (
            golden_config(
                "gemma3",
                rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            ),
            ("scales the layers with a window",),
        ),
        (
            golden_config(rope_parameters={"full_attention": {"rope_type": "default"}}),
            ("differs between layers",),
        ),
        (golden_config(rope_theta=5.0), ("rope_theta.* 5.0", "10000.0", "make them equal")),
        (golden_config(rope_parameters=7), ("rope_parameters", "mapping")),
    ],
)
def test_refusals(tree, words):
    with raises("somewhere/config.json", *words):
        config_from_hf(tree, "somewhere/config.json")
