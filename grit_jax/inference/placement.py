"""Which devices a model runs on, how it is split over them, and in which dtype.

Weights are replicated where they fit in one device. Otherwise they are split over as few devices as
hold them: over heads and feed-forward first (`tensor`), as far as heads divide, then along the
hidden size (`fsdp`), where every layer is gathered before it is used. Rows go over all devices that
are left. `choose_mesh` decides from sizes alone, so that it can be asked about devices that are not
there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.int8 import INT8_WEIGHTS, abstract_int8
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.models.quantise import storage_axes
from grit_jax.runtime.chips import CHIPS, GIB
from grit_jax.sharding import MESH_AXES, MeshConfig, fitted_spec, make_mesh

Dtype = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
# Of a device's memory, what the runtime and fragmentation leave to weights and arrays.
USABLE = 0.92
# Tokens of a pass of each part of the rows: what the encoder takes where memory allows (few on a
# CPU, so that activations stay in its caches; on an accelerator enough to keep it busy), and what a
# model must have room for to be of use.
TOKENS_PER_CALL = {"cpu": 1024, "gpu": 32768, "tpu": 32768}
LEAST_TOKENS = {"cpu": 1024, "gpu": 4096, "tpu": 4096}
# Passes whose keys and values are on the devices at the same time (`encoder.IN_FLIGHT`).
PASSES = 2
# Variables that a machine with an accelerator has set, Colab's among them.
ACCELERATOR_VARIABLES = ("COLAB_TPU_ADDR", "COLAB_GPU", "TPU_ACCELERATOR_TYPE", "TPU_NAME")
DEVICE_FOLDER = Path("/dev")
DEVICE_FILES = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a machine, all alike.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: JAX's `device_kind`.
      memory: bytes that one of them has; None where it is not known.
    """

    platform: str
    kind: str
    count: int
    memory: int | None

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a model runs: devices, their mesh, and the dtype of the weights.

    Attributes:
      mesh: None for one device, which is then the default one.
      tokens_per_call: tokens that the encoder takes at once of each part of the rows; None: the
        usual number.
    """

    devices: Devices
    mesh: Mesh | None
    dtype: Dtype
    tokens_per_call: int | None = None

    def __str__(self) -> str:
        split = "" if self.mesh is None else f" ({mesh_text(self.mesh.shape)})"
        compute = compute_dtype(self.dtype, self.devices.platform)
        computed = "" if compute == self.dtype else f", computed in {compute}"
        return f"devices: {self.devices}{split}, weights in {self.dtype}{computed}"


def place_model(
    config: ModelConfig,
    dtype: Dtype | Literal["auto"] = "auto",
    mesh: Mapping[str, int] | None = None,
    name: str = "the model",
) -> Placement:
    """Chooses the devices of this process, a mesh over them and a dtype for a model.

    Args:
      dtype: "auto" is bfloat16 on TPU and GPU, float32 on CPU.
      mesh: sizes of some mesh axes; the others are chosen. All four may have a product below the
        number of devices, of which the first are then used.
      name: what to call the model in an error.

    Raises:
      GritError: an unknown dtype, a mesh that the devices do not make, or a model that does not fit
        in their memory; the message says what would fit.
    """
    usable = usable_devices()
    devices = describe_devices(usable)
    chosen = dtype_for(dtype, devices.platform)
    sizes = choose_mesh(config, chosen, devices, mesh or {}, name)
    used = usable[: math.prod(dataclasses.astuple(sizes))]
    return Placement(
        dataclasses.replace(devices, count=len(used)),
        make_mesh(sizes, used) if len(used) > 1 else None,
        chosen,
        tokens_that_fit(config, chosen, devices, sizes) or None,
    )


def usable_devices() -> list[jax.Device]:
    """The devices of this process."""
    return jax.local_devices()


def describe_devices(devices: Sequence[jax.Device]) -> Devices:
    """What placement depends on, of devices that are all alike."""
    first = devices[0]
    memory = device_memory(first, len(devices))
    return Devices(first.platform, first.device_kind, len(devices), memory)


def device_memory(device: Any, count: int = 1) -> int | None:
    """Bytes that JAX may use of a device: as its runtime says, else by its kind; of a CPU's `count`
    devices, each its part of the machine's memory."""
    if device.platform == "cpu":
        memory = _host_memory()
        return None if memory is None else memory // count
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit)
    kinds = {kind: chip.memory for chip in CHIPS.values() for kind in chip.device_kinds}
    return kinds.get(device.device_kind)


def dtype_for(dtype: str, platform: str) -> Dtype:
    """The dtype of the weights that is meant by a name or by "auto".

    Raises:
      GritError: another name.
    """
    if dtype == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    for known in DTYPES:
        if dtype == known:
            return known
    raise GritError(f"dtype must be one of {', '.join(DTYPES)}, or auto, got {dtype!r:.60}")


def compute_dtype(dtype: Dtype, platform: str) -> Literal["float32", "bfloat16"]:
    """The dtype of activations, norms and caches for weights of a dtype."""
    if dtype == "int8":
        return "float32" if platform == "cpu" else "bfloat16"
    return dtype


def choose_mesh(
    config: ModelConfig,
    dtype: Dtype,
    devices: Devices,
    given: Mapping[str, int] = types.MappingProxyType({}),
    name: str = "the model",
) -> MeshConfig:
    """The mesh that splits the weights as little as they need to be, rows over the rest.

    Args:
      given: sizes of some axes, which are kept.

    Raises:
      GritError: no mesh has these axes, or the weights do not fit.

    >>> gritlm_7b = ModelConfig()
    >>> v5e = Devices("tpu", "TPU v5 lite", 8, 16 * 2**30)
    >>> choose_mesh(gritlm_7b, "bfloat16", v5e)
    MeshConfig(data=4, fsdp=1, tensor=2, context=1)
    """
    candidates = list(_meshes(config, devices.count, given))
    if not candidates:
        raise GritError(_no_mesh(devices.count, given))
    for mesh in candidates:
        if tokens_that_fit(config, dtype, devices, mesh) == most_tokens(devices.platform):
            return mesh
    for mesh in candidates:
        if tokens_that_fit(config, dtype, devices, mesh):
            return mesh
    raise GritError(_too_large(config, dtype, devices, given, name, candidates))


def weight_bytes(config: ModelConfig, dtype: Dtype, platform: str, mesh: MeshConfig) -> int:
    """Bytes of the weights on each device of a mesh."""
    return sum(
        _weight_bytes(name, shape, dtype, platform, mesh)
        for name, shape in parameter_shapes(config).items()
    )


def working_bytes(
    config: ModelConfig, dtype: Dtype, platform: str, mesh: MeshConfig, tokens: int
) -> int:
    """Bytes that a pass over `tokens` tokens of each part of the rows takes beside the weights: an
    estimate from above, of one layer's activations and of the keys and values of all layers."""
    c, item = config, jnp.dtype(compute_dtype(dtype, platform)).itemsize
    tokens = math.ceil(tokens / mesh.context)
    heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    width = max(c.intermediate_size, c.num_experts_per_tok * c.moe_intermediate_size)
    # The residual, its norm in float32, and the layer's inputs and outputs.
    hidden = c.hidden_size * (4 * item + 4)
    if c.num_experts:  # a token's copies for its experts, and their outputs in float32
        hidden += c.num_experts_per_tok * c.hidden_size * (2 * item + 4)
    split = (2 * heads + 3 * width) * item
    kv = PASSES * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * item
    activations = tokens * (hidden + (split + kv) / mesh.tensor)
    if mesh.fsdp > 1:  # a layer's weights, gathered, and the next one's on their way
        whole = dataclasses.replace(mesh, fsdp=1)
        activations += 2 * weight_bytes(c, dtype, platform, whole) / c.num_hidden_layers
    return int(activations)


def most_tokens(platform: str) -> int:
    """Tokens that the encoder takes in one pass of each part of the rows."""
    return TOKENS_PER_CALL.get(platform, TOKENS_PER_CALL["gpu"])


def tokens_that_fit(config: ModelConfig, dtype: Dtype, devices: Devices, mesh: MeshConfig) -> int:
    """Tokens of one pass of each part of the rows for which there is room beside the weights: at
    most `most_tokens`, and 0 where there is room for too few to be of use."""
    tokens, platform = most_tokens(devices.platform), devices.platform
    if devices.memory is None:
        return tokens
    room = USABLE * devices.memory - weight_bytes(config, dtype, platform, mesh)
    least = LEAST_TOKENS.get(platform, LEAST_TOKENS["gpu"])
    while tokens > least and working_bytes(config, dtype, platform, mesh, tokens) > room:
        tokens //= 2
    return tokens if working_bytes(config, dtype, platform, mesh, tokens) <= room else 0


def accelerator_missing(platform: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why an accelerator was expected where JAX runs on the CPU; None if it was not.

    `JAX_PLATFORMS=cpu` asks for the CPU.
    """
    asked = environment.get("JAX_PLATFORMS", "").split(",")
    if platform != "cpu" or asked[0] == "cpu":
        return None
    if any(name and name != "cpu" for name in asked):
        return f"JAX_PLATFORMS is {environment['JAX_PLATFORMS']}"
    if variable := next((v for v in ACCELERATOR_VARIABLES if environment.get(v)), None):
        return f"{variable} is set"
    for pattern in DEVICE_FILES:
        if file := next(iter(sorted(DEVICE_FOLDER.glob(pattern))), None):
            return f"{file} is there"
    if importlib.util.find_spec("libtpu") is not None:
        return "libtpu is installed"
    return None


def warn_of_cpu(platform: str) -> None:
    """Warns where JAX fell back to the CPU on a machine that seems to have an accelerator."""
    if reason := accelerator_missing(platform):
        warnings.warn(
            f"running on the CPU, although {reason}: JAX found no accelerator. Install"
            " grit_jax[tpu] or grit_jax[cuda] and see that no other process holds the device, or"
            " set JAX_PLATFORMS=cpu",
            stacklevel=2,
        )


def mesh_text(sizes: Mapping[str, int]) -> str:
    """The axes of a mesh that split something: `data 2 x tensor 4`."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "no split"


def _meshes(config: ModelConfig, count: int, given: Mapping[str, int]) -> Iterator[MeshConfig]:
    """The meshes of `count` devices with the given axes, those that split the weights least first:
    tensor as far as heads divide, then fsdp."""
    if set(given) == set(MESH_AXES) and math.prod(given.values()) <= count:
        yield MeshConfig(**given)
        return
    context = given.get("context", 1)
    heads = math.gcd(config.num_attention_heads, config.num_key_value_heads)
    tensors = [given["tensor"]] if "tensor" in given else _divisors(heads)
    splits: list[tuple[int, int]] = []
    for tensor in tensors:
        for fsdp in [given["fsdp"]] if "fsdp" in given else _divisors(config.hidden_size):
            splits.append((fsdp, tensor))
    # Of equal pieces, those with fewer gathers; fsdp only where tensor cannot go further.
    for fsdp, tensor in sorted(splits):
        data, rest = divmod(count, context * tensor * fsdp)
        if not rest and data and given.get("data", data) == data:
            yield MeshConfig(data=data, fsdp=fsdp, tensor=tensor, context=context)


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def _weight_bytes(
    name: str, shape: Sequence[int], dtype: Dtype, platform: str, mesh: MeshConfig
) -> int:
    plain = jnp.dtype(compute_dtype(dtype, platform))
    quantised = dtype == "int8" and name in INT8_WEIGHTS
    weight: Any = (
        abstract_int8(name, shape) if quantised else jax.ShapeDtypeStruct(tuple(shape), plain)
    )
    sizes = types.SimpleNamespace(shape=dataclasses.asdict(mesh))

    def part_bytes(part: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> int:
        split = [axis for axis in fitted_spec(axes, part.shape, sizes) if axis]
        names = [n for axis in split for n in ((axis,) if isinstance(axis, str) else axis)]
        ways = math.prod(sizes.shape[n] for n in names)
        return math.prod(part.shape) * part.dtype.itemsize // ways

    parts = jax.tree.map(part_bytes, weight, storage_axes(weight, PARAMETER_AXES[name]))
    return sum(jax.tree.leaves(parts))


def _no_mesh(count: int, given: Mapping[str, int]) -> str:
    flags = " ".join(f"--mesh.{axis} {size}" for axis, size in given.items())
    devices = "1 device" if count == 1 else f"{count} devices"
    return (
        f"{flags}: there is no such mesh of {devices}; the product of the given axes must divide"
        f" {count} (with all four given, be {count} at most)"
    )


def _too_large(
    config: ModelConfig,
    dtype: Dtype,
    devices: Devices,
    given: Mapping[str, int],
    name: str,
    candidates: Sequence[MeshConfig],
) -> str:
    """The message for a model that no candidate mesh holds."""
    assert devices.memory is not None
    one = MeshConfig(1, 1, 1, 1)
    whole = lambda dtype: weight_bytes(config, dtype, devices.platform, one)
    advice = []
    for other in DTYPES:
        smaller = whole(other) < whole(dtype)
        if smaller and any(tokens_that_fit(config, other, devices, m) for m in candidates):
            advice.append(f"--dtype {other} needs {_size(whole(other))} and fits")
    if not advice and whole("int8") < whole(dtype):
        advice.append(f"--dtype int8 would need {_size(whole('int8'))}, too much as well")
    if given:
        try:
            mesh = choose_mesh(config, dtype, devices)
            advice.append(f"without --mesh it fits ({mesh_text(dataclasses.asdict(mesh))})")
        except GritError:
            pass
    if devices.platform != "cpu":
        more = next(
            (n for n in (2**i for i in range(1, 13)) if _fit_on(config, dtype, devices, n)), 0
        )
        if more > devices.count:
            advice.append(f"{more} such devices would hold it")
    least = max(candidates, key=lambda mesh: (mesh.tensor * mesh.fsdp, mesh.tensor))
    part = weight_bytes(config, dtype, devices.platform, least)
    split = f", {_size(part)} on each with {mesh_text(dataclasses.asdict(least))}"
    return (
        f"{name} needs {_size(whole(dtype))} for its weights in {dtype}"
        f"{split if devices.count > 1 else ''}, and does not fit on {devices} with"
        f" {_size(devices.memory)} of memory{' each' if devices.count > 1 else ''}; "
        + ("; ".join(advice) or "it needs a machine with more memory")
    )


def _fit_on(config: ModelConfig, dtype: Dtype, devices: Devices, count: int) -> bool:
    more = dataclasses.replace(devices, count=count)
    return any(tokens_that_fit(config, dtype, more, m) for m in _meshes(config, count, {}))


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.1f} MiB"


def _host_memory() -> int | None:
    """Bytes of this machine's memory, or of its container's."""
    sizes = []
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(sizes)
