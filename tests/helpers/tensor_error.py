"""How far one computation of a tensor is from another, by norms.

Devices and processors add the same float32 numbers in different orders. The error of a sum is small
beside the tensor it belongs to, but not beside each single entry: one that is nearly zero may be
off by any factor. So tensors are compared as wholes: `|found - expected| / |expected|`, Frobenius
norms in float64. A missing or doubled share of one of eight devices changes that by a tenth, and
rounding (2^-24 = 6e-8 an operation) by some 1e-6.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

ROUNDING = 2e-5  # of gradients: well above the order of sums, far below any wrong share
# Of AdamW's updates: entries of a gradient that are nothing but rounding are divided by their own
# size and become updates of full length in a direction that the order of sums decides.
ADAM_ROUNDING = 1e-3


def relative_error(found: Any, expected: Any) -> float:
    """`|found - expected| / |expected|`; 0 if both are zero."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(difference / size) if size else float(difference)


def assert_near(found: Any, expected: Any, bound: float = ROUNDING) -> None:
    """Every tensor of a tree is within `bound` of the expected one."""
    paths = jax.tree.leaves_with_path(expected)
    errors = {
        jax.tree_util.keystr(path): relative_error(one, other)
        for (path, other), one in zip(paths, jax.tree.leaves(found), strict=True)
    }
    assert max(errors.values()) <= bound, errors


def assert_near_updates(before: Any, found: Any, expected: Any) -> None:
    """What AdamW changed, from `before` to `found`, is what it changed to `expected`."""
    change = lambda after: jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), after, before
    )
    assert_near(change(found), change(expected), ADAM_ROUNDING)
