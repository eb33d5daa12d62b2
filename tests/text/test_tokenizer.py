"""Tokenizers: special tokens, dummy prefixes, and the tokens of chat formats."""

import json
import pickle

import pytest
import tokenizers
from small_tokenizers import byte_level, llama

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT, QWEN, PromptPart
from grit_jax.text.tokenizer import Tokenizer

TURNS = ["hello world, why?", "because so", " and user é!", "b c"]
PROMPTS = [
    (GRIT, GRIT.render_turns(TURNS)),
    (GRIT, GRIT.render_turns(TURNS[:1])),
    (GRIT, GRIT.embed_parts("", "hello world")),
    (GRIT, GRIT.embed_parts("why so", "hello world")),
    (GRIT, GRIT.plain_parts("hello world")),
    (GRIT, GRIT.render_turns(TURNS[:1], continues=True)),
]


@pytest.mark.parametrize("prefix", ["prepend", "first", "none"])
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_pieces_have_the_ids_of_the_whole_string(prefix, number):
    """The original tokenises the whole string; the dummy prefix must come exactly where it has
    it."""
    tokenizer, pieces = llama(prefix), PROMPTS[number][1]
    parts = tokenizer.encode_parts([pieces, pieces])
    assert parts[0] == parts[1]
    whole = tokenizer._template.encode("".join(p.text for p in pieces), add_special_tokens=False)
    assert [i for part in parts[0] for i in part] == whole.ids


def test_masks_follow_the_pieces():
    """Every token checked, by its characters' place in the whole string."""
    tokenizer = llama("prepend")
    pieces = GRIT.render_turns(TURNS)
    parts = tokenizer.encode_parts([pieces])[0]
    mask = [piece.is_answer for piece, ids in zip(pieces, parts, strict=True) for _ in ids]
    whole = "".join(p.text for p in pieces)
    answers = set()
    for answer in ("because so</s>", "b c</s>"):
        start = whole.index(answer)
        answers |= set(range(start, start + len(answer)))
    encoded = tokenizer._template.encode(whole, add_special_tokens=False)
    assert mask == [start in answers for start, _ in encoded.offsets]
    assert sum(mask) > 4


@pytest.mark.parametrize("prefix", ["prepend", "first", "none"])
def test_typed_special_tokens_are_text(prefix):
    tokenizer = llama(prefix)
    ids = tokenizer.encode("a</s><s> b")
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids).strip() == "a</s><s> b"
    parts = tokenizer.encode_parts([GRIT.render_turns(["</s>", "<s>"])])[0]
    flat = [i for part in parts for i in part]
    assert flat.count(tokenizer.bos_id) == 1 and flat.count(tokenizer.eos_id) == 1


def test_tags_that_are_special_tokens():
    tokenizer = byte_level()
    pieces = QWEN.render_turns(["why <|im_end|>?", "because"])
    ids = [i for part in tokenizer.encode_parts([pieces])[0] for i in part]
    assert ids.count(tokenizer.eos_id) == 2  # the user's one is text
    assert tokenizer.decode(ids, skip_special=False) == "".join(p.text for p in pieces)
    assert tokenizer.bos_id is None


def test_format_follows_the_tokenizer():
    assert llama("none").format(GRIT) == GRIT
    assert byte_level().format(QWEN) == QWEN
    chat = byte_level().format(GRIT)
    assert (chat.bos, chat.eos, chat.user) == ("", "<|im_end|>", GRIT.user)


def html_tags(special):
    """Gemma's vocabulary in small: `<s>` and `</s>` are HTML tags, `<bos>` and `<eos>` begin and
    end."""
    core = tokenizers.Tokenizer.from_str(byte_level()._json)
    core.add_tokens([tokenizers.AddedToken(t, special=special) for t in ("<s>", "</s>")])
    core.add_special_tokens(["<bos>", "<eos>"])
    return Tokenizer(core.to_str(), bos_token="<bos>", eos_token="<eos>")


def test_only_special_tokens_begin_and_end():
    tokenizer = html_tags(special=False)
    chat = tokenizer.format(GRIT)
    assert (chat.bos, chat.eos) == ("<bos>", "<eos>")
    ids = [i for part in tokenizer.encode_parts([chat.plain_parts("a")])[0] for i in part]
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert html_tags(special=True).format(GRIT) == GRIT
    # Spelled out in the vocabulary, as an entry that merges could give.
    file = json.loads(byte_level()._json)
    for text in ("<s>", "</s>"):
        file["model"]["vocab"][text] = len(file["model"]["vocab"])
    for token in file["added_tokens"]:
        token["id"] += 2
    tokenizer = Tokenizer(json.dumps(file), bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert tokenizer.format(GRIT).eos == "<|im_end|>"
    assert tokenizer.format(GRIT).bos == "<|im_start|>"


def test_a_saved_chat_template_writes_the_tokenizers_own_begin_and_end(tmp_path):
    html_tags(special=False).save(tmp_path)
    template = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert '"<bos>"' in template and '"<eos>"' in template and "<s>" not in template


def test_tokens_beyond_the_models_table():
    """The advice is what helps: training cannot enlarge a model that it starts from."""
    core = tokenizers.Tokenizer.from_str(llama("none")._json)
    size = core.get_vocab_size()
    core.add_special_tokens(["[PAD]"])
    tokenizer = Tokenizer(core.to_str(), bos_token="<s>", eos_token="</s>", pad_token="[PAD]")
    tokenizer.check_fits(size + 1, "model")
    with pytest.raises(GritError, match=r"model: .*'\[PAD\]' beyond it.*resize_token_embeddings"):
        tokenizer.check_fits(size, "model")
    with pytest.raises(GritError, match="take the tokenizer that was published with the model"):
        tokenizer.check_fits(size - 9, "model")


def test_batch_equals_single_and_empty_pieces_have_no_ids():
    tokenizer = llama("first")
    texts = ["", "a", "hello  world", "é\n"]
    for continues in (False, True):
        assert tokenizer.encode_batch(texts, continues=continues) == [
            tokenizer.encode(text, continues=continues) for text in texts
        ]
    assert tokenizer.encode_parts([[], [PromptPart(""), PromptPart("a")]]) == [
        [],
        [[], tokenizer.encode("a")],
    ]


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(GritError, match="text number 1 is not Unicode text"):
        llama("none").encode_batch(["fine", "broken \ud800"])


def test_pickled_for_worker_processes():
    tokenizer = llama("prepend")
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.encode("hello </s>", continues=True) == tokenizer.encode(
        "hello </s>", continues=True
    )
    assert (twin.bos_id, twin.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_ids_with_gaps(tmp_path):
    """The size is what an embedding table needs, not the number of tokens."""
    file = json.loads(byte_level()._json)
    last = max(file["model"]["vocab"].values())
    file["model"]["vocab"]["zzzz"] = last + 700
    tokenizer = Tokenizer(json.dumps(file), bos_token=None, eos_token="<|im_end|>")
    assert tokenizer.vocab_size >= last + 701


def test_a_format_without_an_end(tmp_path):
    tokenizer = Tokenizer(byte_level()._json, bos_token=None, eos_token=None)
    assert tokenizer.format(QWEN) == QWEN
    with pytest.raises(
        GritError,
        match="no special token '</s>', with which the format 'grit' ends an answer, and no end of",
    ):
        tokenizer.format(GRIT)


def test_what_ends_an_answer(tiny_tokenizer):
    """The end in the format, and the tokenizer's own where that is another."""
    end = tiny_tokenizer.eos_id
    assert tiny_tokenizer.answer_ends(tiny_tokenizer.format(GRIT)) == (end,)
    chat = GRIT.with_tokens(None, str(tiny_tokenizer.bos_token))
    assert tiny_tokenizer.answer_ends(chat) == (tiny_tokenizer.bos_id, end)
    words = GRIT.with_tokens(None, "two tokens, which cannot stop")
    assert tiny_tokenizer.answer_ends(words) == (end,)
