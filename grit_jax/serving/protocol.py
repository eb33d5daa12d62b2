"""The bodies of requests: OpenAI's fields, vLLM's beside them, and ours.

A field of another type or out of range, and a field that is not listed here, is a 400 that names
it. Fields of OpenAI's that change nothing here (`IGNORED`) are accepted, named in the reply's
header `X-Grit-Ignored` and counted.
"""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grit_jax.serving.errors import bad_request

# Accepted without effect: accounting and routing hints, and what only OpenAI's own models have.
IGNORED = frozenset(
    {
        "store",
        "metadata",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "verbosity",
        "reasoning_effort",
        "moderation",
        "prediction",
    }
)
# Of OpenAI's, and not served: refused unless they say what is done anyway.
UNSERVED = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "suffix": ("",),
}

B = TypeVar("B", bound="Body")
Id = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Body(BaseModel):
    """Strict: no field is converted from another type, and none is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    IGNORED: ClassVar[frozenset[str]] = IGNORED
    UNSERVED: ClassVar[dict[str, tuple[Any, ...]]] = UNSERVED
    model: str | None = None
    user: str | None = None

    def ignored(self) -> list[str]:
        """Fields that were given and have no effect."""
        values = {name: getattr(self, name) for name in self.model_fields_set & self.IGNORED}
        if isinstance(values.get("store"), str):  # the name of a store
            del values["store"]
        return sorted(name for name, value in values.items() if value is not None)


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    # What replies are made of anyway; vLLM's fields.
    UNSERVED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
    }
    input: str | list[str] | list[Id] | list[list[Id]]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: str | None = None
    instruction: str | None = None
    input_type: str | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    normalize: bool | None = None
    embed_dtype: Any = None
    endianness: Any = None


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(Body):
    """What chat and completions have in common."""

    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    moderation: Any = None
    suffix: Any = None


class Message(BaseModel):
    """A message of a conversation. Contents are checked in `generation.py`, for clearer errors."""

    model_config = ConfigDict(strict=True, extra="forbid")
    role: str
    content: Any = None
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    reasoning_content: Any = None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    verbosity: Any = None
    reasoning_effort: Any = None
    prediction: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None
    # Documents: `store` is a store's name here, or OpenAI's flag, which has no effect.
    mode: str | None = None
    k: Annotated[int, Field(ge=1, le=100)] | None = None
    search: str | None = None
    where: str | None = None
    rerank: Annotated[int, Field(ge=1, le=1000)] | None = None
    instruction: str | None = None

    @property
    def has_documents(self) -> bool:
        """Whether `store` names a store."""
        return isinstance(self.store, str)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Id] | list[list[Id]]
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None


class HybridWeights(BaseModel):
    """`ranking_options.hybrid_search`."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    embedding_weight: Annotated[float, Field(ge=0)]
    text_weight: Annotated[float, Field(ge=0)]


class RankingOptions(BaseModel):
    """`ranking_options`."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    ranker: str | None = None
    score_threshold: float | None = None
    hybrid_search: HybridWeights | None = None


class StoreSearchBody(Body):
    """`POST /v1/vector_stores/{id}/search`."""

    query: str | list[str]
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    ranking_options: RankingOptions | None = None
    filters: Any = None
    rewrite_query: bool | None = None
    search: str | None = None
    where: str | None = None
    instruction: str | None = None


class RerankBody(Body):
    """`POST /v1/rerank`, `/v2/rerank` and `/rerank`: Cohere's and Jina's fields, or TEI's
    (`texts`). Each field means the same in both."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"priority"})
    UNSERVED: ClassVar[dict[str, tuple[Any, ...]]] = {"truncation_direction": ("Right", "right")}
    query: str
    documents: list[str | dict[str, Any]] | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    texts: list[str] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    truncation_direction: Any = None
    priority: Any = None
    # Documents of a store: those of these ids, or `rerank` candidates of a search.
    store: str | None = None
    document_ids: list[str] | None = None
    rerank: Annotated[int, Field(ge=1, le=1000)] | None = None
    search: str | None = None
    where: str | None = None
    instruction: str | None = None


class ScoreBody(Body):
    """`POST /v1/score`."""

    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    store: str | None = None
    document_ids: list[str] | None = None


class GenerativeScoringBody(Body):
    """`POST /generative_scoring`."""

    query: str | list[Id]
    items: list[str] | list[list[Id]]
    label_token_ids: list[Id]
    apply_softmax: bool | None = None
    item_first: bool | None = None
    add_special_tokens: bool | None = None


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt or messages."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: list[Id]


def parse(kind: type[B], raw: bytes) -> B:
    """A body, checked.

    Raises:
      ApiError: 400, naming the field.
    """
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _explained(kind, error) from None
    for name in body.model_fields_set:
        if not _finite(getattr(body, name)):
            raise bad_request(f"{name}: a number in it is too large", name, "invalid_value")
    for name, harmless in kind.UNSERVED.items():
        value = getattr(body, name, None)
        if value is not None and value not in harmless:
            raise bad_request(f"{name}: this server does not have it; leave it out", name)
    return body


def _finite(value: Any) -> bool:
    """Whether no number within a value was too large for a float: JSON cannot hold infinity, and
    replies repeat what requests say."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _explained(kind: type[Body], error: ValidationError) -> Exception:
    """The first thing that is wrong with a body, as a 400."""
    problems = error.errors(include_url=False, include_input=False, include_context=True)
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return bad_request(f"the body is not JSON: {first['msg']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        near = difflib.get_close_matches(name, kind.model_fields, n=1, cutoff=0.6)
        hint = f", did you mean {near[0]!r}?" if near else ""
        return bad_request(f"{place}: unknown field{hint}", place, "unknown_parameter")
    field = str(first["loc"][0]) if first["loc"] else None
    if field is None:
        return bad_request(f"the body: {first['msg']}")
    if first["type"] == "missing":
        return bad_request(f"{place}: this field is required", place, "missing_required_parameter")
    # A field that takes several types has one problem for each: they are said together.
    own = [p for p in problems if p["loc"] and p["loc"][0] == field]
    messages = list(dict.fromkeys(problem["msg"] for problem in own))
    return bad_request(f"{field}: {'; or '.join(messages[:4])}", field, "invalid_value")
