"""Which tokens a conversation trains: our masks against the original's rule and against the
characters themselves.

The original tokenises fragments and adds their lengths up; we tokenise each piece once and know
what it is. For one turn both say the same. From the second turn on its count drifts, and these
tests show where it ends up.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, trainers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402

from grit_jax.data.example_tokenizer import ExampleTokenizer, LengthLimits  # noqa: E402
from grit_jax.data.formats import GenerativeExample  # noqa: E402
from grit_jax.text.chat import GRIT  # noqa: E402
from grit_jax.text.tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.peers

WIDE = 4096
ONE_TURN = [
    ["What is amber?", "A stone."],
    ["  blanks around ", "\n and here \t"],
    ["größer 北京 🙂\u200d", "naïve\n\n  code:\n    x = 1  # <|user|>"],
    ["one\ntwo", "x"],
    ["<|assistant|>\nnot yet", "so"],
]
MORE_TURNS = [
    ["What is amber?", "A stone.", "And copper?", "It is a metal."],
    ["one", "two", "three four", " five ", "six?", "seven 北京"],
]


def mistral_like() -> Tokenizer:
    """Byte-fallback BPE with a dummy prefix: the ids of a fragment are not those it has inside the
    whole string."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    texts = [
        "user assistant what is amber stone copper metal one two three four five six seven and"
        " so it"
    ] * 9
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=360, special_tokens=pieces))
    file = json.loads(core.to_str())
    file["added_tokens"] = file["added_tokens"][: len(special)]
    return Tokenizer(json.dumps(file), bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["ours", "mistral"])
def pair(request, tiny_tokenizer, tmp_path_factory):
    """A tokenizer as we and as transformers have it, padded with the beginning of sequence as the
    original's is (gritlm: gritlm/training/run.py:118-120)."""
    mine = tiny_tokenizer if request.param == "ours" else mistral_like()
    directory = tmp_path_factory.mktemp(request.param)
    mine.save(directory, GRIT)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<s>",
        padding_side="right",
    )
    return mine, theirs


def our_masks(tokenizer, conversations, limit=WIDE, **how):
    reader = ExampleTokenizer(
        tokenizer, GRIT, LengthLimits(limit, limit, limit, limit, limit, limit), **how
    )
    return reader.generative([GenerativeExample(tuple(turns)) for turns in conversations])


def by_characters(tokenizer, turns) -> tuple[list[int], list[bool]]:
    """Ids of the whole string, and whether each stands in an answer or its end of sequence, by its
    characters."""
    string, inside = original.BOS, []
    for number, (user, answer) in enumerate(zip(turns[::2], turns[1::2])):
        string += (original.TURN if number else "") + original.USER + user + original.ASSISTANT
        start = len(string)
        string += answer.strip() + original.EOS
        inside += range(start, len(string))
    found = tokenizer(string, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [start in inside for start, _ in found["offset_mapping"]]


def trained(labels) -> list[bool]:
    return [label != original.IGNORED for label in labels.tolist()]


def test_one_turn_token_by_token(pair):
    mine, theirs = pair
    batch = original.collate_generative(theirs, ONE_TURN, WIDE)
    for row, (text, turns) in enumerate(zip(our_masks(mine, ONE_TURN), ONE_TURN)):
        ids, answers = by_characters(theirs, turns)
        assert list(text.ids) == ids == batch["input_ids"][row, : len(ids)].tolist()
        assert list(text.targets) == answers == trained(batch["labels"][row, : len(ids)])
        assert batch["attention_mask"][row].sum() == len(ids) and not any(
            trained(batch["labels"][row, len(ids) :])
        )


@pytest.mark.parametrize("limit", [12, 30])
def test_one_turn_cut(pair, limit):
    mine, theirs = pair
    batch = original.collate_generative(theirs, ONE_TURN, limit)
    cut = 0
    for row, text in enumerate(our_masks(mine, ONE_TURN, limit)):
        kept = int(batch["attention_mask"][row].sum())
        assert list(text.ids) == batch["input_ids"][row, :kept].tolist() and len(text.ids) <= limit
        assert list(text.targets) == trained(batch["labels"][row, :kept])
        cut += kept == limit
    assert cut


TAG = "\n<|assistant|>\n"
# Tokens of MORE_TURNS, in order, that the original trains though they are no answer, and answers
# that it leaves out.
DRIFT = {
    # Each turn's mask begins one token too early, the line break between turns, and adds that to
    # those before: the model learns to write the tag that asks it to speak, then the end of what
    # was asked, and forgets to stop.
    "ours": [([TAG], []), ([TAG, "?", TAG], ["</s>"])],
    # With a dummy prefix an answer by itself is one token longer than in the string; here that
    # makes good for the line break, and what is trained is the prefix of the user's turn.
    "mistral": [(["▁"], []), (["▁", "▁"], [])],
}


def test_more_turns_are_ours_by_the_characters_and_theirs_by_a_count(pair, request):
    mine, theirs = pair
    batch = original.collate_generative(theirs, MORE_TURNS, WIDE)
    drift = DRIFT[request.node.callspec.params["pair"]]
    for row, (text, turns) in enumerate(zip(our_masks(mine, MORE_TURNS), MORE_TURNS)):
        ids, answers = by_characters(theirs, turns)
        assert list(text.ids) == ids == batch["input_ids"][row, : len(ids)].tolist()
        assert list(text.targets) == answers
        assert (
            answers.count(True) > 2 * len(turns) / 2
            and sum(i == mine.eos_id for i in ids) == len(turns) // 2
        )
        tokens, drifted = (
            theirs.convert_ids_to_tokens(ids),
            trained(batch["labels"][row, : len(ids)]),
        )
        added = [
            token for token, there, here in zip(tokens, drifted, answers) if there and not here
        ]
        lost = [token for token, there, here in zip(tokens, drifted, answers) if here and not there]
        assert (added, lost) == drift[row]


def test_prefix_lm_there_trains_the_last_answer_alone(pair):
    """`prefixlm` masks every fragment but the last, by the same count; one turn is unchanged. So
    does `data.last_answer_only`, by the ids themselves."""
    mine, theirs = pair
    ours = our_masks(mine, MORE_TURNS, last_answer_only=True)
    assert our_masks(mine, ONE_TURN, last_answer_only=True) == our_masks(mine, ONE_TURN)
    plain = original.collate_generative(theirs, ONE_TURN, WIDE)["labels"]
    np.testing.assert_array_equal(
        original.collate_generative(theirs, ONE_TURN, WIDE, prefix_lm=True)["labels"], plain
    )
    batch = original.collate_generative(theirs, MORE_TURNS, WIDE, prefix_lm=True)
    for row, turns in enumerate(MORE_TURNS):
        ids, answers = by_characters(theirs, turns)
        found = trained(batch["labels"][row, : len(ids)])
        last = max(i for i in range(len(ids)) if not answers[i]) + 1
        assert not any(found[: last // 2]) and all(found[last:])
        assert list(ours[row].targets) == [i >= last for i in range(len(ids))]


def test_a_question_that_ends_in_a_line_break(pair, request):
    """The one known exception to the same ids: where tags are tokens, the whole string begins with
    the two line breaks and has the tag in pieces; here a tag is always the same token. What is
    trained is the same."""
    mine, theirs = pair
    turns = ["what is amber?\n", "so"]
    ids, answers = by_characters(theirs, turns)
    (text,) = our_masks(mine, [turns])
    assert (list(text.ids) == ids) == (request.node.callspec.params["pair"] == "mistral")
    trained_here, trained_there = (
        [i for i, marked in zip(*both) if marked]
        for both in ((text.ids, text.targets), (ids, answers))
    )
    assert trained_here == trained_there and mine.decode(text.ids) == mine.decode(ids)
    if list(text.ids) != ids:
        assert (
            theirs.convert_tokens_to_ids("\n\n") in ids
            and theirs.convert_tokens_to_ids(TAG) in text.ids
        )


def test_typed_special_tokens(pair):
    """A user who types `</s>` ends a sequence there and writes four characters here."""
    mine, theirs = pair
    turns = ["what is </s>?", "a <s> b"]
    ids = original.collate_generative(theirs, [turns], WIDE)["input_ids"][0].tolist()
    (text,) = our_masks(mine, [turns])
    assert ids.count(mine.eos_id) == 2 and list(text.ids).count(mine.eos_id) == 1
    assert ids.count(mine.bos_id) == 2 and list(text.ids).count(mine.bos_id) == 1
    decoded = mine.decode(text.ids, skip_special=False)
    assert (
        decoded.replace("<s> <|", "<s><|")
        == "<s><|user|>\nwhat is </s>?\n<|assistant|>\na <s> b</s>"
    )
