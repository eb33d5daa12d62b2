"""A training run from its configuration: tokenizer, data, state, loop, evaluation, exported
model."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh

from grit_jax.config import dump_yaml
from grit_jax.data.abstract_batch import abstract_batch
from grit_jax.data.multihost import HostGroup
from grit_jax.data.pipeline import JointBatches, make_iterator
from grit_jax.errors import GritError, out_of_memory
from grit_jax.evaluation.held_out import make_evaluation
from grit_jax.inference.model import GritLM
from grit_jax.models.hf import directory as huggingface
from grit_jax.models.hf.sources import resolve
from grit_jax.run_config import (
    PATH_KEYS,
    RunConfig,
    batch_needs,
    fit_to_context,
    fit_to_mesh,
    read_run_config,
    settings_of,
    step_config,
)
from grit_jax.run_model import (
    LoadedModel,
    load_model,
    load_tokenizer,
    model_shape,
    public_model,
    write_run_adapter,
)
from grit_jax.runtime.files import home_path, new_folder, writable_folder, write_text
from grit_jax.runtime.hosts import (
    Exchange,
    check_hosts_agree,
    check_same_folder,
    errors_together,
    fail_together,
    gather_text,
    is_first,
    wait_for_all,
    wait_for_peer_failure,
)
from grit_jax.runtime.preemption import Notice, Preempted, on_sigterm
from grit_jax.runtime.progress import say
from grit_jax.runtime.run_folder import MODEL, RunFolder
from grit_jax.runtime.trackers import Tracker, open_trackers
from grit_jax.sharding import MeshConfig, make_mesh, rows_by_host
from grit_jax.text.chat import FORMATS
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.contrastive import check_dimensions
from grit_jax.training.finite_weights import check_finite
from grit_jax.training.gradient_plan import gradient_plan
from grit_jax.training.hooks import (
    evaluate_held_out,
    profile_steps,
    save_checkpoints,
)
from grit_jax.training.loop import Program, run_loop
from grit_jax.training.reference_model import with_reference
from grit_jax.training.run_record import (
    Input,
    RunRecord,
    check_inputs,
    check_settings,
    describe_file,
    describe_weights,
    is_about_batches,
)
from grit_jax.training.state import TrainState, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.training.step_log import StepLog
from grit_jax.training.throughput import model_flops, peak_flops

DATA_SUMMARY_FILE = (  # in the output folder: what became of every source's examples
    "data_summary.json"
)
CONFIG_FILE = "config.yaml"  # in the output folder: the configuration as it was run, paths absolute


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

    Args:
      profile: trace the steps from the first number to before the second into `output/profile`.

    Raises:
      Preempted: SIGTERM came; the same call goes on from there.
      GritError: anything wrong with the configuration, the data, the base model or the output
        folder; hosts that differ in any of them; a checkpoint of another model.
    """
    versions = {"grit_jax": importlib.metadata.version("grit_jax"), "jax": jax.__version__}
    check_hosts_agree(settings_of(config) | versions | {"--resume": resume, "--profile": profile})
    output = _open_output(config.output)
    with on_sigterm() as notice, contextlib.ExitStack() as opened:
        opened.enter_context(_reported_failures(output))
        checkpoints = Checkpoints(
            output.checkpoints,
            every=config.train.checkpoint_every,
            keep=config.train.keep_checkpoints,
        )

        @opened.callback
        def close() -> None:
            with notice.hold():
                checkpoints.close()  # a save under way is finished whatever else went wrong
                output.close()

        run = _Run(config, output, checkpoints, _starting_step(checkpoints, output))
        if _is_finished(run, resume):
            steps = run.start
            return TrainResult(output.under(""), output.under(MODEL), steps, already_finished=True)
        span = _steps_to_profile(profile, run.start, config.train.steps)
        return _run(run, span, notice)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run whose output is open.

    Attributes:
      start: completed steps of the newest checkpoint; 0 without a checkpoint.
    """

    config: RunConfig
    output: RunFolder
    checkpoints: Checkpoints
    start: int

    @property
    def checkpoint(self) -> str:
        """The checkpoint that the run resumes from, as text for messages."""
        return f"{self.output.checkpoints}: the checkpoint of step {self.start}"


def _run(run: _Run, profile: tuple[int, int] | None, notice: Notice) -> TrainResult:
    """Everything is read and compared among the hosts before the first step is taken."""
    output, steps = run.output, run.config.train.steps
    tokenizer = load_tokenizer(run.config, output)
    shape = model_shape(run.config.model)
    config = fit_to_context(run.config, shape)
    mesh = make_mesh(config.mesh)
    exchange = Exchange()
    fitted = fit_to_mesh(config, mesh)
    batches, inputs = _open_data(run, fitted, tokenizer, mesh, exchange)
    run.checkpoints.record = RunRecord(settings_of(config), inputs, shape.context_length)
    iterator = make_iterator(
        fitted.data, tokenizer, seed=config.train.seed, num_steps=steps, batches=batches
    )
    model = load_model(config, tokenizer, mesh)
    run.checkpoints.base, run.checkpoints.optimizer = model.base, config.optimizer.state_kind
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    compiled = step_config(fitted, model.config)
    check_dimensions(compiled.loss, model.projection or model.config.hidden_size)
    _write_config(config, output)
    wrap = public_model(config, model.config, tokenizer, mesh)
    # The model of a shorter run would pass for this one's, were this one killed before its export.
    output.unmark_model(huggingface.GRIT_FILE)
    with jax.set_mesh(mesh):
        largest = abstract_batch(fitted.data, batch_needs(fitted))
        say(f"gradient: {gradient_plan(largest, compiled)}")
        state = _first_state(run, model, optimizer, iterator, mesh)
        program = Program(
            make_step(compiled, optimizer, schedule), iterator, mesh, run.start, steps
        )
        log = StepLog(
            output,
            run.start,
            steps,
            _open_trackers(run),
            batch_ids=batches.ids,
            flops=functools.partial(model_flops, config=compiled),
            peak=peak_flops(mesh.devices.flat),
        )
        with notice.hold(), contextlib.closing(exchange), log:
            hooks = [save_checkpoints(run.checkpoints, output, iterator)]
            if evaluate := make_evaluation(config.train, wrap):
                hooks.append(evaluate_held_out(evaluate, config.train.eval_every, log))
            if profile:
                hooks.append(profile_steps(*profile, run.start, str(output.local / "profile")))
            state = run_loop(
                state, program, log=log, hooks=hooks, stop_requested=lambda: notice.arrived
            )
    if notice.arrived:  # in the last step of all, too late for the hosts to agree on it
        raise Preempted("interrupted by SIGTERM; all steps are saved")
    _export_model(wrap(state), config, output)
    return TrainResult(output.under(""), output.under(MODEL), steps)


# ---- before the first step -----------------------------------------------------------------------


def _open_output(address: str) -> RunFolder:
    """The output folder, held by this run alone and the same one on all hosts."""
    output = RunFolder(address)
    try:
        with errors_together():
            if is_first() and not output.remote:
                writable_folder(output.local)
            output.begin()
        if not output.remote:
            check_same_folder(output.local)
        with errors_together():
            output.lock()
        output.copy_now_and_then()
    except GritError:
        output.close()
        raise
    return output


def _starting_step(checkpoints: Checkpoints, output: RunFolder) -> int:
    """The step of the newest checkpoint; 0 without a checkpoint."""
    latest = checkpoints.latest()
    seen = gather_text(str(latest or "none"))
    if number := next((number for number, other in enumerate(seen) if other != seen[0]), 0):
        fail_together(
            f"{output.checkpoints}: the newest checkpoint is {seen[0]} on process 0 and"
            f" {seen[number]} on process {number}; start again once all hosts see the same files"
        )
    return latest or 0


def _is_finished(run: _Run, resume: Literal["auto", "never"]) -> bool:
    """Whether there is nothing left to do; says what is set otherwise than in the checkpoint."""
    if not run.start:
        return False
    if resume == "never":
        fail_together(
            f"{run.output} holds a run (step {run.start}); remove it, or choose another output, or"
            " resume"
        )
    if (before := run.checkpoints.record_of(run.start)) is not None:
        # The record's context: the base model of a finished run may be gone.
        settings = settings_of(run.config, before.context)
        _report(run, _together(check_settings, before, settings, run.checkpoint))
    return run.start >= run.config.train.steps and run.output.has_model(huggingface.GRIT_FILE)


def _report(run: _Run, changes: list[str]) -> None:
    if changes:
        order = (
            "; the batches from here on are others than those of the run so far would have been"
            if any(map(is_about_batches, changes))
            else ""
        )
        say(f"warning: {run.checkpoint} was made with other settings: {'; '.join(changes)}{order}")


def _together(check: Callable[..., list[str]], *arguments: Any) -> list[str]:
    with errors_together():
        return check(*arguments)
    return []


def _steps_to_profile(
    profile: tuple[int, int] | None, start: int, steps: int
) -> tuple[int, int] | None:
    """The steps to trace; None where the run is past them, as the command of a run that was killed
    may find."""
    if profile is None:
        return None
    flag = f"--profile {profile[0]}:{profile[1]}"
    if profile[1] > steps:
        raise GritError(f"{flag}: this run goes from step {start} to {steps}")
    if profile[0] < start:
        say(f"{flag}: this run goes on from step {start}, past step {profile[0]}; no trace is made")
        return None
    return profile


def _open_data(
    run: _Run, fitted: RunConfig, tokenizer: Tokenizer, mesh: Mesh, exchange: Exchange
) -> tuple[JointBatches, dict[str, Input]]:
    """The run's batches, and what it reads (see `_inputs`). All that is read, held-out files
    included, is opened, compared among the hosts and with the checkpoint."""
    config = run.config
    rows = functools.partial(rows_by_host, mesh=mesh)
    hosts = HostGroup(exchange, rows) if exchange.hosts > 1 else None
    with errors_together():
        batches = JointBatches(
            fitted.data,
            tokenizer,
            tokenizer.format(FORMATS[config.tokenizer.chat]),
            config.train.seed,
            config.train.steps,
            batch_needs(config),
            hosts,
            probe=False,
        )
        inputs = _inputs(config, batches, tokenizer)
    names = {key: value.name for key, value in inputs.items()}
    check_hosts_agree({key: str(value) for key, value in inputs.items()}, names)
    if run.start and (before := run.checkpoints.record_of(run.start)) is not None:
        _report(run, _together(check_inputs, before, inputs, run.checkpoint))
    if is_first():
        batches.report_summary(run.output.local / DATA_SUMMARY_FILE)
    batches.probe()
    return batches, inputs


def _inputs(config: RunConfig, batches: JointBatches, tokenizer: Tokenizer) -> dict[str, Input]:
    """What a run reads, by the key that names it."""
    inputs = {}
    numbers: collections.Counter[str] = collections.Counter()
    for source in batches.summary:
        used = "" if source.used == source.lines else f", {source.used} used"
        # The settings leave out lists of file names, so `data.distilled` is recorded here.
        if source.kind == "generative" and source.name in config.data.distilled:
            used += ", distilled"
        inputs[f"data.{source.kind}[{numbers[source.kind]}]"] = Input(
            source.name, f"{source.lines} lines{used}", source.digest
        )
        numbers[source.kind] += 1
    for kind in ("embedding", "generative"):
        if path := getattr(config.train, f"eval_{kind}"):
            inputs[f"train.eval_{kind}"] = describe_file(path, kind)
    name = config.tokenizer.path or (
        "trained on tokenizer.train_on" if config.tokenizer.train_on else str(config.model.path)
    )
    inputs["tokenizer"] = Input(name, f"{tokenizer.vocab_size} ids", tokenizer.digest)
    if config.model.path:
        directory = resolve(config.model.path)
        inputs["model.path"] = describe_weights(directory, config.model.path)
    return inputs


def _first_state(
    run: _Run, model: LoadedModel, optimizer: optax.GradientTransformation, batches: Any, mesh: Mesh
) -> TrainState:
    """The state that the run starts from, and `batches` at its place in the data."""
    config = run.config
    key = jax.random.key(config.train.seed)
    state = init_state(
        model.config, optimizer, key, mesh, model.params, model.projection, config.lora
    )
    model.params = (
        None  # or the weights that were read would lie beside the state for the whole run
    )
    if config.copies_reference:
        state = with_reference(state, model.config, mesh)
    source = config.model.path or "the random weights"
    if run.start:
        state = run.checkpoints.restore(run.start, state, batches)
        source = run.checkpoint
    check_finite(state.frozen | state.params, model.config, mesh, source)
    return state


def _open_trackers(run: _Run) -> list[Tracker]:
    if not is_first():
        return []
    return open_trackers(
        run.output.local,
        run.start,
        tensorboard=run.config.train.tensorboard,
        wandb=run.config.train.wandb,
        config=dataclasses.asdict(run.config),
    )


def _write_config(config: RunConfig, output: RunFolder) -> None:
    if is_first():
        header = f"grit train {output.under(CONFIG_FILE)}"
        text = dump_yaml(config, header, paths=PATH_KEYS, folder=output.local)
        write_text(output.local / CONFIG_FILE, text)
        output.copy()  # what cannot be written shows here, not after the first steps


@contextlib.contextmanager
def _reported_failures(output: RunFolder) -> Iterator[None]:
    """Says what to do about a failure of JAX or of the file system."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        wait_for_peer_failure()
        if full := out_of_memory(error):
            raise GritError(
                f"this run does not fit the devices' memory ({full}); set train.embedding_chunk,"
                " generative_chunk, cached_chunk and preference_chunk, model.remat: full or smaller"
                " batches, or ask grit plan which slice it fits"
            ) from None
        raise
    except OSError as error:  # a full disk does not say where it is full
        error.filename = error.filename or str(output.local)
        raise


# ---- evaluation and export -----------------------------------------------------------------------


def _export_model(model: GritLM, config: RunConfig, output: RunFolder) -> None:
    if is_first():
        model.save_pretrained(output.local / MODEL, config.model.export_dtype)
        output.copy_model(huggingface.GRIT_FILE)
    else:
        huggingface.read_along(model.params, model.config)
    wait_for_all("model written")


def export_checkpoint(
    run: str | Path,
    out: str | Path,
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
    with (
        new_folder(home_path(out)) as folder,
        contextlib.closing(RunFolder(run, reads=True)) as output,
    ):
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
    trained = public_model(config, model.config, tokenizer, mesh)(state)
    if adapter:
        assert model.base is not None
        write_run_adapter(out, config, trained, state, model.base, dtype or "float32")
    else:
        trained.save_pretrained(out, dtype or config.model.export_dtype)
    return step
