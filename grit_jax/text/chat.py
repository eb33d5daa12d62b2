"""How texts are wrapped before the model reads them: templates as data, rendered as parts.

A template is a `ChatFormat`: strings, no code. Rendering gives `PromptPart`s rather than one
string, so that each part is tokenised exactly once, and a mask over token ids follows from which
part a token came from, however a tokenizer merges characters. Source of the GRIT strings:
`gritlm/training/run.py` and `gritlm/training/data.py` of ContextualAI/gritlm.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from grit_jax.errors import GritError

# What the original strips from both ends of an instruction.
INSTRUCTION_STRIP = "\t\n :"


@dataclasses.dataclass(frozen=True)
class PromptPart:
    """A part of a prompt.

    Attributes:
      is_answer: its tokens are predicted.
      is_template: special tokens spelled in it (`<s>`) are the real ones. Everywhere else such a
        string is ordinary text, so that a user cannot type an end of sequence.
      is_document: may be cut from the right to make the example fit.
    """

    text: str
    is_answer: bool = False
    is_template: bool = False
    is_document: bool = False


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The strings around a text. Other families are other values of the same fields.

    An embedding text is `bos user {instruction} embed {text}`, or `bos embed_bare {text}` without
    an instruction; a conversation is `bos user {u} assistant {a} eos`, turns joined by
    `turn_separator`. The tag that closes the user's turn (where a family has one) is the beginning
    of `embed` and `assistant`.
    """

    name: str
    bos: str
    eos: str
    user: str
    embed: str
    embed_bare: str
    assistant: str
    turn_separator: str
    # Follows an embedding text.
    embed_end: str = ""
    # Whether mean pooling takes what stands before the text as well.
    pools_prompt: bool = False
    # Follows `bos` in a conversation: the system turn that the model was tuned with.
    opening: str = ""

    def with_tokens(self, bos: str | None, eos: str | None) -> ChatFormat:
        """The same tags between another tokenizer's begin and end of sequence (None: it has
        none)."""
        return dataclasses.replace(self, bos=bos or "", eos=eos or "")

    def embed_prompt(self, instruction: str = "") -> str:
        """What stands before an embedding text, `bos` included; it is attended to but not
        pooled.

        >>> GRIT.embed_prompt("Find the answer")
        '<s><|user|>\\nFind the answer\\n<|embed|>\\n'
        >>> GRIT.embed_prompt()
        '<s><|embed|>\\n'
        """
        return "".join(part.text for part in self.embed_parts(instruction, ""))

    def embed_parts(self, instruction: str, text: str) -> list[PromptPart]:
        """An embedding text as parts; the last one is the text itself, which pooling
        averages."""
        instruction = instruction.strip(INSTRUCTION_STRIP)
        if not instruction:
            return [PromptPart(self.bos + self.embed_bare, is_template=True), PromptPart(text)]
        return [
            PromptPart(self.bos + self.user, is_template=True),
            PromptPart(instruction),
            PromptPart(self.embed, is_template=True),
            PromptPart(text),
        ]

    def render_turns(self, turns: Sequence[str], *, continues: bool = False) -> list[PromptPart]:
        """A conversation `[user, assistant, user, ...]` as parts.

        An odd number of turns ends with the assistant's tag: the prompt of an answer to be
        generated. `continues` renders a turn after something already read (a cache):
        `turn_separator` in the place of `bos`.
        """
        parts: list[PromptPart] = []
        opening = self.turn_separator if continues else self.bos + self.opening
        for number, turn in enumerate(turns):
            if number % 2 == 0:
                parts.append(PromptPart(opening + self.user, is_template=True))
                parts.append(PromptPart(turn))
                parts.append(PromptPart(self.assistant, is_template=True))
                opening = self.turn_separator
            else:
                parts += self.answer_parts(turn)
        return parts

    def answer_parts(self, answer: str) -> list[PromptPart]:
        """`{answer.strip()}` and the end of sequence: what a language loss trains."""
        return [
            PromptPart(answer.strip(), is_answer=True),
            PromptPart(self.eos, is_answer=True, is_template=True),
        ]

    def plain_parts(self, text: str) -> list[PromptPart]:
        """A document for language modelling, `<s>text</s>`: everything after `bos` is predicted."""
        return [
            PromptPart(self.bos, is_template=True),
            PromptPart(text, is_answer=True),
            PromptPart(self.eos, is_answer=True, is_template=True),
        ]

    def jinja(self) -> str:
        """This format as a Hugging Face `chat_template`; equal to
        `render_turns(turns_of(messages))`."""
        s = json.dumps
        return (
            f"{{{{ {s(self.bos + self.opening)} }}}}{{% set ns = namespace(system='') %}}{{% for"
            " message in messages %}{% if message['role'] == 'system' %}{% set ns.system ="
            " ns.system + message['content'] + '\\n\\n' %}{% elif message['role'] == 'user' %}{{"
            f" {s(self.user)} + ns.system + message['content'] }}}}{{% set ns.system = '' %}}{{% if"
            f" not loop.last or add_generation_prompt %}}{{{{ {s(self.assistant)} }}}}{{% endif"
            " %}{% elif message['role'] == 'assistant' %}{{ message['content'] | trim +"
            f" {s(self.eos)} }}}}{{% if not loop.last %}}{{{{ {s(self.turn_separator)} }}}}{{%"
            " endif %}{% endif %}{% endfor %}"
        )


GRIT = ChatFormat(
    name="grit",
    bos="<s>",
    eos="</s>",
    user="<|user|>\n",
    embed="\n<|embed|>\n",
    embed_bare="<|embed|>\n",
    assistant="\n<|assistant|>\n",
    turn_separator="\n",
)

_LLAMA3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = ChatFormat(
    name="llama3",
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    user=_LLAMA3_HEADER.format("user"),
    embed="<|eot_id|>" + _LLAMA3_HEADER.format("embed"),
    embed_bare=_LLAMA3_HEADER.format("embed"),
    assistant="<|eot_id|>" + _LLAMA3_HEADER.format("assistant"),
    turn_separator="",
)

QWEN = ChatFormat(
    name="qwen",
    bos="",
    eos="<|im_end|>",
    user="<|im_start|>user\n",
    embed="<|im_end|>\n<|im_start|>embed\n",
    embed_bare="<|im_start|>embed\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    turn_separator="\n",
)

# SmolLM2-Instruct's own chat template opens with this system turn.
SMOLLM2 = dataclasses.replace(
    QWEN,
    name="smollm2",
    opening="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
    " Face<|im_end|>\n",
)

GEMMA = ChatFormat(
    name="gemma",
    bos="<bos>",
    eos="<end_of_turn>",
    user="<start_of_turn>user\n",
    embed="<end_of_turn>\n<start_of_turn>embed\n",
    embed_bare="<start_of_turn>embed\n",
    assistant="<end_of_turn>\n<start_of_turn>model\n",
    turn_separator="\n",
)


@dataclasses.dataclass(frozen=True)
class SentenceFormat(ChatFormat):
    """How sentence-transformers reads a text: `embed_begin prompt text embed_end`.

    Prompt and text are tokenised as one string. An instruction is a prompt, used as it is, in the
    place of `default_prompt`. Conversations keep the strings of another format.
    """

    embed_begin: str = ""
    default_prompt: str = ""
    special_tokens: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        chat: ChatFormat,
        *,
        begin: str,
        prompt: str,
        end: str,
        pools_prompt: bool,
        special_tokens: Sequence[str],
    ) -> SentenceFormat:
        """The format of a model whose conversations are those of `chat`.

        Args:
          begin, end: what the tokenizer puts around a text by itself.
          prompt: the default one.
          pools_prompt: whether mean pooling takes it, too.
          special_tokens: those of the tokenizer; in `prompt` they are real.
        """
        strings = {
            field.name: getattr(chat, field.name) for field in dataclasses.fields(ChatFormat)
        }
        strings |= {"name": "sentence-transformers", "embed_end": end}
        strings["pools_prompt"] = pools_prompt
        return cls(
            **strings,
            embed_begin=begin,
            default_prompt=prompt,
            special_tokens=tuple(special_tokens),
        )

    def embed_parts(self, instruction: str, text: str) -> list[PromptPart]:
        """An embedding text as parts; the last one is prompt and text in one."""
        template, prompt = self.embed_begin, instruction
        if not instruction:
            # Up to the last special token the default prompt is a template; the rest of it joins
            # the text.
            ends = [
                self.default_prompt.rfind(t) + len(t)
                for t in self.special_tokens
                if t in self.default_prompt
            ]
            place = max(ends, default=0)
            template, prompt = template + self.default_prompt[:place], self.default_prompt[place:]
        return [PromptPart(template, is_template=True), PromptPart(prompt + text)]


FORMATS = {chat.name: chat for chat in (GRIT, LLAMA3, QWEN, SMOLLM2, GEMMA)}


def turns_of(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """OpenAI-style messages as turns `[user, assistant, ...]`; system text leads the user's next
    turn.

    Raises:
      GritError: an unknown role, content that is not a string, roles that do not alternate, or no
        user
      message.
    """
    turns: list[str] = []
    system = ""
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise GritError(
                f"messages[{number}]: 'content' must be a string, got {type(content).__name__}"
            )
        if role == "system":
            system += content + "\n\n"
        elif role in ("user", "assistant"):
            if (role == "user") != (len(turns) % 2 == 0):
                expected = "user" if len(turns) % 2 == 0 else "assistant"
                raise GritError(
                    f"messages[{number}]: roles must alternate, expected '{expected}', got '{role}'"
                )
            turns.append(system + content if role == "user" else content)
            system = "" if role == "user" else system
        else:
            raise GritError(
                f"messages[{number}]: unknown role {role!r}; known: system, user, assistant"
            )
    if not turns:
        raise GritError("messages: there is no user message to answer")
    return turns
