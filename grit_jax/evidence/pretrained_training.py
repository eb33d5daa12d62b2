"""The short trainings of `grit evidence --base MODEL`: recipes filled in with the model, the files
and the steps, and run by `grit train`'s own function."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import yaml

from grit_jax.config import build, dump_yaml
from grit_jax.data.config import DataConfig
from grit_jax.data.distractors import write_rows
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evidence.pretrained_run import PretrainedRun, open_model
from grit_jax.evidence.recipes import pretrained_recipe
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.models.hf.sources import PACKAGED
from grit_jax.run_config import (
    ATTENTION_CODES,
    PATH_KEYS,
    AttentionModes,
    RunConfig,
    read_run_config,
)
from grit_jax.runtime.files import write_text
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.progress import say
from grit_jax.text.chat import FORMATS
from grit_jax.train import train

CHAT = "chat/train.jsonl"  # in the recipes: the file of --chat
SEVERAL = "several.jsonl"  # in the output folder: questions over one and several documents
SEVERAL_DOCUMENTS = (1, 1, 2, 3, 5)
SEVERAL_ROWS = 600  # at most


class Trainer:
    """Trains the variants of a base that a run lacks."""

    def __init__(self, run: PretrainedRun):
        self.run = run

    def train(self, name: str, seed: int) -> Path:
        """Trains one variant unless it is trained already; returns the folder of its run.

        Raises:
          GritError: the folder holds the configuration of other flags, or a training's own errors.
        """
        config = self._written_config(name)
        folder = self.run.out.absolute() / f"seed-{seed}" / name
        say(f"grit train {self.run.out / name}.yaml --train.seed {seed} --output {folder}")
        section = dataclasses.replace(config.train, seed=seed)
        return Path(train(dataclasses.replace(config, train=section, output=str(folder))).output)

    def base(self) -> GritLM:
        """The base as the variants start from it: in their chat format, with their pooling and
        attention."""
        config, model = self.config("unified"), self._base
        modes = config.model.modes
        options = ModelOptions(config.model.pooling, modes.embedding, modes.generation)
        chat = model.tokenizer.format(FORMATS[config.tokenizer.chat])
        return GritLM(model.config, model.params, model.tokenizer, chat, options, mesh=model.mesh)

    def config(self, name: str) -> RunConfig:
        """The filled-in recipe of a variant; file names are absolute."""
        config = build(
            RunConfig, yaml.safe_load(pretrained_recipe(name)), f"pretrained_{name}.yaml"
        )
        options, section = self.run.options, config.train
        steps = options.steps or section.steps
        loss = section.loss
        if options.chat is None:
            loss = dataclasses.replace(loss, generative_distillation=0.0, distilled_language=1.0)
        config = dataclasses.replace(
            config,
            data=self._data(config.data),
            train=dataclasses.replace(section, steps=steps, loss=loss),
            output=str(self.run.out.absolute() / config.output),
        )
        return config if _is_packaged(options.base) else self._on_base(config)

    def _written_config(self, name: str) -> RunConfig:
        """The configuration in the output folder, written there before the first training."""
        path, config = self.run.out / f"{name}.yaml", self.config(name)
        if SEVERAL in map(_file_name, config.data.cached):
            self._write_several()
        if not path.exists():
            header = f"grit train {path} --output ANOTHER_FOLDER"
            folder = self.run.out.absolute()
            write_text(path, dump_yaml(config, header, paths=PATH_KEYS, folder=folder))
        written = read_run_config(path)
        if written != config:
            raise GritError(
                f"{path}: differs from what this version and these flags give (--steps, --chat);"
                " choose another --out"
            )
        return written

    def _data(self, data: DataConfig) -> DataConfig:
        """The data section with the run's files; sources of --chat are left out without it."""
        chat = self.run.options.chat

        def place(name: str) -> str | None:
            if name == CHAT:
                return None if chat is None else str(chat.absolute())
            inside = Path(name).relative_to("data") if name.startswith("data/") else None
            root = self.run.out if inside is None else self.run.data
            return str((root / (inside or name)).absolute())

        sources = {
            key: [file for name in getattr(data, key) if (file := place(name)) is not None]
            for key in ("embedding", "generative", "distilled", "cached")
        }
        samples = {file: n for name, n in data.num_samples.items() if (file := place(name))}
        return dataclasses.replace(data, num_samples=samples, **sources)

    def _on_base(self, config: RunConfig) -> RunConfig:
        """The configuration for another base than the recipe's: its format, pooling and attention
        are kept."""
        base, model = self.run.options.base, self._base
        modes = AttentionModes(model.mode, model.generation_mode)
        section = dataclasses.replace(
            config.model,
            path=str(Path(base).absolute()) if Path(base).exists() else base,
            preset=None,
            pooling=model.pooling,
            attention=next(code for code, known in ATTENTION_CODES.items() if known == modes),
        )
        chat = model.chat.name if model.chat.name in FORMATS else "grit"
        tokenizer = dataclasses.replace(config.tokenizer, chat=chat)
        return dataclasses.replace(config, model=section, tokenizer=tokenizer)

    @functools.cached_property
    def _base(self) -> GritLM:
        return open_model(self.run.options.base)

    def _write_several(self) -> None:
        """Training questions over one and several documents."""
        path, questions = self.run.out / SEVERAL, self.run.train("rag")
        if not path.exists():
            rows = min(SEVERAL_ROWS, len(read_examples(questions, "cached")))
            write_rows(
                questions, path, SEVERAL_DOCUMENTS, corpus=self.run.train("documents"), rows=rows
            )


def training_cost(folder: Path) -> dict[str, Any]:
    """Steps, tokens and seconds of a finished training."""
    lines = read_lines(folder / "metrics.jsonl")
    total = lambda key: sum(line.get(key, 0) for line in lines)
    return {"steps": len(lines), "tokens": total("tokens"), "seconds": round(total("seconds"), 1)}


def _is_packaged(base: str) -> bool:
    """Whether the base is the model that the recipes name."""
    return base in PACKAGED and not Path(base).exists()


def _file_name(path: str) -> str:
    return Path(path).name
