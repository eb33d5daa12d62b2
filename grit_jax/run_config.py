"""A training configuration, as its YAML has it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from grit_jax.config import load_config, to_dict
from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig, Remat
from grit_jax.models.lora import LoraConfig
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.presets import PRESETS
from grit_jax.runtime.progress import say
from grit_jax.sharding import MeshConfig, num_row_shards, num_token_shards
from grit_jax.text.chat import FORMATS
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig
from grit_jax.training.step_config import CHUNKS, StepConfig
from grit_jax.types import AttentionMode

_EMBEDDING = {
    "bb": AttentionMode.BIDIRECTIONAL,
    "cc": AttentionMode.CAUSAL,
    "cb": AttentionMode.PREFIX,
}
_GENERATION = {"cc": AttentionMode.CAUSAL, "bc": AttentionMode.PREFIX}


@dataclasses.dataclass(frozen=True)
class AttentionModes:
    """The mode of an embedding pass and that of a generating one."""

    embedding: AttentionMode
    generation: AttentionMode


# Four letters: instruction and sample when embedding, then prompt and answer when generating; `b`
# is bidirectional and `c` causal (docs/method.md). Two letters set one side: "bc" (a prefix
# language model) sets generation and leaves embedding bidirectional, the others set embedding
# and leave generation causal.
ATTENTION_CODES = {
    first + second: AttentionModes(embedding, generation)
    for first, embedding in _EMBEDDING.items()
    for second, generation in _GENERATION.items()
} | {
    "bb": AttentionModes(AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL),
    "cc": AttentionModes(AttentionMode.CAUSAL, AttentionMode.CAUSAL),
    "cb": AttentionModes(AttentionMode.PREFIX, AttentionMode.CAUSAL),
    "bc": AttentionModes(AttentionMode.BIDIRECTIONAL, AttentionMode.PREFIX),
}


# Keys of a configuration that hold file names (see config.load_config).
PATH_KEYS = (
    "model.path",
    "tokenizer.path",
    "tokenizer.train_on",
    "data.embedding",
    "data.generative",
    "data.distilled",
    "data.cached",
    "data.preference",
    "data.num_samples",
    "train.eval_embedding",
    "train.eval_generative",
    "output",
)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What is trained: `path` (a Hugging Face directory or hub id), or random weights of a shape:
    `shape`, or that of the published model that `preset` names.

    A shape beside a path is what the model there is known to be: it can be planned for without
    being here.

    Attributes:
      attention: who sees whom, as a code of the paper (see `ATTENTION_CODES`).
      projection: dimensions of a linear head on the embeddings, trained with the model; None: none
        but what the model at `path` has.
    """

    path: str | None = None
    shape: ModelConfig | None = None
    preset: str | None = None
    pooling: PoolingMethod = "mean"
    attention: str = "bbcc"
    projection: int | None = None
    # The dtype of the computation; weights and moments are float32.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # What the operands of products with weights are rounded to; None: nothing, but what the device
    # does to float32 by itself (TPUs round it to bfloat16). Sums stay in float32.
    matmul_precision: Literal["bfloat16", "float32"] | None = None
    remat: Remat = "full"  # see models/transformer.py: REMAT_POLICIES
    scan_layers: bool = True
    export_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.path is None and self.shape is None and self.preset is None:
            raise ValueError(
                "model: set model.path (a model directory or hub id), or, for random weights,"
                " model.shape or model.preset"
            )
        if self.shape is not None and self.preset is not None:
            raise ValueError(
                "model.shape and model.preset both give the model's shape; leave one of them out"
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"model.preset: must be one of {', '.join(PRESETS)}, got '{self.preset}'"
            )
        if self.attention not in ATTENTION_CODES:
            known = ", ".join(ATTENTION_CODES)
            raise ValueError(f"model.attention: must be one of {known}, got '{self.attention}'")
        if self.projection is not None and self.projection < 1:
            raise ValueError(f"model.projection: must be at least 1, got {self.projection}")

    @property
    def known_shape(self) -> ModelConfig | None:
        """The model's shape, as far as the configuration itself says."""
        return self.shape if self.preset is None else PRESETS[self.preset]

    @property
    def modes(self) -> AttentionModes:
        """The attention modes that the code in `attention` stands for."""
        return ATTENTION_CODES[self.attention]


@dataclasses.dataclass(frozen=True)
class TokenizerSection:
    """Where the tokenizer comes from: `path`, else the model's directory, else trained on
    `train_on`."""

    path: str | None = None
    train_on: list[str] = dataclasses.field(default_factory=list)
    vocab_size: int = 2048
    chat: str = "grit"

    def __post_init__(self) -> None:
        if self.chat not in FORMATS:
            raise ValueError(
                f"tokenizer.chat: must be one of {', '.join(FORMATS)}, got '{self.chat}'"
            )


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """Length of the run, checkpoints, evaluation, losses, and how gradients are computed.

    Attributes:
      embedding_chunk, generative_chunk, cached_chunk, preference_chunk: rows of a batch that are
        computed at a time (gradient accumulation), rounded up to a multiple of the devices that
        rows are split over.
        This bounds memory and does not change the update: a query's negatives are those of the
        whole batch, and a token's weight does not depend on its chunk. Embedding chunks cost a
        second forward pass (GradCache); the others cost nothing.
      backward: "joint" runs one backward pass for all losses, "separate" one for each loss in turn,
        "split" also separates the queries' and the passages' side of the contrastive loss. The
        gradient is the same.
      gradient: "query" or "passage" trains one side of the contrastive loss only; the other is held
        fixed.
      tensorboard, wandb: also write the numbers of metrics.jsonl to TensorBoard event files in the
        output folder, or to the W&B project of this name.
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
    preference_chunk: int | None = None
    backward: Literal["joint", "separate", "split"] = "joint"
    gradient: Literal["both", "query", "passage"] = "both"
    tensorboard: bool = False
    wandb: str | None = None
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for key, least in (
            ("steps", 1),
            ("seed", 0),
            ("checkpoint_every", 1),
            ("keep_checkpoints", 1),
        ):
            if getattr(self, key) < least:
                raise ValueError(f"train.{key}: must be at least {least}, got {getattr(self, key)}")
        for key in CHUNKS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"train.{key}: must be at least 1 row, got {getattr(self, key)}")
        if self.eval_every < 0:
            raise ValueError(f"train.eval_every: must be at least 0, got {self.eval_every}")
        if self.backward == "split" and self.gradient != "both":
            raise ValueError(
                "train.backward: split needs train.gradient: both, got"
                f" {self.gradient}; set train.backward: separate"
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
    lora: LoraConfig | None = None  # adapters to a frozen model instead of all weights

    def __post_init__(self) -> None:
        if self.lora is not None and self.model.path is None:
            raise ValueError("lora: adapters need a trained model; set model.path")
        loss = self.train.loss
        if loss.generative_distillation and self.lora is None:
            raise ValueError(
                "train.loss.generative_distillation: the teacher is the model without its adapters;"
                " add a lora section, or set the factor to 0"
            )
        if self.data.preference_batch:
            self.data.check_preference(loss.preference)
        if self.data.distilled and not loss.generative_distillation:
            raise ValueError(
                "data.distilled has no effect with train.loss.generative_distillation: 0"
            )

    @property
    def copies_reference(self) -> bool:
        """Whether the run keeps a copy of its first weights as the reference model of a preference
        loss; a LoRA run has them as its base."""
        return bool(self.data.preference_batch) and self.lora is None


def read_run_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A run's configuration from YAML and command line; see `config.load_config` for the errors.

    >>> config = read_run_config("run.yaml", {"train.steps": "100"})
    >>> config.train.steps, config.data.generative_batch
    (100, 4)
    """
    return load_config(RunConfig, path, overrides, paths=PATH_KEYS)


def settings_of(config: RunConfig, context: int | None = None) -> dict[str, Any]:
    """A configuration by dotted keys, file names left out: what two hosts of a run have in common,
    and what a run that goes on compares with its checkpoint. A preset is the shape that it stands
    for.

    Args:
      context: lengths that nobody set are lowered to these tokens, as `fit_to_context` does.
    """
    settings: dict[str, Any] = {}
    if context is not None:
        config = dataclasses.replace(config, data=config.data.fit_to_context(context))

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value and prefix not in PATH_KEYS:
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, inner)
        elif prefix not in (*PATH_KEYS, "model.preset"):
            settings[prefix] = value

    tree = to_dict(config)
    if (shape := config.model.known_shape) is not None:
        # Settings of the run, which take the place of the shape's own.
        run = ("dtype", "remat", "scan_layers", "architecture")
        tree["model"]["shape"] = {k: v for k, v in to_dict(shape).items() if k not in run}
    if config.lora is not None:
        tree["lora"]["targets"] = sorted(config.lora.targets)  # their order has no effect
    flatten("", tree)
    return json.loads(json.dumps(settings))


def fit_to_mesh(config: RunConfig, mesh: Mesh) -> RunConfig:
    """The configuration as a mesh runs it: rows and chunks of rows in multiples of the parts that
    rows are split into (or each device would compute them all). The numbers of a step stay what
    they are.

    Prints a line for each chunk that has to be rounded up (by less than a row on each device).

    Raises:
      GritError: rows of a length that the devices of `mesh.context` do not divide.
    """
    data, limits, train = config.data, config.data.limits(), config.train
    ways, parts = num_token_shards(mesh), num_row_shards(mesh)
    lengths = {
        "row_length": (
            data.embedding_batch and (data.row_length or max(limits.query, limits.passage))
        ),
        "generative_row_length": (
            data.generative_batch and (data.generative_row_length or limits.generative)
        ),
        "pieces_row_length": data.cached_batch and limits.cached_row,
        "cached_row_length": data.cached_batch and limits.continuation_row,
        "teacher_row_length": (
            data.cached_batch and train.loss.cached_distillation and limits.teacher_row
        ),
        "preference_row_length": (
            data.preference_batch and data.preference_row(train.loss.preference)
        ),
    }
    for key, length in lengths.items():
        if length % ways:
            raise GritError(
                f"data.{key}: must be a multiple of mesh.context ({ways}), got {length} tokens"
            )
    for key in CHUNKS:
        if (chunk := getattr(train, key)) and chunk % parts:
            whole = round_up(chunk, parts)
            say(
                f"train.{key}: {whole} instead of {chunk}, because rows are split over {parts}"
                " devices"
            )
            train = dataclasses.replace(train, **{key: whole})
    rows = dataclasses.replace(data, row_multiple=math.lcm(data.row_multiple, parts))
    return dataclasses.replace(config, data=rows, train=train)


def fit_to_context(config: RunConfig, model_config: ModelConfig) -> RunConfig:
    """The configuration with the lengths of texts that nobody set lowered to the model's context.
    Prints a line for each that the run uses."""
    data = config.data.fit_to_context(model_config.context_length)
    for key in data.trained_lengths():
        if (tokens := getattr(data, key)) < getattr(config.data, key):
            say(f"data.{key}: {tokens} tokens, the model's context")
    return dataclasses.replace(config, data=data)


def step_config(config: RunConfig, model_config: ModelConfig) -> StepConfig:
    """What the compiled step depends on.

    Raises:
      GritError: a `data.*_max_length` is beyond the model's context.
    """
    config.data.check_lengths(model_config.context_length)
    train, modes = config.train, config.model.modes
    return StepConfig(
        model_config,
        train.loss,
        pooling=config.model.pooling,
        embedding_chunk=train.embedding_chunk,
        generative_chunk=train.generative_chunk,
        cached_chunk=train.cached_chunk,
        preference_chunk=train.preference_chunk,
        embedding_mode=modes.embedding,
        generation_mode=modes.generation,
        backward=train.backward,
        gradient=train.gradient,
        lora=config.lora,
        seed=train.seed,
        matmul_precision=config.model.matmul_precision,
    )


def batch_needs(config: RunConfig) -> BatchNeeds:
    """What the run's attention and losses ask of its batches."""
    train, modes = config.train, config.model.modes
    return BatchNeeds(
        sample_blocks=modes.embedding is AttentionMode.PREFIX,
        prefix_generation=modes.generation is AttentionMode.PREFIX,
        separate_sides=train.backward == "split" or train.gradient != "both",
        teacher_scores=train.loss.distillation_factor > 0,
        teacher_rows=train.loss.cached_distillation > 0,
        base_teacher=train.loss.generative_distillation > 0,
        preference=train.loss.preference,
    )
