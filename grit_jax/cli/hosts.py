"""Verbs that share their work among the hosts of a slice or a Slurm job, or a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from grit_jax.cli import flags
from grit_jax.cli.model import load_model

if TYPE_CHECKING:
    from grit_jax.inference.block_hosts import BlockCluster
    from grit_jax.inference.model import GritLM


def join_run() -> None:
    """Joins the other processes of the run, if the environment names any; before JAX is used."""
    import jax

    from grit_jax.runtime.hosts import join_hosts
    from grit_jax.runtime.supervision import joined_others

    join_hosts()
    if jax.process_count() > 1:
        joined_others()


def add_shared(parser: argparse.ArgumentParser, default: str) -> None:
    """Declares `--shards` and `--ray`."""
    parser.add_argument(
        "--shards",
        type=flags.place,
        metavar="PATH|URL",
        help="where blocks are kept from when they are encoded until process 0 has joined them;"
        f" several hosts must all see it (gs://bucket/path; default: {default})",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="encode on a Ray cluster (extra 'ray'): HOST:PORT, auto (default: RAY_ADDRESS or the"
        " cluster of this machine), or local to start one here",
    )
    parser.add_argument(
        "--ray-actors",
        type=flags.positive,
        metavar="N",
        help="(default: one for each GPU or TPU chip; without any, one for each node)",
    )
    parser.add_argument(
        "--ray-devices",
        type=flags.positive,
        default=1,
        metavar="N",
        help="GPUs or TPU chips of an actor (default: %(default)s)",
    )


@contextlib.contextmanager
def shared_run(
    args: argparse.Namespace,
) -> Iterator[Callable[[], tuple[GritLM, BlockCluster | None]]]:
    """The run that this process is a part of, if it is one of several.

    Yields:
      A function that opens the model that the command line names; with `--ray` it returns what is
      known of it here, and the cluster that runs it.
    """
    if args.ray is None:
        join_run()
        yield lambda: (_open_model(args), None)
        return
    import jax

    from grit_jax.inference.ray_cluster import RayCluster, RayOptions

    jax.config.update("jax_platforms", "cpu")  # the devices are the actors'
    kept = {key: value for key, value in vars(args).items() if key != "parser"}
    if Path(args.model).exists():
        kept["model"] = str(Path(args.model).absolute())
    load = functools.partial(load_model, argparse.Namespace(**kept))
    with RayCluster(load, RayOptions(args.ray, args.ray_actors, args.ray_devices)) as cluster:
        yield lambda: (cluster.open_model(), cluster)


def _open_model(args: argparse.Namespace) -> GritLM:
    from grit_jax.runtime.hosts import errors_together

    with errors_together():
        model = load_model(args)
    return model
