"""Verbs that run on all hosts of a slice or a Slurm job."""

from __future__ import annotations

import argparse

from grit_jax.cli import flags


def join_run() -> None:
    """Joins the other processes of the run, if the environment names any; before JAX is used."""
    import jax

    from grit_jax.runtime.hosts import join_hosts
    from grit_jax.runtime.supervision import joined_others

    join_hosts()
    if jax.process_count() > 1:
        joined_others()


def add_shards(parser: argparse.ArgumentParser, default: str) -> None:
    """Declares `--shards`."""
    parser.add_argument(
        "--shards",
        type=flags.place,
        metavar="PATH|URL",
        help="where blocks are kept from when they are encoded until process 0 has joined them;"
        f" several hosts must all see it (gs://bucket/path; default: {default})",
    )
