"""The files of sentence-transformers in a model directory: its modules, pooling and prompts.

`modules.json` lists what a text's hidden states go through: Transformer, Pooling, any number of
Dense modules, Normalize. What our model computes the same way is read here; anything else is
refused by name, because a vector without it would be a different one. Written are the files of
sentence-transformers 5.4 and later, under module paths that older releases know as well.
Source: `sentence_transformers: base/modules/{transformer,dense}.py,
sentence_transformer/modules/pooling.py`.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from grit_jax.errors import GritError
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import ACTIVATIONS, MAX_DENSE, Dense
from grit_jax.runtime.files import read_json, write_json

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
# Pooling as releases before 5.4 write it: one flag for each mode, whose results are concatenated.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The class of an activation in a Dense module's config.json -> our name for it.
_ACTIVATION_CLASSES = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
_TORCH_PATHS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
_REMEDY = (
    "; to read the transformer alone (mean pooling, GRIT format), remove modules.json from the"
    " directory"
)


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """How sentence-transformers makes a vector with the model of a directory.

    Attributes:
      pooling: one of our methods, over the whole text or, unless `include_prompt`, over what
        follows the prompt.
      dense: the Dense modules after pooling, in order.
      normalizes: whether the last module brings vectors to unit length.
      prompts: name -> text put before a text, without anything between them.
      default_prompt_name: the prompt of callers that name none; None: none is put there.
      bidirectional: whether every token sees every other one.
    """

    pooling: PoolingMethod = "mean"
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalizes: bool = True
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    bidirectional: bool = True

    @property
    def default_prompt(self) -> str:
        """What stands before a text where the caller names no prompt."""
        name = self.default_prompt_name
        return "" if name is None else self.prompts[name]


def read_modules(directory: Path, hf: Mapping[str, Any]) -> SentenceModules | None:
    """What the directory says to sentence-transformers, None where it has no `modules.json`.

    Args:
      hf: its config.json.

    Raises:
      GritError: a damaged file, or a module, pooling or setting that our model does not compute.
    """
    if not (directory / MODULES).is_file():
        return None
    modules = _module_list(directory)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise GritError(
            f"{directory / MODULES}: expected the modules Transformer, Pooling, then any of Dense"
            f" and Normalize, got {', '.join(kinds) or 'none'}{_REMEDY}"
        )
    if modules[0][1] not in ("", "."):
        raise GritError(
            f"{directory / MODULES}: the Transformer module lies in '{modules[0][1]}'; move the"
            f" files of that folder to {directory} and set its 'path' to \"\""
        )
    for kind in kinds[2:]:
        if kind not in ("Dense", "Normalize", "Dropout"):  # which does nothing in inference
            raise GritError(f"{directory / MODULES}: {kind} modules are not supported{_REMEDY}")
    if "Dense" in kinds and "Normalize" in kinds[: len(kinds) - kinds[::-1].index("Dense")]:
        raise GritError(
            f"{directory / MODULES}: a Normalize module before a Dense one is not supported"
            f"{_REMEDY}"
        )
    pooling, include_prompt = _pooling(directory / modules[1][1] / "config.json")
    dense = tuple(read_dense(directory, path) for kind, path in modules if kind == "Dense")
    if len(dense) > MAX_DENSE:
        raise GritError(
            f"{directory / MODULES}: has {len(dense)} Dense modules; at most {MAX_DENSE} are"
            " supported"
        )
    prompts, default = _prompts(directory / PROMPTS)
    if "Normalize" not in kinds:
        warnings.warn(
            f"{directory}: has no Normalize module, so sentence-transformers leaves its vectors as"
            " long as they are; here all vectors have unit length (cosines are the same)",
            stacklevel=3,
        )
    return SentenceModules(
        pooling=pooling,
        include_prompt=include_prompt,
        dense=dense,
        normalizes="Normalize" in kinds,
        prompts=prompts,
        default_prompt_name=default,
        bidirectional=_bidirectional(directory, hf),
    )


def write_modules(
    directory: Path, modules: SentenceModules, width: int, bidirectional_key: str = "is_causal"
) -> None:
    """Writes everything but the weights of the Dense modules.

    Args:
      width: of the hidden states.
      bidirectional_key: the setting of config.json that embedding bidirectionally changes,
        `is_causal` or Gemma 3's `use_bidirectional_attention`.
    """
    normalize = f"{2 + len(modules.dense)}_Normalize"
    paths = [("Transformer", ""), ("Pooling", "1_Pooling")]
    paths += [("Dense", dense.folder) for dense in modules.dense] + [("Normalize", normalize)]
    write_json(
        directory / MODULES,
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(paths)
        ],
    )
    both = modules.bidirectional
    arguments = {bidirectional_key: not both if bidirectional_key == "is_causal" else both}
    write_json(directory / TRANSFORMER, {"config_args": arguments})
    for folder in ("1_Pooling", normalize, *(dense.folder for dense in modules.dense)):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "embedding_dimension": width,
            "pooling_mode": modules.pooling,
            "include_prompt": modules.include_prompt,
        },
    )
    for dense in modules.dense:
        write_json(
            directory / dense.folder / "config.json",
            {
                "in_features": dense.in_features,
                "out_features": dense.out_features,
                "bias": dense.bias,
                "activation_function": _TORCH_PATHS[dense.activation],
            },
        )
    write_json(directory / normalize / "config.json", {})
    write_json(
        directory / PROMPTS,
        {
            "prompts": dict(modules.prompts),
            "default_prompt_name": modules.default_prompt_name,
            "similarity_fn_name": "cosine",
        },
    )


def _module_list(directory: Path) -> list[tuple[str, str]]:
    """Class name and folder of each module, in order."""
    path = directory / MODULES
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GritError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(modules, list):
        raise GritError(f"{path}: expected a list of modules, got {type(modules).__name__}")
    entries = []
    for number, module in enumerate(modules):
        kind = module.get("type") if isinstance(module, dict) else None
        folder = module.get("path") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise GritError(f"{path}: module {number} must have a 'type' and a 'path'")
        if not kind.startswith("sentence_transformers."):
            raise GritError(
                f"{path}: module {number} is '{kind}', code of the directory's own, which is not"
                f" run{_REMEDY}"
            )
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise GritError(f"{path}: the folder {folder!r} lies outside the directory; refused")
        entries.append((kind.rpartition(".")[2], folder))
    return entries


def _pooling(path: Path) -> tuple[PoolingMethod, bool]:
    """The pooling method and whether the prompt is pooled."""
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    known = get_args(PoolingMethod)
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in known:
        shown = " + ".join(map(str, modes)) if isinstance(modes, list) else repr(modes)
        raise GritError(
            f"{path}: pooling '{shown}' is not supported, only one of {', '.join(known)}{_REMEDY}"
        )
    include_prompt = config.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise GritError(f"{path}: 'include_prompt' must be true or false, got {include_prompt!r}")
    if modes[0] == "cls" and not include_prompt:
        raise GritError(
            f"{path}: cls pooling of the first token after the prompt is not supported; ours is"
            " that of the very first token: set 'include_prompt' to true if the model was trained"
            " so"
        )
    return modes[0], include_prompt


def read_dense(directory: Path, folder: str) -> Dense:
    """Reads the config.json of a Dense module.

    Raises:
      GritError: invalid sizes, or a feature that is not supported.
    """
    path = directory / folder / "config.json"
    config = read_json(path)
    sizes = [config.get(key) for key in ("in_features", "out_features")]
    for key, size in zip(("in_features", "out_features"), sizes, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise GritError(f"{path}: '{key}' must be a number of dimensions, got {size!r}")
    if config.get("use_residual"):
        raise GritError(
            f"{path}: 'use_residual' is true; a Dense module with a residual connection is not"
            f" supported{_REMEDY}"
        )
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise GritError(
                f"{path}: '{key}' is {config[key]!r}; only Dense modules after Pooling, on"
                f" 'sentence_embedding', are supported{_REMEDY}"
            )
    # Where the key is missing sentence-transformers takes its default.
    name = str(config.get("activation_function", _TORCH_PATHS["tanh"]))
    activation = _ACTIVATION_CLASSES.get(name.rpartition(".")[2])
    if activation is None or not name.startswith("torch."):
        raise GritError(
            f"{path}: activation '{name}' is not supported; known:"
            f" {', '.join(_ACTIVATION_CLASSES)} of torch.nn{_REMEDY}"
        )
    assert activation in ACTIVATIONS
    return Dense(folder, sizes[0], sizes[1], bool(config.get("bias", True)), activation)


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the default one's name."""
    config = read_json(path) if path.is_file() else {}
    if config.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise GritError(
            f"{path}: a {config['model_type']} of sentence-transformers, whose outputs are no text"
            " vectors; only SentenceTransformer models are read"
        )
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict):
        raise GritError(f"{path}: 'prompts' must be an object of name to text, got {prompts!r:.60}")
    # A kind without a prompt may stand there as null.
    prompts = {name: "" if text is None else text for name, text in prompts.items()}
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise GritError(f"{path}: the prompt '{name}' must be a string, got {text!r:.60}")
    if default is not None and default not in prompts:
        raise GritError(
            f"{path}: 'default_prompt_name' is {default!r}, but 'prompts' has only"
            f" {', '.join(prompts) or 'none'}"
        )
    return prompts, default


def _bidirectional(directory: Path, hf: Mapping[str, Any]) -> bool:
    """Whether transformers reads the model without a causal mask there."""
    path = directory / TRANSFORMER
    config = read_json(path) if path.is_file() else {}
    if config.get("do_lower_case"):
        raise GritError(f"{path}: 'do_lower_case' is true, which is not supported{_REMEDY}")
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise GritError(
            f"{path}: 'transformer_task' is {config['transformer_task']!r}, only"
            f" 'feature-extraction' is supported{_REMEDY}"
        )
    output = (config.get("modality_config") or {}).get("text", {"method": "forward"})
    if output.get("method_output_name", "last_hidden_state") != "last_hidden_state":
        raise GritError(
            f"{path}: texts are read as {output['method_output_name']!r}, only as"
            f" 'last_hidden_state' is supported{_REMEDY}"
        )
    processing = (config.get("processing_kwargs") or {}).get("text") or {}
    if unknown := sorted(processing.keys() - {"max_length", "padding", "truncation"}):
        raise GritError(
            f"{path}: 'processing_kwargs' changes how texts are tokenised ({', '.join(unknown)}),"
            f" which is not supported{_REMEDY}"
        )
    # Settings that replace those of config.json, if it has the key at all (as in transformers).
    changed = {
        key: value
        for name in ("config_args", "config_kwargs")
        for key, value in (config.get(name) or {}).items()
        if key in hf and hf[key] != value
    }
    if unknown := sorted(changed.keys() - {"is_causal", "use_bidirectional_attention"}):
        raise GritError(
            f"{path}: 'config_args' changes {', '.join(unknown)} of config.json, which is not"
            f" supported; make the change in config.json{_REMEDY}"
        )
    settings = {**hf, **changed}
    # transformers 5: `is_causal: false` counts in every family, the other key in Gemma 3 alone.
    gemma3 = str(hf.get("model_type")) in ("gemma3", "gemma3_text")
    return settings.get("is_causal", True) is False or (
        gemma3 and settings.get("use_bidirectional_attention") in (True, "all")
    )


def modules_for_prompt(pooling: PoolingMethod, prompt: str) -> SentenceModules:
    """The modules that embed as `GritLM.encode` does with a format of ours.

    Args:
      prompt: what the format puts before a text without an instruction; it is not pooled.
    """
    return SentenceModules(
        pooling=pooling,
        # `cls` is the very first token; the others leave the prompt out, or end behind it anyway.
        include_prompt=pooling == "cls",
        prompts={"query": prompt, "document": prompt},
        default_prompt_name="document",
    )
