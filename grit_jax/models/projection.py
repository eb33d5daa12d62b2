"""The projection head: a linear map with a bias from the hidden size to the dimensions of an
embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grit_jax.errors import GritError
from grit_jax.models.hf.safetensors_io import DTYPES, Tensor, TensorFiles, write_tensors
from grit_jax.runtime.files import read_json, write_json
from grit_jax.sharding import to_host

# Its weights and their logical axes; a model without a projection does not have these names.
PROJECTION, PROJECTION_BIAS = "embedding_projection", "embedding_projection_bias"
PROJECTION_AXES: dict[str, tuple[str | None, ...]] = {
    PROJECTION: ("embed", None),
    PROJECTION_BIAS: (None,),
}
PROJECTION_FOLDER = (
    "2_Dense"  # of a model directory: a module of sentence-transformers, and what we read
)


def init_projection(hidden_size: int, width: int, key: jax.Array) -> dict[str, Float[Array, ...]]:
    """New weights `[hidden_size, width]` and a bias, uniform as torch's `nn.Linear` has them."""
    bound = 1 / math.sqrt(hidden_size)
    shapes = {PROJECTION: (hidden_size, width), PROJECTION_BIAS: (width,)}
    keys = jax.random.split(key)
    return {
        name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def project(params: Mapping[str, Any], pooled: Float[Array, "... D"]) -> Float[Array, "... d"]:
    """The projection of pooled vectors, in float32."""
    weight, bias = (params[name].astype(jnp.float32) for name in PROJECTION_AXES)
    return jnp.einsum("...d,dk->...k", pooled, weight, precision=jax.lax.Precision.HIGHEST) + bias


def embedding_width(params: Mapping[str, Any], hidden_size: int) -> int:
    """Dimensions of the vectors that a model gives."""
    return params[PROJECTION].shape[1] if PROJECTION in params else hidden_size


def write_projection(folder: Path, params: Mapping[str, Any], dtype: str) -> None:
    """Writes it as the Dense module of sentence-transformers, the weight `[out, in]` as torch has
    it."""
    weight, bias = to_host(params[PROJECTION]).T, to_host(params[PROJECTION_BIAS])
    tensors = [
        Tensor("linear.weight", weight.shape, lambda: weight),
        Tensor("linear.bias", bias.shape, lambda: bias),
    ]
    write_tensors(folder, tensors, dtype, max_shard_bytes=weight.nbytes + bias.nbytes)
    config = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": True}
    write_json(
        folder / "config.json",
        {**config, "activation_function": "torch.nn.modules.linear.Identity"},
    )


def read_projection(
    folder: Path,
    hidden_size: int,
    dtype: str,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Its weights out of a model directory; `place` is that of `load_params`.

    Raises:
      GritError: a file that is missing, damaged, or of another shape.
    """
    width = read_json(folder / "config.json").get("out_features")
    if not isinstance(width, int) or width < 1:
        raise GritError(
            f"{folder / 'config.json'}: 'out_features' must be a number of dimensions, is {width!r}"
        )
    with TensorFiles(folder) as files:
        found = {
            PROJECTION: files.read("linear.weight", (width, hidden_size)).T,
            PROJECTION_BIAS: files.read("linear.bias", (width,)),
        }
    arrays = {name: np.ascontiguousarray(value, DTYPES[dtype]) for name, value in found.items()}
    return {name: place(name, array) if place else array for name, array in arrays.items()}
