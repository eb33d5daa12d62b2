"""The MODEL argument: a directory or a hub id, opened as the command line names it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from cli_world import run

packaged_model = pytest.importorskip("packaged_model", reason="needs the extra 'gguf'")

from grit_jax.cli import flags, model
from grit_jax.cli.main import build_parser
from grit_jax.cli.model import add_model, load_model
from grit_jax.errors import GritError
from grit_jax.inference import placement
from grit_jax.inference.model import GritLM
from grit_jax.models.hf.directory import read_model_directory
from grit_jax.sharding import MESH_AXES


@pytest.fixture
def parse():
    """From the arguments of a verb that takes MODEL to what is parsed."""
    parser = flags.Parser(prog="grit try")
    add_model(parser)
    return lambda *arguments: parser.parse_args(arguments)


def test_the_model_of_a_directory(parse, in_world, texts, tiny_model):
    loaded = load_model(parse("model"))
    assert (loaded.encode(texts) == tiny_model.encode(texts)).all()


def test_the_home_folder_is_expanded_and_a_hub_id_left_alone(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse("~/model").model == "/home/ada/model"
    assert parse("org/model").model == "org/model"


def test_a_model_that_is_not_there(parse, in_world, capsys):
    with pytest.raises(GritError, match="texts.txt"):
        load_model(parse("texts.txt"))
    with pytest.raises(SystemExit):
        parse()
    assert "the following arguments are required: MODEL" in capsys.readouterr().err


def test_devices_mesh_and_dtype_are_the_first_line(parse, in_world, capsys, monkeypatch):
    monkeypatch.setattr(placement, "usable_devices", jax.devices)
    loaded = load_model(parse("model", "--mesh.tensor", "2", "--dtype", "int8"))
    assert dict(loaded.mesh.shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}
    assert loaded.dtype == "int8"
    line = "devices: 8 x cpu (data 4 x tensor 2), weights in int8, computed in float32\n"
    assert capsys.readouterr() == ("", line)
    monkeypatch.setattr(placement, "usable_devices", lambda: jax.devices()[:1])
    assert load_model(parse("model")).mesh is None
    assert capsys.readouterr().err == "devices: 1 x cpu, weights in float32\n"


@pytest.fixture
def packaged(monkeypatch, tmp_path):
    """The packaged model and an adapter to it, as an installation has them."""
    site = packaged_model.write_package(tmp_path / "site")
    packaged_model.install(monkeypatch, site, tmp_path / "adapters", tmp_path / "cache")
    packaged_model.ship_random_adapter(tmp_path / "adapters")
    return tmp_path


def test_a_name_is_a_model_to_every_verb(parse, packaged, capsys, monkeypatch):
    """It becomes a directory, which is then sharded and quantised as any other."""
    plain, whole = load_model(parse("smollm2")), load_model(parse("smollm2-grit"))
    texts = ["the quick fox", "lazy dog"]
    expected = whole.encode(texts)
    assert (expected * plain.encode(texts)).sum(axis=1).max() < 0.999
    monkeypatch.setattr(placement, "usable_devices", lambda: jax.devices()[:4])
    sharded = load_model(parse("smollm2-grit", "--mesh.tensor", "2", "--mesh.fsdp", "2"))
    np.testing.assert_allclose(sharded.encode(texts), expected, atol=1e-5)
    monkeypatch.setattr(placement, "usable_devices", lambda: jax.devices()[:1])
    small = load_model(parse("smollm2-grit", "--dtype", "int8"))
    assert small.dtype == "int8" and (small.encode(texts) * expected).sum(axis=1).min() > 0.99
    assert small.weights_hash == whole.weights_hash == sharded.weights_hash


def test_a_name_is_exported_and_imported(packaged, capsys, monkeypatch):
    monkeypatch.chdir(packaged)
    for verb, name in (("export", "smollm2-grit"), ("export", "smollm2"), ("import", "smollm2")):
        assert run(capsys, f"{verb} {name} {verb}-{name}").status == 0
        exported, named = GritLM.from_pretrained(f"{verb}-{name}"), GritLM.from_pretrained(name)
        assert exported.weights_hash == named.weights_hash
    assert run(capsys, "export smollm2-grit half --dtype bfloat16").status == 0
    assert read_model_directory("half").config.architecture == "llama"
    assert run(capsys, "export smollm2-grit adapter --adapter").status == 0
    written, shipped = (packaged / "adapter", packaged / "adapters" / packaged_model.FOLDER)
    names = {path.relative_to(written) for path in written.rglob("*.*")}
    assert names == {path.relative_to(shipped) for path in shipped.rglob("*.*")} and len(names) > 5
    refused = run(capsys, "export smollm2 none --adapter")
    assert refused.status == 2 and "smollm2: has no adapters; leave --adapter out" in refused.err
    assert not (packaged / "none").exists()


def test_axes_and_dtypes_that_there_are(parse, capsys):
    assert (model.MESH_AXES, model.DTYPES) == (MESH_AXES, placement.DTYPES)
    for flag in ("--mesh.tensor 0", "--mesh.model 2", "--dtype fp8"):
        with pytest.raises(SystemExit):
            parse("model", *flag.split())
        assert flag.split()[0] in capsys.readouterr().err


def test_a_fall_back_to_the_cpu_is_a_warning(in_world, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("COLAB_TPU_ADDR", "10.0.0.2:8470")
    result = run(capsys, "generate model --prompt a --max-new-tokens 1 --json")
    first, second = result.err.splitlines()[:2]
    assert first.startswith("devices: 1 x cpu")
    assert second.startswith("warning: running on the CPU, although COLAB_TPU_ADDR is set")
    assert result.json["generations"]


@pytest.mark.parametrize(
    "verb",
    [
        "encode model --input a --output b",
        "generate model --prompt a",
        "index model --input a --output b",
        "ask model --index a b",
        "eval retrieval model --input a",
        "eval perplexity model --input a",
        "eval rag model --input a",
        "bench encode model",
        "bench decode model",
        "bench rag model",
        "bench all model",
    ],
)
def test_every_verb_that_runs_a_model_takes_them(verb):
    flags = "--mesh.data 2 --mesh.fsdp 1 --mesh.tensor 4 --mesh.context 1 --dtype int8"
    args, rest = build_parser().parse_known_args([*verb.split(), *flags.split()])
    assert rest == [] and (args.mesh_data, args.mesh_tensor, args.dtype) == (2, 4, "int8")
