"""What `grit plan --serve` plans for: a model's shape from a configuration or a model directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.inference.opening import model_shape
from grit_jax.models.hf import directory as huggingface
from grit_jax.models.hf.sources import is_here, resolve
from grit_jax.plan.serving import ServingRequest
from grit_jax.plan.serving_programs import ServingModel
from grit_jax.run_config import RunConfig, read_run_config
from grit_jax.sharding import MESH_AXES

YAML = (".yaml", ".yml")


def serving_request(
    source: Path, overrides: Mapping[str, str], given: Mapping[str, Any]
) -> ServingRequest:
    """The request for a configuration (a YAML file) or a model (a directory or a hub id).

    Args:
      overrides: keys of a configuration by name; of a model, `mesh.*` only.
      given: attributes of `ServingRequest`, and `dtype`.

    Raises:
      GritError: no such file or model, an unknown key, or a mesh axis that is not a number.
    """
    mesh = _mesh(overrides)
    options = {name: value for name, value in given.items() if name != "dtype"}
    dtype = given.get("dtype", "bfloat16")
    if source.suffix in YAML:
        config = read_run_config(source, dict(overrides))
        model = ServingModel(
            config_shape(config), dtype, config.model.pooling, config.model.modes.embedding
        )
        data = config.data.fit_to_context(model.config.context_length)
        lengths = {
            "document_tokens": data.document_max_length,
            "question_tokens": data.query_max_length,
        }
        return ServingRequest(source.stem, model, mesh=mesh, **(lengths | options))
    if other := [key for key in overrides if not key.startswith("mesh.")]:
        raise GritError(f"--{other[0]}: a model has no such key; give a configuration (.yaml)")
    directory = resolve(source)
    settings = huggingface.read_model_directory(directory, with_params=False).settings
    model = ServingModel(model_shape(directory), dtype, settings.pooling, settings.embedding_mode)
    return ServingRequest(str(source), model, mesh=mesh, **options)


def config_shape(config: RunConfig) -> Any:
    """The shape of a configuration's model.

    Raises:
      GritError: the configuration does not say it, and the model is not here.
    """
    shape = config.model.known_shape
    if shape is None:
        if not is_here(config.model.path):
            raise GritError(
                f"model.path: {config.model.path} is not a directory; name the model by"
                " model.preset or model.shape"
            )
        shape = model_shape(resolve(str(config.model.path)))
    return shape


def _mesh(overrides: Mapping[str, str]) -> dict[str, int]:
    """The axes of `--mesh.*`."""
    mesh = {}
    for key, value in overrides.items():
        axis = key.removeprefix("mesh.")
        if axis != key:
            if axis not in MESH_AXES or not value.isdecimal() or not int(value):
                raise GritError(
                    f"--{key} {value}: expected a number of chips from 1 for one of"
                    f" {', '.join('mesh.' + name for name in MESH_AXES)}"
                )
            mesh[axis] = int(value)
    return mesh
