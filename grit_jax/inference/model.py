"""`GritLM`, the public object: one model that embeds and generates, opened from a directory or a
hub id."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.inference.decode import DecodeOptions, Generation, generate
from grit_jax.inference.encoder import Encoded, Encoder
from grit_jax.inference.engine import Engine, EngineLimits, checked_shape
from grit_jax.inference.forward import forward_step, logits_step, padded_rows, padding
from grit_jax.inference.opening import WeightFiles, formats_of, model_shape, modules_of
from grit_jax.inference.placement import Dtype, Placement, compute_dtype, dtype_for, place_model
from grit_jax.inference.records import KVRecord, Positions
from grit_jax.inference.sampling import GREEDY, Sampling
from grit_jax.inference.slot_runner import RunnerOptions
from grit_jax.inference.text import Prompts, TextWriter, conversations, messages_of
from grit_jax.models.adapter_stack import AdapterStack
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf import directory as huggingface
from grit_jax.models.hf.sentence_transformers import SentenceModules
from grit_jax.models.hf.sources import resolve
from grit_jax.models.lora import AdaptedWeight
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import PROJECTION_AXES
from grit_jax.models.quantise import Quantised, storage_axes
from grit_jax.models.transformer import PARAMETER_AXES, Params, parameter_shapes
from grit_jax.models.weights_hash import WeightsHash
from grit_jax.runtime.files import home_path, writable_folder
from grit_jax.sharding import fitted_sharding
from grit_jax.text.chat import ChatFormat
from grit_jax.text.chat_template import ChatTemplate
from grit_jax.text.length import MAX_LENGTH, MAX_NEW_TOKENS
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import AttentionMode, ModelOutput


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How a model embeds and how it generates.

    Attributes:
      pooling: mean, weightedmean, lasttoken or cls.
      mode: attention of the embedding pass.
      generation_mode: causal; or prefix, which reads a prompt bidirectionally before it answers.
      stop_ids: token ids that end an answer, beside the end of sequence.
      template: the directory's own chat template, where it is none of our formats: prompts use it,
        while embeddings and RAG layouts use the model's `ChatFormat`.
      sentence: how sentence-transformers embeds with the model, where texts are read its way.
    """

    pooling: PoolingMethod = "mean"
    mode: AttentionMode = AttentionMode.BIDIRECTIONAL
    generation_mode: AttentionMode = AttentionMode.CAUSAL
    stop_ids: Sequence[int] = ()
    template: ChatTemplate | None = None
    sentence: SentenceModules | None = None

    def __post_init__(self) -> None:
        if self.pooling not in get_args(PoolingMethod):
            raise GritError(
                f"pooling must be one of {', '.join(get_args(PoolingMethod))}, got"
                f" {self.pooling!r:.60}"
            )


class GritLM:
    """A model, its tokenizer and its format. `from_pretrained` opens one from a directory.

    Attributes:
      config, params, tokenizer, chat, mesh: as given.
      pooling, mode, generation_mode, template, sentence: as in the given `ModelOptions`.
      stop_ids: token ids that end an answer.
      encoder: texts to vectors and caches, with all its options.
      adapters: the model with each of its LoRA adapters, where it has several beside its weights
        (`adapters.with_adapters`).
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        options: ModelOptions = ModelOptions(),
        *,
        mesh: Mesh | None = None,
    ):
        self.config = dataclasses.replace(config, remat="none")  # no backward pass here
        # NumPy arrays are copied, because the caller may change them later.
        own = lambda value: np.array(value) if isinstance(value, np.ndarray) else value
        names = [*parameter_shapes(config), *(name for name in PROJECTION_AXES if name in params)]
        self._files: WeightFiles | None = None  # that the weights were read from
        self._hash: Callable[[], str] | None = None  # of weights that have adapters beside them
        self.adapters: tuple[GritLM, ...] = ()
        self.params: Params = {name: _place(name, own(params[name]), mesh) for name in names}
        self.tokenizer, self.chat, self.mesh = tokenizer, chat, mesh
        self.pooling, self.mode = options.pooling, options.mode
        self.generation_mode = options.generation_mode
        self.template, self.sentence = options.template, options.sentence
        self.stop_ids = tuple(dict.fromkeys((*tokenizer.answer_ends(chat), *options.stop_ids)))
        self.encoder = Encoder(
            self.config, self.params, tokenizer, chat, self.pooling, self.mode, mesh
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: Dtype | Literal["auto"] = "float32",
        pooling: PoolingMethod | None = None,
        *,
        mesh: Mesh | Placement | Literal["auto"] | None = None,
    ) -> GritLM:
        """Opens a model directory (ours or a plain Hugging Face one), a hub id, or a model that
        the package knows by name: "smollm2", "smollm2-grit" (docs/smollm2.md).

        Args:
          dtype: of weights and computation. "int8": matrices in 8 bits, one scale for each output,
            computed in bfloat16 on TPU and GPU and in float32 on CPU. "auto": bfloat16 on TPU and
            GPU, float32 on CPU.
          pooling: mean, weightedmean, lasttoken or cls; None: as the directory says, else mean.
          mesh: devices over which the weights are sharded; None is the default device. "auto": all
            devices of this process, the weights split as far as they must be to fit, as
            `placement.place_model` chooses. Each device is given its own part as the files are
            read.

        Raises:
          GritError: an absent or damaged model, an unknown dtype, format or pooling, or a model
            that does not fit on the devices of an automatic mesh.
        """
        if not isinstance(source, str | Path):
            raise GritError(f"a model is a directory or a hub id, got {source!r:.60}")
        path = resolve(source)
        if mesh == "auto":
            mesh = place_model(model_shape(path), dtype, name=str(source))
        tokens_per_call = None
        if isinstance(mesh, Placement):
            dtype, tokens_per_call, mesh = mesh.dtype, mesh.tokens_per_call, mesh.mesh
        if mesh is not None and not isinstance(mesh, Mesh):
            raise GritError(f"mesh must be a Mesh, 'auto' or None, got {mesh!r:.60}")
        platform = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
        dtype = dtype_for(dtype, platform)
        opened = huggingface.read_model_directory(
            path,
            compute_dtype(dtype, platform),
            int8=dtype == "int8",
            place=functools.partial(_place, mesh=mesh),
        )
        tokenizer = Tokenizer.from_pretrained(path)
        tokenizer.check_fits(opened.config.vocab_size, str(path))
        settings, formats = opened.settings, formats_of(path, opened.settings, tokenizer)
        assert opened.params is not None
        options = ModelOptions(
            pooling or settings.pooling,
            settings.embedding_mode,
            settings.generation_mode,
            settings.stop_token_ids,
            formats.template,
            formats.sentence,
        )
        model = cls(opened.config, opened.params, tokenizer, formats.chat, options, mesh=mesh)
        model._files = WeightFiles(path)
        model.encoder.tokens_per_call = tokens_per_call
        return model

    def save_pretrained(
        self, directory: str | Path, dtype: Literal["float32", "bfloat16"] | None = None
    ) -> None:
        """Writes a directory that `from_pretrained`, transformers, sentence-transformers and vLLM
        open.

        `dtype` None keeps that of the computation.

        Raises:
          GritError: quantised weights, adapters beside them, no path, or a folder that cannot be
            written.
        """
        if self._hash is not None:
            raise GritError(
                "a model with adapters beside its weights cannot be saved; save the model that they"
                " were added to"
            )
        if self.dtype == "int8":
            raise GritError(
                "an int8 model cannot be saved: its weights have been rounded to 8 bits; open the"
                " model in float32 or bfloat16 and save that"
            )
        directory = home_path(directory)
        writable_folder(directory)
        self.tokenizer.save(
            directory, None if self.template else self.chat, architecture=self.config.architecture
        )
        chat_format = None if self.template else self.chat.name
        settings = huggingface.DirectorySettings(
            self.pooling,
            self.mode,
            self.generation_mode,
            huggingface.SENTENCE_FORMAT if self.sentence else chat_format,
            self.stop_ids,
            self.sentence or modules_of(self.chat, self.pooling, self.tokenizer),
        )
        huggingface.write_model_directory(
            directory, self.config, self.params, settings, dtype or self.config.dtype
        )

    @property
    def dtype(self) -> Dtype:
        """The dtype of the weights; activations have `config.dtype`."""
        bases = (
            weight.base if isinstance(weight, AdapterStack) else weight
            for weight in self.params.values()
        )
        quantised = any(isinstance(weight, Quantised) for weight in bases)
        return "int8" if quantised else self.config.dtype

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts of a sentence-transformers directory by name, to be given as instructions;
        empty for other models."""
        return dict(self.sentence.prompts) if self.sentence else {}

    @property
    def embedding_width(self) -> int:
        """Dimensions of a vector."""
        return self.encoder.width

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        instruction: str = ...,
        max_length: int = ...,
        return_cache: Literal[False] = ...,
        *,
        progress: bool = ...,
    ) -> Float[np.ndarray, "N D"]: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        instruction: str = ...,
        max_length: int = ...,
        return_cache: Literal[True] = ...,
        *,
        progress: bool = ...,
    ) -> Encoded: ...

    def encode(
        self,
        texts: str | Sequence[str],
        instruction: str = "",
        max_length: int = MAX_LENGTH,
        return_cache: bool = False,
        *,
        progress: bool = False,
    ) -> Float[np.ndarray, "N D"] | Encoded:
        """Unit vectors of texts, float32 `[N, D]` (one text: `[1, D]`), in their order.

        Args:
          texts: a string or a list of strings.
          instruction: what the texts are embedded for; it is attended to, but not pooled.
          max_length: tokens kept of each text, instruction and tags included. A warning says how
            many texts were cut. The default is lowered to the model's context.
          return_cache: return an `Encoded` with `.vectors` and `.caches`, the keys and values of
            each text.

        Raises:
          GritError: an argument of another type, a `max_length` beyond the model's context, or a
            vector that is not finite.

        >>> model = GritLM.from_pretrained("model")
        >>> documents = ["list.sort sorts a list in place", "str.split splits a string"]
        >>> vectors = model.encode(documents)
        >>> query = model.encode("How is a list sorted?", instruction="Find the documentation")
        >>> vectors.shape, (query @ vectors.T).argmax().item()
        ((2, 192), 0)
        """
        encoded = self.encoder.encode(
            [texts] if isinstance(texts, str) else texts,
            instruction,
            max_length,
            return_cache=return_cache,
            progress=progress,
        )
        return encoded if return_cache else encoded.vectors

    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        *,
        ignore_eos: bool = False,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Answers in the chat format (or the directory's own chat template), one for each prompt.

        Args:
          prompts: a string is a user's turn, a list of `{"role", "content"}` is a conversation; one
            of them or a list of them.
          max_new_tokens: tokens of an answer, at most. The default is lowered to what a prompt
            leaves of the model's context.
          temperature, top_p, top_k, seed: see `Sampling`.
          ignore_eos: continue past an end of sequence (for benchmarks).
          on_text: called with (number of the prompt, new text) as the answers grow.

        Raises:
          GritError: a prompt that is neither, a conversation that does not end with the user's
            turn, a sampling value of another type or out of range, a prompt that with its new
            tokens is longer than the model's context, or logits that are not finite.

        >>> model = GritLM.from_pretrained("model")
        >>> answers = model.generate(["What does `list.sort` do?", "Who?"], max_new_tokens=4)
        >>> [isinstance(answer, str) for answer in answers]
        [True, True]
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed, ignore_eos)
        ids = self.prompt_ids(prompts)
        writers = (
            [TextWriter(self.tokenizer, on_text, i) for i in range(len(ids))] if on_text else []
        )
        on_tokens = (lambda i, tokens: writers[i].write(tokens)) if on_text else None
        generation = self.generate_ids(ids, sampling=sampling, on_tokens=on_tokens)
        for writer in writers:
            writer.finish()
        return [self.tokenizer.decode(tokens) for tokens in generation.tokens]

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        records: Sequence[Sequence[KVRecord]] | None = None,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        return_logits: bool = False,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        int8_records: bool = False,
        positions: Positions = "running",
    ) -> Generation:
        """`decode.generate` with this model's weights, attention mode and stop ids."""
        return generate(
            self.params,
            self.config,
            prompts,
            records=records,
            sampling=sampling,
            options=DecodeOptions(
                eos_ids=self.stop_ids,
                mode=self.generation_mode,
                positions=positions,
                int8_records=int8_records,
                return_logits=return_logits,
                mesh=self.mesh,
            ),
            on_tokens=on_tokens,
        )

    def engine(
        self,
        slots: int = 16,
        context: int | None = None,
        limits: EngineLimits = EngineLimits(),
        *,
        int8_records: int = 0,
        adjustable: bool = False,
    ) -> Engine:
        """An engine that runs requests of this model from many threads.

        Args:
          slots: requests that are decoded together; rounded up to the mesh's row shards.
          context: tokens of a slot: records, prompt and answer; None: the model's context.
          int8_records: tokens of records that a slot holds as int8, apart from `context`; 0:
            records are kept as they are, within `context`.
          adjustable: whether requests may have penalties, biases and log-probabilities
            (`Adjustments`); takes 8 bytes for each slot and token of the vocabulary.

        Raises:
          GritError: a number that is too small or no whole number.
        """
        options = RunnerOptions(
            self.stop_ids,
            self.generation_mode,
            mesh=self.mesh,
            adapter_eos_ids=tuple(adapter.stop_ids for adapter in self.adapters),
        )
        context = self.config.context_length if context is None else context
        shape = checked_shape(
            slots, context, int8_records, self.mesh, adjustable, len(self.adapters)
        )
        encoders = [adapter.encoder for adapter in self.adapters]
        return Engine(self.params, self.config, self.encoder, shape, options, limits, encoders)

    def prompt_ids(self, prompts: Prompts) -> list[list[int]]:
        """Token ids of prompts in the chat format, the assistant's tag last. See `generate` for
        the forms of a prompt."""
        if self.template is not None:
            return [self.template.prompt_ids(messages) for messages in messages_of(prompts)]
        rendered = [self.chat.render_turns(turns) for turns in conversations(prompts)]
        return [
            [i for part in parts for i in part] for parts in self.tokenizer.encode_parts(rendered)
        ]

    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"] | None = None,
        mode: Literal["causal", "bidirectional"] | AttentionMode = "causal",
    ) -> ModelOutput:
        """Hidden states and logits of padded rows of ids; the mask (1 token, 0 padding) may pad on
        either side.

        Raises:
          GritError: not integers of shape `[B, T]`, ids outside the vocabulary, a mask of another
            shape or with other numbers, rows longer than the model's context, an unknown mode.
        """
        modes = (AttentionMode.CAUSAL, AttentionMode.BIDIRECTIONAL)  # ids do not mark a prefix
        if mode not in (*modes, *(known.value for known in modes)):
            raise GritError(f"mode must be 'causal' or 'bidirectional', got {mode!r:.60}")
        mode = AttentionMode(mode)
        rows = padded_rows(input_ids, attention_mask, self.config)
        with self._mesh():
            hidden = forward_step(
                self.params, rows.tokens, rows.mask, config=self.config, mode=mode
            )
        return ModelOutput(hidden[: rows.rows, : rows.length], head=self._logits)

    @functools.cached_property
    def weights_hash(self) -> str:
        """Hexadecimal hash of the weights and of the configuration that a forward pass depends on.

        Weights are rounded to bfloat16 first, so that a model has the same hash in float32 and in
        bfloat16. That of an int8 model is the hash of the weights it was quantised from: what one
        of them has encoded, the others may use. They are read from its directory again.

        Raises:
          GritError: the directory of an int8 model has changed or is gone.
        """
        if self._hash is not None:
            return self._hash()
        if self.dtype == "int8" and self._files is not None:
            return self._files.hexdigest(self.config)
        digest = WeightsHash(self.config)
        for name, weight in self.params.items():
            plain = weight.dequantise(jnp.float32) if isinstance(weight, Quantised) else weight
            digest.add(name, np.asarray(plain))
        return digest.hexdigest()

    def _logits(self, hidden: jax.Array) -> jax.Array:
        (B, T), pad = hidden.shape[:2], padding(*hidden.shape[:2])
        with self._mesh():
            return logits_step(self.params, jnp.pad(hidden, (*pad, (0, 0))), config=self.config)[
                :B, :T
            ]

    def _mesh(self) -> Any:
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()


def _place(name: str, value: Any, mesh: Mesh | None) -> Any:
    """A weight on its devices, each of which is given its own part; so are the parts of a quantised
    weight. One that is adapted is not moved."""
    if mesh is None or isinstance(value, AdaptedWeight | AdapterStack):
        return jax.device_put(value)  # on a CPU an array of `load_params` is taken over as it is
    axes = storage_axes(value, (PARAMETER_AXES | PROJECTION_AXES)[name])

    def put(part: Any, axes: tuple[str | None, ...]) -> jax.Array:
        sharding = fitted_sharding(axes, np.shape(part), mesh)
        if isinstance(part, np.ndarray):
            return jax.make_array_from_callback(part.shape, sharding, lambda index: part[index])
        return jax.device_put(part, sharding)

    return jax.tree.map(put, value, axes)
