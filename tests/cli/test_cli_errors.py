"""Bad input to every verb: one clear line on stderr, exit status 2, nothing left that passes for a
result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cli_bad_input import CASES
from cli_world import bad_files, bad_indexes, bad_models, full_disk, good_files, run

from grit_jax.inference.model import GritLM
from grit_jax.models.transformer import init_params

WHOLE = ("grit.json", "config.json", "dataset_info.json", "report.json", "config.yaml")
PARTS = (".npy", ".safetensors", ".tmp")


@pytest.fixture(scope="module")
def world(tmp_path_factory, sentences, tiny_model) -> Path:
    """See `cli_world`; no command adds anything to it but in `x` and `x.npy`."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model.save_pretrained(folder / "model")
    weights = init_params(tiny_model.config, jax.random.key(1))
    good_files(folder, sentences)
    bad_files(folder)
    bad_models(folder, folder / "model")
    bad_indexes(
        folder,
        tiny_model,
        GritLM(tiny_model.config, weights, tiny_model.tokenizer, tiny_model.chat),
    )
    (folder / "full.npy").symlink_to("/dev/full")
    for name, config in (("r-broken", "{"), ("r-nothing", (folder / "run.yaml").read_text())):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(config)
    claim = '{"seed": 0, "from_scratch": false}'
    for name, settings in (("q-claimed", claim), ("q-strange", "[]"), ("q-damaged", claim)):
        (folder / name).mkdir()
        (folder / name / "quickstart.json").write_text(settings)
    (folder / "q-damaged" / "report.json").write_text('{"version":')
    return folder


@pytest.fixture(autouse=True)
def at_home(world, monkeypatch):
    """Runs every test in the world's folder, and clears away what it was to write."""
    monkeypatch.chdir(world)
    yield
    shutil.rmtree("x", ignore_errors=True)
    Path("x.npy").unlink(missing_ok=True)


def results() -> set[Path]:
    """What somebody would take for a result, and half-written files."""
    found = set()
    for path in Path().rglob("*"):
        if path.name == "index.json" and path.parent.name == "x":
            found |= {path} if json.loads(path.read_text())["complete"] else set()
        elif path.name in WHOLE or (
            path.suffix in PARTS and not (path.parent / "index.json").exists()
        ):
            found.add(path)
    return found


def check(said, words: str, notes: tuple[str, ...] = ()) -> None:
    """One line, and nothing on stdout; before it at most lines that begin like `notes`, of a run
    that had got further."""
    assert (said.status, said.out) == (2, ""), said
    *before, line = said.lines
    assert all(note.startswith(notes or ("no line",)) for note in before), said
    assert re.match(r"grit( [a-z-]+){0,2}: ", line) and re.search(words, line), line


@pytest.mark.parametrize("command", CASES)
def test_one_line_and_status_2(command, capsys):
    before = results()
    check(run(capsys, command), CASES[command])
    assert results() == before


@pytest.mark.parametrize(
    "command, room, words",
    [
        ("encode model --input many.txt --output x.npy", 4096, "x.npy: cannot be written"),
        ("index model --input corpus.jsonl --output x", 4096, "x/kv: cannot be .*File too large"),
        (
            "index model --input corpus.jsonl --output x --kv none",
            1024,
            "x: cannot be written \\(File too",
        ),
        ("import model x", 65536, "x/model.safetensors: cannot be written \\(File too large\\)"),
        ("import model x", 150, " x/[a-z.]*: cannot be written \\(File too large\\)"),
        ("data prepare generative.jsonl --output x", 512, "x: .*File too large"),
        (
            "data pydocs --output x --packages json,argparse",
            1024,
            "x/.*: cannot be written \\(File too large\\); make room",
        ),
        ("quickstart --out x", 20, "x/quickstart.json: cannot be written \\(File too large\\)"),
        (
            "train run.yaml --output x",
            20,
            "x/.*: cannot be written \\(File too large\\); make room",
        ),
        (
            "train run.yaml --output x",
            5000,
            "x/checkpoints: a checkpoint cannot be written .*File too large",
        ),
    ],
)
def test_a_full_disk(command, room, words, capsys, monkeypatch):
    Path("many.txt").write_text("a line\n" * 100)
    before = results()
    with full_disk(room):
        said = run(capsys, command)
    check(said, words, ("gradient: ",))
    assert results() - before <= {Path("x/config.yaml")}  # of a training run without a checkpoint
    Path("many.txt").unlink()


@pytest.mark.filterwarnings(
    "ignore:coroutine"
)  # Orbax leaves the other reads where they are when one fails
def test_a_checkpoint_of_another_model_and_a_damaged_one(capsys):
    assert run(capsys, "train run.yaml --output x --train.steps 1").status == 0
    again = "train run.yaml --output x"
    check(
        run(capsys, f"{again} --resume never"),
        "x holds a run \\(step 1\\); remove it, or choose another",
    )
    other = "x/checkpoints: the checkpoint of step 1 was made with model.shape.head_dim 8, .* another model"
    check(run(capsys, f"{again} --model.shape.hidden_size 32"), other)
    check(run(capsys, f"{again} --profile 0:3"), "--profile 0:3: this run goes from step 1 to 2")
    for path in Path("x/checkpoints/1/state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:64])
    for command in (again, "export x x/out"):
        check(
            run(capsys, command),
            "x/checkpoints/1: cannot be read as a .*; if it is damaged, remove it",
            ("gradient: ", "warning: x/checkpoints: the checkpoint of step 1 was made with other"),
        )
    assert not Path("x/out").exists()


def test_too_little_documentation(capsys):
    command = "data pydocs --output x --packages no_such_package"
    check(run(capsys, command), "0 documents in no_such_package are too few")


def test_an_interruption_and_a_bug_keep_their_own_ways(capsys, monkeypatch):
    monkeypatch.setattr(
        GritLM, "from_pretrained", lambda *_, **options: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    for command, hint in (
        (
            "index model --input corpus.jsonl --output x",
            "; the same command continues where it stopped",
        ),
        ("generate model --prompt a", ""),
    ):
        said = run(capsys, command)
        assert (said.status, said.lines) == (130, [f"grit {command.split()[0]}: interrupted{hint}"])
    for bug in (FileNotFoundError(2, "gone"), RuntimeError("a bug"), ValueError("a bug")):
        monkeypatch.setattr(
            GritLM, "from_pretrained", lambda *_, bug=bug, **options: (_ for _ in ()).throw(bug)
        )
        with pytest.raises(type(bug)):
            run(capsys, "generate model --prompt a")


@pytest.mark.parametrize(
    "command, advice",
    [
        (
            "encode model --input texts.txt --output x.npy",
            "lower --max-length, use --dtype int8, or take",
        ),
        ("generate model --prompt a", "lower --max-new-tokens, use --dtype int8, or take"),
        ("generate model --prompt a --dtype int8", "lower --max-new-tokens, or take"),
        ("import model x", "take"),
    ],
)
def test_a_device_that_is_full(command, advice, capsys, monkeypatch):
    monkeypatch.setattr(
        GritLM, "from_pretrained", lambda *_, **options: jnp.zeros(1 << 50).block_until_ready()
    )  # XLA's own words
    Path("texts.txt").write_text("a line\n")
    check(
        run(capsys, command),
        rf": the devices' memory is full \(RESOURCE_EXHAUSTED: .*[^.]\); {advice} a smaller model",
    )
    Path("texts.txt").unlink()


def test_as_a_process(world):
    """What only a process shows: its exit status and all that it says, also where nobody can hear
    it."""
    grit = f"{sys.executable} -m grit_jax"
    full = f"{grit} data prepare generative.jsonl --output x > /dev/full"
    said = subprocess.run(full, shell=True, capture_output=True, text=True, cwd=world)
    line = (
        "grit data prepare: standard output: No space left on device; make room or choose another"
        " place"
    )
    assert (said.returncode, said.stderr.splitlines()) == (2, [line])
    absent = f"{grit} encode model --input absent --output x.npy"
    said = subprocess.run(absent, shell=True, capture_output=True, text=True, cwd=world)
    assert (said.returncode, said.stdout, said.stderr) == (
        2,
        "",
        "grit encode: absent: no such file\n",
    )
