"""The adapters in the package: their size, and what their files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import grit_jax
from grit_jax.models.hf.peft import read_adapter
from grit_jax.models.hf.sources import ADAPTED, ADAPTERS, PACKAGED
from grit_jax.models.presets import preset
from grit_jax.text.chat import FORMATS

MAX_BYTES = 8_000_000
SHAPES = {"smollm2": "smollm2_135m"}  # presets


def test_they_are_where_the_package_looks_for_them():
    assert Path(grit_jax.__file__).parent / "adapters" == ADAPTERS and ADAPTERS.is_dir()
    folders = {path.name for path in ADAPTERS.iterdir() if path.is_dir()}
    assert folders <= {model.folder for model in ADAPTED.values()}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_shipped_adapter(name):
    folder = ADAPTERS / ADAPTED[name].folder
    if not folder.is_dir():
        pytest.skip(f"{name} has no adapter yet")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    peft = json.loads((folder / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == PACKAGED[ADAPTED[name].base].hub_id
    adapter = read_adapter(folder, preset(SHAPES[ADAPTED[name].base]))
    assert len(str(adapter.base.weights)) == 32 and adapter.settings.chat_format in FORMATS
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Apache-2.0" in card and peft["base_model_name_or_path"] in card
