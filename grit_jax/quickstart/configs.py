"""The training configurations of the quickstart."""

from __future__ import annotations

from grit_jax.data.config import DataConfig
from grit_jax.inference.model import GritLM
from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig
from grit_jax.run_config import (
    ATTENTION_CODES,
    AttentionModes,
    ModelSection,
    RunConfig,
    TokenizerSection,
    TrainSection,
)
from grit_jax.text.chat import FORMATS
from grit_jax.text.rag_layouts import MODES
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig

ANSWER_TOKENS = 28  # the longest answer of the held-out questions and its end of sequence
LAYOUTS = [mode for mode in MODES if mode != "none"]
# The shape of the shipped base model, and of the one that --from-scratch trains.
SHAPE = ModelConfig(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=48,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)
# The fastest settings on a CPU.
CPU_SETTINGS = {"dtype": "float32", "remat": "none", "scan_layers": False}
STEPS = 180  # of the joint training
_TRAIN_FILE = "data/train/{}.jsonl".format


def joint_config(seed: int, steps: int | None = None) -> RunConfig:
    """The configuration that the quickstart trains: all three losses together, from the base.

    Paths are relative to the output folder; `steps` are `STEPS` unless given.
    """
    return RunConfig(
        model=ModelSection(path="base", export_dtype="float32", **CPU_SETTINGS),
        output=".",
        data=_data_config(embedding_batch=32, generative_batch=12, cached_batch=12),
        train=TrainSection(
            steps=STEPS if steps is None else steps,
            seed=seed,
            checkpoint_every=30,
            eval_embedding="data/heldout/embedding.jsonl",
            eval_generative="data/heldout/generative.jsonl",
            loss=LossConfig(),
        ),
        optimizer=OptimizerConfig(
            lr=6e-4,
            schedule="cosine",
            warmup_fraction=0.05,
            final_lr_fraction=0.05,
            weight_decay=0.05,
            b2=0.98,
        ),
    )


def continued_config(path: str, seed: int, steps: int, model: GritLM) -> RunConfig:
    """The configuration of a short training that starts from a pretrained model: adapters, all
    three losses, batches that two cores take in under a minute.

    Args:
      path: of the model, absolute or a name.
      model: the same, opened: its format, pooling and attention are kept.
    """
    chat = model.chat.name if model.chat.name in FORMATS else "grit"
    modes = AttentionModes(model.mode, model.generation_mode)
    attention = next(code for code, known in ATTENTION_CODES.items() if known == modes)
    return RunConfig(
        model=ModelSection(
            path=path,
            pooling=model.pooling,
            attention=attention,
            dtype="float32",
            remat="none",
            export_dtype="float32",
        ),
        lora=LoraConfig(rank=8, alpha=16.0, dropout=0.0),
        output=".",
        tokenizer=TokenizerSection(chat=chat),
        data=DataConfig(
            embedding=[_TRAIN_FILE("embedding_summary"), _TRAIN_FILE("embedding_question")],
            generative=[_TRAIN_FILE("generative")],
            cached=[_TRAIN_FILE("rag")],
            embedding_batch=8,
            generative_batch=2,
            cached_batch=2,
            query_max_length=64,
            passage_max_length=192,
            row_length=384,
            generative_max_length=256,
            generative_row_length=256,
            document_max_length=256,
            pieces_row_length=384,
            cached_row_length=384,
            row_multiple=1,
            layouts=LAYOUTS,
        ),
        train=TrainSection(steps=steps, seed=seed, checkpoint_every=50),
        optimizer=OptimizerConfig(lr=2e-4, schedule="cosine", warmup_fraction=0.1, b2=0.98),
    )


def base_config(seed: int) -> RunConfig:
    """The warm-up of `--from-scratch`, which learns to write and to copy: a shorter
    configs/quickstart_base_warmup.yaml."""
    return RunConfig(
        model=ModelSection(shape=SHAPE, **CPU_SETTINGS),
        output="warmup",
        tokenizer=TokenizerSection(
            train_on=["data/train/documents.jsonl"], vocab_size=SHAPE.vocab_size
        ),
        data=_data_config(embedding_batch=0, generative_batch=24, cached_batch=24),
        train=TrainSection(steps=900, seed=seed, checkpoint_every=100),
        optimizer=OptimizerConfig(
            lr=1.5e-3, schedule="cosine", final_lr_fraction=0.3, weight_decay=0.05, b2=0.98
        ),
    )


def _data_config(**batches: int) -> DataConfig:
    """The corpus's files and lengths. Rows are short because the cost of attention on a CPU grows
    with their square. A tenth of the rows over cached documents are judgements of relevance, in
    place of rows that recite, which the base has learnt."""
    joint = batches["embedding_batch"] > 0
    return DataConfig(
        embedding=[_TRAIN_FILE("embedding_summary"), _TRAIN_FILE("embedding_question")]
        if joint
        else [],
        generative=[_TRAIN_FILE("copying"), _TRAIN_FILE("generative")],
        cached=[_TRAIN_FILE("rag"), _TRAIN_FILE("recite")]
        + ([_TRAIN_FILE("relevance")] if joint else []),
        num_samples={_TRAIN_FILE("recite"): 8500, _TRAIN_FILE("relevance"): 2000} if joint else {},
        query_max_length=64,
        passage_max_length=176,
        row_length=192,
        generative_max_length=192,
        generative_row_length=192,
        document_max_length=176,
        pieces_row_length=192,
        cached_row_length=256,
        row_multiple=2,
        layouts=LAYOUTS,
        **batches,
    )
