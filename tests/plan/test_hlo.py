"""The text of a compiled module, read into computations and instructions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from grit_jax.plan.hlo import Shape, parse, trip_count

# As a TPU's compiler writes: tuples with comments in them, layouts with tiles and memory spaces
# (S(1) is on the chip), a kernel whose notes span several lines.
MODULE = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%t), index=1
  %y = bf16[4,8]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 512
}}, metadata={op_name="tiles_3_of_4"}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %y)
}

%condition (t.1: (s32[], bf16[4,8])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (arg: f32[8], other: f32[2,2]) -> (s32[], bf16[4,8]) {
  %arg = f32[8]{0} parameter(0)
  %other = f32[2,2]{1,0} parameter(1)
  %init = (s32[]{:T(128)}, bf16[4,8]{1,0}) custom-call(%arg, %other), custom_call_target="Make"
  ROOT %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
}
"""


def test_a_module_is_its_computations():
    module = parse(MODULE)
    assert module.entry == "main" and list(module.computations) == ["body", "condition", "main"]
    opcodes = {
        name: [instruction.opcode for instruction in computation.instructions]
        for name, computation in module.computations.items()
    }
    assert opcodes == {
        "body": ["parameter", *["get-tuple-element"] * 2, "custom-call", "tuple"],
        "condition": ["parameter", "get-tuple-element", "constant", "compare"],
        "main": ["parameter", "parameter", "custom-call", "while"],
    }
    assert [c.root.name for c in module.computations.values()] == ["tuple.1", "less", "while.1"]
    main = module.computations["main"]
    assert [main.parameter(n).name for n in (0, 1)] == ["arg", "other"]


def test_shapes_and_bytes_of_an_instruction():
    body = parse(MODULE).computations["body"]
    scalar, matrix = Shape("s32", ()), Shape("bf16", (4, 8))
    assert body.by_name["t"].shapes == [scalar, matrix]
    assert body.by_name["x"].shapes == [Shape("bf16", (4, 8), in_memory=False)]
    assert (body.by_name["t"].size, body.by_name["t"].bytes) == (1 + 32, 4 + 2 * 32)
    assert body.shapes_of(body.by_name["tuple.1"]) == [scalar, matrix]
    assert (Shape("s4", (3, 2)).bytes, Shape("f8e4m3fn", (3,)).bytes) == (3, 3)


def test_what_an_instruction_reads_and_says_of_itself():
    body = parse(MODULE).computations["body"]
    kernel = body.by_name["y"]
    assert kernel.operands == ["x", "x"]
    assert kernel.attribute("custom_call_target") == '"tpu_custom_call"'
    assert 'op_name="tiles_3_of_4"' in kernel.rest  # after the lines of its notes
    assert body.by_name["x"].attribute("index") == "1" and kernel.attribute("index") is None
    assert [user.name for user in body.users["t"]] == ["i", "x"] and body.users["tuple.1"] == []


@pytest.mark.parametrize(
    "change, trips",
    [
        (("", ""), 5),
        (("constant(5)", "constant(12)"), 12),
        (("direction=LT", "direction=GT"), None),
        (("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'), 7),
    ],
)
def test_how_often_a_loop_runs(change, trips):
    module = parse(MODULE.replace(*change))
    loop = module.computations["main"].root
    assert loop.called == ["body", "condition"] and trip_count(module, loop) == trips


def test_both_branches_of_a_conditional_are_called():
    line = "  ROOT %c = f32[] conditional(%p, %a, %b), branch_computations={%left.1, %right}, x=1\n"
    module = parse("ENTRY %main (p: pred[]) -> f32[] {\n" + line + "}\n")
    assert module.computations["main"].root.called == ["left.1", "right"]


@pytest.mark.usefixtures("full_optimization")
def test_loops_of_compiled_programs():
    """One of seven trips, and one whose end depends on the data."""

    def program(x):
        x = jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=7)[0]
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x, x)

    module = parse(jax.jit(program).lower(jnp.ones((4, 4))).compile().as_text())
    loops = [i for c in module.computations.values() for i in c.instructions if i.opcode == "while"]
    assert {trip_count(module, loop) for loop in loops} == {None, 7}
