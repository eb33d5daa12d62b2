"""The training step of a configuration with its state and batch as shapes, to trace without
running."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from grit_jax.data.abstract_batch import abstract_batch
from grit_jax.errors import GritError
from grit_jax.inference.opening import model_shape
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.sources import is_here, resolve
from grit_jax.run_config import RunConfig, batch_needs, step_config
from grit_jax.run_model import model_settings
from grit_jax.training.joint import StepConfig
from grit_jax.training.reference_model import abstract_reference
from grit_jax.training.state import TrainState, abstract_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.types import Batch


@dataclasses.dataclass
class AbstractStep:
    """A training step and the shapes of its arguments: `jax.eval_shape(step, state, batch)` traces
    it. `config` is what the step was made of."""

    model: ModelConfig
    config: StepConfig
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
    state: TrainState
    batch: Batch


def abstract_step(config: RunConfig) -> AbstractStep:
    """The step of a configuration, with its state and its largest batch as shapes. Reads neither
    data nor weights.

    Raises:
      GritError: the model's shape is not known (`model.path` is not a directory, and neither
        `model.preset` nor `model.shape` is given), or every batch size is 0.
    """
    section, shape = config.model, config.model.known_shape
    if shape is None:
        if not is_here(section.path):
            raise GritError(
                f"model.path: {section.path} is not a directory; name the model by model.preset or"
                " model.shape"
            )
        shape = model_shape(resolve(str(section.path)))
    model_config = dataclasses.replace(shape, **model_settings(section))
    data = config.data.fit_to_context(model_config.context_length)
    config = dataclasses.replace(config, data=data)
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    compiled = step_config(config, model_config)
    state = abstract_state(model_config, optimizer, section.projection, config.lora)
    if config.copies_reference:
        state = abstract_reference(state, model_config)
    return AbstractStep(
        model_config,
        compiled,
        make_step(compiled, optimizer, schedule),
        state,
        abstract_batch(config.data, batch_needs(config)),
    )
