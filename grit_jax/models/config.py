"""The shape of a model: every family is this one dataclass with different values."""

from __future__ import annotations

import dataclasses
from typing import Literal

Remat = Literal["none", "full", "offload", "save_attention", "save_qkv", "dots"]
# The names of a layer's attention in `layer_types`.
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary embedding is stretched beyond the length a model was first trained for.

    Names are those of Hugging Face's `rope_parameters` (`transformers: modeling_rope_utils.py`);
    what a kind does not use is ignored. `linear` divides every frequency by `factor`; `llama3` the
    low ones, with a ramp between `low_freq_factor` and `high_freq_factor`; `yarn` ramps between
    `beta_fast` and `beta_slow` rotations and scales queries and keys by `attention_factor` (None:
    from `factor`, `mscale` and `mscale_all_dim`); `dynamic` raises the base as a text grows beyond
    `max_position_embeddings`.

    Raises:
      ValueError: values without a meaning; the message names the key.
    """

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_max_position_embeddings: int | None = (
        None  # llama3, yarn; None: max_position_embeddings
    )
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"model.rope_scaling.factor: must be at least 1, got {self.factor}")
        length = self.original_max_position_embeddings
        if length is not None and length < 1:
            raise ValueError(
                "model.rope_scaling.original_max_position_embeddings: must be positive, got"
                f" {length}"
            )
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"model.rope_scaling.high_freq_factor ({self.high_freq_factor}) must be above "
                f"low_freq_factor ({self.low_freq_factor})"
            )


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """In what a layer may differ from another one of the same model."""

    window: int | None  # keys further away are not seen
    local_rope: bool  # whether its rotary base is `rope_local_base_freq`
    experts: bool  # whether its feed-forward is a mixture of experts


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer in the Mistral / Llama / Qwen / Mixtral / Gemma shape.

    Names follow Hugging Face's config.json where it has one for the same thing.

    Raises:
      ValueError: sizes that do not fit together; the message names the key.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = (
        None  # rotary base, unscaled, of layers with a window (Gemma 3)
    )
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # bias on q, k, v (Qwen2)
    qk_norm: bool = False  # RMS norm over each head's query and key (Qwen3, Gemma 3)
    sliding_window: int | None = None
    # One kind for each layer, where some have the window and others see everything; None: all
    # alike.
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02

    # Gemma.
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    zero_centered_norm: bool = False  # norms multiply by 1 + weight
    post_norms: bool = False  # norms after attention and feed-forward beside those before them
    scale_embeddings: bool = False  # embeddings times sqrt(hidden_size)
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    # Mixtures of experts (Mixtral, Qwen3-MoE).
    num_experts: int = 0  # 0: every feed-forward is dense
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 0  # of an expert; 0: intermediate_size
    norm_topk_prob: bool = True  # the chosen experts' weights sum to 1
    decoder_sparse_step: int = 1  # every n-th layer has experts ...
    mlp_only_layers: tuple[int, ...] = ()  # ... but for these
    router_aux_loss_coef: float = 0.001

    architecture: Literal[
        "mistral", "llama", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma2", "gemma3_text"
    ] = "mistral"  # what an export is called
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = None

    # How it computes rather than what: none of these changes a result beyond rounding.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Remat = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: must be at least 1, got {getattr(self, key)}")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"model.num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim < 1 or self.head_dim % 2:
            raise ValueError(
                "model.head_dim: must be even and positive for rotary embedding, got"
                f" {self.head_dim}"
            )
        for key in (
            "sliding_window",
            "rope_local_base_freq",
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"model.{key}: must be positive or null, got {value}")
        self._check_layer_types()
        self._check_experts()
        scaling = self.rope_scaling
        if scaling and scaling.rope_type == "dynamic" and self.head_dim < 4:
            raise ValueError(
                "model.rope_scaling: dynamic needs a model.head_dim of at least 4, got"
                f" {self.head_dim}"
            )
        if (
            scaling
            and scaling.rope_type in ("llama3", "yarn")
            and scaling.original_max_position_embeddings is None
        ):
            length = self.max_position_embeddings
            scaling = dataclasses.replace(scaling, original_max_position_embeddings=length)
            object.__setattr__(self, "rope_scaling", scaling)

    def _check_layer_types(self) -> None:
        if self.layer_types is None:
            return
        types = tuple(self.layer_types)
        if len(types) != self.num_hidden_layers:
            raise ValueError(
                f"model.layer_types has {len(types)} entries, model.num_hidden_layers is"
                f" {self.num_hidden_layers}"
            )
        if unknown := set(types) - {FULL, SLIDING}:
            raise ValueError(
                f"model.layer_types: {unknown.pop()!r} is neither {FULL} nor {SLIDING}"
            )
        if SLIDING in types and self.sliding_window is None:
            raise ValueError(
                f"model.layer_types has {SLIDING} layers, so model.sliding_window must be a number"
            )
        # All alike needs no list; one model has one configuration.
        object.__setattr__(self, "layer_types", types if len(set(types)) > 1 else None)
        if SLIDING not in types:
            object.__setattr__(self, "sliding_window", None)

    def _check_experts(self) -> None:
        if not self.num_experts:
            return
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                "model.num_experts_per_tok: must be from 1 to model.num_experts"
                f" ({self.num_experts}), got {self.num_experts_per_tok}"
            )
        if self.decoder_sparse_step < 1:
            raise ValueError(
                f"model.decoder_sparse_step: must be at least 1, got {self.decoder_sparse_step}"
            )
        object.__setattr__(self, "mlp_only_layers", tuple(self.mlp_only_layers))
        if not self.moe_intermediate_size:
            object.__setattr__(self, "moe_intermediate_size", self.intermediate_size)
        if not any(kind.experts for kind in self.layer_kinds):
            raise ValueError(
                "model.mlp_only_layers and model.decoder_sparse_step leave no layer with experts; "
                "set model.num_experts: 0 for a dense model"
            )

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, first to last."""
        types = (
            self.layer_types
            or (FULL if self.sliding_window is None else SLIDING,) * self.num_hidden_layers
        )
        return tuple(
            LayerKind(
                window=self.sliding_window if kind == SLIDING else None,
                local_rope=kind == SLIDING and self.rope_local_base_freq is not None,
                experts=bool(self.num_experts)
                and (i + 1) % self.decoder_sparse_step == 0
                and i not in self.mlp_only_layers,
            )
            for i, kind in enumerate(types)
        )

    @property
    def context_length(self) -> int:
        """Tokens that the model can read at once.

        That is `max_position_embeddings`, but for the two scalings that Hugging Face configurations
        name beside the unscaled length: dynamic extends it by its factor, yarn the original length.
        """
        scaling, length = self.rope_scaling, self.max_position_embeddings
        if scaling is not None and scaling.rope_type == "dynamic":
            return int(length * scaling.factor)
        if scaling is not None and scaling.rope_type == "yarn":
            assert scaling.original_max_position_embeddings is not None
            return max(length, int(scaling.original_max_position_embeddings * scaling.factor))
        return length

    @property
    def heads_per_kv(self) -> int:
        """How many query heads share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5
