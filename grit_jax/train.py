"""A training run from its configuration: tokenizer, data, state, loop, evaluation, exported model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from grit_jax.config import dump_yaml, load_config
from grit_jax.data.chat import FORMATS
from grit_jax.data.datasets import open_lines
from grit_jax.data.formats import document_text
from grit_jax.data.pipeline import JointBatches, make_iterator
from grit_jax.data.settings import BatchNeeds, DataConfig
from grit_jax.data.tokenizer import Tokenizer
from grit_jax.data.unigram import train_tokenizer
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.retrieval import evaluate_retrieval
from grit_jax.inference.files import new_folder, writable_folder
from grit_jax.inference.model import GritLM
from grit_jax.models import huggingface
from grit_jax.models.config import ModelConfig
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import PROJECTION
from grit_jax.models.transformer import Params
from grit_jax.sharding import MeshConfig, ShardingRules, make_mesh
from grit_jax.training.attention_codes import ATTENTION_CODES, AttentionModes
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.contrastive import check_dimensions
from grit_jax.training.joint import CHUNKS, StepConfig, check_chunks
from grit_jax.training.loop import Evaluate, run_loop
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.types import AttentionMode, GritError

DATA_SUMMARY_FILE = "data_summary.json"  # in the output folder: what became of every source's examples
CONFIG_FILE = "config.yaml"  # in the output folder: the configuration as it was run, paths absolute

# Keys of a configuration that hold file names (see config.load_config).
PATH_KEYS = (
    "model.path", "tokenizer.path", "tokenizer.train_on", "data.embedding", "data.generative", "data.cached",
    "data.num_samples", "train.eval_embedding", "train.eval_generative", "output",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What is trained: `path` (a Hugging Face directory or hub id), or random weights of `shape`.

    Attributes:
      attention: who sees whom, as a code of the paper (see `training/attention_codes.py`).
      projection: dimensions of a linear head on the embeddings, trained with the model; None: none but what the
        model at `path` has.
    """

    path: str | None = None
    shape: ModelConfig | None = None
    pooling: PoolingMethod = "mean"
    attention: str = "bbcc"
    projection: int | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; weights and moments are float32
    remat: Literal["none", "full", "dots"] = "full"
    scan_layers: bool = True
    export_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.shape is None):
            raise ValueError("model needs either 'path' (a model directory or hub id) or 'shape' (for random weights)")
        if self.attention not in ATTENTION_CODES:
            known = ", ".join(ATTENTION_CODES)
            raise ValueError(f"model.attention must be one of {known}, is '{self.attention}'")
        if self.projection is not None and self.projection < 1:
            raise ValueError(f"model.projection must be at least 1, is {self.projection}")

    @property
    def modes(self) -> AttentionModes:
        """What `attention` means."""
        return ATTENTION_CODES[self.attention]


@dataclasses.dataclass(frozen=True)
class TokenizerSection:
    """Where the tokenizer comes from: `path`, else the model's directory, else trained on `train_on`."""

    path: str | None = None
    train_on: list[str] = dataclasses.field(default_factory=list)
    vocab_size: int = 2048
    chat: str = "grit"

    def __post_init__(self) -> None:
        if self.chat not in FORMATS:
            raise ValueError(f"tokenizer.chat must be one of {', '.join(FORMATS)}, is '{self.chat}'")


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """How long, how often, and with which losses and gradients.

    Attributes:
      embedding_chunk, generative_chunk, cached_chunk: rows of a batch taken at a time; the numbers stay the same,
        memory is that of a chunk. Embedding chunks cost a second forward pass (GradCache), the others none.
      backward: "joint" is one backward pass for all losses, "separate" one for each in turn, "split" beside it one
        for the queries' and one for the passages' side of the contrastive loss; the gradient is the same.
      gradient: "query" or "passage" trains one side of the contrastive loss alone, the other being held fixed.
    """

    steps: int = 1000
    seed: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    eval_every: int = 0  # 0: at the end only
    eval_embedding: str | None = None  # held-out files; None: no evaluation of that kind
    eval_generative: str | None = None
    embedding_chunk: int | None = None
    generative_chunk: int | None = None
    cached_chunk: int | None = None
    backward: Literal["joint", "separate", "split"] = "joint"
    gradient: Literal["both", "query", "passage"] = "both"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for key, least in (("steps", 1), ("seed", 0), ("checkpoint_every", 1), ("keep_checkpoints", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"train.{key} must be at least {least}, is {getattr(self, key)}")
        for key in CHUNKS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"train.{key} must be at least 1 row, is {getattr(self, key)}")
        if self.eval_every < 0:
            raise ValueError(f"train.eval_every must be at least 0, is {self.eval_every}")
        if self.backward == "split" and self.gradient != "both":
            raise ValueError(
                f"train.backward: split adds up both sides' gradients, train.gradient is {self.gradient}; "
                "use backward: separate with it"
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training configuration, as its YAML has it."""

    model: ModelSection
    output: str
    tokenizer: TokenizerSection = dataclasses.field(default_factory=TokenizerSection)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass
class TrainResult:
    """What a finished run leaves: its folder and its model directory."""

    output: Path
    model: Path
    steps: int
    already_finished: bool = False


def read_run_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A run's configuration from YAML and command line; see `config.load_config` for the errors."""
    return load_config(RunConfig, path, overrides, paths=PATH_KEYS)


def train(
    config: RunConfig, *, resume: Literal["auto", "never"] = "auto", profile: tuple[int, int] | None = None
) -> TrainResult:
    """Runs a configuration to its end and exports the model to `output/model`.

    `resume="auto"` goes on from the newest checkpoint in `output`; "never" refuses a folder that has one.

    Raises:
      GritError: anything wrong with the configuration, the data, the base model or the output folder.
    """
    output = Path(config.output)
    model_directory = output / "model"
    writable_folder(output)
    checkpoints = Checkpoints(
        output / "checkpoints", every=config.train.checkpoint_every, keep=config.train.keep_checkpoints
    )
    try:
        latest = checkpoints.latest()
        if latest is not None and resume == "never":
            raise GritError(f"{output} holds a run (step {latest}); remove it, or choose another output, or resume")
        if latest is not None and latest >= config.train.steps and (model_directory / "grit.json").exists():
            return TrainResult(output, model_directory, latest, already_finished=True)
        if profile and not (latest or 0) <= profile[0] < profile[1] <= config.train.steps:
            span = f"{profile[0]}:{profile[1]}"
            raise GritError(f"--profile {span}: this run goes from step {latest or 0} to {config.train.steps}")
        # The model of a shorter run would pass for this one's, were this one killed before its export.
        (model_directory / huggingface.GRIT_FILE).unlink(missing_ok=True)
        return _run(config, output, model_directory, checkpoints, profile)
    except OSError as error:  # a full disk does not say where it is full
        error.filename = error.filename or str(output)
        raise
    finally:
        checkpoints.close()  # a save under way is finished whatever else went wrong


def _run(
    config: RunConfig, output: Path, model_directory: Path, checkpoints: Checkpoints, profile: tuple[int, int] | None
) -> TrainResult:
    # --- tokenizer and data ---
    tokenizer = load_tokenizer(config, output)
    chat = tokenizer.format(FORMATS[config.tokenizer.chat])
    batches = JointBatches(
        config.data, tokenizer, chat, config.train.seed, config.train.steps, batch_needs(config)
    )
    batches.tell_summary(output / DATA_SUMMARY_FILE)
    iterator = make_iterator(config.data, tokenizer, chat, config.train.seed, config.train.steps, batches)

    # --- model and optimizer ---
    model_config, params = load_model(config.model, tokenizer)
    projection = projection_width(config.model, params)
    mesh, rules = make_mesh(config.mesh), ShardingRules()
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    how = step_config(config, model_config)
    check_dimensions(how.loss, projection or model_config.hidden_size)
    check_chunks(how, mesh, rules)
    (output / CONFIG_FILE).write_text(dump_yaml(config, f"grit train {output / CONFIG_FILE}"))
    wrap = _wrapper(config, model_config, tokenizer)
    with jax.set_mesh(mesh):
        state = init_state(model_config, optimizer, jax.random.key(config.train.seed), mesh, rules, params, projection)
        state = run_loop(
            state, make_step(how, optimizer, schedule), iterator,
            steps=config.train.steps, mesh=mesh, rules=rules, output=output, checkpoints=checkpoints,
            evaluate=make_evaluation(config.train, wrap), evaluate_every=config.train.eval_every,
            batch_ids=batches.ids, profile=profile,
        )  # fmt: skip

    # --- export ---
    wrap(state.params).save_pretrained(model_directory, config.model.export_dtype)
    return TrainResult(output, model_directory, config.train.steps)


def step_config(config: RunConfig, model_config: ModelConfig) -> StepConfig:
    """What the compiled step depends on."""
    train, modes = config.train, config.model.modes
    return StepConfig(
        model_config, train.loss, config.model.pooling, train.embedding_chunk, train.generative_chunk,
        train.cached_chunk, modes.embedding, modes.generation, train.backward, train.gradient,
    )  # fmt: skip


def batch_needs(config: RunConfig) -> BatchNeeds:
    """What the run's attention and losses ask of its batches."""
    train, modes = config.train, config.model.modes
    return BatchNeeds(
        sample_blocks=modes.embedding is AttentionMode.PREFIX,
        prefix_generation=modes.generation is AttentionMode.PREFIX,
        separate_sides=train.backward == "split" or train.gradient != "both",
        teacher_scores=train.loss.distillation_factor > 0,
    )


def load_tokenizer(config: RunConfig, output: Path) -> Tokenizer:
    """The run's tokenizer; one trained on the spot is kept in `output/tokenizer` so that a resumed run reads it."""
    section, kept = config.tokenizer, output / "tokenizer"
    if section.path:
        return Tokenizer.from_pretrained(huggingface.resolve(section.path))
    if section.train_on:
        if not (kept / "tokenizer.json").exists():
            tokenizer = train_tokenizer(_texts(section.train_on), section.vocab_size)
            tokenizer.save(kept, FORMATS[section.chat])
        return Tokenizer.from_pretrained(kept)
    if config.model.path:
        return Tokenizer.from_pretrained(huggingface.resolve(config.model.path))
    raise GritError("tokenizer: set tokenizer.path, or tokenizer.train_on, or start from a model.path that has one")


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


def load_model(section: ModelSection, tokenizer: Tokenizer) -> tuple[ModelConfig, Params | None]:
    """The model's shape and its weights (None: to be drawn at random), checked against the tokenizer."""
    how = {"dtype": section.dtype, "remat": section.remat, "scan_layers": section.scan_layers}
    params: Params | None = None
    if section.path:
        found = huggingface.read_model_directory(huggingface.resolve(section.path))
        config, params = dataclasses.replace(found.config, **how), found.params
    else:
        assert section.shape is not None
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        config = dataclasses.replace(section.shape, **how, **ids)
    if tokenizer.vocab_size > config.vocab_size:
        raise GritError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary {config.vocab_size}; "
            "set model.shape.vocab_size to at least the former"
        )
    return config, params


def projection_width(section: ModelSection, params: Params | None) -> int | None:
    """Dimensions of the run's projection: those of the model it starts from, or of a new one; None: there is none.

    Raises:
      GritError: the configuration asks for others than the model has.
    """
    there = params[PROJECTION].shape[1] if params is not None and PROJECTION in params else None
    if there and section.projection not in (None, there):
        raise GritError(
            f"model.projection is {section.projection}, but {section.path} has one of {there} dimensions; "
            "leave the key out to train that"
        )
    return there or section.projection


def make_evaluation(section: TrainSection, wrap: Callable[[Params], GritLM]) -> Evaluate | None:
    """The evaluation that the loop calls: retrieval and perplexity on the held-out files, or None."""
    if not (section.eval_embedding or section.eval_generative):
        return None

    def evaluate(state: TrainState) -> dict[str, float]:
        model = wrap(state.params)
        scores: dict[str, float] = {}
        if section.eval_embedding:
            retrieval = evaluate_retrieval(model, section.eval_embedding)
            scores |= {f"eval_{name}": value for name, value in retrieval.items()}
        if section.eval_generative:
            scores["eval_perplexity"] = evaluate_perplexity(model, section.eval_generative)
        return scores

    return evaluate


def export_checkpoint(run: Path, out: Path, dtype: Literal["float32", "bfloat16"] | None = None) -> int:
    """Writes the newest checkpoint of a run's folder as a model directory; returns its step.

    Raises:
      GritError: `run` holds no configuration or no whole checkpoint; `out` holds something or cannot be written.
    """
    with new_folder(out) as folder:
        return _export(run, folder, dtype)


def _export(run: Path, out: Path, dtype: Literal["float32", "bfloat16"] | None) -> int:
    if not (run / CONFIG_FILE).exists():
        raise GritError(f"{run}: no {CONFIG_FILE} there; name the output folder of a training run")
    config = read_run_config(run / CONFIG_FILE)
    checkpoints = Checkpoints(run / "checkpoints", every=1)
    step = checkpoints.latest()
    if step is None:
        raise GritError(f"{run / 'checkpoints'}: no whole checkpoint there")
    tokenizer = load_tokenizer(config, run)
    model_config, params = load_model(config.model, tokenizer)
    projection = projection_width(config.model, params)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps))
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        like = init_state(
            model_config, optimizer, jax.random.key(0), mesh, ShardingRules(), projection=projection
        )
        state = checkpoints.restore(step, like, None)
    checkpoints.close()
    _wrapper(config, model_config, tokenizer)(state.params).save_pretrained(out, dtype or config.model.export_dtype)
    return step


def _wrapper(config: RunConfig, model_config: ModelConfig, tokenizer: Tokenizer) -> Callable[[Params], GritLM]:
    """Weights in training -> the public model object."""
    chat = tokenizer.format(FORMATS[config.tokenizer.chat])
    modes, pooling = config.model.modes, config.model.pooling
    return lambda params: GritLM(
        model_config, params, tokenizer, chat, pooling, mode=modes.embedding, generation_mode=modes.generation
    )
