"""A model directory with a chat template of its own: what is asked of the model goes by it, saved
or not."""

from __future__ import annotations

import json

import pytest

from grit_jax import GritLM
from grit_jax.errors import GritError
from grit_jax.inference.files import generate_prompts
from grit_jax.text.chat import FORMATS, GRIT, QWEN

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools.')"
    " }}{% endif %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}{% if"
    " add_generation_prompt %}[assistant] {% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Say amber."},
    {"role": "user", "content": " river </s> "},
    {"role": "assistant", "content": "stone"},
    {"role": "user", "content": "paper?"},
]
TEXT = (
    "<s>[system] Say amber.</s>[user] river </s></s>[assistant] stone</s>[user]"
    " paper?</s>[assistant] "
)


def plain(tiny_model, path, template=TEMPLATE):
    """A Hugging Face directory as others write one: no file of ours in it."""
    tiny_model.save_pretrained(path)
    for name in ("grit.json", "modules.json"):
        (path / name).unlink()
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    return plain(tiny_model, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def model(directory):
    return GritLM.from_pretrained(directory)


def test_conversations_go_by_the_template(model, tiny_tokenizer):
    assert model.template is not None and model.chat == GRIT
    (ids,) = model.prompt_ids(MESSAGES)
    assert tiny_tokenizer.decode(ids, skip_special=False) == TEXT
    assert ids.count(tiny_tokenizer.eos_id) == 4  # the typed one is text
    assert model.prompt_ids("paper?") == model.prompt_ids([[{"role": "user", "content": "paper?"}]])
    both = model.prompt_ids(["paper?", MESSAGES])
    assert both == [*model.prompt_ids("paper?"), ids]


def test_answers_are_those_to_the_templates_ids(model):
    (ids,) = model.prompt_ids(MESSAGES)
    tokens = model.generate_ids([ids]).tokens[0][:6]
    (answer,) = model.generate(MESSAGES, max_new_tokens=6)
    assert answer == model.tokenizer.decode(tokens)
    assert generate_prompts(model, [MESSAGES], max_new_tokens=6) == [answer]


def test_embeddings_go_by_the_grit_format(model, tiny_model, sentences):
    assert (model.encode(sentences[:3], "Find") == tiny_model.encode(sentences[:3], "Find")).all()


def test_saved_it_is_still_there(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert "chat_format" not in json.loads((tmp_path / "grit.json").read_text())
    again = GritLM.from_pretrained(tmp_path)
    assert again.template is not None and again.prompt_ids(MESSAGES) == model.prompt_ids(MESSAGES)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


def test_a_model_whose_grit_json_names_a_format_has_no_template(tiny_model, directory, tmp_path):
    for file in directory.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "grit.json").write_text('{"chat_format": "grit"}')
    model = GritLM.from_pretrained(tmp_path)
    assert model.template is None and model.prompt_ids("amber") == tiny_model.prompt_ids("amber")


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_whose_template_is_a_known_format_s(tiny_model, tmp_path, name):
    chat = FORMATS[name].with_tokens("<s>", "</s>")
    model = GritLM.from_pretrained(plain(tiny_model, tmp_path, chat.jinja()))
    assert model.template is None and model.chat == chat


def test_prompts_that_nobody_can_answer(model):
    with pytest.raises(GritError, match="the last message must be the user's"):
        model.generate(MESSAGES[:3])
    with pytest.raises(
        GritError, match=r"tokenizer_config\.json: chat_template, line 1: .*refuses .*: No tools\."
    ):
        model.generate([{"role": "tool", "content": "x"}])
    with pytest.raises(GritError, match="'content' must be a string"):
        model.generate([{"role": "user", "content": None}])


def test_a_vocabulary_smaller_than_the_tokenizer(tiny_model, directory, tmp_path):
    for file in directory.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|new|>"}))
    last = tiny_model.config.vocab_size
    words = (
        rf"has {last} ids, the tokenizer's {last + 1} \('<\|new\|>' beyond it\); they were added"
    )
    with pytest.raises(GritError, match=words):
        GritLM.from_pretrained(tmp_path)


def test_a_tokenizer_without_an_end(tiny_model, directory, tmp_path):
    for file in directory.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = (tmp_path / "tokenizer.json").read_text().replace("</s>", "<other>")
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(
        GritError, match="no special token '</s>', .* and no end of sequence of its own"
    ):
        GritLM.from_pretrained(tmp_path)
    (tmp_path / "grit.json").write_text(json.dumps({"chat_format": QWEN.name}))
    with pytest.raises(GritError, match=r"no special token '<\|im_end\|>', .*format 'qwen'"):
        GritLM.from_pretrained(tmp_path)
