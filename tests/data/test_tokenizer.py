"""Tokenizers of Hugging Face directories: special tokens, dummy prefixes, where their names are written."""

import json
import pickle

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from grit_jax.data.chat import GRIT, QWEN, Piece
from grit_jax.data.tokenizer import Tokenizer
from grit_jax.types import GritError

WORDS = ["hello world, user and assistant embed: why so? because! " * 3, "a b c d e f <|>\n ▁ é"] * 5
SPECIAL = ["<unk>", "<s>", "</s>"]


def llama(prefix):
    """Byte-fallback BPE as Llama 2 and Mistral have it, with one of the ways to write their dummy prefix."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    lines = [line for text in WORDS for line in text.split("\n")]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    core.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL + bytes_))
    file = json.loads(core.to_str())
    file["added_tokens"] = file["added_tokens"][:3]  # byte pieces are no added tokens
    return Tokenizer(json.dumps(file), bos_token="<s>", eos_token="</s>")


def byte_level():
    """Byte-level BPE as Qwen and Llama 3 have it: no prefix, tags are special tokens, no BOS."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(core.to_str(), bos_token=None, eos_token="<|im_end|>")


TURNS = ["hello world, why?", "because so", " and user é!", "b c"]
PROMPTS = [
    (GRIT, GRIT.render_turns(TURNS)),
    (GRIT, GRIT.render_turns(TURNS[:1])),
    (GRIT, GRIT.embed_pieces("", "hello world")),
    (GRIT, GRIT.embed_pieces("why so", "hello world")),
    (GRIT, GRIT.plain_pieces("hello world")),
    (GRIT, GRIT.render_turns(TURNS[:1], continues=True)),
]


@pytest.mark.parametrize("prefix", ["prepend", "first", "none"])
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_pieces_have_the_ids_of_the_whole_string(prefix, number):
    """The original tokenises the whole string; the dummy prefix must come exactly where it has it."""
    tokenizer, pieces = llama(prefix), PROMPTS[number][1]
    parts = tokenizer.encode_pieces([pieces, pieces])
    assert parts[0] == parts[1]
    whole = tokenizer._template.encode("".join(p.text for p in pieces), add_special_tokens=False)
    assert [i for part in parts[0] for i in part] == whole.ids


def test_masks_follow_the_pieces():
    """Every token checked, by its characters' place in the whole string."""
    tokenizer = llama("prepend")
    pieces = GRIT.render_turns(TURNS)
    parts = tokenizer.encode_pieces([pieces])[0]
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
    parts = tokenizer.encode_pieces([GRIT.render_turns(["</s>", "<s>"])])[0]
    flat = [i for part in parts for i in part]
    assert flat.count(tokenizer.bos_id) == 1 and flat.count(tokenizer.eos_id) == 1


def test_tags_that_are_special_tokens():
    tokenizer = byte_level()
    pieces = QWEN.render_turns(["why <|im_end|>?", "because"])
    ids = [i for part in tokenizer.encode_pieces([pieces])[0] for i in part]
    assert ids.count(tokenizer.eos_id) == 2  # the user's one is text
    assert tokenizer.decode(ids, skip_special=False) == "".join(p.text for p in pieces)
    assert tokenizer.bos_id is None


def test_format_follows_the_tokenizer():
    assert llama("none").format(GRIT) == GRIT
    assert byte_level().format(QWEN) == QWEN
    chat = byte_level().format(GRIT)
    assert (chat.bos, chat.eos, chat.user) == ("", "<|im_end|>", GRIT.user)


def test_batch_equals_single_and_empty_pieces_have_no_ids():
    tokenizer = llama("first")
    texts = ["", "a", "hello  world", "é\n"]
    for continues in (False, True):
        assert tokenizer.encode_batch(texts, continues=continues) == [
            tokenizer.encode(text, continues=continues) for text in texts
        ]
    assert tokenizer.encode_pieces([[], [Piece(""), Piece("a")]]) == [[], [[], tokenizer.encode("a")]]


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(GritError, match="text number 1 is not Unicode text"):
        llama("none").encode_batch(["fine", "broken \ud800"])


def test_pickled_for_worker_processes():
    tokenizer = llama("prepend")
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.encode("hello </s>", continues=True) == tokenizer.encode("hello </s>", continues=True)
    assert (twin.bos_id, twin.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize(
    "files, bos, eos",
    [
        ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}}, 1, 2),
        ({"special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}}, 1, 2),
        ({"config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, 1, 2),
        ({"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 1}}, None, None),
        ({}, None, None),
    ],
)
def test_where_special_tokens_are_named(tmp_path, files, bos, eos):
    (tmp_path / "tokenizer.json").write_text(llama("none")._json)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)


def test_what_a_directory_says_besides_is_kept(tmp_path):
    config = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 77, "chat_template": "theirs"}
    (tmp_path / "tokenizer.json").write_text(llama("none")._json)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.from_pretrained(tmp_path).save(tmp_path / "new", chat=None)
    assert json.loads((tmp_path / "new/tokenizer_config.json").read_text()).items() >= config.items()


def test_directories_that_are_not_tokenizers(tmp_path):
    with pytest.raises(GritError, match=r"no tokenizer\.json there"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(GritError, match=r"it has tokenizer.model: save it once with transformers"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GritError, match=r"not a tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)
