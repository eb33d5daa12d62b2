"""The training configurations of `grit evidence`: the YAML files beside this module.

    base ── unified, embedding, generative     (joint.py)
       └─── copier ── reader ── trained, untrained       (cached.py)

    a pretrained model ── unified, embedding, generative           (--base; pretrained_models.py)
                    └──── distilled, undistilled

Their paths are relative to the folder that the command copies them to.
"""

from __future__ import annotations

from importlib import resources

__all__ = [
    "CACHED_MODELS",
    "DISTILLATION_MODELS",
    "JOINT_MODELS",
    "NAMES",
    "pretrained_recipe",
    "recipe_texts",
]

JOINT_MODELS = ("unified", "embedding", "generative")
CACHED_MODELS = ("untrained", "trained")
NAMES = ("base", *JOINT_MODELS, "copier", "reader", *CACHED_MODELS)
DISTILLATION_MODELS = ("distilled", "undistilled")
PLAIN_LAYOUTS = ("query-then-doc", "doc-then-query")  # in which `reader` and `untrained` read
REPEATS = 60_000  # rows of repeated passages, for copier.yaml
# Rows over several documents: half of the questions of trained.yaml and untrained.yaml.
SEVERAL_ROWS, SEVERAL_DOCUMENTS = 30_000, (2, 3, 4, 5)


def recipe_texts() -> dict[str, str]:
    """The YAML text of every recipe by name, in the order in which they are trained."""
    folder = resources.files(__package__)
    return {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in NAMES}


def pretrained_recipe(name: str) -> str:
    """The YAML text of a recipe that starts from a pretrained model: one of `JOINT_MODELS` or of
    `DISTILLATION_MODELS`."""
    path = resources.files(__package__) / f"pretrained_{name}.yaml"
    return path.read_text(encoding="utf-8")
