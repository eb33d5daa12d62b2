"""MODEL|URL on the command line."""

from __future__ import annotations

import argparse

import pytest

from grit_jax.cli import endpoint
from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import EndpointSettings


def parse(*arguments: str, **options) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    endpoint.add_model_or_url(parser, **options)
    return parser.parse_args(arguments)


def test_the_defaults_are_those_of_the_client():
    assert endpoint.endpoint_settings(parse("model")) == EndpointSettings()
    assert parse(optional=True).model is None


def test_every_flag():
    flags = "--endpoint-model m --api-key-env KEY --endpoint-timeout 5 --connections 2"
    templates = [
        "--instruction-template",
        "{instruction}\\n{text}",
        "--document-template",
        "d{text}",
    ]
    settings = endpoint.endpoint_settings(parse("http://h", *flags.split(), *templates))
    assert settings == EndpointSettings(
        "m",
        "KEY",
        5.0,
        connections=2,
        instruction_template="{instruction}\n{text}",
        document_template="d{text}",
    )
    with pytest.raises(GritError, match="document_template: expected a text with {text}, got 'x'"):
        endpoint.endpoint_settings(parse("http://h", "--document-template", "x"))


def test_flags_of_a_url_beside_a_directory():
    args = parse("some/model", "--connections", "9")
    with pytest.raises(GritError, match="say how a URL is asked, and some/model is none"):
        endpoint.load_model_or_endpoint(args)
