"""The configurations of all runs; the files in `configs/evidence` are these.

    base ── unified, embedding, generative     (joint.py)
       └─── copier ── reader ── trained, untrained       (cached.py)

Learning rates and the weight of the language loss of the joint part were chosen on another split of
the documents (corpus seed 1, with a base of its own, seed 100), two runs for the contrastive twin,
three for the generative and four for the unified one.
"""

from __future__ import annotations

import os
from typing import Any

from grit_jax.data.config import DataConfig
from grit_jax.quickstart.configs import CPU_SETTINGS, SHAPE
from grit_jax.run_config import ModelSection, RunConfig, TokenizerSection, TrainSection
from grit_jax.text.rag_layouts import MODES
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig

JOINT_TWINS = ("unified", "embedding", "generative")
# After 300 steps of that split: nDCG@10 .445 at 5e-4 and .388 at 1e-3 for the contrastive loss
# alone; perplexity 24.73 at 5e-4, 24.62 at 1e-3 and 25.67 at 2e-3 for the language loss alone.
LEARNING_RATES = {"unified": 1e-3, "embedding": 5e-4, "generative": 1e-3}
# The contrastive gradient is about seven times as long as the language loss's. At 1e-3 a factor of
# 8 gave nDCG@10 .429 and perplexity 25.45, 24 gave .334 and 24.68, and 6 rising to 32 over the run
# .361 and 24.95; 16 at 2e-3 gave .404 and 25.93.
GENERATIVE_FACTOR = 8.0

CACHED_TWINS = ("untrained", "trained")
PLAIN = [
    "query-then-doc",
    "doc-then-query",
]  # the layouts in which the base and one twin read: never a cache
LAYOUTS = {"untrained": PLAIN, "trained": [mode for mode in MODES if mode != "none"]}
SEVERAL_ROWS, SEVERAL_DOCUMENTS = (
    30_000,
    [2, 3, 4, 5],
)  # rows over several documents, half of the twins' questions
REPEATS = 60_000  # rows of repeated passages
NO_PIECES = 8  # tokens of a row of cached texts where there are none: as few as the kernels take


def base_config(root: str = ".", tokenizer: str = "tokenizer") -> RunConfig:
    """What all twins start from: a language model of this documentation that has seen no
    contrastive data.

    Args:
      root: the evidence's folder, as seen from where the configuration lies.
      tokenizer: the folder with the package's tokenizer, likewise.
    """
    return RunConfig(
        model=ModelSection(shape=SHAPE, **CPU_SETTINGS),  # type: ignore[arg-type]
        output=_join(root, "base"),
        tokenizer=TokenizerSection(path=_join(root, tokenizer)),
        data=_data(root, generative=["copying", "generative"], generative_batch=16),
        train=_train(root, steps=1500, checkpoint_every=150),
        optimizer=_optimizer(1.5e-3, final_lr_fraction=0.1),
    )


def joint_config(name: str, root: str = ".") -> RunConfig:
    """The twin `name` (one of `JOINT_TWINS`), seed 0; `root` as in `base_config`."""
    embedding = (
        {} if name == "generative" else {"embedding": ["embedding_summary"], "embedding_batch": 16}
    )
    generative = (
        {} if name == "embedding" else {"generative": ["generative"], "generative_batch": 16}
    )
    loss = LossConfig(generative_factor=GENERATIVE_FACTOR) if name == "unified" else LossConfig()
    return RunConfig(
        model=_model(root, "base"),
        output=_join(root, f"seed-0/{name}"),
        data=_data(root, **embedding, **generative),
        train=_train(root, steps=300, checkpoint_every=60, loss=loss),
        optimizer=_optimizer(LEARNING_RATES[name]),
    )


def copier_config(root: str = ".") -> RunConfig:
    """What the reader starts from: it looks back for what it has read (induction heads).

    The base alone does not, and question rows do not teach it: 263 steps of the reader from the
    base (40 questions each) brought the loss of their answers from 3.57 to 3.3, 120 from such a
    copier (20 questions each) to 0.55.
    """
    return RunConfig(
        model=_model(root, "base"),
        output=_join(root, "copier"),
        data=_data(root, generative=["repeats"], generative_batch=24),
        train=TrainSection(steps=1800, checkpoint_every=300, keep_checkpoints=1),
        optimizer=_optimizer(2e-3, warmup_fraction=0.05, final_lr_fraction=0.1),
    )


def reader_config(root: str = ".") -> RunConfig:
    """What the twins of the cached layouts start from: it answers from documents in the prompt, and
    has never read a cache (the base that the package ships has, in every layout)."""
    return RunConfig(
        model=_model(root, "copier"),
        output=_join(root, "reader"),
        data=_data(
            root,
            generative=["copying", "generative"],
            generative_batch=6,
            cached=["rag", "recite"],
            cached_batch=20,
            document_max_length=176,
            layouts=PLAIN,
            pieces_row_length=NO_PIECES,
            cached_row_length=256,
        ),
        train=TrainSection(steps=600, checkpoint_every=100, keep_checkpoints=1),
        optimizer=_optimizer(1.5e-3, warmup_fraction=0.05, final_lr_fraction=0.1),
    )


def cached_config(name: str, root: str = ".") -> RunConfig:
    """The twin `name` (one of `CACHED_TWINS`), seed 0: they differ in the layouts alone (and in the
    rows that these need), and see the same documents, questions and answers in the same order."""
    return RunConfig(
        model=_model(root, "reader"),
        output=_join(root, f"seed-0/{name}"),
        data=_data(
            root,
            embedding=["embedding_summary"],
            embedding_batch=8,
            generative=["generative"],
            generative_batch=4,
            cached=["rag", "several"],
            cached_batch=16,
            document_max_length=176,
            layouts=LAYOUTS[name],
            pieces_row_length=768 if name == "trained" else NO_PIECES,
            cached_row_length=768,
        ),
        train=_train(
            root,
            steps=400,
            checkpoint_every=100,
            loss=LossConfig(generative_factor=4.0, cached_factor=4.0),
        ),
        optimizer=_optimizer(1e-3, warmup_fraction=0.05, final_lr_fraction=0.05),
    )


def configs(root: str = ".", tokenizer: str = "tokenizer") -> dict[str, RunConfig]:
    """All of them by name."""
    return {
        "base": base_config(root, tokenizer),
        **{name: joint_config(name, root) for name in JOINT_TWINS},
        "copier": copier_config(root),
        "reader": reader_config(root),
        **{name: cached_config(name, root) for name in CACHED_TWINS},
    }


def _model(root: str, start: str) -> ModelSection:
    return ModelSection(path=_join(root, f"{start}/model"), shape=SHAPE, **CPU_SETTINGS)  # type: ignore[arg-type]


def _data(root: str, **how: Any) -> DataConfig:
    """Files of the quickstart's corpus; its lengths, too."""
    kinds = ("embedding", "generative", "cached")
    files = {
        kind: [_join(root, f"data/train/{name}.jsonl") for name in how.pop(kind, ())]
        for kind in kinds
    }
    return DataConfig(
        **files,
        query_max_length=64,
        passage_max_length=176,
        row_length=192,
        generative_max_length=192,
        generative_row_length=192,
        row_multiple=2,
        **how,
    )


def _train(root: str, **how: Any) -> TrainSection:
    held_out = {
        f"eval_{kind}": _join(root, f"data/heldout/{kind}.jsonl")
        for kind in ("embedding", "generative")
    }
    return TrainSection(keep_checkpoints=1, **held_out, **how)


def _optimizer(lr: float, **how: Any) -> OptimizerConfig:
    how = {"warmup_fraction": 0.1, **how}
    return OptimizerConfig(lr=lr, schedule="cosine", weight_decay=0.05, b2=0.98, **how)


def _join(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))
