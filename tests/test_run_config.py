"""The configuration of a run: its keys, their defaults and what they may be."""

from __future__ import annotations

import jax

from grit_jax.run_config import fit_to_mesh, read_run_config
from grit_jax.sharding import MeshConfig, make_mesh


def test_rows_and_chunks_of_a_run_divide_among_its_devices(config, capsys):
    """Those that do not would be computed whole on every device."""

    def fitted(mesh, **keys):
        overrides = {key.replace("__", "."): str(value) for key, value in keys.items()}
        return fit_to_mesh(read_run_config(config, overrides), make_mesh(mesh, jax.devices()[:8]))

    multiples = [(2, MeshConfig()), (12, MeshConfig()), (3, MeshConfig(2, 2, 2))]
    assert [fitted(mesh, data__row_multiple=n).data.row_multiple for n, mesh in multiples] == [
        8,
        24,
        12,
    ]
    assert fitted(MeshConfig()).train.embedding_chunk == 8 and capsys.readouterr().err == ""
    odd = {"train__embedding_chunk": 12, "train__generative_chunk": 2, "train__cached_chunk": 3}
    train = fitted(MeshConfig(2, 2, 2), **odd).train
    assert (train.embedding_chunk, train.generative_chunk, train.cached_chunk) == (12, 4, 4)
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0] == "train.generative_chunk: 4 instead of 2, because rows are split over 4 devices"
        and len(said) == 2
    )
