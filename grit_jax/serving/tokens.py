"""`/tokenize`, `/detokenize` and `/tokenizer_info`: with them a client needs no tokenizer of its
own (lm-eval's local-completions asks them)."""

from __future__ import annotations

from typing import Any

from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import bad_request
from grit_jax.serving.messages import plain_messages
from grit_jax.serving.protocol import DetokenizeBody, TokenizeBody
from grit_jax.serving.service import Service
from grit_jax.text.chat import PromptPart


def text_ids(service: Service, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text as it is, with the beginning of sequence that the tokenizer adds.

    Special tokens that the text spells are ordinary text, as everywhere in this package.
    """
    tokenizer = service.model.tokenizer
    begin = tokenizer.added_around()[0] if add_special_tokens else ""
    parts = [PromptPart(begin, is_template=True), PromptPart(text)]
    return [i for ids in tokenizer.encode_parts([parts])[0] for i in ids]


async def tokenize(service: Service, body: TokenizeBody) -> Reply:
    """Token ids of a prompt or a conversation.

    Raises:
      ApiError: a request that is refused.
    """
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    if body.messages is not None:
        if body.add_generation_prompt is False:
            raise bad_request(
                "add_generation_prompt: conversations end with the assistant's tag here; leave it"
                " out",
                "add_generation_prompt",
            )
        messages = plain_messages(body.messages)
        ids = await service.prepare(lambda: service.model.prompt_ids(messages)[0])
    else:
        special = body.add_special_tokens is not False
        text = body.prompt or ""
        ids = await service.prepare(lambda: text_ids(service, text, add_special_tokens=special))
    reply: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": service.context,
        "tokens": ids,
        "token_strs": None,
    }
    if body.return_token_strs:
        reply["token_strs"] = [service.model.tokenizer.token_text(i) for i in ids]
    return Reply(reply)


async def detokenize(service: Service, body: DetokenizeBody) -> Reply:
    """The text of token ids, special tokens included.

    Raises:
      ApiError: a request that is refused.
    """
    service.check_model(body.model)
    size = service.model.config.vocab_size
    if body.tokens and max(body.tokens) >= size:
        raise bad_request(
            f"tokens: {max(body.tokens)} is outside the vocabulary (0 to {size - 1})", "tokens"
        )
    decode = service.model.tokenizer.decode
    text = await service.prepare(lambda: decode(body.tokens, skip_special=False))
    return Reply({"prompt": text})


def tokenizer_info(service: Service) -> Reply:
    """What of the tokenizer a client may want to know."""
    model = service.model
    template = model.template.source if model.template is not None else model.chat.jinja()
    return Reply(
        {
            "tokenizer_class": model.tokenizer.config.get("tokenizer_class"),
            "bos_token": model.tokenizer.bos_token,
            "eos_token": model.tokenizer.eos_token,
            "pad_token": model.tokenizer.pad_token,
            "chat_template": template,
            "vocab_size": model.tokenizer.vocab_size,
            "max_model_len": service.context,
        }
    )
