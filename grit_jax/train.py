"""A training run from its configuration: tokenizer, data, state, loop, evaluation, exported
model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from grit_jax.config import dump_yaml
from grit_jax.data.formats import document_text
from grit_jax.data.multihost import HostGroup
from grit_jax.data.pipeline import JointBatches, make_iterator
from grit_jax.data.sources import open_lines
from grit_jax.errors import GritError, out_of_memory
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.retrieval import evaluate_retrieval
from grit_jax.inference.model import GritLM
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf import directory as huggingface
from grit_jax.models.hf.peft import write_adapter
from grit_jax.models.lora import adapter_shapes
from grit_jax.models.projection import PROJECTION
from grit_jax.models.transformer import Params, parameter_shapes
from grit_jax.run_config import (
    PATH_KEYS,
    ModelSection,
    RunConfig,
    TrainSection,
    batch_needs,
    fit_to_mesh,
    read_run_config,
    step_config,
)
from grit_jax.runtime.files import new_folder, writable_folder, write_text
from grit_jax.runtime.hosts import (
    Exchange,
    all_say,
    check_same_folder,
    fail_together,
    is_first,
    wait_for_all,
    wait_for_peer_failure,
)
from grit_jax.runtime.preemption import Notice, Preempted, on_sigterm
from grit_jax.runtime.progress import say
from grit_jax.runtime.run_folder import MODEL, RunFolder
from grit_jax.runtime.trackers import open_trackers
from grit_jax.sharding import MeshConfig, make_mesh, put_weight, rows_by_host
from grit_jax.text.chat import FORMATS
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.train_tokenizer import train_tokenizer
from grit_jax.training.checkpoint import Checkpoints, FrozenBase
from grit_jax.training.contrastive import check_dimensions
from grit_jax.training.frozen_base import load_base
from grit_jax.training.loop import Evaluate, run_loop
from grit_jax.training.state import (
    TRAINED_AXES,
    TrainState,
    init_state,
    make_optimizer,
    make_schedule,
)
from grit_jax.training.step import make_step
from grit_jax.training.throughput import model_flops

DATA_SUMMARY_FILE = (  # in the output folder: what became of every source's examples
    "data_summary.json"
)
CONFIG_FILE = "config.yaml"  # in the output folder: the configuration as it was run, paths absolute


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


@dataclasses.dataclass
class TrainResult:
    """What a finished run leaves: its folder and its model directory, or the addresses of them."""

    output: str | Path
    model: str | Path
    steps: int
    already_finished: bool = False


def train(
    config: RunConfig,
    *,
    resume: Literal["auto", "never"] = "auto",
    profile: tuple[int, int] | None = None,
) -> TrainResult:
    """Runs a configuration to its end and exports the model to `output/model`.

    `resume="auto"` goes on from the newest checkpoint in `output`; "never" refuses a folder that
    has one. On SIGTERM the step under way ends and is saved; one that comes seconds after it ends
    the process at once.

    Raises:
      Preempted: SIGTERM came; the same call goes on from there.
      GritError: anything wrong with the configuration, the data, the base model or the output
        folder.
    """
    output = RunFolder(config.output)
    if is_first() and not output.remote:
        writable_folder(output.local)
    output.begin()
    output.copy_now_and_then()
    wait_for_all("output folder")
    if not output.remote:
        check_same_folder(output.local)
    checkpoints = Checkpoints(
        output.checkpoints, every=config.train.checkpoint_every, keep=config.train.keep_checkpoints
    )
    with on_sigterm() as notice:
        try:
            return _go_on(config, output, checkpoints, resume, profile, notice)
        except jax.errors.JaxRuntimeError as error:
            wait_for_peer_failure()
            if full := out_of_memory(error):
                raise GritError(
                    f"this run does not fit the devices' memory ({full}); set"
                    " train.embedding_chunk, generative_chunk and cached_chunk, model.remat: full"
                    " or smaller batches, or ask grit plan which slice it fits"
                ) from None
            raise
        except OSError as error:  # a full disk does not say where it is full
            error.filename = error.filename or str(output.local)
            raise
        finally:
            with notice.hold():
                checkpoints.close()  # a save under way is finished whatever else went wrong
                output.close()


def _go_on(
    config: RunConfig,
    output: RunFolder,
    checkpoints: Checkpoints,
    resume: Literal["auto", "never"],
    profile: tuple[int, int] | None,
    notice: Notice,
) -> TrainResult:
    latest = checkpoints.latest()
    seen = all_say(str(latest or "none"))
    if number := next((number for number, other in enumerate(seen) if other != seen[0]), 0):
        fail_together(
            f"{output.checkpoints}: the newest checkpoint is {seen[0]} on process 0 and"
            f" {seen[number]} on process {number}; start again once all hosts see the same files"
        )
    if latest is not None and resume == "never":
        raise GritError(
            f"{output} holds a run (step {latest}); remove it, or choose another output, or resume"
        )
    if (
        latest is not None
        and latest >= config.train.steps
        and output.has_model(huggingface.GRIT_FILE)
    ):
        return TrainResult(output.under(""), output.under(MODEL), latest, already_finished=True)
    profile = _still_ahead(profile, latest or 0, config.train.steps)
    # The model of a shorter run would pass for this one's, were this one killed before its export.
    output.unmark_model(huggingface.GRIT_FILE)
    return _run(config, output, checkpoints, profile, notice)


def _still_ahead(profile: tuple[int, int] | None, start: int, steps: int) -> tuple[int, int] | None:
    """The steps to trace; None where the run has begun them already, as the command of one that was
    killed may find."""
    if profile is None:
        return None
    span = f"--profile {profile[0]}:{profile[1]}"
    if profile[1] > steps:
        raise GritError(f"{span}: this run goes from step {start} to {steps}")
    if profile[0] < start:
        say(
            f"{span}: step {profile[0]} is behind this run, which goes on from step {start}; no"
            " trace is made"
        )
        return None
    return profile


def _run(
    config: RunConfig,
    output: RunFolder,
    checkpoints: Checkpoints,
    profile: tuple[int, int] | None,
    notice: Notice,
) -> TrainResult:
    trackers = (
        open_trackers(
            output.local,
            checkpoints.latest() or 0,
            tensorboard=config.train.tensorboard,
            wandb=config.train.wandb,
            config=dataclasses.asdict(config),
        )
        if is_first()
        else []
    )

    # --- tokenizer and data ---
    tokenizer = load_tokenizer(config, output)
    chat = tokenizer.format(FORMATS[config.tokenizer.chat])
    mesh = make_mesh(config.mesh)
    fitted = fit_to_mesh(config, mesh)
    data = fitted.data
    exchange = Exchange()
    hosts = (
        HostGroup(exchange, functools.partial(rows_by_host, mesh=mesh))
        if exchange.hosts > 1
        else None
    )
    batches = JointBatches(
        data, tokenizer, chat, config.train.seed, config.train.steps, batch_needs(config), hosts
    )
    if is_first():
        batches.report_summary(output.local / DATA_SUMMARY_FILE)
    iterator = make_iterator(data, tokenizer, chat, config.train.seed, config.train.steps, batches)

    # --- model and optimizer ---
    model = load_model(config, tokenizer, mesh)
    checkpoints.base, checkpoints.optimizer = model.base, config.optimizer.keeps
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    how = step_config(fitted, model.config)
    check_dimensions(how.loss, model.projection or model.config.hidden_size)
    if is_first():
        header = f"grit train {output.under(CONFIG_FILE)}"
        text = dump_yaml(config, header, paths=PATH_KEYS, folder=output.local)
        write_text(output.local / CONFIG_FILE, text)
        output.copy()  # what cannot be written shows here, not after the first steps
    wrap = _wrapper(config, model.config, tokenizer, mesh)
    with jax.set_mesh(mesh):
        key = jax.random.key(config.train.seed)
        state = init_state(
            model.config, optimizer, key, mesh, model.params, model.projection, config.lora
        )
        model.params = (
            None  # or the weights that were read would lie beside the state for the whole run
        )
        with notice.hold(), contextlib.closing(exchange):
            state = run_loop(
                state,
                make_step(how, optimizer, schedule),
                iterator,
                steps=config.train.steps,
                mesh=mesh,
                output=output,
                checkpoints=checkpoints,
                evaluate=make_evaluation(config.train, wrap),
                evaluate_every=config.train.eval_every,
                batch_ids=batches.ids,
                profile=profile,
                told_to_stop=lambda: notice.arrived,
                flops=functools.partial(model_flops, config=how),
                trackers=trackers,
            )
    if notice.arrived:  # in the last step of all, too late for the hosts to agree on it
        raise Preempted("told to stop; all steps are saved")

    # --- export ---
    trained = wrap(state)
    if is_first():
        trained.save_pretrained(output.local / MODEL, config.model.export_dtype)
        output.copy_model(huggingface.GRIT_FILE)
    else:
        huggingface.read_along(trained.params, trained.config)
    wait_for_all("model written")
    return TrainResult(output.under(""), output.under(MODEL), config.train.steps)


def load_tokenizer(config: RunConfig, output: RunFolder) -> Tokenizer:
    """The run's tokenizer; one trained on the spot is kept in `output/tokenizer` so that a resumed
    run reads it."""
    section, kept = config.tokenizer, output.local / "tokenizer"
    if section.path:
        return Tokenizer.from_pretrained(huggingface.resolve(section.path))
    if section.train_on:
        if is_first() and not (kept / "tokenizer.json").exists():
            tokenizer = train_tokenizer(_texts(section.train_on), section.vocab_size)
            tokenizer.save(kept, FORMATS[section.chat])
            output.copy()
        wait_for_all("tokenizer")
        output.fetch()  # process 0 has it
        return Tokenizer.from_pretrained(kept)
    if config.model.path:
        return Tokenizer.from_pretrained(huggingface.resolve(config.model.path))
    raise GritError(
        "tokenizer: set tokenizer.path, or tokenizer.train_on, or start from a model.path that"
        " has one"
    )


def _texts(sources: list[str]) -> Iterator[str]:
    """The texts of corpus lines `{"id", "title"?, "text"}`."""
    for source in sources:
        lines = open_lines(source)
        for index in range(len(lines)):
            where = lines.where(index)
            try:
                yield document_text(json.loads(lines[index]), where)
            except ValueError as error:
                raise GritError(f"{where}: not valid JSON: {error}") from None


def load_model(config: RunConfig, tokenizer: Tokenizer, mesh: Mesh) -> LoadedModel:
    """The model to train, checked against the configuration and the tokenizer.

    Raises:
      GritError: an absent or damaged model, one of another shape than `model.shape` says, or one
        that the tokenizer or `lora` does not fit.
    """
    section, params, base = config.model, None, None
    if section.path:
        directory = huggingface.resolve(section.path)
        shape = huggingface.read_model_directory(directory, with_params=False).config
        check_shape(section, shape)
        model_config = dataclasses.replace(shape, **model_settings(section))
    else:
        assert section.known_shape is not None
        ids = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
        model_config = dataclasses.replace(section.known_shape, **model_settings(section), **ids)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise GritError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary"
            f" {model_config.vocab_size}; set model.shape.vocab_size to at least the former"
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


def check_shape(section: ModelSection, found: ModelConfig) -> None:
    """Raises GritError where `model.shape` or `model.preset` and the config.json of `model.path`
    differ."""
    if section.known_shape is None:
        return
    asked, has = dataclasses.asdict(section.known_shape), dataclasses.asdict(found)
    free = {"dtype", "remat", "scan_layers", "initializer_range", "architecture"}
    for key in (key for key in asked if key not in free and not key.endswith("token_id")):
        if asked[key] != has[key]:
            which = (
                f"model.shape.{key}"
                if section.preset is None
                else f"model.preset {section.preset}: {key}"
            )
            raise GritError(
                f"{which} is {asked[key]}, but the model at {section.path} has {has[key]}"
            )


def projection_width(section: ModelSection, params: Params | None) -> int | None:
    """Dimensions of the run's projection: those of the model it starts from, or of a new one; None:
    there is none.

    Raises:
      GritError: the configuration asks for others than the model has.
    """
    there = params[PROJECTION].shape[1] if params is not None and PROJECTION in params else None
    if there and section.projection not in (None, there):
        raise GritError(
            f"model.projection is {section.projection}, but {section.path} has one of {there}"
            " dimensions; leave the key out to train that"
        )
    return there or section.projection


def make_evaluation(section: TrainSection, wrap: Callable[[TrainState], GritLM]) -> Evaluate | None:
    """The evaluation that the loop calls: retrieval and perplexity on the held-out files, or
    None."""
    if not (section.eval_embedding or section.eval_generative):
        return None

    def evaluate(state: TrainState) -> dict[str, float]:
        model = wrap(state)
        scores: dict[str, float] = {}
        if section.eval_embedding:
            retrieval = evaluate_retrieval(model, section.eval_embedding)
            scores |= {f"eval_{name}": value for name, value in retrieval.items()}
        if section.eval_generative:
            scores["eval_perplexity"] = evaluate_perplexity(model, section.eval_generative)
        return scores

    return evaluate


def export_checkpoint(
    run: str | Path,
    out: Path,
    dtype: Literal["float32", "bfloat16"] | None = None,
    *,
    adapter: bool = False,
) -> int:
    """Writes the newest checkpoint of a run's folder as a model directory; returns its step.

    Args:
      adapter: write the adapters of a LoRA run for PEFT instead of the model that they are merged
        into.

    Raises:
      GritError: `run` holds no configuration or no whole checkpoint; `out` holds something or
        cannot be written.
    """
    # It may be one that trains here right now: its folder on this machine is not ours.
    with new_folder(out) as folder, contextlib.closing(RunFolder(run, reads=True)) as output:
        output.begin()
        return _export(output, folder, dtype, adapter)


def _export(
    run: RunFolder, out: Path, dtype: Literal["float32", "bfloat16"] | None, adapter: bool
) -> int:
    if not (run.local / CONFIG_FILE).exists():
        raise GritError(f"{run}: no {CONFIG_FILE} there; name the output folder of a training run")
    config = read_run_config(run.local / CONFIG_FILE)
    if adapter and config.lora is None:
        raise GritError(
            f"{run}: trained without lora, so there are no adapters; leave --adapter out"
        )
    checkpoints = Checkpoints(run.checkpoints, every=1, writes=False)
    step = checkpoints.latest()
    if step is None:
        raise GritError(f"{run.checkpoints}: no whole checkpoint there")
    tokenizer = load_tokenizer(config, run)
    mesh = make_mesh(MeshConfig())
    model = load_model(config, tokenizer, mesh)
    checkpoints.base = model.base
    optimizer = make_optimizer(
        config.optimizer, make_schedule(config.optimizer, config.train.steps)
    )
    with jax.set_mesh(mesh):
        key = jax.random.key(0)
        like = init_state(
            model.config, optimizer, key, mesh, model.params, model.projection, config.lora
        )
        state = checkpoints.restore(step, like, None)
    checkpoints.close()
    if adapter:
        assert config.lora is not None
        write_adapter(out, model.config, config.lora, state.params, str(config.model.path))
    else:
        _wrapper(config, model.config, tokenizer, mesh)(state).save_pretrained(
            out, dtype or config.model.export_dtype
        )
    return step


def _wrapper(
    config: RunConfig, model_config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[TrainState], GritLM]:
    """A model in training -> the public model object."""
    chat = tokenizer.format(FORMATS[config.tokenizer.chat])
    modes, pooling = config.model.modes, config.model.pooling
    return lambda state: GritLM(
        model_config,
        state.weights(config.lora),
        tokenizer,
        chat,
        pooling,
        mode=modes.embedding,
        generation_mode=modes.generation,
        mesh=mesh if mesh.size > 1 else None,
    )
