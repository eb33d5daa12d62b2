"""The tokenizer and the model that a run's configuration starts from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grit_jax.data.sources import iter_documents
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.inference.opening import modules_of
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf import directory as huggingface
from grit_jax.models.hf.peft import AdapterBase, write_adapter
from grit_jax.models.hf.sources import published_name, resolve
from grit_jax.models.lora import adapter_shapes
from grit_jax.models.projection import PROJECTION, PROJECTION_AXES, layers_of
from grit_jax.models.transformer import Params, parameter_shapes
from grit_jax.run_config import ModelSection, RunConfig
from grit_jax.runtime.hosts import is_first, wait_for_all
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.sharding import put_weight
from grit_jax.text.chat import FORMATS
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.train_tokenizer import train_tokenizer
from grit_jax.training.checkpoint import FrozenBase
from grit_jax.training.frozen_base import load_base
from grit_jax.training.state import TRAINED_AXES, TrainState
from grit_jax.types import AttentionMode


@dataclasses.dataclass
class LoadedModel:
    """The model that a run starts from.

    Attributes:
      params: its weights; None: to be drawn at random. With `lora` they are frozen and in place.
      projection: dimensions of its projection, there or new; None: there is none.
      base: what the weights are called in checkpoints, with `lora`.
    """

    config: ModelConfig
    params: Params | None
    projection: int | None
    base: FrozenBase | None


def load_tokenizer(config: RunConfig, output: RunFolder) -> Tokenizer:
    """The run's tokenizer; one trained on the spot is kept in `output/tokenizer` so that a resumed
    run reads it."""
    section, kept = config.tokenizer, output.local / "tokenizer"
    if section.path:
        return Tokenizer.from_pretrained(resolve(section.path))
    if section.train_on:
        if is_first() and not (kept / "tokenizer.json").exists():
            texts = itertools.chain.from_iterable(map(iter_documents, section.train_on))
            tokenizer = train_tokenizer(texts, section.vocab_size)
            tokenizer.save(kept, FORMATS[section.chat])
            output.copy()
        wait_for_all("tokenizer")
        output.fetch()  # process 0 has it
        return Tokenizer.from_pretrained(kept)
    if config.model.path:
        return Tokenizer.from_pretrained(resolve(config.model.path))
    raise GritError(
        "tokenizer: set tokenizer.path, or tokenizer.train_on, or start from a model.path that"
        " has one"
    )


def model_shape(section: ModelSection) -> ModelConfig:
    """The shape of the model that a run starts from, without reading its weights.

    Raises:
      GritError: an absent or damaged model, or one of another shape than `model.shape` says.
    """
    if not section.path:
        assert section.known_shape is not None
        return section.known_shape
    directory = resolve(section.path)
    shape = huggingface.read_model_directory(directory, with_params=False).config
    check_shape(section, shape)
    return shape


def load_model(config: RunConfig, tokenizer: Tokenizer, mesh: Mesh) -> LoadedModel:
    """The model to train, checked against the configuration and the tokenizer.

    Raises:
      GritError: an absent or damaged model, one of another shape than `model.shape` says, or one
        that the tokenizer or `lora` does not fit.
    """
    section, params, base = config.model, None, None
    model_config = dataclasses.replace(model_shape(section), **model_settings(section))
    if section.path:
        directory = resolve(section.path)
        tokenizer.check_fits(model_config.vocab_size, str(section.path))
    else:
        ids = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
        model_config = dataclasses.replace(model_config, **ids)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise GritError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary"
            f" {model_config.vocab_size}; set model.shape.vocab_size to"
            f" {tokenizer.vocab_size} or more"
        )
    if config.lora is not None:
        adapter_shapes(config.lora, parameter_shapes(model_config))  # before anything large is read
        params, weights = load_base(directory, model_config, config.lora, mesh)
        base = FrozenBase(str(section.path), weights, config.lora.identity)
    elif section.path:
        place = functools.partial(put_weight, axes=TRAINED_AXES, mesh=mesh)
        params = huggingface.read_model_directory(directory, place=place).params
    return LoadedModel(model_config, params, projection_width(section, params), base)


def model_settings(section: ModelSection) -> dict[str, Any]:
    """How the model computes, which a shape leaves open."""
    return {"dtype": section.dtype, "remat": section.remat, "scan_layers": section.scan_layers}


def check_shape(section: ModelSection, loaded: ModelConfig) -> None:
    """Raises GritError if `model.shape` or `model.preset` differs from the config.json of
    `model.path`."""
    if section.known_shape is None:
        return
    asked, has = dataclasses.asdict(section.known_shape), dataclasses.asdict(loaded)
    free = {"dtype", "remat", "scan_layers", "initializer_range", "architecture"}
    for key in (key for key in asked if key not in free and not key.endswith("token_id")):
        if asked[key] != has[key] and not _close(asked[key], has[key]):
            which = (
                f"model.shape.{key}"
                if section.preset is None
                else f"model.preset {section.preset}: {key}"
            )
            raise GritError(
                f"{which} is {asked[key]}, but the model at {section.path} has {has[key]}"
            )


def _close(one: Any, other: Any) -> bool:
    """Whether two settings are the same number, which a GGUF file rounds to 32 bits."""
    return (
        isinstance(one, float)
        and isinstance(other, float)
        and math.isclose(one, other, rel_tol=1e-6)
    )


def projection_width(section: ModelSection, params: Params | None) -> int | None:
    """Dimensions of the run's projection, which is the loaded model's or a new one; None: it has no
    projection.

    Raises:
      GritError: the configured dimensions differ from the loaded model's.
    """
    layers = layers_of(params) if params is not None else []
    width = layers[-1][0].shape[1] if layers else None
    if width and section.projection not in (None, width):
        raise GritError(
            f"model.projection is {section.projection}, but the projection of {section.path} has"
            f" {width} dimensions; leave the key out to train that one"
        )
    if layers and PROJECTION not in (params or {}):
        return None  # Dense modules with activations, trained as they are
    return width or section.projection


def public_model(
    config: RunConfig, model_config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[TrainState], GritLM]:
    """The function from a state of training to the model that users know."""
    chat = tokenizer.format(FORMATS[config.tokenizer.chat])
    modes = config.model.modes
    options = ModelOptions(config.model.pooling, modes.embedding, modes.generation)
    return lambda state: GritLM(
        model_config,
        state.weights(config.lora),
        tokenizer,
        chat,
        options,
        mesh=mesh if mesh.size > 1 else None,
    )


def write_run_adapter(
    out: Path,
    config: RunConfig,
    trained: GritLM,
    state: TrainState,
    base: FrozenBase,
    dtype: str = "float32",
) -> None:
    """Writes the adapters of a LoRA run for PEFT, and the projection beside them.

    Args:
      trained: the model with the adapters in it.
      base: the model that they were trained on.
      dtype: float32 or bfloat16, of what is written.
    """
    projection = {name: trained.params[name] for name in PROJECTION_AXES if name in trained.params}
    modules = dataclasses.replace(
        modules_of(trained.chat, trained.pooling, trained.tokenizer),
        bidirectional=trained.mode is not AttentionMode.CAUSAL,
    )
    params = {**state.params, **projection}
    assert config.lora is not None
    settings = huggingface.DirectorySettings(
        trained.pooling,
        trained.mode,
        trained.generation_mode,
        trained.chat.name,
        trained.stop_ids,
        modules,
    )
    of = AdapterBase(published_name(base.model), base.weights)
    write_adapter(out, trained.config, config.lora, params, of, settings, dtype)
