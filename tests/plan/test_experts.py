"""What a mixture of experts costs: the TPU's kernels, by hand and as compiled; the gradient of
experts' weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grit_jax.models.config import ModelConfig
from grit_jax.models.moe import expert_mlp
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.models.ragged_matmul import weight_gradient
from grit_jax.plan.chips import open_slices
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, fitted_sharding, make_mesh

# As a TPU's compiler writes it for 1024 rows and two experts; the first kernel finds out which rows
# are whose.
KERNELS = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[1024,256])->bf16[1024,512]}

ENTRY %main (x: bf16[1024,256], w: bf16[2,256,512], sizes: s32[2]) -> bf16[1024,512] {
  %sizes = s32[2]{0:T(128)} parameter(2)
  %w = bf16[2,256,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %x = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(0)
  %ragged-dot-metadata = (s32[3]{0:T(128)}, s32[9]{0:T(128)}) custom-call(%sizes), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[2]{0}}
  %tiles = s32[9]{0:T(128)} get-tuple-element(%ragged-dot-metadata), index=1
  %ragged-dot-none.3 = bf16[1024,512]{1,0:T(8,128)(2,1)} custom-call(%tiles, %x, %w), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[9]{0}, bf16[1024,256]{1,0}, bf16[2,256,512]{2,1,0}}
  %transpose_jvp_tgmm__.1 = bf16[2,256,512]{2,1,0:T(8,128)(2,1)} custom-call(%tiles, %x, %ragged-dot-none.3), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[9]{0}, bf16[1024,256]{1,0}, bf16[1024,512]{1,0}}
  ROOT %copy.1 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} bitcast(%ragged-dot-none.3)
}
"""


def test_kernels_by_hand():
    one, weights, rows, given = (
        2 * 1024 * 256 * 512,
        2 * 256 * 512 * 2,
        1024 * 256 * 2,
        1024 * 512 * 2,
    )
    metadata = 4 * (2 + 3 + 9)
    all_here = program_costs(KERNELS, experts=2)
    assert all_here.flops == 2 * one == program_costs(KERNELS).flops
    assert all_here.memory_bytes == 2 * (weights + rows + given) + metadata
    quarter = program_costs(
        KERNELS, experts=8
    )  # the others are on other chips: so are three rows of four
    assert quarter.flops == 2 * one / 4
    assert quarter.memory_bytes == 2 * (weights + (rows + given) / 4) + metadata


@pytest.mark.tpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_tile_fits_the_memory_of_a_core(dtype):
    """Mixtral's expert on the chip that has least."""
    lie = NamedSharding(make_mesh(MeshConfig(), open_slices("v5e:1x1").devices), PartitionSpec())
    shape = lambda *dims, dtype=dtype: jax.ShapeDtypeStruct(dims, jnp.dtype(dtype), sharding=lie)
    arguments = shape(2048, 4096), shape(2048, 14336), shape(2, dtype="int32")
    assert "tgmm" in jax.jit(weight_gradient).lower(*arguments).compile().as_text()


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_layer_computes_each_product_once(tensor):
    """Forward and the gradients of both factors, for as many rows as tokens choose experts, with
    and without the experts split; a product of every row with every expert would be seen."""
    config = ModelConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
        dtype="bfloat16",
    )
    mesh = make_mesh(MeshConfig(1, -1, tensor), open_slices("v5p:2x2x1").devices)

    def shape(dims, dtype, axes):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=fitted_sharding(axes, dims, mesh))

    shapes = {
        name: parameter_shapes(config)[name][1:]
        for name in ("router", "expert_gate", "expert_up", "expert_down")
    }
    layer = {
        name: shape(dims, jnp.float32, PARAMETER_AXES[name][1:]) for name, dims in shapes.items()
    }
    x = shape((8, 256, 256), jnp.bfloat16, ("rows", None, None))
    segments = shape((8, 256), jnp.int32, ("rows", None))

    def loss(layer, x, segments):
        return (expert_mlp(x, segments, layer, config)[0].astype(jnp.float32) ** 2).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(layer, x, segments).compile().as_text()
    products = 3 * (3 * 2 * (8 * 256 * 2) * 256 * 512) / 4
    router = 3 * (2 * 8 * 256 * 256 * 8) / (4 / tensor)  # all of it along tensor
    assert program_costs(text, config.num_experts).flops == pytest.approx(
        products + router, rel=1e-3
    )
