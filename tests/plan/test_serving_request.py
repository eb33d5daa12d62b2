"""What `--serve` plans for: lengths and shape of a configuration, a model, and what was typed."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.plan.serving_request import serving_request
from grit_jax.run_config import read_run_config


def test_a_configuration_gives_lengths_and_shape(config):
    request = serving_request(config, {"mesh.tensor": "2"}, {"slots": 3, "new_tokens": 7})
    run = read_run_config(config)
    assert (request.name, request.slots, request.new_tokens) == ("run", 3, 7)
    assert (request.document_tokens, request.question_tokens) == (256, 128)
    assert request.mesh == {"tensor": 2} and request.capacity == 256 + 128 + 7
    assert request.model.dtype == request.model.config.dtype == "bfloat16"
    assert request.model.config.num_hidden_layers == run.model.known_shape.num_hidden_layers
    shorter = serving_request(config, {}, {"document_tokens": 50, "context": 100, "dtype": "int8"})
    assert (shorter.document_tokens, shorter.capacity, shorter.model.dtype) == (50, 100, "int8")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"mesh.tensor": "no"}, "--mesh.tensor no: expected a number of chips from 1"),
        ({"mesh.data": "0"}, "--mesh.data 0: expected a number"),
        ({"mesh.rows": "2"}, "--mesh.rows 2: .* mesh.data, mesh.fsdp, mesh.context, mesh.tensor"),
        ({"model.pooling": "all"}, "model.pooling"),
    ],
)
def test_keys_that_cannot_be(config, overrides, message):
    with pytest.raises(GritError, match=message):
        serving_request(config, overrides, {})


def test_a_model_that_is_not_here(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {path: some/model}\noutput: out\n")
    with pytest.raises(GritError, match="some/model is not a directory; name the model by"):
        serving_request(tmp_path / "run.yaml", {}, {})
    with pytest.raises(GritError, match="model not found"):
        serving_request(tmp_path / "nothing here", {}, {})
    with pytest.raises(GritError, match="--train.steps: a model has no such key"):
        serving_request(tmp_path, {"train.steps": "3"}, {})
