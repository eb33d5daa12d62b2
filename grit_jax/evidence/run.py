"""`grit evidence`: trains and scores the models that are missing, and writes the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from grit_jax import __version__
from grit_jax.config import build, read_yaml
from grit_jax.data.distractors import write_rows
from grit_jax.errors import GritError
from grit_jax.evidence import cached, joint
from grit_jax.evidence.recipes import (
    CACHED_MODELS,
    JOINT_MODELS,
    REPEATS,
    SEVERAL_DOCUMENTS,
    SEVERAL_ROWS,
    recipe_texts,
)
from grit_jax.pydocs.corpus import prepare_corpus
from grit_jax.pydocs.repeats import write_repeats
from grit_jax.run_config import RunConfig, read_run_config
from grit_jax.runtime.files import is_temporary, writable_folder, write_json, write_text
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.progress import say
from grit_jax.train import train

CORPUS_SEED = 0
PARTS = ("joint", "cached")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def run_evidence(
    out: Path, *, seeds: int = 3, part: Literal["joint", "cached", "all"] = "all"
) -> dict[str, Any]:
    """Trains and scores the models that `out` lacks; returns what `out/evidence.json` holds.

    Seeds count from 0, so a larger `seeds` adds to a folder that has fewer. With one `part`, the
    file holds nothing of the other.

    Raises:
      GritError: no seed, an unknown part, a folder that holds something else or cannot be written,
        damaged files of a run.
    """
    if seeds < 1:
        raise GritError(f"--seeds: must be at least 1, got {seeds}")
    if part not in (*PARTS, "all"):
        raise GritError(f"--part: must be joint, cached or all, got '{part}'")
    parts = PARTS if part == "all" else (part,)
    _claim(out)
    corpus = prepare_corpus(out / "data", CORPUS_SEED)
    _copy_tokenizer(out / "tokenizer")
    report: dict[str, Any] = {
        "version": __version__,
        "corpus": corpus,
        "seeds": list(range(seeds)),
        **({"joint": _joint(out, seeds)} if "joint" in parts else {}),
        **({"cached": _cached(out, seeds)} if "cached" in parts else {}),
        "commands": commands(out, seeds, parts),
    }
    write_text(out / "table.md", markdown(report))
    write_json(out / "evidence.json", report)
    return report


def _joint(out: Path, seeds: int) -> dict[str, Any]:
    """The single-task models beside the joint model."""
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in JOINT_MODELS}
    base = _scores(_run(out, "base"))
    configs = {name: read_run_config(out / f"{name}.yaml") for name in JOINT_MODELS}
    for seed in range(seeds):
        for name, config in configs.items():
            scores[name].append(_scores(_run(out, name, config, seed)))
    return {"base": base, "twins": scores, **joint.compare(scores)}


def _cached(out: Path, seeds: int) -> dict[str, Any]:
    """The cached layouts with and without training for them."""
    train_files, repeats, several = out / "data" / "train", out / REPEATED, out / SEVERAL
    if not repeats.exists():
        say(_repeats_command(out))
        write_repeats(train_files / "documents.jsonl", repeats, REPEATS, CORPUS_SEED)
    if not several.exists():
        say(f"questions over several documents: {_several_command(out)}")
        write_rows(
            train_files / "rag.jsonl",
            several,
            SEVERAL_DOCUMENTS,
            corpus=train_files / "documents.jsonl",
            rows=SEVERAL_ROWS,
            seed=CORPUS_SEED,
        )
    _run(out, "base")
    _run(out, "copier")
    _run(out, "reader")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CACHED_MODELS}
    configs = {name: read_run_config(out / f"{name}.yaml") for name in CACHED_MODELS}
    for seed in range(seeds):
        for name, config in configs.items():
            folder = _run(out, name, config, seed)
            rows = cached.score(folder, out / "data" / "heldout")
            runs[name].append({**_cost(folder), "questions": len(rows[0]["hits"]), "rows": rows})
    return cached.compare(runs)


# ---- runs ----------------------------------------------------------------------------------------

REPEATED, SEVERAL = "data/train/repeats.jsonl", "data/train/several.jsonl"


def command(out: Path, name: str, seed: int | None = None) -> str:
    """The shell command of a run."""
    flags = "" if seed is None else f" --train.seed {seed} --output {_folder(out, name, seed)}"
    return f"grit train {out / name}.yaml{flags}"


def commands(out: Path, seeds: int, parts: Sequence[str] = PARTS) -> list[str]:
    """Everything that was run, as shell commands."""
    lines = [f"grit data pydocs --output {out / 'data'} --seed {CORPUS_SEED}", command(out, "base")]
    if "joint" in parts:
        lines += [command(out, name, seed) for seed in range(seeds) for name in JOINT_MODELS]
    if "cached" in parts:
        lines += [
            _repeats_command(out),
            _several_command(out),
            command(out, "copier"),
            command(out, "reader"),
        ]
        for seed in range(seeds):
            for name in CACHED_MODELS:
                folder = Path(_folder(out, name, seed))
                lines += [
                    command(out, name, seed),
                    *cached.commands(folder, out / "data" / "heldout"),
                ]
    return lines


def _repeats_command(out: Path) -> str:
    files = f"--input {out / 'data/train/documents.jsonl'} --output {out / REPEATED}"
    return f"grit data repeats {files} --rows {REPEATS} --seed {CORPUS_SEED}"


def _several_command(out: Path) -> str:
    files, ks = out / "data" / "train", ",".join(map(str, SEVERAL_DOCUMENTS))
    return (
        f"grit data distractors --input {files / 'rag.jsonl'} --corpus {files / 'documents.jsonl'}"
        f" --k {ks} --rows {SEVERAL_ROWS} --seed {CORPUS_SEED} --output {out / SEVERAL}"
    )


def _folder(out: Path, name: str, seed: int) -> str:
    return str(out / f"seed-{seed}" / name)


def _run(out: Path, name: str, config: RunConfig | None = None, seed: int | None = None) -> Path:
    """Trains one model unless it is trained already; returns its folder.

    `config` is that of `{name}.yaml`, if it was read before.
    """
    say(command(out, name, seed))
    config = config or read_run_config(out / f"{name}.yaml")
    if seed is not None:
        section = dataclasses.replace(config.train, seed=seed)
        config = dataclasses.replace(config, train=section, output=_folder(out, name, seed))
    return Path(train(config).output)


def _scores(folder: Path) -> dict[str, float]:
    """A run's held-out scores, steps and seconds."""
    lines = read_lines(folder / "metrics.jsonl")
    try:
        scores = {key: float(lines[-1][logged]) for key, logged in joint.SCORES.items()}
    except (IndexError, KeyError, TypeError):
        raise GritError(
            f"{folder / 'metrics.jsonl'}: lacks the final scores; remove {folder} to train that"
            " model again"
        ) from None
    return {**scores, **_cost(folder)}


def _cost(folder: Path) -> dict[str, float]:
    lines = read_lines(folder / "metrics.jsonl")
    return {"steps": len(lines), "seconds": round(sum(line.get("seconds", 0) for line in lines), 1)}


# ---- the folder ----------------------------------------------------------------------------------


def _claim(out: Path) -> None:
    """Copies the recipes into an empty folder, or checks that they are there.

    Raises:
      GritError: the folder holds something else or other recipes, or cannot be written.
    """
    writable_folder(out)
    try:
        names = {path.name for path in out.iterdir() if not is_temporary(path)}
        recipes = {out / f"{name}.yaml": text for name, text in recipe_texts().items()}
        if names and not names & {path.name for path in recipes}:
            raise GritError(
                f"{out}: the folder is not empty and holds no evidence; choose another --out"
            )
        for path, text in recipes.items():
            if path.name not in names:
                write_text(path, text)
            elif path.read_text(encoding="utf-8") != text and _config(path) != _parse(text, path):
                raise GritError(f"{path}: differs from this version's recipe; choose another --out")
    except OSError as error:
        raise GritError(
            f"{out}: cannot be used as output folder ({error.strerror}); choose another --out"
        ) from None


def _config(path: Path) -> RunConfig:
    return build(RunConfig, read_yaml(path), str(path))


def _parse(text: str, path: Path) -> RunConfig:
    return build(RunConfig, yaml.safe_load(text), str(path))


def _copy_tokenizer(folder: Path) -> None:
    """Copies the tokenizer of the quickstart's base model."""
    folder.mkdir(exist_ok=True)
    source = resources.files("grit_jax.quickstart") / "base_model"
    for name in TOKENIZER_FILES:
        write_text(folder / name, (source / name).read_text(encoding="utf-8"))


def markdown(report: dict[str, Any]) -> str:
    """The tables and their conclusions, for `table.md` and the terminal."""
    both = "joint" in report and "cached" in report
    blocks = []
    if "joint" in report:
        blocks += ["## Does joint training cost either task?"] * both + [joint.markdown(report)]
    if "cached" in report:
        blocks += ["## Do cached layouts need training?"] * both + [cached.markdown(report)]
    commands_run = "\n".join(f"    {line}" for line in report["commands"])
    return "\n\n".join([*blocks, "What was run:", commands_run]) + "\n"
