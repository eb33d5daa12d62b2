"""Which formats a directory's texts and conversations have."""

from __future__ import annotations

import json

import pytest
from golden_models import raises

from grit_jax.inference.opening import formats_of, modules_of
from grit_jax.models.hf.directory import SENTENCE_FORMAT, DirectorySettings
from grit_jax.models.hf.sentence_transformers import SentenceModules
from grit_jax.text.chat import FORMATS, GRIT, SentenceFormat
from grit_jax.text.tokenizer import Tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
UNNAMED = DirectorySettings(chat_format=None)  # grit.json names no format, or there is none


@pytest.fixture()
def tokenizer(tiny_tokenizer, tmp_path):
    """Makes the tokenizer of a directory whose tokenizer_config.json has these settings."""

    def make(**settings) -> Tokenizer:
        tiny_tokenizer.save(tmp_path)
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return Tokenizer.from_pretrained(tmp_path)

    return make


def test_a_format_that_grit_json_names_comes_before_the_template(tokenizer, tmp_path):
    own = tokenizer(chat_template=TEMPLATE)
    for name, chat in FORMATS.items():
        if chat.eos == "</s>":  # the others' special tokens are not in this vocabulary
            formats = formats_of(tmp_path, DirectorySettings(chat_format=name), own)
            assert (formats.chat, formats.template, formats.sentence) == (chat, None, None)
    with raises(str(tmp_path), "'morse' is unknown", "known: grit"):
        formats_of(tmp_path, DirectorySettings(chat_format="morse"), own)


def test_conversations_follow_the_template_and_texts_the_grit_format(tokenizer, tmp_path):
    formats = formats_of(tmp_path, UNNAMED, tokenizer(chat_template=TEMPLATE))
    assert formats.chat == GRIT and formats.template.source == TEMPLATE
    assert formats_of(tmp_path, UNNAMED, tokenizer(chat_template=None)).template is None


@pytest.mark.parametrize("name", FORMATS)
def test_templates_of_our_formats_are_known(tokenizer, tmp_path, name):
    """They need no jinja2, and give embeddings their tags as well."""
    chat = FORMATS[name].with_tokens("<s>", "</s>")
    formats = formats_of(tmp_path, UNNAMED, tokenizer(chat_template=chat.jinja()))
    assert formats.template is None and formats.chat == chat


def settings_of(modules: SentenceModules) -> DirectorySettings:
    return DirectorySettings(chat_format=SENTENCE_FORMAT, sentence=modules)


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_what_we_write_for_sentence_transformers_is_read_as_our_format(
    tokenizer, tmp_path, pooling
):
    own = tokenizer(chat_template=None)
    written = modules_of(GRIT, pooling, own)
    # The whole text in front of a document, whoever puts the beginning of sequence there.
    assert own.added_around()[0] + written.default_prompt == "<s><|embed|>\n"
    formats = formats_of(tmp_path, settings_of(written), own)
    assert formats.chat == GRIT and formats.sentence is None


def test_other_prompts_are_read_word_for_word(tokenizer, tmp_path):
    prompts = {"query": "search: ", "document": "text: "}
    modules = SentenceModules(prompts=prompts, default_prompt_name="document")
    own = tokenizer(chat_template=None)
    with pytest.warns(UserWarning, match="with its prompt 'document'; .* other prompts .query.,"):
        formats = formats_of(tmp_path, settings_of(modules), own)
    assert isinstance(formats.chat, SentenceFormat) and formats.sentence is modules
    begin = own.added_around()[0]
    for instruction, text in (("", "text: amber"), ("search: ", "search: amber")):
        parts = formats.chat.embed_parts(instruction, "amber")
        assert [part.text for part in parts] == [begin, text]
    assert formats.chat.user == GRIT.user  # conversations stay ours


def test_a_pooling_that_counts_from_the_prompt_is_refused(tokenizer, tmp_path):
    modules = SentenceModules(
        pooling="weightedmean",
        include_prompt=False,
        prompts={"document": "text: "},
        default_prompt_name="document",
    )
    with raises("1_Pooling/config.json", "weightedmean", "'include_prompt' to true"):
        formats_of(tmp_path, settings_of(modules), tokenizer(chat_template=None))
