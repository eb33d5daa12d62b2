"""Ids and masks of conversations, token by token, with tokenizers of every kind.

The truth is the whole string tokenised at once by the `tokenizers` library (that is what
transformers does): its ids, and which characters each token stands for. Exactly the tokens of the
answers and of their ends are predicted.
"""

from __future__ import annotations

import corpus
import pytest
import tokenizer_kinds
import tokenizers

from grit_jax.data.example_tokenizer import ExampleTokenizer, LengthLimits
from grit_jax.data.formats import GenerativeExample
from grit_jax.text.chat import FORMATS, GRIT, INSTRUCTION_STRIP
from grit_jax.text.tokenizer import Tokenizer

LIMITS = LengthLimits(
    query=9999, passage=9999, generative=9999, document=9999, cached_row=9999, continuation_row=9999
)
# Every kind with the format of GRIT, and some with that of their own models.
CASES = [(kind, "grit") for kind in (*tokenizer_kinds.MAKERS, "trained")]
CASES += [("llama3", "llama3"), ("qwen", "qwen"), ("gemma", "gemma")]
USERS = [
    "Why is the sky blue?",
    "hello",
    "one.\n",
    "\n\ntwo\n\n",
    "  three  ",
    "",
    "é漢🙂",
    "a\tb",
    "code:\n    x = 1\n",
    "...",
    "'s it",
    "12345",
    "\u2581x\u2581",
    " \u00a0",
    "Ünïcödé\u0301",
    "def f():\n\treturn [1,\n\n\n2]",
    "שלום\u200f ab",
    "=",
]
ANSWERS = [
    "Because.",
    "  trimmed \n",
    "x",
    "",
    "\n",
    "42",
    "'s",
    "- a\n- b\n\n- c",
    "漢字",
    "\u0301combining",
    ".",
    ":-)\n\nYes!",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_tokenizer):
    made = {"trained": tiny_tokenizer}
    for kind in tokenizer_kinds.MAKERS:
        made[kind] = Tokenizer.from_pretrained(
            tokenizer_kinds.make(kind, tmp_path_factory.mktemp(kind))
        )
    return made


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(case, made):
    return made[case[0]]


@pytest.fixture(scope="module")
def chat(case, tokenizer):
    return tokenizer.format(FORMATS[case[1]])


@pytest.fixture(scope="module")
def whole(tokenizer):
    """The string tokenised at once: ids, and the first character of each token."""
    reader = tokenizers.Tokenizer.from_str(tokenizer._json)
    reader.post_processor = None

    def encode(text):
        found = reader.encode(text, add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]

    return encode


def conversations(turns):
    """As many as it takes to see every text in every place, `turns` turns of the user each."""
    for n in range(len(USERS) * 2):
        yield [
            (USERS, ANSWERS)[t % 2][(n * (t + 1) + 5 * t) % len((USERS, ANSWERS)[t % 2])]
            for t in range(2 * turns)
        ]


def melts_with_a_tag_token(tokenizer, turns):
    """The trained tokenizer has `\\n<|assistant|>\\n` as one token, and keeps it whole beside a
    line break that would otherwise take its first character: it was trained that way, and the whole
    string is not."""
    return len(tokenizer.encode(GRIT.assistant)) == 1 and any(t.endswith("\n") for t in turns[::2])


@pytest.mark.parametrize("turns", [1, 2, 3, 5])
def test_ids_are_those_of_the_whole_string_and_masks_those_of_the_answers(
    case, tokenizer, chat, whole, turns
):
    reader = ExampleTokenizer(tokenizer, chat, LIMITS)
    checked = 0
    for texts in conversations(turns):
        (found,) = reader.generative([GenerativeExample(tuple(texts))])
        # The string, and the places of what is to be predicted in it, written without any of our
        # code.
        string, answers = "", []
        for number, text in enumerate(texts):
            if number % 2 == 0:
                string += (
                    (chat.turn_separator if number else chat.bos)
                    + chat.user
                    + text
                    + chat.assistant
                )
            else:
                # SentencePiece's defaults make a space of the tag's line break; it is the beginning
                # of the answer.
                begin = len(string) - (case[0] == "unigram-nfkc")
                answers.append((begin, len(string + text.strip() + chat.eos)))
                string += text.strip() + chat.eos
        ids, starts = whole(string)
        if melts_with_a_tag_token(tokenizer, texts):
            assert tokenizer.decode(found.ids, skip_special=False) == string
            continue
        assert list(found.ids) == ids, string
        expected = [any(start <= place < end for start, end in answers) for place in starts]
        assert list(found.targets) == expected, string
        ends = [n for n, i in enumerate(found.ids) if found.targets[n] and i == ids[-1]]
        assert len(ends) == turns and found.targets[-1]
        checked += 1
    assert checked > 10


def test_typed_special_tokens_change_no_mask(tokenizer, chat):
    """Whatever a user or a data file spells, a conversation has as many ends as answers, and begins
    once."""
    special = {
        tokenizer._template.token_to_id(text)
        for text in tokenizer.special_tokens
        if text != "<unk>"
    }
    reader = ExampleTokenizer(tokenizer, chat, LIMITS)
    (clean,) = reader.generative([GenerativeExample(("a", "b", "a", "b"))])
    typed = [
        tokenizer.special_tokens[0],
        chat.eos,
        f"a{chat.bos}{chat.eos} b",
        chat.eos + chat.user,
        chat.assistant,
    ]
    for text in typed:
        for number in range(4):
            texts = ["a", "b", "a", "b"]
            texts[number] = text
            (found,) = reader.generative([GenerativeExample(tuple(texts))])
            assert [i for i in found.ids if i in special] == [
                i for i in clean.ids if i in special
            ], text
            ends = [n for n, i in enumerate(found.ids) if i == clean.ids[-1]]
            assert [found.targets[n] for n in ends][-1] and sum(found.targets[n] for n in ends) >= 2
            # Nothing of the user's is predicted, all of the answers is.
            pieces = tokenizer.encode_parts([chat.render_turns(texts)])[0]
            lengths = [(len(ids), n % 5 > 2) for n, ids in enumerate(pieces)]
            assert list(found.targets) == [
                answer for length, answer in lengths for _ in range(length)
            ]


def test_odd_lines_in_every_turn(tokenizer, chat, whole):
    lines = [
        line
        for line in corpus.lines(300, seed=2)
        if not any(s in line for s in tokenizer.special_tokens)
    ]
    reader, checked = ExampleTokenizer(tokenizer, chat, LIMITS), 0
    for n in range(0, len(lines) - 6, 6):
        texts = lines[n : n + 6]
        if melts_with_a_tag_token(tokenizer, texts):
            continue
        (found,) = reader.generative([GenerativeExample(tuple(texts))])
        string = "".join(piece.text for piece in chat.render_turns(texts))
        assert list(found.ids) == whole(string)[0], string
        checked += 1
    assert checked > 20


def test_embedding_texts(tokenizer, chat, whole):
    """Instruction and tags are one prompt, whatever follows; the text begins with a token of its
    own.

    So a text that begins with a line break differs from the whole string where the vocabulary would
    join it with that of the tag: the prompt has to be the same tokens before every text, being read
    once and not pooled.
    """
    instructions = ["", "Find it.", "Retrieve: a passage?", "one\n\ntwo", "é漢"]
    prompts = [(i, text) for i in instructions for text in USERS]
    found = tokenizer.encode_parts([chat.embed_parts(*prompt) for prompt in prompts])
    fixed = {i: tokenizer.encode_parts([chat.embed_parts(i, "")[:-1]])[0] for i in instructions}
    differing = set()
    for (instruction, text), pieces in zip(prompts, found):
        assert pieces[:-1] == fixed[instruction]
        string = chat.embed_prompt(instruction) + text
        if [i for piece in pieces for i in piece] != whole(string)[0]:
            differing.add(text)
        assert (
            tokenizer.encode_parts([chat.embed_parts(instruction, text)[-2:]])[0][-1] == pieces[-1]
        )
    assert all(text[0].isspace() for text in differing), differing
    assert instructions[1] == instructions[1].strip(INSTRUCTION_STRIP)


def test_the_original_drifts_from_turn_two_on(tmp_path):
    """Its masks count the tokens of turns tokenised one by one, without the separators between
    them.

    Source: `gritlm/training/data.py` of ContextualAI/gritlm (`get_generative_instruction_mask`, in
    its terms).
    """
    tokenizer = Tokenizer.from_pretrained(tokenizer_kinds.make("mistral", tmp_path))
    texts = ["hello", "Because.", "river", "No."]
    count = lambda text: len(tokenizer._template.encode(text, add_special_tokens=False).ids)
    lengths = [
        count(f"<s><|user|>\n{texts[0]}\n<|assistant|>\n"),
        count(f"{texts[1]}</s>"),
        count(f"<|user|>\n{texts[2]}\n<|assistant|>\n"),
        count(f"{texts[3]}</s>"),
    ]
    (ours,) = ExampleTokenizer(tokenizer, GRIT, LIMITS).generative(
        [GenerativeExample(tuple(texts))]
    )
    theirs = [bool(n % 2) for n, length in enumerate(lengths[:-1]) for _ in range(length)]
    theirs += [True] * (len(ours.ids) - len(theirs))
    first = lengths[0]
    assert not any(ours.targets[:first]) and not any(theirs[:first])
    assert theirs != list(ours.targets)
    drifted = [n for n, (a, b) in enumerate(zip(theirs, ours.targets)) if a != b]
    assert min(drifted) >= first  # the first question is masked alike
    answers = tokenizer.encode_parts([GRIT.render_turns(texts)])[0]
    assert sum(ours.targets) == sum(len(answers[n]) for n in (3, 4, 8, 9))
