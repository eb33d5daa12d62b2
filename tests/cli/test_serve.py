"""`grit serve`: its flags. The server itself is tested in tests/serving."""

from __future__ import annotations

import pytest
from lora_folders import write_folders

from grit_jax.cli import serve
from grit_jax.cli.main import build_parser, main


def test_flags_become_settings(tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    calls: list = []
    server = pytest.importorskip("grit_jax.serving.server")
    monkeypatch.setattr(server, "serve", lambda *values: calls.append(values))
    monkeypatch.setattr(serve, "load_model", lambda args: args.model)
    flags = ["--slots", "3", "--context", "64", "--max-queue", "5", "--grace", "7", "--no-warm-up"]
    main(["serve", "m", "--api-keys", str(keys), "--host", "::1", "--port", "0", *flags])
    main(["serve", "m", "--name", "n", "--files", "up", "--index", "a=x", "--index", "b=y"])
    (model, settings, host, port), (_, default, *_) = calls
    assert (model, host, port, settings.name) == ("m", "::1", 0, "m")
    assert (settings.slots, settings.context, settings.limits.queue) == (3, 64, 5)
    assert settings.api_keys == ["sesame"] and settings.grace == 7 and not settings.warm_up
    assert default.name == "n" and default.warm_up and default.context is None
    assert default.limits.tokens == 300_000
    assert str(default.files) == "up" and settings.files is None
    assert [*default.indices] == ["a", "b"] and not settings.indices


def test_adapters_are_read_beside_the_model(tmp_path, monkeypatch, tiny_model):
    server = pytest.importorskip("grit_jax.serving.server")
    folders, calls = write_folders(tiny_model, tmp_path), []
    monkeypatch.setattr(server, "serve", lambda *values: calls.append(values))
    flags = [
        part for name, path in folders.adapters.items() for part in ("--adapter", f"{name}={path}")
    ]
    main(["serve", str(folders.base), "--name", "n", "--dtype", "float32", *flags])
    [(model, settings, *_)] = calls
    assert dict(settings.adapters) == folders.adapters
    assert [a.weights_hash for a in model.adapters] == [
        folders.merged[name].weights_hash for name in folders.adapters
    ]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--port", "70000"], "--port 70000: expected a number up to 65535"),
        (["--api-keys", "/no/such/file"], "--api-keys /no/such/file: No such file"),
        (["--index", "docs"], "--index docs: expected NAME=PATH"),
        (["--adapter", "=x"], "--adapter =x: expected NAME=DIR"),
        (["--tool-parser", "xml"], "--tool-parser: invalid choice: 'xml'"),
        (["--slots", "0"], "must be at least 1"),
        (
            ["--otlp-traces-endpoint", "localhost:4317"],
            "--otlp-traces-endpoint localhost:4317: expected http://HOST:4318",
        ),
    ],
)
def test_wrong_flags_are_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "m", *flags])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(serve, "PACKAGES", ("fastapi", "no_such_package"))
    with pytest.raises(SystemExit):
        main(["serve", "m"])
    assert (
        "no_such_package not installed; run pip install 'grit-jax[serve]'"
        in capsys.readouterr().err
    )


def test_the_defaults_are_local():
    args = build_parser().parse_args(["serve", "m"])
    assert (args.host, args.port) == ("127.0.0.1", 8000)
