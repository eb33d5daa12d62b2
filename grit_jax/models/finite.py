"""Finding the weight behind a result that is not a finite number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grit_jax.sharding import to_host


def describe_cause(params: Mapping[str, Any], dtype: str) -> str:
    """Why a result is NaN or infinite, for an error message: the first weight that holds such a
    number, or the overflow of `dtype` where the weights are finite.

    Reads all weights once. With several processes, all of them must call it.
    """
    for name, weight in params.items():
        for array in jax.tree.leaves(weight):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                continue
            finite = to_host(jnp.isfinite(array).all(axis=tuple(range(1, array.ndim))))
            if not finite.all():
                index = int(np.argmin(np.atleast_1d(finite)))
                return (
                    f"the weight '{name}' holds NaN or infinity (first at index {index} of shape"
                    f" {tuple(array.shape)}); replace the checkpoint"
                )
    return f"all weights are finite, so the computation overflows {dtype}" + (
        "" if dtype == "float32" else "; use dtype float32"
    )
