"""The MODEL argument of the verbs that run a model, and where and in which dtype it runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from grit_jax.cli import flags

if TYPE_CHECKING:
    from grit_jax.inference.model import GritLM

# sharding.py's MESH_AXES and inference/placement.py's DTYPES, whose modules import JAX.
MESH_AXES = ("data", "fsdp", "context", "tensor")
DTYPES = ("float32", "bfloat16", "int8")
AXES_HELP = {
    "data": "devices that share the rows, each with all weights",
    "fsdp": "devices that split rows and weights; weights are gathered layer by layer",
    "context": "devices that split the tokens of each row",
    "tensor": "devices that split heads and feed-forward",
}


def add_model(
    parser: argparse.ArgumentParser,
    *,
    placed: bool = True,
    url: bool = False,
    optional: bool = False,
) -> None:
    """Declares MODEL and, with `placed`, the flags that say where and in which dtype it runs.

    Args:
      url: it may be the address of a server (`endpoint.py`).
      optional: it may be left out.
    """
    names = "directory, Hugging Face hub id, or smollm2 or smollm2-grit"
    parser.add_argument(
        "model",
        type=flags.name,
        metavar="MODEL|URL" if url else "MODEL",
        nargs="?" if optional else None,
        help=f"{names}; or the URL of an OpenAI-compatible server" if url else names,
    )
    if not placed:
        return
    group = parser.add_argument_group(
        "devices",
        "By default all devices of this machine: the weights are split as far as they must be to "
        "fit (tensor, then fsdp), and rows go over the rest. The axes that are given are kept; all "
        "four may use fewer devices.",
    )
    for axis in MESH_AXES:
        group.add_argument(
            f"--mesh.{axis}",
            dest=f"mesh_{axis}",
            type=flags.positive,
            metavar="N",
            help=AXES_HELP[axis],
        )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: bfloat16 on TPU and GPU, float32 on CPU); int8 takes half "
        "the memory of bfloat16, and a decoded token reads half as much",
    )


def load_model(args: argparse.Namespace) -> GritLM:
    """The model that the command line names, on the devices and in the dtype that it asks for; the
    first line printed says which."""
    import jax

    from grit_jax.inference.model import GritLM
    from grit_jax.inference.opening import model_shape
    from grit_jax.inference.placement import place_model, warn_of_cpu
    from grit_jax.models.hf.sources import resolve

    path = resolve(args.model)
    mesh = {axis: getattr(args, f"mesh_{axis}") for axis in MESH_AXES}
    given = {axis: size for axis, size in mesh.items() if size is not None}
    placement = place_model(model_shape(path), args.dtype or "auto", given, str(args.model))
    if jax.process_index() == 0:
        print(placement, file=sys.stderr)
    warn_of_cpu(placement.devices.platform)
    return GritLM.from_pretrained(path, mesh=placement)
