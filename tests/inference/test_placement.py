"""The choice of mesh and dtype, for machines that are not here: sizes of chips as their makers
publish them, parameters of the 7B and 8x7B models counted by hand."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from grit_jax.errors import GritError
from grit_jax.inference import placement
from grit_jax.inference.placement import (
    DTYPES,
    Devices,
    Placement,
    accelerator_missing,
    choose_mesh,
    compute_dtype,
    describe_devices,
    dtype_for,
    place_model,
    warn_of_cpu,
    weight_bytes,
)
from grit_jax.models.config import ModelConfig
from grit_jax.models.int8 import INT8_WEIGHTS
from grit_jax.models.parameters import init_params, num_parameters
from grit_jax.sharding import MeshConfig, make_mesh

GIB = 2**30
SEVEN = ModelConfig()  # GritLM-7B: 7,241,732,096 parameters
EIGHT_TIMES_SEVEN = ModelConfig(  # GritLM-8x7B: 46,702,792,704
    num_experts=8, num_experts_per_tok=2, architecture="mixtral"
)
ONE = MeshConfig(1, 1, 1, 1)


def v5e(count):
    return Devices("tpu", "TPU v5 lite", count, int(15.75 * GIB))


def v6e(count):
    return Devices("tpu", "TPU v6 lite", count, int(31.25 * GIB))


def h100(count):
    return Devices("gpu", "NVIDIA H100 80GB HBM3", count, int(0.75 * 80 * GIB))


def test_bytes_of_the_weights():
    """4 and 2 bytes a parameter; in 8 bits a byte, 4 for each output's scale, 2 for each norm."""
    assert num_parameters(SEVEN) == 7_241_732_096
    assert num_parameters(EIGHT_TIMES_SEVEN) == 46_702_792_704
    assert weight_bytes(SEVEN, "float32", "tpu", ONE) == 4 * 7_241_732_096
    assert weight_bytes(SEVEN, "bfloat16", "tpu", ONE) == 2 * 7_241_732_096
    norms = (2 * 32 + 1) * 4096
    outputs = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096) + 2 * 32000
    expected = 7_241_732_096 - norms + 2 * norms + 4 * outputs
    assert weight_bytes(SEVEN, "int8", "tpu", ONE) == expected


def test_bytes_of_the_weights_are_those_of_the_arrays(tiny_config, tmp_path, tiny_model):
    from grit_jax.inference.model import GritLM

    tiny_model.save_pretrained(tmp_path)
    for dtype in DTYPES:
        for mesh in (ONE, MeshConfig(1, 4, 2), MeshConfig(8, 1)):
            many = math.prod(dataclasses.astuple(mesh)) > 1
            model = GritLM.from_pretrained(tmp_path, dtype, mesh=make_mesh(mesh) if many else None)
            first = jax.devices()[0]
            held = sum(
                shard.data.nbytes
                for part in jax.tree.leaves(model.params)
                for shard in part.addressable_shards
                if shard.device == first
            )
            assert held == weight_bytes(tiny_config, dtype, "cpu", mesh), (dtype, mesh)


@pytest.mark.parametrize(
    "config, dtype, devices, mesh",
    [
        # 14.5 GB do not fit 16 GB with anything beside them.
        (SEVEN, "bfloat16", v5e(8), MeshConfig(4, 1, 2)),
        (SEVEN, "int8", v5e(8), MeshConfig(4, 1, 2)),
        (SEVEN, "bfloat16", v6e(4), MeshConfig(4, 1, 1)),
        (SEVEN, "float32", v6e(4), MeshConfig(2, 1, 2)),
        (SEVEN, "bfloat16", h100(8), MeshConfig(8, 1, 1)),
        (SEVEN, "bfloat16", h100(1), ONE),
        # 93 GB: eight heads of keys and values end tensor at 8.
        (EIGHT_TIMES_SEVEN, "bfloat16", v6e(8), MeshConfig(1, 1, 8)),
        (EIGHT_TIMES_SEVEN, "bfloat16", v6e(16), MeshConfig(2, 1, 8)),
        (EIGHT_TIMES_SEVEN, "bfloat16", v5e(16), MeshConfig(1, 2, 8)),
        (EIGHT_TIMES_SEVEN, "bfloat16", h100(8), MeshConfig(4, 1, 2)),
        # Without a known size, nothing is split.
        (SEVEN, "bfloat16", Devices("gpu", "unknown", 4, None), MeshConfig(4, 1, 1)),
        # 7 devices do not share 8 heads.
        (SEVEN, "bfloat16", h100(7), MeshConfig(7, 1, 1)),
    ],
)
def test_weights_are_split_as_little_as_they_must_be(config, dtype, devices, mesh):
    assert choose_mesh(config, dtype, devices) == mesh


@pytest.mark.parametrize(
    "given, mesh",
    [
        ({"tensor": 8}, MeshConfig(1, 1, 8)),
        ({"fsdp": 4}, MeshConfig(1, 4, 2)),
        ({"data": 1}, MeshConfig(1, 1, 8)),
        ({"context": 2}, MeshConfig(2, 1, 2, 2)),
        ({"data": 1, "fsdp": 2, "tensor": 2, "context": 1}, MeshConfig(1, 2, 2)),
    ],
)
def test_axes_that_are_given_are_kept(given, mesh):
    assert choose_mesh(SEVEN, "bfloat16", v5e(8), given) == mesh


@pytest.mark.parametrize(
    "given, parts",
    [
        ({"tensor": 3}, ("--mesh.tensor 3", "8 devices", "divide 8")),
        ({"data": 2, "fsdp": 2, "tensor": 2, "context": 2}, ("be 8 at most",)),
        ({"data": 3, "tensor": 2}, ("--mesh.data 3 --mesh.tensor 2",)),
    ],
)
def test_axes_that_make_no_mesh(given, parts):
    with pytest.raises(GritError) as error:
        choose_mesh(SEVEN, "bfloat16", v5e(8), given)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, dtype, devices, given, parts",
    [
        (
            SEVEN,
            "bfloat16",
            v5e(1),
            {},
            (
                "model 7B needs 13.5 GiB for its weights in bfloat16",
                "1 x TPU v5 lite with 15.8 GiB",
                "--dtype int8 needs 6.8 GiB and fits",
                "2 such devices would hold it",
            ),
        ),
        (
            SEVEN,
            "float32",
            v5e(1),
            {},
            ("27.0 GiB", "--dtype int8 needs 6.8 GiB", "4 such devices"),
        ),
        (
            EIGHT_TIMES_SEVEN,
            "bfloat16",
            v5e(4),
            {},
            (
                "87.0 GiB",
                "21.9 GiB on each with tensor 4",
                "--dtype int8 needs 43.5 GiB and fits",
                "8 such devices",
            ),
        ),
        (
            EIGHT_TIMES_SEVEN,
            "bfloat16",
            v5e(1),
            {},
            ("--dtype int8 would need 43.5 GiB, too much as well",),
        ),
        (SEVEN, "bfloat16", v5e(8), {"data": 8}, ("without --mesh it fits (data 4 x tensor 2)",)),
        (
            SEVEN,
            "float32",
            Devices("cpu", "cpu", 1, 16 * GIB),
            {},
            ("27.0 GiB", "1 x cpu with 16.0 GiB", "--dtype bfloat16 needs 13.5 GiB and fits"),
        ),
    ],
)
def test_a_model_that_does_not_fit_and_what_would(config, dtype, devices, given, parts):
    with pytest.raises(GritError) as error:
        choose_mesh(config, dtype, devices, given, "model 7B")
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_the_dtype_that_is_meant():
    assert [dtype_for("auto", p) for p in ("cpu", "gpu", "tpu")] == [
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    assert dtype_for("int8", "cpu") == "int8"
    assert (compute_dtype("int8", "cpu"), compute_dtype("int8", "tpu")) == ("float32", "bfloat16")
    with pytest.raises(GritError, match="dtype must be one of float32, bfloat16, int8.*'fp8'"):
        dtype_for("fp8", "cpu")


def test_the_line_that_names_devices_mesh_and_dtype(tiny_config):
    one = Placement(Devices("gpu", "NVIDIA H200", 1, None), None, "bfloat16")
    assert str(one) == "devices: 1 x NVIDIA H200, weights in bfloat16"
    eight = place_model(tiny_config, "int8", {"tensor": 2})
    assert (
        str(eight) == "devices: 8 x cpu (data 4 x tensor 2), weights in int8, computed in float32"
    )


def test_all_four_axes_may_use_fewer_devices(tiny_config):
    four = {"data": 1, "fsdp": 2, "tensor": 2, "context": 1}
    placed = place_model(tiny_config, mesh=four)
    assert placed.mesh.size == placed.devices.count == 4
    alone = place_model(tiny_config, mesh=dict.fromkeys(four, 1))
    assert alone.mesh is None and str(alone).startswith("devices: 1 x cpu, ")


def test_memory_of_the_devices_here():
    here = describe_devices(jax.devices())
    assert (here.platform, here.count) == ("cpu", 8)
    assert GIB // 8 < here.memory < 2**50


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"JAX_PLATFORMS": "cpu", "COLAB_TPU_ADDR": "10.0.0.2"}, None),
        ({"JAX_PLATFORMS": "tpu,cpu"}, "JAX_PLATFORMS is tpu,cpu"),
        ({"COLAB_TPU_ADDR": "10.0.0.2"}, "COLAB_TPU_ADDR is set"),
        ({"TPU_NAME": "mine"}, "TPU_NAME is set"),
    ],
)
def test_an_accelerator_that_is_expected(environment, reason):
    assert accelerator_missing("cpu", environment) == reason
    assert accelerator_missing("tpu", environment) is None


def test_a_device_file_or_libtpu_lets_expect_one(monkeypatch, tmp_path):
    monkeypatch.setattr(placement, "DEVICE_FOLDER", tmp_path)
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None)
    assert accelerator_missing("cpu", {}) is None
    (tmp_path / "nvidia0").touch()
    assert accelerator_missing("cpu", {}) == f"{tmp_path}/nvidia0 is there"
    (tmp_path / "accel0").touch()
    assert accelerator_missing("cpu", {}) == f"{tmp_path}/accel0 is there"
    monkeypatch.setattr(placement, "DEVICE_FILES", ())
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert accelerator_missing("cpu", {}) == "libtpu is installed"


def test_falling_back_to_the_cpu_is_a_warning(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("TPU_NAME", "mine")
    with pytest.warns(UserWarning, match="running on the CPU, although TPU_NAME is set"):
        warn_of_cpu("cpu")


def test_every_matrix_is_quantised_and_nothing_else(tiny_config):
    plain = {
        name for name in init_params(tiny_config, jax.random.key(0)) if name not in INT8_WEIGHTS
    }
    assert plain == {"attention_norm", "mlp_norm", "final_norm"}
