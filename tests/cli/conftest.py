"""The folder in which the tests of the verbs run their commands."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from cli_world import good_files

from grit_jax.inference import placement


@pytest.fixture(scope="session")
def world(tmp_path_factory, sentences, tiny_model) -> Path:
    """A model and a good file of each kind. Tests write elsewhere."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model.save_pretrained(folder / "model")
    good_files(folder, sentences)
    return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch) -> None:
    """Verbs run on one of the simulated devices, for which programs compile faster; tests of the
    placement undo it."""
    monkeypatch.setattr(placement, "usable_devices", lambda: jax.local_devices()[:1])


@pytest.fixture
def in_world(world, monkeypatch) -> None:
    """Makes `world` the working directory, so that commands name its files alone."""
    monkeypatch.chdir(world)


@pytest.fixture(scope="session")
def texts(sentences) -> list[str]:
    """The texts in texts.txt and texts.jsonl."""
    return sentences[:9]
