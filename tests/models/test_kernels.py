"""How splash attention's scores are cut into tiles, and which of them it computes."""

from __future__ import annotations

import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from grit_jax.models.kernels import SPLASH_SIDES, computed_tiles, splash_block


@pytest.mark.parametrize(
    "T, window", [(2048, None), (2048, 700), (768, 100), (1152, None), (640, 1)]
)
def test_tiles_that_splash_computes(T, window):
    """As the kernel itself marks those that it does not pass over."""
    block = splash_block(T, window)
    sides = splash_attention_kernel.BlockSizes(**dict.fromkeys(SPLASH_SIDES, block))
    for causal in (True, False):
        if window is None:
            mask = (
                splash_attention_mask.CausalMask((T, T))
                if causal
                else splash_attention_mask.FullMask((T, T))
            )
        else:
            mask = splash_attention_mask.LocalMask(
                (T, T), (window - 1, 0 if causal else window - 1), 0
            )
        many = splash_attention_mask.MultiHeadMask([mask])
        marks = splash_attention_kernel.make_splash_mha(
            many, block_sizes=sides, head_shards=1, q_seq_shards=1
        )
        marks = marks.fwd_mask_info.block_mask
        computed = (T // block) ** 2 if marks is None else np.count_nonzero(marks)
        assert computed_tiles(T, block, causal=causal, window=window) == (
            computed,
            (T // block) ** 2,
        )


def test_tiles_divide_the_row_and_are_no_wider_than_its_window():
    assert [splash_block(T, None) for T in (128, 256, 384, 512, 640, 768, 2048)] == [
        128,
        256,
        384,
        512,
        128,
        384,
        512,
    ]
    assert [splash_block(2048, window) for window in (64, 128, 300, 512, 4096)] == [
        128,
        128,
        256,
        512,
        512,
    ]
