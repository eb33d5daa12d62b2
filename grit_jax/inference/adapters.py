"""LoRA adapters beside one model's weights, to be chosen by each request of an engine."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.models.adapter_stack import AdapterStack, stacked
from grit_jax.models.hf.directory import SENTENCE_FORMAT
from grit_jax.models.hf.peft import Adapter, read_adapter
from grit_jax.models.hf.sources import ADAPTED, adapter_folder
from grit_jax.models.lora import A, AdaptedWeight, B
from grit_jax.models.projection import PROJECTION_AXES
from grit_jax.models.quantise import Quantised
from grit_jax.models.transformer import PARAMETER_AXES, Params
from grit_jax.models.weights_hash import WeightsHash
from grit_jax.runtime.files import home_path
from grit_jax.sharding import fitted_sharding
from grit_jax.text.chat import FORMATS


def with_adapters(model: GritLM, folders: Mapping[str, str | Path]) -> GritLM:
    """The model with LoRA adapters beside its weights, which are shared and not changed.

    It computes what the model itself does. Its `adapters` are models that compute what the merged
    models do, with the chat format, pooling and attention of their own directories. Its engine
    runs requests for all of them in common batches (`GenerateRequest.adapter`).

    Args:
      folders: PEFT's directories by the adapters' names, or a name of an adapter that comes with
        the package.

    Raises:
      GritError: a directory that is damaged or does not fit the model, or an adapter that cannot be
        run beside others.
    """
    adapters = [_read(model, name, folder) for name, folder in folders.items()]
    factors = [(adapter.params, adapter.lora) for adapter in adapters]
    params = _placed(stacked(model.params, factors, model.config.dtype), model)
    options = ModelOptions(
        model.pooling,
        model.mode,
        model.generation_mode,
        model.stop_ids,
        model.template,
        model.sentence,
    )
    whole = _chosen(model, params, 0, options)
    whole._hash = lambda: model.weights_hash
    views = []
    for number, adapter in enumerate(adapters, 1):
        view = _chosen(model, params, number, options, adapter)
        view._hash = lambda adapter=adapter: merged_hash(model, adapter)
        views.append(view)
    whole.adapters = tuple(views)
    return whole


def merged_hash(model: GritLM, adapter: Adapter) -> str:
    """`GritLM.weights_hash` of the model with an adapter merged into it (`hf.merge.write_merged`).

    The weights are read again from the model's directory, in float32: merged weights depend on the
    dtype of the base.

    Raises:
      GritError: the directory has changed or is gone.
    """
    digest = WeightsHash(model.config)

    def add(name: str, values: np.ndarray) -> None:
        if name + A in adapter.params:
            a, b = adapter.params[name + A], adapter.params[name + B]
            weight = AdaptedWeight(values, a, b, None, adapter.lora.scale)
            values = np.stack([np.asarray(weight[layer]) for layer in range(len(a))])
        digest.add(name, values)

    if model._files is not None:
        model._files.visit(add, "float32")
    else:
        for name, weight in model.params.items():
            plain = weight.dequantise("float32") if isinstance(weight, Quantised) else weight
            add(name, np.asarray(plain))
    return digest.hexdigest()


def _read(model: GritLM, name: str, folder: str | Path) -> Adapter:
    """An adapter that fits the model and can be run beside others."""
    path = home_path(folder)
    if not path.is_dir() and str(folder) in ADAPTED:
        path = adapter_folder(str(folder))
    if not path.is_dir():
        raise GritError(f"adapter {name}: {folder}: no such folder; expected one that PEFT opens")
    adapter, settings = read_adapter(path, model.config), None
    settings = adapter.settings
    if any(key in PROJECTION_AXES for key in adapter.params):
        raise GritError(
            f"adapter {name}: {path}: it has a projection of its own, and all adapters of a model"
            " share its projection; open the merged model instead"
        )
    for key, factor in adapter.params.items():
        if not np.isfinite(factor).all():
            raise GritError(f"adapter {name}: {path}: {key} holds NaN or infinity")
    if settings is not None and settings.generation_mode is not model.generation_mode:
        raise GritError(
            f"adapter {name}: {path}: it reads prompts in mode {settings.generation_mode.value},"
            f" the model in mode {model.generation_mode.value}; open the merged model instead"
        )
    if settings is not None and settings.chat_format not in (None, SENTENCE_FORMAT, *FORMATS):
        raise GritError(
            f"adapter {name}: {path}: chat format '{settings.chat_format}' is unknown; known:"
            f" {', '.join(FORMATS)}"
        )
    trained_on = adapter.base.weights
    if trained_on is not None and trained_on != model.weights_hash:
        warnings.warn(
            f"adapter {name}: {path}: it was trained on other weights ({trained_on}) than this"
            f" model's ({model.weights_hash}), so its results may differ",
            stacklevel=3,
        )
    return adapter


def _chosen(
    model: GritLM,
    params: Params,
    number: int,
    options: ModelOptions,
    adapter: Adapter | None = None,
) -> GritLM:
    """The model with one adapter chosen (0: none), in the format that the adapter was trained
    with."""
    chat, settings = model.chat, adapter.settings if adapter is not None else None
    if settings is not None:
        options = dataclasses.replace(
            options, pooling=settings.pooling, mode=settings.embedding_mode
        )
        if settings.chat_format in FORMATS:
            chat = model.tokenizer.format(FORMATS[str(settings.chat_format)])
            ends = [token for token in (model.config.eos_token_id,) if token is not None]
            options = dataclasses.replace(options, stop_ids=ends, template=None, sentence=None)
    weights = {
        name: (
            dataclasses.replace(weight, choice=np.full_like(weight.choice, number))
            if isinstance(weight, AdapterStack)
            else weight
        )
        for name, weight in params.items()
    }
    view = GritLM(model.config, weights, model.tokenizer, chat, options, mesh=model.mesh)
    view.encoder.tokens_per_call = model.encoder.tokens_per_call
    return view


def _placed(params: dict[str, Any], model: GritLM) -> Params:
    """The weights, with the adapters' factors on the devices that have the base's."""

    def place(name: str, weight: Any) -> Any:
        if not isinstance(weight, AdapterStack):
            return weight
        axes = weight.axes(PARAMETER_AXES[name])
        put = lambda array, axes: jax.device_put(
            array,
            None if model.mesh is None else fitted_sharding(axes, array.shape, model.mesh),
        )
        return dataclasses.replace(weight, a=put(weight.a, axes.a), b=put(weight.b, axes.b))

    return {name: place(name, weight) for name, weight in params.items()}
