"""The projection head, applied to embeddings after pooling.

Usually it is one linear map with a bias from the hidden size to the dimensions of an embedding. A
model of sentence-transformers may have several Dense modules with activations between them. A
linear module is merged with the next one. The names of the others' weights have their order and
activation, so that the weights alone determine the computation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grit_jax.errors import GritError
from grit_jax.models.hf.safetensors_io import DTYPES, Tensor, TensorFiles, write_tensors
from grit_jax.sharding import to_host

# Its weights and their logical axes; a model without a projection does not have these names.
PROJECTION, PROJECTION_BIAS = "embedding_projection", "embedding_projection_bias"
# What may follow a linear map; as torch's classes of these names compute it.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}
MAX_DENSE = 8  # Dense modules in a row


@dataclasses.dataclass(frozen=True)
class Dense:
    """A Dense module of sentence-transformers: its folder and sizes, whether it has a bias, and its
    activation's name."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


def _layer_names(number: int, activation: str) -> tuple[str, str]:
    """The weight and the bias of one of several Dense modules."""
    name = f"embedding_dense_{number}_{activation}"
    return name, f"{name}_bias"


_LAYERS = [
    (*_layer_names(number, activation), activation)
    for number in range(MAX_DENSE)
    for activation in ACTIVATIONS
]
PROJECTION_AXES: dict[str, tuple[str | None, ...]] = {
    PROJECTION: ("embed", None),
    PROJECTION_BIAS: (None,),
    **{
        name: axes
        for weight, bias, _ in _LAYERS
        for name, axes in (
            (weight, ("embed" if weight.startswith("embedding_dense_0_") else None, None)),
            (bias, (None,)),
        )
    },
}
PROJECTION_FOLDER = "2_Dense"  # of a model directory with one linear map


def init_projection(hidden_size: int, width: int, key: jax.Array) -> dict[str, Float[Array, ...]]:
    """New weights `[hidden_size, width]` and a bias, uniform as torch's `nn.Linear` has them."""
    bound = 1 / math.sqrt(hidden_size)
    shapes = {PROJECTION: (hidden_size, width), PROJECTION_BIAS: (width,)}
    keys = jax.random.split(key)
    return {
        name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def layers_of(params: Mapping[str, Any]) -> list[tuple[Any, Any, str]]:
    """Weight, bias and activation of each layer of the projection; empty without a projection."""
    names = [(PROJECTION, PROJECTION_BIAS, "identity"), *_LAYERS]
    return [
        (params[weight], params[bias], activation)
        for weight, bias, activation in names
        if weight in params
    ]


def project(params: Mapping[str, Any], pooled: Float[Array, "... D"]) -> Float[Array, "... d"]:
    """The projection of pooled vectors in float32; without a projection, the vectors themselves."""
    x = pooled.astype(jnp.float32)
    for weight, bias, activation in layers_of(params):
        x = jnp.einsum(
            "...d,dk->...k", x, weight.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        x = ACTIVATIONS[activation](x + bias.astype(jnp.float32))
    return x


def embedding_width(params: Mapping[str, Any], hidden_size: int) -> int:
    """Dimensions of the vectors that a model gives."""
    layers = layers_of(params)
    return layers[-1][0].shape[1] if layers else hidden_size


def dense_modules(params: Mapping[str, Any]) -> list[Dense]:
    """The projection as Dense modules of sentence-transformers, in order."""
    return [
        Dense(f"{number}_Dense", *weight.shape, bias=True, activation=activation)
        for number, (weight, _, activation) in enumerate(layers_of(params), start=2)
    ]


def write_projection(directory: Path, params: Mapping[str, Any], dtype: str) -> None:
    """Writes the weights of its Dense modules, `[out, in]` as torch has them."""
    for dense, layer in zip(dense_modules(params), layers_of(params), strict=True):
        weight, bias = to_host(layer[0]).T, to_host(layer[1])
        tensors = [
            Tensor("linear.weight", weight.shape, lambda weight=weight: weight),
            Tensor("linear.bias", bias.shape, lambda bias=bias: bias),
        ]
        folder = directory / dense.folder
        write_tensors(folder, tensors, dtype, max_shard_bytes=weight.nbytes + bias.nbytes)


def read_projection(
    directory: Path,
    dense: Sequence[Dense],
    hidden_size: int,
    dtype: str,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """The weights of Dense modules out of a model directory.

    Neighbours without an activation between them are multiplied into one linear map, in float64.

    Args:
      place: see `load_params`.

    Raises:
      GritError: a file that is missing or damaged, or modules of sizes that do not fit together.
    """
    layers: list[tuple[np.ndarray, np.ndarray, str]] = []
    for module in dense:
        width = layers[-1][0].shape[1] if layers else hidden_size
        if module.in_features != width:
            raise GritError(
                f"{directory / module.folder / 'config.json'}: 'in_features' is"
                f" {module.in_features}, but what comes before has {width} dimensions"
            )
        weight, bias = _read_layer(directory / module.folder, module)
        if layers and layers[-1][2] == "identity":
            before, before_bias, _ = layers.pop()
            weight, bias = before @ weight, before_bias @ weight + bias
        layers.append((weight, bias, module.activation))
    linear = len(layers) == 1 and layers[0][2] == "identity"
    arrays = {}
    for number, (weight, bias, activation) in enumerate(layers):
        names = (PROJECTION, PROJECTION_BIAS) if linear else _layer_names(number, activation)
        arrays |= dict(zip(names, (weight, bias), strict=True))
    arrays = {name: np.ascontiguousarray(value, DTYPES[dtype]) for name, value in arrays.items()}
    return {name: place(name, array) if place else array for name, array in arrays.items()}


def _read_layer(folder: Path, module: Dense) -> tuple[np.ndarray, np.ndarray]:
    """Weight `[in, out]` and bias of a Dense module in float64."""
    with TensorFiles(folder) as files:
        shape = (module.out_features, module.in_features)
        weight = files.read("linear.weight", shape).T.astype(np.float64)
        if not module.bias:
            return weight, np.zeros(module.out_features)
        return weight, files.read("linear.bias", shape[:1]).astype(np.float64)
