"""Tokenizers of Hugging Face directories: special tokens, dummy prefixes, where their names are
written."""

import json
import pickle

import pytest
import tokenizer_kinds
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT, QWEN, PromptPart
from grit_jax.text.tokenizer import Tokenizer

WORDS = [
    "hello world, user and assistant embed: why so? because! " * 3,
    "a b c d e f <|>\n ▁ é",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>"]


def llama(prefix):
    """Byte-fallback BPE as Llama 2 and Mistral have it, with one of the ways to write their dummy
    prefix."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "prepend":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif prefix == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    lines = [line for text in WORDS for line in text.split("\n")]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    core.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL + bytes_)
    )
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


@pytest.mark.parametrize(
    "files, bos, eos",
    [
        ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}}, 1, 2),
        ({"special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}}, 1, 2),
        ({"config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, 1, 2),
        (
            {"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 1}},
            None,
            None,
        ),
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
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 77,
        "chat_template": "theirs",
    }
    (tmp_path / "tokenizer.json").write_text(llama("none")._json)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.from_pretrained(tmp_path).save(tmp_path / "new", chat=None)
    assert (
        json.loads((tmp_path / "new/tokenizer_config.json").read_text()).items() >= config.items()
    )


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no tokenizer.json there, nor a tokenizer.model$"),
        (
            {"tekken.json": "{}"},
            "it has tekken.json, which is not supported: convert it once: transformers' AutoTokenizer",
        ),
        ({"qwen.tiktoken": "IQ== 0\n"}, "it has qwen.tiktoken, which is not supported"),
        ({"spiece.model": "x"}, "it has spiece.model, which is not supported"),
        ({"vocab.json": "{}", "merges.txt": ""}, "it has vocab.json, which is not supported"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: not a tokenizer\.json"),
        ({"tokenizer.json": "<html>"}, r"tokenizer\.json: not a tokenizer\.json"),
        ({"tokenizer.json": b"\xff\xfe"}, r"tokenizer\.json: not UTF-8 text"),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": "[1]"},
            r"tokenizer_config\.json: expected a JSON object",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": "{"},
            r"tokenizer_config\.json: not valid JSON",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"eos_token": 2}},
            "'eos_token' must be a token",
        ),
        (
            {"tokenizer.json": ..., "special_tokens_map.json": {"pad_token": {}}},
            "'pad_token' must be a token",
        ),
        (
            {
                "tokenizer.json": ...,
                "tokenizer_config.json": {"additional_special_tokens": [["<x>"]]},
            },
            "must be a token",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"added_tokens_decoder": [1]}},
            "must be an object of id",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"added_tokens_decoder": {"9": "x"}}},
            "which is not a token",
        ),
        (
            {
                "tokenizer.json": ...,
                "tokenizer_config.json": {"added_tokens_decoder": {"5000": {"content": "<x>"}}},
            },
            "'<x>' has id 5000, but 3[0-9]+ in the vocabulary",
        ),
        (
            {"tokenizer.json": ..., "added_tokens.json": {"<x>": 9}},
            "added_tokens.json: '<x>' has id 9",
        ),
        (
            {"tokenizer.json": ..., "added_tokens.json": {"<x>": "9"}},
            "the id of '<x>' must be a number",
        ),
    ],
)
def test_directories_that_are_not_tokenizers(tmp_path, files, message):
    for name, content in files.items():
        content = llama("none")._json if content is ... else content
        content = json.dumps(content) if isinstance(content, dict | list) else content
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GritError, match=message):
        Tokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_json_cut_anywhere(tmp_path):
    whole = llama("first")._json
    for size in range(0, len(whole) - 1, len(whole) // 40):
        (tmp_path / "tokenizer.json").write_text(whole[:size])
        with pytest.raises(GritError, match=r"not a tokenizer\.json"):
            Tokenizer.from_pretrained(tmp_path)


def written(tmp_path, tokenizer, **files):
    (tmp_path / "tokenizer.json").write_text(tokenizer._json)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_pretrained(tmp_path)


def test_tokens_of_the_other_files(tmp_path):
    """Added in the order of their ids, special where a file calls them so; the saved tokenizer.json
    has them all."""
    plain = llama("none")
    n = plain.vocab_size
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        str(n + 1): {"content": "<b>", "special": True, **flags},
        str(n): {"content": "<a>", "special": False, **flags},
    }
    config = {
        "added_tokens_decoder": decoder,
        "eos_token": "</s>",
        "mask_token": "<a>",
        "extra_special_tokens": ["<c>"],
    }
    tokenizer = written(tmp_path, plain, tokenizer_config=config)
    assert tokenizer.encode_rendered("<a><b><c></s>") == [n, n + 1, n + 2, 2]
    assert set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>", "<a>", "<b>", "<c>"}
    assert tokenizer.vocab_size == n + 3
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.from_pretrained(tmp_path / "new")
    assert again.encode_rendered("<a><b><c></s>") == [n, n + 1, n + 2, 2]
    assert again.special_tokens == tokenizer.special_tokens
    assert "added_tokens_decoder" not in json.loads(
        (tmp_path / "new/tokenizer_config.json").read_text()
    )


def test_an_end_of_sequence_that_the_vocabulary_lacks_gets_an_id(tmp_path):
    tokenizer = written(tmp_path, llama("none"), tokenizer_config={"eos_token": "<|end|>"})
    assert tokenizer.eos_id == llama("none").vocab_size == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    "make", [lambda: llama("none"), lambda: llama("first"), lambda: llama("prepend"), byte_level]
)
def test_a_piece_of_the_vocabulary_may_be_called_special(tmp_path, make):
    """It is then no text any more, wherever a user types it."""
    (number,) = make().encode("hello", continues=True)
    piece = make()._template.id_to_token(number)
    tokenizer = written(
        tmp_path, make(), tokenizer_config={"pad_token": piece, "eos_token": "</s>"}
    )
    assert tokenizer.pad_id == number and tokenizer.encode_rendered(piece)[-1:] == [number]
    for text in ("hello", "hello hello", "ahellob", "hhello"):
        for continues in (False, True):
            ids = tokenizer.encode(text, continues=continues)
            assert number not in ids
            assert tokenizer.decode(ids).strip() == text


def test_ids_with_gaps(tmp_path):
    """The size is what an embedding table needs, not the number of tokens."""
    file = json.loads(byte_level()._json)
    last = max(file["model"]["vocab"].values())
    file["model"]["vocab"]["zzzz"] = last + 700
    tokenizer = Tokenizer(json.dumps(file), bos_token=None, eos_token="<|im_end|>")
    assert tokenizer.vocab_size >= last + 701


def test_a_llama_tokenizer_goes_by_its_config(tmp_path):
    """transformers builds its space rules anew from tokenizer_config.json, whatever tokenizer.json
    says."""
    plain, text = llama("prepend"), "<s>hello</s>hello"
    config = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    model = {"model_type": "llama"}
    as_written = plain._template.encode(text, add_special_tokens=False).ids
    legacy = written(tmp_path, plain, tokenizer_config=config | {"legacy": True}, config=model)
    assert legacy.encode_rendered(text) == as_written and legacy.encode(" hello") == plain.encode(
        "hello"
    )
    new = written(tmp_path, plain, tokenizer_config=config, config=model)
    assert new.encode_rendered(text)[:-1] != as_written[:-1] and new.encode(
        "hello"
    ) == plain.encode("hello")
    never = written(
        tmp_path, plain, tokenizer_config=config | {"add_prefix_space": False}, config=model
    )
    assert never.encode("hello") == plain.encode("hello", continues=True)
    # But not beside a Mistral model, nor where the file is byte-level.
    mistral = written(tmp_path, plain, tokenizer_config=config, config={"model_type": "mistral"})
    assert mistral.encode_rendered(text) == as_written and mistral.encode(" hello") == plain.encode(
        " hello"
    )
    level = written(
        tmp_path, byte_level(), tokenizer_config=config | {"bos_token": None}, config=model
    )
    assert level.encode("hello é") == byte_level().encode("hello é")
    # Saved, tokenizer.json says it all.
    new.save(tmp_path / "new")
    (tmp_path / "new/config.json").write_text(json.dumps(model))
    saved = json.loads((tmp_path / "new/tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and "legacy" not in saved
    assert Tokenizer.from_pretrained(tmp_path / "new").encode_rendered(text) == new.encode_rendered(
        text
    )


def test_a_format_without_an_end(tmp_path):
    tokenizer = Tokenizer(byte_level()._json, bos_token=None, eos_token=None)
    assert tokenizer.format(QWEN) == QWEN
    with pytest.raises(
        GritError,
        match="no special token '</s>', with which the format 'grit' ends an answer, and no end of",
    ):
        tokenizer.format(GRIT)


def test_saved_beside_a_qwen2_model(tmp_path):
    """transformers would make a Qwen2Tokenizer of anything else
    (tests/peers/test_tokenizers.py)."""

    def config(tokenizer, architecture):
        tokenizer.save(tmp_path, architecture=architecture)
        return json.loads((tmp_path / "tokenizer_config.json").read_text())

    assert config(byte_level(), "qwen2")["auto_map"] == {"AutoTokenizer": [None, None]}
    assert "auto_map" not in config(byte_level(), "qwen3")
    (tmp_path / "qwen").mkdir()
    genuine = Tokenizer.from_pretrained(tokenizer_kinds.make("qwen", tmp_path / "qwen"))
    assert "auto_map" not in config(genuine, "qwen2")


def test_saving_leaves_nothing_that_contradicts(tmp_path):
    llama("none").save(tmp_path)
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (tmp_path / name).write_text('{"<old>": 1}')
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/old.jinja").write_text("old")
    llama("none").save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
