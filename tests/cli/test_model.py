"""The MODEL argument: a directory or a hub id, opened as the command line names it."""

from __future__ import annotations

import pytest

from grit_jax.cli import flags
from grit_jax.cli.model import add_model, load_model
from grit_jax.errors import GritError


@pytest.fixture
def parse():
    """From the arguments of a verb that takes MODEL to what is parsed."""
    parser = flags.Parser(prog="grit try")
    add_model(parser)
    return lambda *arguments: parser.parse_args(arguments)


def test_the_model_of_a_directory(parse, in_world, texts, tiny_model):
    model = load_model(parse("model"))
    assert (model.encode(texts) == tiny_model.encode(texts)).all()


def test_the_home_folder_is_expanded_and_a_hub_id_left_alone(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse("~/model").model == "/home/ada/model"
    assert parse("org/model").model == "org/model"


def test_a_model_that_is_not_there(parse, in_world, capsys):
    with pytest.raises(GritError, match="texts.txt"):
        load_model(parse("texts.txt"))
    with pytest.raises(SystemExit):
        parse()
    assert "the following arguments are required: MODEL" in capsys.readouterr().err
