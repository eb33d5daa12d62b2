"""A training run as a whole: configuration, data, loop, checkpoints, exact resume, exported
model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from training_run import STEPS, break_off, trace, write_run

import grit_jax.train
from grit_jax.cli import main as cli
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.runtime.files import lock_folder
from grit_jax.runtime.preemption import PREEMPTED, Preempted
from grit_jax.train import (
    _steps_to_profile,
    export_checkpoint,
    read_run_config,
    train,
)
from grit_jax.training import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), sentences)


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    typed = {"output": "whole", "data.generative": "[generative.jsonl]"}
    with contextlib.chdir(folder):
        return folder / train(read_run_config("config.yaml", typed), profile=(2, 4)).output


def test_a_run_leaves_metrics_checkpoints_and_a_model(whole):
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert {
        "loss",
        "loss_emb",
        "loss_gen",
        "loss_cached",
        "lr",
        "tokens_per_s",
        "grad_norm",
        "padding",
    } <= first.keys()
    assert first["seconds"] > first["data_wait_s"] >= 0 and {"mfu", "hbm_bytes"} <= first.keys()
    assert list((whole / "profile").rglob("*.xplane.pb")), "steps 2 and 3 were to be traced"
    assert last["eval_ndcg@10"] > 0 and last["eval_perplexity"] > 1
    model = GritLM.from_pretrained(whole / "model")
    np.testing.assert_allclose(np.linalg.norm(model.encode(["a river"]), axis=1), 1, rtol=1e-5)


def test_a_finished_run_started_again_does_nothing(folder, whole):
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    assert train(read_run_config(folder / "config.yaml")).already_finished
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(GritError, match="holds a run"):
        train(read_run_config(folder / "config.yaml"), resume="never")


@pytest.mark.parametrize(
    "broken_at", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3)), 5]
)
def test_an_interrupted_run_ends_with_the_identical_trace(folder, whole, broken_at):
    config = read_run_config(folder / "config.yaml", {"output": str(folder / f"broken{broken_at}")})
    break_off(config, broken_at)
    with (Path(config.output) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # what a kill may leave
    assert trace(train(config).output) == trace(whole)


@pytest.mark.parametrize("told_at", [pytest.param(2, marks=pytest.mark.slow), STEPS - 1])
def test_sigterm_ends_the_step_saves_and_says_so(folder, whole, told_at, monkeypatch, capsys):
    """Between two checkpoints, and at the end before the evaluation, which is then the first thing
    to do."""
    output, put_rows, calls = folder / f"told{told_at}", loop.put_rows, []

    def told(*args):
        if len(calls) == told_at:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(1)
        return put_rows(*args)

    before = signal.getsignal(signal.SIGTERM)
    command = ["train", str(folder / "config.yaml"), "--output", str(output)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(loop, "put_rows", told)
        cli.main(command)
    assert ended.value.code == PREEMPTED == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert (
        f"grit train: interrupted by SIGTERM; {told_at + 1} of {STEPS} steps are saved; the same command"
        " continues" in said
    )
    assert len(calls) == told_at + 1 and (output / "checkpoints" / str(told_at + 1)).is_dir()
    told = [
        {k: v for k, v in line.items() if not k.startswith("eval_")}
        for line in trace(whole)[: told_at + 1]
    ]
    assert trace(output) == told and not (output / "model").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    cli.main(command)
    assert trace(output) == trace(whole) and (output / "model" / "grit.json").exists()


def test_what_a_kill_leaves_of_a_save_is_ignored(folder, whole):
    """The folder of a save under way, which has everything but its final name, and newer
    metrics."""
    output = folder / "half"
    config = read_run_config(folder / "config.yaml", {"output": str(output)})
    shutil.copytree(whole, output)
    shutil.rmtree(output / "model")
    newest = output / "checkpoints" / str(STEPS)
    newest.rename(newest.with_name(f"{STEPS}.orbax-checkpoint-tmp"))
    half = newest.with_name(f"{STEPS}.orbax-checkpoint-tmp")
    assert export_checkpoint(output, folder / "half_exported") == STEPS - 2
    assert half.is_dir()  # it might be that of a run under way
    assert trace(train(config).output) == trace(whole)
    assert sorted(path.name for path in newest.parent.iterdir()) == [str(STEPS - 2), str(STEPS)]


def test_export_writes_the_newest_checkpoint(whole, tmp_path):
    assert export_checkpoint(whole, tmp_path / "out") == STEPS
    one, two = GritLM.from_pretrained(whole / "model"), GritLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(one.params["query"], two.params["query"])


def test_the_config_in_a_run_folder_repeats_the_run_from_anywhere(
    folder, whole, tmp_path, monkeypatch
):
    """It was started with relative names on the command line."""
    monkeypatch.chdir(tmp_path)
    again = read_run_config(whole / "config.yaml")
    assert again == dataclasses.replace(read_run_config(folder / "config.yaml"), output=str(whole))
    assert train(again).already_finished
    assert export_checkpoint(whole, tmp_path / "exported") == STEPS
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_batch(folder):
    alone = {"data.generative_batch": "0", "data.cached_batch": "0"}
    broken = {"optimizer.lr": "1e30", "optimizer.clip_norm": "null"}
    config = read_run_config(
        folder / "config.yaml", {"output": str(folder / "nan"), **alone, **broken}
    )
    with pytest.raises(GritError, match="bad_batch.json"):
        train(config)
    ids = json.loads((folder / "nan" / "bad_batch.json").read_text())["ids"]
    assert len(ids["embedding"]) == 6 and "embedding.jsonl:" in ids["embedding"][0]


def test_a_gradient_that_is_not_finite_is_the_fault_of_its_own_batch(folder, monkeypatch):
    """Its loss is finite still; the next one's is not."""
    config = read_run_config(folder / "config.yaml", {"output": str(folder / "inf")})
    make_step = grit_jax.train.make_step

    def broken(*args):
        step = make_step(*args)
        spoilt = lambda state, metrics: (
            metrics | {"grad_norm": metrics["grad_norm"] / (state.step != 3)}
        )
        return lambda *given: (lambda state, metrics: (state, spoilt(state, metrics)))(
            *step(*given)
        )

    monkeypatch.setattr(grit_jax.train, "make_step", broken)
    with pytest.raises(GritError, match="step 2: grad_norm is inf"):
        train(config)
    # JSON has no name for such a number: it stands there as a word.
    text = (folder / "inf" / "bad_batch.json").read_text()
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert report["metrics"]["grad_norm"] == "inf" and report["metrics"]["loss"] > 0
    assert report["step"] == 2 and len(report["ids"]["generative"]) == 4
    assert [path.name for path in (folder / "inf" / "checkpoints").iterdir()] == ["2"]


def test_a_step_that_does_not_fit_the_devices_says_what_makes_it_smaller(folder, monkeypatch):
    full = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes.\nMore of it"
    )
    monkeypatch.setattr(
        grit_jax.train, "make_step", lambda *_: lambda *_: (_ for _ in ()).throw(full)
    )
    config = read_run_config(folder / "config.yaml", {"output": str(folder / "large")})
    with pytest.raises(
        GritError,
        match=(
            r"memory \(RESOURCE_EXHAUSTED: .* 64 bytes\); set train.embedding_chunk, .* grit plan"
        ),
    ):
        train(config)


def test_hosts_that_see_different_checkpoints_do_not_begin(folder, monkeypatch):
    """They would wait for each other in different steps."""
    monkeypatch.setattr(grit_jax.train, "gather_text", lambda word: [word, "none", "4"])
    config = read_run_config(folder / "config.yaml", {"output": str(folder / "seen")})
    with pytest.raises(
        GritError,
        match="the newest checkpoint is none on process 0 and 4 on process 2; start again",
    ):
        train(config)


def unfinished(whole: Path, output: Path) -> Path:
    """A copy of a run that ended two steps before its end."""
    shutil.copytree(whole, output)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoints" / str(STEPS))
    return output


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.pooling": "cls"}, "step .* was made with model.pooling mean, .* has cls: .*"),
        ({"model.attention": "cccc"}, "model.attention bbcc, this configuration has cccc"),
        ({"model.shape.hidden_size": 64}, "model.shape.hidden_size 32, .* another output"),
        ({"tokenizer.chat": "llama3"}, "tokenizer.chat grit, .* has llama3"),
    ],
)
def test_a_run_does_not_go_on_as_another_model(folder, whole, tmp_path, finished, change, message):
    output = whole if finished else unfinished(whole, tmp_path / "run")
    before = (output / "metrics.jsonl").read_bytes()
    with pytest.raises(GritError, match=message):
        train(read_run_config(folder / "config.yaml", {"output": str(output), **change}))
    assert (output / "metrics.jsonl").read_bytes() == before
    assert (output / "model").exists() is finished


def test_a_run_goes_on_with_other_data_and_says_so(folder, whole, tmp_path, capsys):
    output = unfinished(whole, tmp_path / "run")
    lines = (folder / "embedding.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]))
    change = {"data.embedding": f"[{tmp_path}/fewer.jsonl]", "train.seed": "1"}
    train(read_run_config(folder / "config.yaml", {"output": str(output), **change}))
    said = capsys.readouterr().err
    assert "step 4 was made with other settings: train.seed 0 -> 1; the batches from here" in said
    assert "fewer.jsonl: 40 lines -> 39 lines, other content; the batches" in said
    assert "eval_" not in said and "tokenizer" not in said
    assert trace(output)[: STEPS - 2] == trace(whole)[: STEPS - 2] and len(trace(output)) == STEPS


@pytest.mark.slow
def test_lengths_lowered_to_the_context_are_no_other_settings(folder, tmp_path, capsys):
    written = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("generative_max_length", "embedding_batch", "cached_batch"):
        del written["data"][key]
    written["model"]["shape"] |= {"max_position_embeddings": 96, "num_hidden_layers": 1}
    written["train"] = {"steps": 1, "checkpoint_every": 1}
    written["output"] = str(tmp_path / "run")
    original = folder / "short_context.yaml"
    original.write_text(yaml.safe_dump(written))
    train(read_run_config(original))
    assert "data.generative_max_length: 96 tokens, the model's context" in capsys.readouterr().err
    kept = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(kept.read_text())["data"]["generative_max_length"] == 96
    for config in (kept, original):
        assert train(read_run_config(config)).already_finished
        assert "other settings" not in capsys.readouterr().err
    for config, steps in ((kept, 2), (original, 3)):  # goes on
        train(read_run_config(config, {"train.steps": str(steps)}))
        said = capsys.readouterr().err
        assert f"made with other settings: train.steps {steps - 1} -> {steps}\n" in said
    train(read_run_config(original, {"data.generative_max_length": "64"}))
    said = capsys.readouterr().err
    assert "data.generative_max_length 96 -> 64" in said


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train.eval_embedding": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"train.eval_generative": "{folder}/embedding.jsonl"}, "embedding.jsonl:1: an embedding"),
        ({"data.embedding": "[{folder}/embedding.jsonl, {folder}/./embedding.jsonl]"}, "same data"),
    ],
)
def test_all_files_are_read_before_the_first_step(folder, tmp_path, change, message):
    change = {key: value.format(folder=folder) for key, value in change.items()}
    with pytest.raises(GritError, match=message):
        train(read_run_config(folder / "config.yaml", {"output": str(tmp_path / "run"), **change}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_two_runs_do_not_share_a_folder(folder, tmp_path):
    config = read_run_config(folder / "config.yaml", {"output": str(tmp_path)})
    with (
        lock_folder(tmp_path, "grit train"),
        pytest.raises(GritError, match="another grit train is writing here"),
    ):
        train(config)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("name, at", [("model.layers.1.self_attn.q_proj.weight", 5), ("", 0)])
def test_weights_that_are_not_finite_are_named_before_the_first_step(
    folder, whole, tmp_path, name, at
):
    """The learning rate is not to blame."""
    shutil.copytree(whole / "model", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    name = name or next(name for name in tensors if "embed_tokens" in name)
    tensors[name] = tensors[name].copy()
    tensors[name][at, at] = np.nan
    save_file(tensors, file, {"format": "pt"})
    change = {"output": str(tmp_path / "run"), "model.path": str(tmp_path / "base")}
    pattern = f"base: the weight .*{name.removeprefix('model.')} holds numbers that are not finite"
    with pytest.raises(GritError, match=pattern):
        train(read_run_config(folder / "config.yaml", change))
    assert not (tmp_path / "run" / "bad_batch.json").exists()


def test_sigterm_after_the_last_step_is_heeded_before_the_export(folder, monkeypatch):
    """On several hosts, the last step may be too late to agree on it."""
    monkeypatch.setattr(
        grit_jax.train, "run_loop", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    config = read_run_config(folder / "config.yaml", {"output": str(folder / "late")})
    with pytest.raises(Preempted, match="all steps are saved") as ended:
        train(config)
    assert not ended.value.together


def test_steps_to_trace_that_a_run_has_behind_it_are_no_mistake(capsys):
    """The same command goes on, wherever the run was killed."""
    assert _steps_to_profile((1, 3), 0, 6) == _steps_to_profile((1, 3), 1, 6) == (1, 3)
    assert capsys.readouterr().err == ""
    for start in (2, 4):
        assert _steps_to_profile((1, 3), start, 6) is None
        said = f"--profile 1:3: this run goes on from step {start}, past step 1; no trace is made\n"
        assert capsys.readouterr().err == said
    with pytest.raises(GritError, match="--profile 1:7: this run goes from step 2 to 6"):
        _steps_to_profile((1, 7), 2, 6)


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_the_identical_trace(folder, whole):
    """Real processes and SIGKILL, at any moment of start-up, steps, saves, evaluation and export.

    A run is killed and started again until it gets through, then the next one begins, $GRIT_KILLS
    (3) times in all.
    """
    kills, generator = int(os.environ.get("GRIT_KILLS", "3")), random.Random(0)
    startup, killed, run = None, 0, 0
    while killed < kills or run == 0:
        run += 1
        output = folder / f"killed{run}"
        status = None
        while status != 0:
            began, process = time.monotonic(), start(output)
            wait_for = generator.randrange(-1, STEPS)  # lines; -1: some moment of the start
            if startup and killed < kills and generator.random() < 0.9:
                if wait_for < 0:
                    time.sleep(generator.random() * startup)
                while process.poll() is None and len(trace(output)) <= wait_for:
                    time.sleep(0.01)
                time.sleep(generator.random() / 2)
                process.send_signal(signal.SIGKILL)
            while (
                not startup
            ):  # the first of all is not killed before it is known how long a start takes
                assert process.poll() is None and time.monotonic() < began + 300
                startup = time.monotonic() - began if trace(output) else None
                time.sleep(0.01)
            status = process.wait(timeout=300)
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL)
        assert trace(output) == trace(whole)
    print(f"{killed} kills in {run} runs")


def start(output: Path, *more: str) -> subprocess.Popen:
    """`grit train` as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "grit_jax",
        "train",
        str(output.parent / "config.yaml"),
        "--output",
        str(output),
    ]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
