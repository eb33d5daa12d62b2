"""Lines of data files: what each form means, and the exact complaint about one that is wrong."""

import json

import pytest

from grit_jax.data.formats import (
    CachedExample,
    EmbeddingExample,
    GenerativeExample,
    LabelledAnswer,
    LineError,
    PreferencePair,
    Text,
    document_text,
    parse_line,
)
from grit_jax.errors import GritError

THREE_TURNS = PreferencePair(("u", "a", "v"), "b", "c")


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


GOOD = [
    (
        {"query": "q", "pos": ["p"], "neg": ["n", "m"]},
        EmbeddingExample(Text(None, "q"), (Text(None, "p"),), (Text(None, "n"), Text(None, "m"))),
    ),
    (
        {"query": ["find", "q"], "pos": [["", "p"]], "neg": [["", "n"]], "id": 7},
        EmbeddingExample(Text("find", "q"), (Text("", "p"),), (Text("", "n"),)),
    ),
    ({"query": "q", "pos": ["p"]}, EmbeddingExample(Text(None, "q"), (Text(None, "p"),), ())),
    (
        {"query": "q", "pos": ["p"], "neg": None},
        EmbeddingExample(Text(None, "q"), (Text(None, "p"),), ()),
    ),
    (
        {"query": "q", "pos": ["p"], "neg": ["n"], "scores": [3, -1.5]},
        EmbeddingExample(Text(None, "q"), (Text(None, "p"),), (Text(None, "n"),), (3.0, -1.5)),
    ),
    (
        {"query": "q", "pos": ["p"], "scores": None},
        EmbeddingExample(Text(None, "q"), (Text(None, "p"),), ()),
    ),
    ({"text": " whole "}, GenerativeExample(text=" whole ")),
    ({"text": ["u", "a", "v", "b"]}, GenerativeExample(turns=("u", "a", "v", "b"))),
    ({"docs": ["d", "e"], "text": ["q", "a"]}, CachedExample(("d", "e"), "q", "a")),
    (
        {"docs": [{"title": "T", "text": "d"}], "text": ["q", "a"]},
        CachedExample(("T d",), "q", "a"),
    ),
    ({"docs": [{"title": "", "text": "d"}], "text": ["q", "a"]}, CachedExample(("d",), "q", "a")),
    ({"docs": [["", "d"]], "text": ["q", "a"]}, CachedExample(("d",), "q", "a")),
    (
        {"docs": ["d"], "text": ["q", "It is a."], "answer": "a"},
        CachedExample(("d",), "q", "It is a.", "a"),
    ),
    (
        {"prompt": "u", "completion": "a", "label": False},
        LabelledAnswer(("u",), "a", False),
    ),
    ({"prompt": ["u", "a", "v"], "chosen": "b", "rejected": "c"}, THREE_TURNS),
    # TRL's conversational forms: answers as messages, and as whole conversations.
    (
        {
            "prompt": [say("user", "u"), say("assistant", "a"), say("user", "v")],
            "chosen": [say("assistant", "b")],
            "rejected": [say("assistant", "c")],
        },
        THREE_TURNS,
    ),
    (
        {
            "prompt": [say("system", "Be brief."), say("user", "u")],
            "completion": [say("assistant", "a")],
            "label": True,
        },
        LabelledAnswer(("Be brief.\n\nu",), "a", True),
    ),
    (
        {
            "chosen": [say("user", "u"), say("assistant", "b")],
            "rejected": [say("user", "u"), say("assistant", "c")],
        },
        PreferencePair(("u",), "b", "c"),
    ),
    (
        {
            "prompt": "u",
            "chosen": [say("user", "u"), say("assistant", "b")],
            "rejected": [say("user", "u"), say("assistant", "c")],
            "score_chosen": 7.0,
        },
        PreferencePair(("u",), "b", "c"),
    ),
]


@pytest.mark.parametrize("line, example", GOOD)
def test_good_lines(line, example):
    assert parse_line(json.dumps(line), "f:1") == example
    assert parse_line(json.dumps(line, ensure_ascii=False).encode(), "f:1") == example


BAD = [
    ('{"docs": ["d"], "text": ["q", "It is a."], "answer": "b"}', '"answer" must be a part of'),
    ('{"docs": ["d"], "text": ["q", "It is 7."], "answer": 7}', "must be a string, got"),
    ("{", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
    ('{"query": "q"\n', "not valid JSON: Expecting ',' delimiter at column 14"),
    (b"\xff\xfe", "not UTF-8 text"),
    ("[" * 100_000, "nested too deeply"),
    ("[1]", "expected a JSON object, got a list of 1"),
    ("{}", "no known key; expected"),
    ('{"txt": "a", "id": 1}', 'no known key; .* got "txt", "id"'),
    ('{"query": "q"}', 'the key "pos" is missing; got "query"'),
    ('{"query": "q", "pos": "p"}', '"pos" must be a list of texts, got str'),
    ('{"query": "q", "pos": []}', '"pos" is empty'),
    ('{"query": "", "pos": ["p"]}', "query is empty"),
    ('{"query": null, "pos": ["p"]}', "query must be a string, got null"),
    (
        '{"query": ["i", "q", "x"], "pos": ["p"]}',
        r"query must be a string or \[instruction, text\], got a list of 3",
    ),
    ('{"query": [1, "q"], "pos": ["p"]}', "the instruction of query must be a string, got int"),
    ('{"query": "q", "pos": ["p", " \\n"]}', r"pos\[1\] is empty"),
    (
        '{"query": "q", "pos": ["p"], "neg": [["", 3]]}',
        r"the text of neg\[0\] must be a string, got int \('3'\)",
    ),
    ('{"query": "q", "pos": ["p"], "neg": "n"}', '"neg" must be a list'),
    (
        '{"query": "q", "pos": ["p"], "neg": ["n"], "scores": [1]}',
        '"scores" must be a list of 2 numbers, .* list of 1',
    ),
    (
        '{"query": "q", "pos": ["p"], "scores": 1}',
        '"scores" must be a list of 1 numbers, .* got int',
    ),
    (
        '{"query": "q", "pos": ["p"], "scores": ["1"]}',
        r"scores\[0\] must be a finite number, got str",
    ),
    (
        '{"query": "q", "pos": ["p"], "scores": [true]}',
        r"scores\[0\] must be a finite number, got bool",
    ),
    (
        '{"query": "q", "pos": ["p"], "neg": ["n"], "scores": [1, NaN]}',
        r"scores\[1\] must be a finite number",
    ),
    ('{"query": "q", "pos": ["p"], "scores": [1e99]}', r"scores\[0\] must be a finite number"),
    ('{"query": "q", "pos": [null]}', r"pos\[0\] must be a string, got null"),
    ('{"query": ["find", null], "pos": ["p"]}', "the text of query must be a string, got null"),
    (
        '{"query": [null, "q"], "pos": ["p"]}',
        "the instruction of query must be a string, got null",
    ),
    ('{"text": ["u", null]}', "turn 2 must be a string, got null"),
    ('{"docs": ["d"], "text": ["q", null]}', "the answer must be a string, got null"),
    ('{"text": null}', '"text" must be a string, got null'),
    ('{"text": ""}', '"text" is empty'),
    ('{"text": []}', '"text" has no turns'),
    ('{"text": ["u"]}', r'"text" has an odd number of turns \(1\)'),
    ('{"text": ["u", " "]}', "turn 2 is empty"),
    ('{"text": ["u", {"a": 1}]}', "turn 2 must be a string, got an object of 1"),
    ('{"docs": ["d"]}', r'the key "text" \(\[question, answer\]\) is missing'),
    ('{"docs": [], "text": ["q", "a"]}', '"docs" must be a list of at least one document'),
    ('{"docs": "d", "text": ["q", "a"]}', '"docs" must be a list of at least one document'),
    ('{"docs": ["d"], "text": "q"}', r'"text" must be \[question, answer\]'),
    ('{"docs": ["d"], "text": ["q", ""]}', "the answer is empty"),
    ('{"docs": [["find", "d"]], "text": ["q", "a"]}', r"docs\[0\] has an instruction"),
    (
        '{"docs": [{"title": "t"}], "text": ["q", "a"]}',
        r"the text of docs\[0\] must be a string, got null",
    ),
    ('{"text": "half \\ud800 pair"}', "half of a surrogate pair"),
    ('{"text": ["q", "\\udfff"]}', "turn 2 holds half of a surrogate pair"),
    ('{"query": ["\\ud800", "q"], "pos": ["p"]}', "the instruction of query holds half"),
    ('{"query": "q", "pos": ["p"], "neg": [["", "\\ud800"]]}', "the text of neg.0. holds half"),
    ('{"docs": ["\\ud800"], "text": ["q", "a"]}', "docs.0. holds half"),
    (
        '{"docs": [{"title": "\\ud83d", "text": "d"}], "text": ["q", "a"]}',
        "the title of docs.0. holds",
    ),
    (
        '{"docs": [{"title": "T", "text": "\\ud83d"}], "text": ["q", "a"]}',
        "the text of docs.0. holds",
    ),
    ('{"docs": [{"title": " ", "text": ""}], "text": ["q", "a"]}', "the text of docs.0. is empty"),
    ('{"prompt": "u"}', 'the key "completion" is missing'),
    ('{"prompt": "u", "completion": "a"}', 'the key "label" is missing'),
    ('{"prompt": "u", "chosen": "a"}', 'the key "rejected" is missing'),
    ('{"chosen": "a", "rejected": "b"}', 'the key "prompt" is missing'),
    ('{"prompt": "u", "completion": "a", "label": 1}', '"label" must be true or false, got int'),
    ('{"prompt": "u", "completion": " ", "label": true}', '"completion" is empty'),
    ('{"prompt": 7, "completion": "a", "label": true}', '"prompt" must be a string or a list'),
    ('{"prompt": [], "completion": "a", "label": true}', '"prompt" must be a string or a list'),
    (
        '{"prompt": ["u", "a"], "completion": "b", "label": true}',
        r'"prompt" has an even number of turns \(2\)',
    ),
    ('{"prompt": ["u", "a", null], "chosen": "b", "rejected": "c"}', "turn 3 must be a string"),
    (
        '{"prompt": [{"role": "tool", "content": "u"}], "completion": "b", "label": true}',
        "\"prompt\": messages.0.: unknown role 'tool'",
    ),
    (
        '{"prompt": "u", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}',
        "\"chosen\" must be a message of the assistant, got 'user'",
    ),
    ('{"prompt": "u", "chosen": ["a"], "rejected": "b"}', '"chosen" must be a string or a list'),
    (
        json.dumps(
            {
                "chosen": [say("user", "u"), say("assistant", "a")],
                "rejected": [say("user", "v"), say("assistant", "b")],
            }
        ),
        '"chosen" and "rejected" have different messages before the answer',
    ),
    (
        json.dumps(
            {
                "prompt": "v",
                "chosen": [say("user", "u"), say("assistant", "a")],
                "rejected": [say("user", "u"), say("assistant", "b")],
            }
        ),
        '"prompt" is not what the messages',
    ),
    (
        json.dumps(
            {
                "prompt": "u",
                "completion": [say("user", "u"), say("assistant", "a")],
                "label": True,
            }
        ),
        '"completion" must be the answer alone',
    ),
    (
        json.dumps({"prompt": "u", "chosen": [say("user", "u")] * 2, "rejected": "b"}),
        "roles must alternate",
    ),
]


@pytest.mark.parametrize("line, message", BAD)
def test_bad_lines_name_place_and_reason(line, message):
    with pytest.raises(GritError, match=r"^data/f\.jsonl:3: .*" + message) as error:
        parse_line(line, "data/f.jsonl:3")
    assert isinstance(error.value, LineError)
    assert str(error.value) == f"data/f.jsonl:3: {error.value.reason}"
    assert len(str(error.value)) < 300


def test_documents():
    assert document_text("d", "f:1") == document_text({"text": "d"}, "f:1") == "d"
    assert document_text({"id": 1, "title": "T", "text": "d"}, "f:1") == "T d"
    for text in ("", " \n"):  # a row of BEIR's FiQA has a title alone
        assert document_text({"id": 1, "title": "T", "text": text}, "f:1") == "T"
    with pytest.raises(GritError, match="f:1: the title of document must be a string, got int"):
        document_text({"title": 3, "text": "d"}, "f:1")
