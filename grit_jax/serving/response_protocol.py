"""The body of `POST /v1/responses`: OpenAI's fields, and ours in the tool `file_search`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from grit_jax.serving.protocol import Body, RankingOptions, Seed, StreamOptions

LOGPROBS, RESULTS = "message.output_text.logprobs", "file_search_call.results"
# What `include` may say; the others are about tools and inputs that this server does not have.
INCLUDABLE = (LOGPROBS, RESULTS)


class TextOptions(BaseModel):
    """`text`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: dict[str, Any] | None = None
    verbosity: Any = None


class FileSearchTool(BaseModel):
    """A tool of the type `file_search`: OpenAI's fields, and those of chat over documents."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["file_search"]
    vector_store_ids: list[str]
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    filters: Any = None
    ranking_options: RankingOptions | None = None
    mode: str | None = None
    search: str | None = None
    where: str | None = None
    rerank: Annotated[int, Field(ge=1, le=1000)] | None = None
    instruction: str | None = None


class ResponseBody(Body):
    """`POST /v1/responses`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "moderation",
            "max_tool_calls",
            "reasoning",
        }
    )
    UNSERVED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "conversation": (),
        "context_management": ([],),
        "prompt": (),
        "truncation": ("disabled",),
    }

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Seed | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Any = None
    reasoning: Any = None
    background: Any = None
    conversation: Any = None
    context_management: Any = None
    prompt: Any = None
    truncation: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    moderation: Any = None

    @property
    def is_stored(self) -> bool:
        """Whether the response can be read again, as it can unless the request says otherwise."""
        return self.store is not False
