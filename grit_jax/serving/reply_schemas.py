"""The bodies of replies, for the OpenAPI description.

The endpoints build plain dictionaries; these classes say what is in them, and tests hold replies
against them. Fields without a default are always there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Count = Field(ge=0)
Score = float


class ErrorDetail(BaseModel):
    """What went wrong: `param` is the field of the request, `code` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


class StatusReply(BaseModel):
    """`/health` and `/ready`."""

    status: Literal["ok", "failed", "ready", "compiling", "draining"]


class VersionReply(BaseModel):
    """`/version`."""

    version: str


# ---- models --------------------------------------------------------------------------------------


class ModelReply(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    embedding_dimensions: int


class ModelsReply(BaseModel):
    """The models of the server."""

    object: Literal["list"]
    data: list[ModelReply]


# ---- embeddings, reranking -----------------------------------------------------------------------


class InputUsage(BaseModel):
    """Tokens of a request without an answer."""

    prompt_tokens: int = Count
    total_tokens: int = Count


class Embedding(BaseModel):
    """A vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int = Count
    embedding: list[float] | str


class EmbeddingReply(BaseModel):
    """`/v1/embeddings`."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: InputUsage


class RerankResult(BaseModel):
    """A document's place in the request, and its relevance from 0 to 1."""

    index: int = Count
    relevance_score: Score = Field(ge=0, le=1)
    document: dict[str, str] | None = None


class RerankReply(BaseModel):
    """Reranking in Cohere's and Jina's form, the most relevant document first."""

    id: str
    model: str
    usage: InputUsage
    results: list[RerankResult]
    meta: dict[str, Any]


class TextRank(BaseModel):
    """A text's place in the request, and its score."""

    index: int = Count
    score: Score
    text: str | None = None


class ScoreItem(BaseModel):
    """The score of a pair or an item; `label_scores` with `/generative_scoring`."""

    index: int = Count
    object: Literal["score"]
    score: Score
    label_scores: list[Score] | None = None


class ScoreReply(BaseModel):
    """`/v1/score` and `/generative_scoring`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreItem]
    usage: InputUsage


# ---- answers -------------------------------------------------------------------------------------


class Usage(InputUsage):
    """Tokens of a request and its answers."""

    completion_tokens: int = Count
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class TokenLogprob(BaseModel):
    """A token that was possible."""

    token: str
    logprob: float = Field(le=0)
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """A token of the answer, and those that were most likely at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[ChosenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int = Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatReply(BaseModel):
    """`/v1/chat/completions` without `stream`; `grit` where the answer is over documents."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    grit: dict[str, Any] | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities; a prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int = Count
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None


class CompletionReply(BaseModel):
    """`/v1/completions` without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseReply(BaseModel):
    """A response, as OpenAI describes it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    metadata: dict[str, str]


# ---- stores and files ----------------------------------------------------------------------------


class Page(BaseModel):
    """A page of a list."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool
    data: list[dict[str, Any]]


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: str
    deleted: Literal[True]


class StoreReply(BaseModel):
    """A vector store."""

    id: str
    object: Literal["vector_store"]
    created_at: int
    name: str
    status: Literal["completed", "in_progress"]
    usage_bytes: int = Count
    file_counts: dict[str, int]
    last_active_at: int
    expires_after: None
    expires_at: None
    metadata: dict[str, Any]


class StoresReply(Page):
    """The vector stores."""

    data: list[StoreReply]  # type: ignore[assignment]


class FileReply(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int = Count
    created_at: int
    filename: str
    purpose: str


class StoreFileReply(BaseModel):
    """A file of a store."""

    id: str
    object: Literal["vector_store.file"]
    created_at: int
    vector_store_id: str
    status: Literal["completed", "in_progress", "failed", "cancelled"]
    usage_bytes: int = Count
    last_error: dict[str, Any] | None
    attributes: dict[str, Any]
    chunking_strategy: dict[str, Any]


class TextContent(BaseModel):
    """A text."""

    type: Literal["text"]
    text: str


class SearchResult(BaseModel):
    """A document that was found."""

    file_id: str
    filename: str
    score: Score
    attributes: dict[str, Any]
    content: list[TextContent]


class SearchReply(BaseModel):
    """The documents that were found, the best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool
    next_page: None


class ContentReply(BaseModel):
    """The texts of a file's documents."""

    object: Literal["vector_store.file_content.page"]
    data: list[TextContent]
    has_more: bool
    next_page: None


# ---- tokens --------------------------------------------------------------------------------------


class TokenizeReply(BaseModel):
    """`/tokenize`."""

    count: int = Count
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class DetokenizeReply(BaseModel):
    """`/detokenize`."""

    prompt: str


class TokenizerInfoReply(BaseModel):
    """`/tokenizer_info`."""

    tokenizer_class: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str
    vocab_size: int
    max_model_len: int
