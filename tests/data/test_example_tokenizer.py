"""Examples to ids: formats, limits, what is cut and what never is."""

import dataclasses

import pytest

from grit_jax.data.example_tokenizer import MIN_DOCUMENT_CHARACTERS, ExampleTokenizer, LengthLimits
from grit_jax.data.formats import (
    CachedExample,
    EmbeddingExample,
    GenerativeExample,
    LineError,
    Text,
)
from grit_jax.data.packing import (
    GenerativePacking,
    generative_batch,
)
from grit_jax.data.token_texts import TokenText
from grit_jax.text.chat import GRIT
from grit_jax.text.rag_layouts import CACHED_MODES, MODES, READING_MODES, compose

LIMITS = LengthLimits(
    query=24, passage=40, generative=60, document=48, cached_row=120, continuation_row=150
)


@pytest.fixture
def reader(tiny_tokenizer):
    return ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, layouts=MODES)


def prompted(reader, texts, limits):
    """Ids and prompt lengths of embedding texts."""
    result = reader.embedding(texts, limits)
    return [text.ids for text in result], [text.prompt_length for text in result]


def whole(tokenizer, text):
    """The ids of a string as transformers would make them."""
    return tokenizer._template.encode(text, add_special_tokens=False).ids


def test_embedding_texts(reader, tiny_tokenizer):
    texts = [
        Text("find it", "amber river"),
        Text("", "stone"),
        Text(None, "paper"),
        Text(" :", "quiet " * 99),
    ]
    ids, prompts = prompted(reader, texts, [24, 40, 40, 40])
    assert ids[0] == whole(tiny_tokenizer, "<s><|user|>\nfind it\n<|embed|>\namber river")
    assert ids[1] == whole(tiny_tokenizer, "<s><|embed|>\nstone")
    assert ids[2] == whole(tiny_tokenizer, "<s><|embed|>\npaper")
    assert ids[3] == whole(tiny_tokenizer, "<s><|embed|>\n" + "quiet " * 99)[:40]
    assert prompts == [len(whole(tiny_tokenizer, "<s><|user|>\nfind it\n<|embed|>\n")), *[2] * 3]


def test_raw_strings_stay_bare(tiny_tokenizer):
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, raw_strings=True)
    ids, prompts = prompted(reader, [Text(None, "paper"), Text("", "paper")], [40, 40])
    assert ids == [whole(tiny_tokenizer, "paper"), whole(tiny_tokenizer, "<s><|embed|>\npaper")]
    assert prompts == [0, 2]
    (text,) = reader.generative([GenerativeExample(text="amber paper")])
    assert text.ids == whole(tiny_tokenizer, "amber paper") and all(text.targets)


def test_generative_masks_token_by_token(reader, tiny_tokenizer):
    turns = ("amber river", " stone\n", "paper?", "quiet")
    conversation, document = reader.generative(
        [GenerativeExample(turns), GenerativeExample(text="amber")]
    )
    parts = [
        ("<s><|user|>\namber river\n<|assistant|>\n", False),
        ("stone</s>", True),
        ("\n<|user|>\npaper?\n<|assistant|>\n", False),
        ("quiet</s>", True),
    ]
    assert list(conversation.ids) == [i for text, _ in parts for i in whole(tiny_tokenizer, text)]
    assert list(conversation.targets) == [
        answer for text, answer in parts for _ in whole(tiny_tokenizer, text)
    ]
    assert list(document.ids) == whole(tiny_tokenizer, "<s>amber</s>")
    assert list(document.targets) == [False] + [True] * (len(document.ids) - 1)


def test_only_the_last_answer_of_a_prefix_language_model(tiny_tokenizer):
    """The original's `prefixlm` labels, token by token; a document is all answer."""
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, last_answer_only=True)
    turns = ("amber river", "stone", "paper?", "quiet")
    conversation, document = reader.generative(
        [GenerativeExample(turns), GenerativeExample(text="amber")]
    )
    before = whole(tiny_tokenizer, "<s><|user|>\namber river\n<|assistant|>\n") + whole(
        tiny_tokenizer, "stone</s>"
    )
    before += whole(tiny_tokenizer, "\n<|user|>\npaper?\n<|assistant|>\n")
    answer = whole(tiny_tokenizer, "quiet</s>")
    assert list(conversation.ids) == before + answer
    assert list(conversation.targets) == [False] * len(before) + [True] * len(answer)
    assert list(document.targets) == [False] + [True] * (len(document.ids) - 1)
    long = "amber river stone paper " * 20
    assert reader.check(GenerativeExample(("u", long)), "f:1") is None
    reason = "the turns before the last answer fill generative_max_length (60)"
    assert reader.check(GenerativeExample(("u", long, "v", "b")), "f:1") == reason
    every = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS)
    assert (
        every.check(GenerativeExample(("u", long, "v", "b")), "f:1") is None
    )  # its first answer is trained


def test_padding_is_known_by_its_place_and_not_by_its_id(tiny_tokenizer):
    """The original pads with the beginning of sequence and takes every such id for padding
    (`gritlm: gritlm/training/data.py:257-259`)."""
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS)
    text, short = reader.generative(
        [GenerativeExample(("amber river", "stone")), GenerativeExample(("u", "a"))]
    )
    pad = list(text.ids)[
        list(text.targets).index(True)
    ]  # as bad as it can be: padding looks like an answer
    batch = generative_batch(
        [text, short], GenerativePacking(row_length=40, row_multiple=4, pad_id=pad)
    )
    assert (batch.rows.tokens == pad).sum() > sum(
        ids.count(pad) for ids in (list(text.ids), list(short.ids))
    )
    assert batch.targets.sum() == sum(text.targets) + sum(short.targets)
    assert not batch.targets[batch.rows.segments == 0].any()


def test_a_teachers_scores_are_asked_for(tiny_tokenizer):
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, teacher_scores=True)
    example = EmbeddingExample(Text("", "q"), (Text("", "p"),), (Text("", "n"),))
    with pytest.raises(
        LineError, match=r'f:9: no "scores", and train.loss.distillation_factor is above 0'
    ):
        reader.check(example, "f:9")
    assert reader.check(dataclasses.replace(example, scores=(1.0, 0.0)), "f:9") is None


def test_generative_is_cut_on_the_right(reader, tiny_tokenizer):
    (text,) = reader.generative([GenerativeExample(("amber", "river " * 100))])
    assert len(text.ids) == len(text.targets) == LIMITS.generative
    assert (
        list(text.ids)
        == whole(tiny_tokenizer, "<s><|user|>\namber\n<|assistant|>\n" + "river " * 100)[:60]
    )


@pytest.mark.parametrize("mode", MODES)
def test_cached_example_in_every_layout(reader, tiny_tokenizer, mode):
    example = CachedExample(("Title amber.", "river stone"), "which paper?", " quiet ")
    (tokens,) = reader.cached([example], [mode])
    layout = compose(mode, "which paper?", example.docs)
    assert [list(piece) for piece in tokens.cached_texts] == [
        whole(tiny_tokenizer, f"<s><|embed|>\n{text.text}") for text in layout.cached
    ]
    prompt, answer = whole(tiny_tokenizer, layout.text), whole(tiny_tokenizer, "quiet</s>")
    assert list(tokens.text.ids) == prompt + answer
    assert list(tokens.text.targets) == [False] * len(prompt) + [True] * len(answer)


@pytest.mark.parametrize("mode", MODES)
def test_only_documents_are_cut(reader, tiny_tokenizer, mode):
    example = CachedExample(
        ("amber " * 200, "river", "stone " * 200), "which paper is it?", "quiet engine"
    )
    assert reader.check(example, "f:1") is None
    (tokens,) = reader.cached([example], [mode])
    assert (
        sum(map(len, tokens.cached_texts)) <= LIMITS.cached_row
        and len(tokens.text.ids) <= LIMITS.continuation_row
    )
    answer = whole(tiny_tokenizer, "quiet engine</s>")
    assert list(tokens.text.ids)[-len(answer) :] == answer and sum(tokens.text.targets) == len(
        answer
    )
    everything = tiny_tokenizer.decode(
        [i for piece in [*tokens.cached_texts, tokens.text.ids] for i in piece]
    )
    assert everything.count("which paper is it?") == 1
    if mode != "none":
        assert "river" in everything  # the short document stays whole
        full = max((*map(len, tokens.cached_texts), len(tokens.text.ids)))
        assert full > 40
    # A document has the same first tokens wherever it stands.
    for piece, text in zip(
        tokens.cached_texts, compose(mode, "q", example.docs).cached, strict=True
    ):
        if text.kind == "document":
            assert len(piece) <= LIMITS.document
            assert whole(tiny_tokenizer, f"<s><|embed|>\n{text.text}")[: len(piece)] == list(piece)


def test_examples_that_cannot_be_used(tiny_tokenizer):
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, layouts=CACHED_MODES)
    long = "amber river stone paper " * 30
    fine, text = Text("", "p"), Text("find", "q")

    def embedding(query, *passages):
        return reader.check(EmbeddingExample(query, passages, passages), "f:1")

    assert embedding(text, fine) is None
    assert embedding(Text("", long), Text("", long)) is None  # long texts are cut
    assert embedding(Text(long, "q"), fine) == "an instruction fills query_max_length (24)"
    assert embedding(text, fine, Text(long, "p")) == "an instruction fills passage_max_length (40)"
    assert reader.check(GenerativeExample(("u", long)), "f:1") is None
    assert reader.check(GenerativeExample(text=long), "f:1") is None
    assert "first user turn fills generative_max_length (60)" in reader.check(
        GenerativeExample((long, "a")), "f:1"
    )
    assert reader.check(CachedExample((long,), "q", "a"), "f:1") is None
    assert "fit cached_row_length (150)" in reader.check(CachedExample(("d",), "q", long), "f:1")
    short = dataclasses.replace(LIMITS, cached_row=60)
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, short, layouts=CACHED_MODES)
    assert "fit pieces_row_length (60)" in reader.check(
        CachedExample(("d",), long[:400], "a"), "f:1"
    )
    assert "fit pieces_row_length (60)" in reader.check(CachedExample(("d",) * 12, "q", "a"), "f:1")


def test_no_negatives(tiny_tokenizer):
    example = EmbeddingExample(Text("", "q"), (Text("", "p"),), ())
    with pytest.raises(
        LineError, match=r"f:9: no negatives, and group_size is 2: add .* or set group_size: 1"
    ):
        ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS).check(example, "f:9")
    assert (
        ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, group_size=1).check(example, "f:9") is None
    )


def test_documents_keep_at_least_a_little(reader):
    """What `check` lets through leaves room for the least of each document."""
    words = ["amber", "river", "stone", "paper", "quiet", "engine"]
    for length in range(1, 60):
        example = CachedExample(
            ("amber " * 300,) * 3, " ".join(words[i % 6] for i in range(length)), "quiet"
        )
        if reader.check(example, "f:1") is None:
            for mode in MODES:
                (tokens,) = reader.cached([example], [mode])
                assert sum(map(len, tokens.cached_texts)) <= LIMITS.cached_row
                assert len(tokens.text.ids) <= LIMITS.continuation_row
                cached = compose(mode, example.question, example.docs).cached
                for piece, text in zip(tokens.cached_texts, cached, strict=True):
                    assert text.kind == "query" or len(piece) >= 2 + MIN_DOCUMENT_CHARACTERS // 2


TAUGHT = dataclasses.replace(LIMITS, teacher_row=200)


def taught(tokenizer, example, mode, order, limits=TAUGHT):
    """An example with its documents in `order`, and its teacher's text."""
    reader = ExampleTokenizer(tokenizer, GRIT, limits, layouts=MODES)
    assert reader.check(example, "f:1") is None
    (tokens,) = reader.cached([example], [mode], [order])
    return tokens


@pytest.mark.parametrize("mode", MODES)
def test_a_teacher_reads_the_documents_in_the_order_of_the_data(tiny_tokenizer, mode):
    example = CachedExample(("amber.", "river stone", "paper"), "which paper?", " quiet ")
    tokens = taught(tiny_tokenizer, example, mode, [2, 0, 1])
    shuffled = dataclasses.replace(example, docs=tuple(example.docs[i] for i in (2, 0, 1)))
    plain = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, layouts=MODES)
    assert (
        dataclasses.replace(tokens, teacher=TokenText([], []))
        == plain.cached([shuffled], [mode])[0]
    )
    if mode == "none":
        assert tokens.teacher == TokenText([], [])
        return
    read = {"doc": "doc-then-query", "doc-query": "doc-then-query"}
    read |= {"query": "query-then-doc", "query-doc": "query-then-doc"}
    assert READING_MODES[mode] == read.get(mode, mode)
    layout = compose(read.get(mode, mode), "which paper?", example.docs)
    prompt, answer = whole(tiny_tokenizer, layout.text), whole(tiny_tokenizer, "quiet</s>")
    assert list(tokens.teacher.ids) == prompt + answer
    assert list(tokens.teacher.targets) == [False] * len(prompt) + [True] * len(answer)


@pytest.mark.parametrize("mode", sorted({*MODES} - {"none"}))
@pytest.mark.parametrize("teacher_row", [200, 125])
def test_student_and_teacher_read_the_same_parts_of_documents(tiny_tokenizer, mode, teacher_row):
    """Cut to the row of either: the short document stays whole, the answer always."""
    words = ("amber " * 200, "river", "stone " * 200)
    example = CachedExample(words, "which paper is it?", "quiet engine")
    limits = dataclasses.replace(LIMITS, teacher_row=teacher_row)
    tokens = taught(tiny_tokenizer, example, mode, [2, 1, 0], limits)
    length = len(tokens.teacher.ids)
    assert length == 125 if teacher_row == 125 else 125 < length <= 200
    assert sum(tokens.teacher.targets) == sum(tokens.text.targets) > 0
    student = [i for piece in [*tokens.cached_texts, tokens.text.ids] for i in piece]
    counts = [
        [tiny_tokenizer.decode(list(ids)).count(word) for word in ("amber", "river", "stone")]
        for ids in (student, tokens.teacher.ids)
    ]
    assert counts[0] == counts[1] and counts[0][1] == 1 < min(counts[0][0], counts[0][2])


def test_what_a_teacher_cannot_read(tiny_tokenizer):
    short = dataclasses.replace(LIMITS, teacher_row=40)
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, short, layouts=["doc"])
    example = CachedExample(("d",) * 3, "which paper is it?", "quiet " * 9)
    words = "documents, question and answer do not fit teacher_row_length (40)"
    assert reader.check(example, "f:1") == words
    plain = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS, layouts=["doc"])
    assert plain.check(example, "f:1") is None


def test_lengths_are_those_of_the_tokenized_examples(tiny_tokenizer):
    limits = LengthLimits(24, 32, 40, 30, 90, 60)
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, limits, group_size=3, layouts=["doc-query"])
    words = "amber basalt cedar delta ember flint " * 4
    chats = [GenerativeExample(("u", words[:n])) for n in (5, 40, 140)]
    whole_texts = reader.generative(chats)
    assert reader.lengths("generative", chats).tolist() == [len(t.ids) for t in whole_texts]
    assert len(whole_texts[2].ids) == 40
    cached = [CachedExample(tuple(words[:n] for n in sizes), "q", "a") for sizes in ((9,), (99, 7))]
    rows = reader.cached(cached, ["doc-query"] * 2)
    filled = [sum(map(len, row.cached_texts)) + len(row.text.ids) for row in rows]
    assert reader.lengths("cached", cached).tolist() == filled
    query, positives = Text("", "amber"), (Text("", words[:12]), Text("", words[:50]))
    negatives = (Text("", words), Text("", words[:30]), Text("", "a"))
    pairs = [EmbeddingExample(query, positives, negatives)]
    q, *passages = (
        len(text.ids)
        for text in reader.embedding([query, *positives, *negatives], [24, 32, 32, 32, 32, 32])
    )
    expected = q + sum(passages[:2]) / 2 + 2 * sum(passages[2:]) / 3
    assert reader.lengths("embedding", pairs).tolist() == [round(expected)]
