"""What a compiled program costs, read off its text: a module by hand, and programs whose costs are
known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from grit_jax.plan.chips import open_slices
from grit_jax.plan.program_costs import group_size, program_costs
from grit_jax.sharding import MeshConfig, make_mesh

# As a TPU's compiler writes: a layer's input put into an array in the host's memory (S(5)) and taken
# out again, and an optimizer's moment copied there and back.
HOST = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[1,8,16])->bf16[1,8,16]}

ENTRY %main (x: bf16[1,8,16], m: f32[256]) -> bf16[1,8,16] {
  %x = bf16[1,8,16]{2,1,0} parameter(0)
  %m = f32[256]{0:T(256)S(5)} parameter(1)
  %i = s32[] constant(0)
  %buffer = bf16[4,8,16]{2,1,0:T(8,128)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %dynamic-update-slice-start = ((bf16[4,8,16]{2,1,0:S(5)}, bf16[1,8,16]{2,1,0}, s32[], s32[], s32[]), bf16[4,8,16]{2,1,0:S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%buffer, %x, %i, %i, %i)
  %dynamic-update-slice-done = bf16[4,8,16]{2,1,0:S(5)} dynamic-update-slice-done(%dynamic-update-slice-start)
  %copy-start.1 = (f32[256]{0:T(256)}, f32[256]{0:T(256)S(5)}, u32[]{:S(2)}) copy-start(%m)
  %copy-done.1 = f32[256]{0:T(256)} copy-done(%copy-start.1)
  %copy-start.2 = (f32[256]{0:T(256)S(5)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%copy-done.1)
  %copy-done.2 = f32[256]{0:T(256)S(5)} copy-done(%copy-start.2)
  %copy-start.3 = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%copy-done.1)
  %dynamic-slice-start = ((bf16[4,8,16]{2,1,0:S(5)}, s32[], s32[], s32[]), bf16[1,8,16]{2,1,0}, u32[]{:S(2)}) dynamic-slice-start(%dynamic-update-slice-done, %i, %i, %i), dynamic_slice_sizes={1,8,16}
  ROOT %dynamic-slice-done = bf16[1,8,16]{2,1,0} dynamic-slice-done(%dynamic-slice-start)
}
"""


def test_what_is_kept_in_the_hosts_memory():
    costs = program_costs(HOST)
    assert costs.to_host_bytes == costs.from_host_bytes == 8 * 16 * 2 + 256 * 4


# As a TPU's compiler writes: a loop without a noted trip count, a product as a convolution, a
# gather that runs beside other work (three fusions, one gather), a reduction that keeps a part, a
# sum that gathers, arrays in on-chip memory (S(1)).
MODULE = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%start (p: bf16[64,32]) -> (bf16[64,32], bf16[64,128]) {
  %p = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=6, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}
  ROOT %custom-call.1 = (bf16[64,32]{1,0}, bf16[64,128]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (q: bf16[64,32], x: bf16[16,64], w: bf16[64,32]) -> (f32[16,32], bf16[64,32]) {
  %x = bf16[16,64]{1,0} parameter(1)
  %w = bf16[64,32]{1,0} parameter(2)
  %convolution.1 = f32[16,32]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  %q = bf16[64,32]{1,0} parameter(0)
  %all-gather.2 = bf16[64,128]{1,0} all-gather(%q), channel_id=6, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}
  ROOT %tuple.1 = (f32[16,32]{1,0}, bf16[64,32]{1,0}) tuple(%convolution.1, %q)
}

%done (r: bf16[64,32]) -> bf16[64,128] {
  %r = bf16[64,32]{1,0} parameter(0)
  %all-gather.3 = bf16[64,128]{1,0} all-gather(%r), channel_id=6, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}
  ROOT %custom-call.2 = bf16[64,128]{1,0} custom-call(%r, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (g: f32[64,128]) -> f32[64,32] {
  %g = f32[64,128]{1,0} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0} all-reduce(%g), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[64,32]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={64,32}
}

%body (t: (s32[], bf16[64,32], f32[64,128])) -> (s32[], bf16[64,32], f32[64,128]) {
  %t = (s32[]{:T(128)}, bf16[64,32]{1,0}, /*index=2*/f32[64,128]{1,0}) parameter(0)
  %w0 = bf16[64,32]{1,0} get-tuple-element(%t), index=1
  %fusion.1 = (bf16[64,32]{1,0}, bf16[64,128]{1,0}) fusion(%w0), kind=kCustom, calls=%start
  %x0 = bf16[16,64]{1,0:T(8,128)S(1)} constant({...})
  %fusion.2 = (f32[16,32]{1,0}, bf16[64,32]{1,0}) fusion(%w0, %x0, %w0), kind=kOutput, calls=%async_collective_fusion.7
  %fusion.3 = bf16[64,128]{1,0} fusion(%w0), kind=kCustom, calls=%done
  %g0 = f32[64,128]{1,0} get-tuple-element(%t), index=2
  %fusion.4 = f32[64,32]{1,0} fusion(%g0), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[64,32]{1,0}, f32[64,128]{1,0}) tuple(%t)
}

%condition (t.1: (s32[], bf16[64,32], f32[64,128])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}, f32[64,128]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (arg: f32[8]) -> f32[8] {
  %arg = f32[8]{0} parameter(0)
  %init = (s32[]{:T(128)}, bf16[64,32]{1,0}, f32[64,128]{1,0}) custom-call(%arg), custom_call_target="AllocateBuffer"
  %while.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}, f32[64,128]{1,0}) while(%init), condition=%condition, body=%body
  %big = f32[1024]{0} custom-call(%arg), custom_call_target="AllocateBuffer"
  %negate.1 = f32[1024]{0:T(1024)S(1)} negate(%big)
  %negate.2 = f32[1024]{0} negate(%negate.1)
  %zeros = f32[32]{0:T(1024)S(1)} constant({...})
  %place = s32[]{:T(128)S(1)} constant(8)
  %own = f32[32]{0:T(1024)S(1)} dynamic-update-slice(%zeros, %arg, %place)
  %filled = f32[32]{0:T(1024)S(1)} bitcast(%own)
  %all-reduce.3 = (f32[32]{0:T(1024)S(1)}, f32[8]{0:T(1024)S(1)}) all-reduce(%filled, %arg), channel_id=12, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%arg), channel_id=11, replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def test_a_module_by_hand():
    costs = program_costs(MODULE)
    gathered, reduced = 64 * 128 * 2, 64 * 128 * 4
    assert costs.collective_bytes == {
        "all_gather": 5 * gathered + 128,
        "reduce_scatter": 5 * reduced,
        "all_reduce": 32 + 32,
        "all_to_all": 0,
        "collective_permute": 0,
    }
    assert costs.sent_bytes == 3 / 4 * (5 * gathered + 5 * reduced + 2 * (128 + 32 + 32))
    assert costs.flops == 5 * 2 * 16 * 64 * 32
    body = 5 * (64 * 32 * 2 + (64 * 32 * 2 + 16 * 32 * 4) + 64 * 32 * 2 + (reduced + 64 * 32 * 4))
    assert body < costs.memory_bytes - 2 * 4096 < body * 1.5 + 128


@pytest.mark.parametrize(
    "text, size",
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}, dimensions={0}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=1], device_ids=([2,4]T(1,0)) {'b'}", 4),
    ],
)
def test_who_takes_part(text, size):
    assert group_size(f"channel_id=1, {text}, use_global_device_ids=true") == size


def test_an_unknown_form_of_replica_groups_is_an_error():
    with pytest.raises(ValueError, match="unknown form of replica_groups: replica_groups=all"):
        group_size("replica_groups=all")


@pytest.mark.usefixtures("full_optimization")
def test_collectives_of_a_program_on_eight_devices():
    """Each in a loop of five, on arrays whose sizes are known."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def local(a, b, c, d, e):  # each device has [1, 16] of the first, [8, 16] of the others
        def body(carry, _):
            a, b, c, d, e = carry
            a = a + jax.lax.all_gather(jnp.sin(a), "x", tiled=True).sum(axis=0, keepdims=True)
            b = b + jax.lax.psum(jnp.sin(b), "x")
            c = c + jnp.tile(jax.lax.psum_scatter(jnp.sin(c), "x", tiled=True), (8, 1))
            d = d + jax.lax.all_to_all(jnp.sin(d), "x", 0, 0, tiled=True)
            e = e + jax.lax.ppermute(jnp.sin(e), "x", [(i, (i + 1) % 8) for i in range(8)])
            return (a, b, c, d, e), None

        return jax.lax.scan(body, (a, b, c, d, e), length=5)[0]

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(P("x"),) * 5, out_specs=(P("x"),) * 5, check_vma=False
    )
    shapes = [(8, 16)] + [(64, 16)] * 4
    arguments = [
        jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, P("x"))) for s in shapes
    ]
    costs = program_costs(jax.jit(split).lower(*arguments).compile().as_text())
    assert costs.collective_bytes == dict.fromkeys(costs.collective_bytes, 5 * 8 * 16 * 4)
    assert costs.sent_bytes == 5 * 8 * 16 * 4 * (7 / 8 * 3 + 2 * 7 / 8 + 1)


# A loop of four over a stack of weights: a fusion within a fusion takes one layer's, a fetch ahead
# half of one.
STACKED = """HloModule jit_step

%inner (w: bf16[4,64,128], i: s32[]) -> bf16[64,128] {
  %w = bf16[4,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %negate.1 = bf16[4,64,128]{2,1,0} negate(%w)
  %dynamic-slice.1 = bf16[1,64,128]{2,1,0} dynamic-slice(%negate.1, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %bitcast.1 = bf16[64,128]{1,0} bitcast(%dynamic-slice.1)
}

%outer (j: s32[], x: bf16[8,64], v: bf16[4,64,128]) -> bf16[8,128] {
  %v = bf16[4,64,128]{2,1,0} parameter(2)
  %j = s32[]{:T(128)S(1)} parameter(0)
  %fusion.2 = bf16[64,128]{1,0} fusion(%v, %j), kind=kLoop, calls=%inner
  %x = bf16[8,64]{1,0:S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,128]{1,0:S(1)} convolution(%x, %fusion.2), dim_labels=bf_io->bf
}

%body (t: (s32[], bf16[8,64], bf16[4,64,128])) -> (s32[], bf16[8,64], bf16[4,64,128]) {
  %t = (s32[]{:T(128)S(1)}, bf16[8,64]{1,0:S(1)}, bf16[4,64,128]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)S(1)} get-tuple-element(%t), index=0
  %y = bf16[8,64]{1,0:S(1)} get-tuple-element(%t), index=1
  %all = bf16[4,64,128]{2,1,0} get-tuple-element(%t), index=2
  %fusion.1 = bf16[8,128]{1,0:S(1)} fusion(%n, %y, %all), kind=kOutput, calls=%outer
  %slice-start.1 = ((bf16[4,64,128]{2,1,0}), bf16[1,32,128]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%all), slice={[0:1], [0:32], [0:128]}
  %slice-done.1 = bf16[1,32,128]{2,1,0:S(1)} slice-done(%slice-start.1)
  ROOT %tuple.1 = (s32[]{:T(128)S(1)}, bf16[8,64]{1,0:S(1)}, bf16[4,64,128]{2,1,0}) tuple(%n, %y, %all)
}

%condition (t.1: (s32[], bf16[8,64], bf16[4,64,128])) -> pred[] {
  %t.1 = (s32[]{:T(128)S(1)}, bf16[8,64]{1,0:S(1)}, bf16[4,64,128]{2,1,0}) parameter(0)
  ROOT %less = pred[] custom-call(%t.1), custom_call_target="Less"
}

ENTRY %main (arg: bf16[4,64,128]) -> bf16[4,64,128] {
  %arg = bf16[4,64,128]{2,1,0} parameter(0)
  %init = (s32[]{:T(128)S(1)}, bf16[8,64]{1,0:S(1)}, bf16[4,64,128]{2,1,0}) tuple(%arg)
  ROOT %while.1 = (s32[]{:T(128)S(1)}, bf16[8,64]{1,0:S(1)}, bf16[4,64,128]{2,1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
"""


def test_of_stacked_weights_a_layer_is_read_at_a_time():
    costs, layer = program_costs(STACKED), 64 * 128 * 2
    assert costs.memory_bytes == 4 * (layer + layer / 2)
    assert costs.flops == 4 * 2 * 8 * 64 * 128


# A parameter that only goes through, beside what is computed of it behind a bitcast: the fusion
# reads it once.
THROUGH = """HloModule jit_step

%through (p: bf16[64,128]) -> (bf16[64,128], bf16[128,64]) {
  %p = bf16[64,128]{1,0} parameter(0)
  %same = bf16[64,128]{1,0} bitcast(%p)
  %negate.1 = bf16[64,128]{1,0} negate(%p)
  %turned = bf16[128,64]{0,1:S(1)} bitcast(%negate.1)
  ROOT %tuple.1 = (bf16[64,128]{1,0}, bf16[128,64]{0,1:S(1)}) tuple(%same, %turned)
}

ENTRY %main (arg: bf16[64,128]) -> (bf16[64,128], bf16[128,64]) {
  %arg = bf16[64,128]{1,0} parameter(0)
  ROOT %fusion.1 = (bf16[64,128]{1,0}, bf16[128,64]{0,1:S(1)}) fusion(%arg), kind=kLoop, calls=%through
}
"""


@pytest.mark.parametrize(
    "text, read", [(THROUGH, 1), (THROUGH.replace("negate(%p)", "constant(0)"), 0)]
)
def test_what_is_computed_is_read_and_what_goes_through_is_not(text, read):
    assert program_costs(text).memory_bytes == read * 64 * 128 * 2


# As the compiler writes a kernel: its notes go over several lines, and only the last says where it
# came from.
KERNEL = """HloModule jit_step

ENTRY %main (q: bf16[8,4,1024,128]) -> bf16[8,4,1024,128] {
  %q = bf16[8,4,1024,128]{3,2,1,0} parameter(0)
  %k = bf16[8,2,1024,128]{3,2,1,0} custom-call(%q), custom_call_target="AllocateBuffer"
  ROOT %splash_mha_fwd_segmented.1 = bf16[8,4,1024,128]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/NAME/splash_mha_fwd_segmented/pallas_call" stack_frame_id=262}
}
"""


@pytest.mark.parametrize("name, share", [("tiles_3_of_4", 3 / 4), ("tiles_4_of_4", 1), ("jvp", 1)])
def test_tiles_that_a_mask_hides_are_not_computed(name, share):
    assert (
        program_costs(KERNEL.replace("NAME", name)).flops
        == 2 * 2 * 8 * 4 * 1024 * 1024 * 128 * share
    )


SENT = """HloModule jit_step

ENTRY %main (arg: f32[64]) -> f32[64] {
  %arg = f32[64]{0} parameter(0)
  %token.0 = token[] after-all()
  %recv.0 = (f32[64]{0}, u32[], token[]) recv(%token.0), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{SLICES}x{0:3}",_xla_megascale_transfer_type="KIND"}
  %send.0 = (f32[64]{0}, u32[], token[]) send(%arg, %token.0), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{SLICES}x{0:3}",_xla_megascale_transfer_type="KIND"}
  %send-done.0 = token[] send-done(%send.0), channel_id=2, is_host_transfer=true
  %recv-done.0 = (f32[64]{0}, token[]) recv-done(%recv.0), channel_id=1, is_host_transfer=true
  ROOT %result = f32[64]{0} get-tuple-element(%recv-done.0), index=0
}
"""


@pytest.mark.parametrize(
    "kind, slices, counted, whole, sent",
    [
        ("ALL_REDUCE", "1,2", "all_reduce", 256, 256),
        ("ALL_REDUCE", "1:4", "all_reduce", 256, 384),
        ("ALL_GATHER", "1,2,3,4", "all_gather", 1024, 768),
        ("REDUCE_SCATTER", "1,2", "reduce_scatter", 256, 128),
        ("ALL_TO_ALL", "1:2,5:6", "all_to_all", 256, 192),
        ("ONE_TO_ONE", "1", "collective_permute", 256, 256),
    ],
)
def test_what_goes_from_slice_to_slice(kind, slices, counted, whole, sent):
    """It is handed to the host, as `send` and `recv`, and goes over another network than what is
    sent inside a slice."""
    costs = program_costs(SENT.replace("KIND", kind).replace("SLICES", slices))
    assert costs.network_bytes == sent and costs.sent_bytes == 0 and costs.memory_bytes == 512
    assert {name: size for name, size in costs.collective_bytes.items() if size} == {counted: whole}


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_sums_inside_a_slice_and_between_two():
    where = open_slices("v5e:2x2", 2)
    mesh = make_mesh(MeshConfig(2, 4), where.devices)

    def program(axis):
        local = jax.shard_map(
            lambda x: jax.lax.psum(jnp.sin(x), axis),
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
            check_vma=False,
        )
        x = jax.ShapeDtypeStruct((1024, 256), jnp.float32, sharding=NamedSharding(mesh, P()))
        return program_costs(jax.jit(local).lower(x).compile().as_text())

    size = 1024 * 256 * 4
    assert (program("fsdp").sent_bytes, program("fsdp").network_bytes) == (2 * 3 / 4 * size, 0)
    assert (program("data").sent_bytes, program("data").network_bytes) == (0, 2 * 1 / 2 * size)


@pytest.mark.usefixtures("full_optimization")
def test_products_of_a_loop_are_counted_as_often_as_it_runs():
    def program(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x, w = (
        jax.ShapeDtypeStruct((32, 64), jnp.float32),
        jax.ShapeDtypeStruct((7, 64, 64), jnp.float32),
    )
    compiled = jax.jit(program).lower(x, w).compile()
    costs = program_costs(compiled.as_text())
    assert costs.flops == 7 * 2 * 32 * 64 * 64
    once = compiled.cost_analysis()[
        "flops"
    ]  # the compiler's own count: the body once, elementwise work included
    assert 2 * 32 * 64 * 64 <= once < 2 * 2 * 32 * 64 * 64
    # Of the stacked weights each trip reads its own, once.
    assert 7 * 64 * 64 * 4 <= costs.memory_bytes < 3 * 7 * (64 * 64 + 3 * 32 * 64) * 4


def test_a_convolution_counts_where_its_window_meets_the_input():
    """A TPU's way to write a product for two heads: they are a padded window."""
    text = MODULE.replace(
        "dim_labels=bf_io->bf",
        "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
    )
    text = text.replace("%x = bf16[16,64]{1,0}", "%x = bf16[4,16,64,1]{1,0}").replace(
        "%w = bf16[64,32]{1,0} p", "%w = bf16[2,8,64,1]{1,0} p"
    )
    text = text.replace("%convolution.1 = f32[16,32]", "%convolution.1 = f32[4,16,2,8]")
    assert program_costs(text).flops == 5 * 2 * 4 * 16 * 64 * 2 * 8


def test_loops_without_a_known_end_run_once():
    program = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x))
    text = program.lower(jnp.ones((4, 4))).compile().as_text()
    assert program_costs(text).flops == 2 * 4 * 4 * 4


@pytest.mark.usefixtures("full_optimization")
def test_a_loop_that_ends_by_the_data():
    """It counts as often as the caller says, and so does one inside of it."""

    def program(x):
        inner = lambda x: jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x @ x, x)
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: inner(x @ x), x) @ x

    text = jax.jit(program).lower(jnp.ones((8, 8))).compile().as_text()
    product = 2 * 8**3
    assert program_costs(text).flops == 3 * product
    assert program_costs(text, trips=(5,)).flops == (5 * 2 + 1) * product
    assert program_costs(text, trips=(5, 3)).flops == (5 * (1 + 3) + 1) * product
