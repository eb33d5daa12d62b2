"""What lm-eval asks of a model, in token ids: for a `GritLM` in this process.

`harness.py` makes an lm-eval model of it. The rules of lm-eval's own `hf` model hold here: a text
gets the beginning of sequence that the tokenizer adds, unless it begins with one; special tokens
that it spells are real ones, because chat templates arrive as rendered text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Protocol

from grit_jax.errors import GritError
from grit_jax.inference.continuations import Pair, score_continuations
from grit_jax.inference.decode import DecodeOptions, engine_shape
from grit_jax.inference.engine import EngineLimits
from grit_jax.inference.model import GritLM
from grit_jax.inference.requests import GenerateRequest, GenerateResult, Pending
from grit_jax.inference.sampling import Sampling
from grit_jax.text.chat_template import ChatTemplate
from grit_jax.text.tokenizer import Tokenizer

Message = Mapping[str, str]
OnDone = Callable[[int], None]  # called with the number of requests that were answered


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """A prompt, how it is continued, and strings before which the answer ends."""

    prompt: Sequence[int]
    sampling: Sampling
    until: Sequence[str] = ()


class Backend(Protocol):
    """A model as `harness.py` needs it.

    Attributes:
      name: of the model, in results.
      fingerprint: of its tokenizer and chat template.
      max_length: tokens that it reads.
      prefix_id: the token before a text that has no context: the beginning of sequence, or the end
        where there is none.
      eos_id, eos_text: the end of sequence.
    """

    name: str
    fingerprint: str
    max_length: int
    prefix_id: int
    eos_id: int
    eos_text: str

    @property
    def template(self) -> str:
        """The source of the chat template."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text; None: with the beginning of sequence that the tokenizer adds, unless
        the text begins with it."""
        ...

    def first_tokens(self, text: str, count: int) -> str:
        """The text of the first so many tokens of a text."""
        ...

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """A conversation as text; without a generation prompt the last message is left open."""
        ...

    def score(self, pairs: Sequence[Pair], on_done: OnDone) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether greedy decoding writes it."""
        ...

    def generate(self, requests: Sequence[TextRequest], on_done: OnDone) -> list[str]:
        """Answers, each cut before the first of its `until` strings."""
        ...


class TextRules:
    """The part of a backend that a tokenizer and a chat template make up.

    Args:
      template: None: conversations are refused.
      eos_id: the end of sequence, where the tokenizer names none.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, eos_id: int = 0):
        self.tokenizer, self._template = tokenizer, template
        self.eos_id: int = eos_id if tokenizer.eos_id is None else tokenizer.eos_id
        self.eos_text = tokenizer.decode([self.eos_id], skip_special=False)
        self.prefix_id: int = self.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self._prefix_text = tokenizer.decode([self.prefix_id], skip_special=False)
        begin = tokenizer.added_around()[0]
        self._begin = tokenizer.encode_rendered(begin) if begin else []
        self.fingerprint = tokenizer.digest

    @property
    def template(self) -> str:
        return self._chat_template().source

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not text.startswith(self._prefix_text)
        ids = self.tokenizer.encode_rendered(text)
        return [*self._begin, *ids] if add_special_tokens else ids

    def first_tokens(self, text: str, count: int) -> str:
        ids = self.encode(text, add_special_tokens=False)
        return text if len(ids) <= count else self.tokenizer.decode(ids[:count])

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        template = self._chat_template()
        text = template.render(messages, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else open_ended(text, messages[-1]["content"])

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise GritError("--apply-chat-template: the model has no chat template")
        return self._template


class LocalBackend(TextRules):
    """A model in this process.

    Args:
      max_length: tokens that it may read; None: its context.

    Raises:
      GritError: a `max_length` beyond the model's context.
    """

    def __init__(self, model: GritLM, name: str, max_length: int | None = None):
        context = model.config.context_length
        if max_length is not None and max_length > context:
            raise GritError(f"--max-length {max_length}: this model's context is {context} tokens")
        template = model.template or ChatTemplate(
            model.chat.jinja(), model.tokenizer, "the model's chat format"
        )
        super().__init__(model.tokenizer, template, next(iter(model.stop_ids), 0))
        self.model, self.name, self.max_length = model, name, max_length or context

    def score(self, pairs: Sequence[Pair], on_done: OnDone) -> list[tuple[float, bool]]:
        scores = score_continuations(self.model, pairs, on_scored=on_done)
        return list(zip(scores.logprobs.tolist(), scores.greedy.tolist(), strict=True))

    def generate(self, requests: Sequence[TextRequest], on_done: OnDone) -> list[str]:
        if not requests:
            return []
        # Answers of similar length run side by side.
        order = sorted(
            range(len(requests)),
            key=lambda i: len(requests[i].prompt) + requests[i].sampling.max_new_tokens,
        )
        answers = [_Answer(requests[i], self.model.tokenizer, f"request {i}") for i in order]
        shape = engine_shape(
            [answer.request for answer in answers],
            self.model.config,
            DecodeOptions(mesh=self.model.mesh),
        )
        limits = EngineLimits(waiting=len(answers))
        context = min(shape.capacity, self.model.config.context_length)
        texts = [""] * len(requests)
        with self.model.engine(shape.slots, context, limits) as engine:
            for answer in answers:
                answer.started(engine.submit(answer.request))
            for i, answer in zip(order, answers, strict=True):
                texts[i] = answer.text()
                on_done(1)
        return texts


class _Answer:
    """An answer while it is generated; it is cancelled once it holds a string of `until`."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer, name: str):
        self._until, self._tokenizer = [text for text in request.until if text], tokenizer
        self._ids: list[int] = []
        self._pending: Pending[GenerateResult] | None = None
        self._ended = False
        self.request = GenerateRequest(
            request.prompt,
            sampling=request.sampling,
            on_tokens=self._add if self._until else None,
            name=name,
        )

    def started(self, pending: Pending[GenerateResult]) -> None:
        self._pending = pending
        if self._ended:  # before this thread knew of it
            pending.cancel()

    def text(self) -> str:
        """Waits for the answer."""
        assert self._pending is not None
        try:
            ids = self._pending.result().tokens
        except CancelledError:
            ids = self._ids
        return cut_before(self._tokenizer.decode(ids), self._until)

    def _add(self, tokens: list[int]) -> None:
        """Called in the engine's thread."""
        if self._ended:
            return
        self._ids += tokens
        text = self._tokenizer.decode(self._ids)
        if any(end in text for end in self._until):
            self._ended = True
            if self._pending is not None:
                self._pending.cancel()


def cut_before(text: str, ends: Sequence[str]) -> str:
    """The text before the first of some strings, as lm-eval cuts it.

    >>> cut_before("4. Q: next", ["Q:", "</s>"])
    '4. '
    """
    for end in ends:
        text = text.split(end)[0]
    return text


def open_ended(text: str, last: str) -> str:
    """A rendered conversation up to the end of its last message, as transformers'
    `continue_final_message` cuts it.

    Raises:
      GritError: the template has changed the message, so that it is not found.

    >>> open_ended("<|assistant|>\\nThe answer is:</s>", "The answer is:")
    '<|assistant|>\\nThe answer is:'
    """
    start = text.rfind(last.strip())
    if start < 0:
        raise GritError(
            f"the chat template changes the beginning of the answer {last!r:.60}, so that it cannot"
            " be continued; leave out --apply-chat-template"
        )
    end = start + len(last)
    return text[:end] if text[start:end] == last else text[: start + len(last.strip())]
