"""The MODEL|URL argument of the verbs that also evaluate a model behind a server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grit_jax.cli import flags
from grit_jax.cli.model import add_model, load_model
from grit_jax.errors import GritError

if TYPE_CHECKING:
    from grit_jax.evaluation.endpoint import Endpoint, EndpointSettings
    from grit_jax.inference.model import GritLM

# evaluation/endpoint.py's, whose module imports NumPy.
INSTRUCTION_TEMPLATE, DOCUMENT_TEMPLATE = "Instruct: {instruction}\nQuery: {text}", "{text}"


def add_model_or_url(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Declares MODEL|URL, where and in which dtype a MODEL runs, and how a URL is asked."""
    add_model(parser, url=True, optional=optional)
    group = parser.add_argument_group(
        "a model behind a URL",
        "Any OpenAI-compatible server. /v1 is added to a URL without a path. A grit serve gets the"
        " instruction in a field of its own; another server gets it in the text.",
    )
    group.add_argument(
        "--endpoint-model", metavar="NAME", help="the model's name there (default: the only one)"
    )
    group.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (default: %(default)s)",
    )
    group.add_argument(
        "--endpoint-timeout",
        type=flags.positive,
        default=600,
        metavar="SECONDS",
        help="for one request (default: %(default)s)",
    )
    group.add_argument(
        "--connections",
        type=flags.positive,
        default=4,
        metavar="N",
        help="requests under way at a time (default: %(default)s)",
    )
    group.add_argument(
        "--instruction-template",
        type=_unescaped,
        default=INSTRUCTION_TEMPLATE,
        metavar="T",
        help="how {instruction} and {text} become one text for a server that is not grit serve; \\n"
        " is a new line (default: 'Instruct: {instruction}\\nQuery: {text}')",
    )
    group.add_argument(
        "--document-template",
        type=_unescaped,
        default=DOCUMENT_TEMPLATE,
        metavar="T",
        help="the same for a {text} without an instruction (default: '{text}')",
    )


def endpoint_settings(args: argparse.Namespace) -> EndpointSettings:
    """What the flags of `add_model_or_url` say of a URL.

    Raises:
      GritError: a template without its fields.
    """
    from grit_jax.evaluation.endpoint import EndpointSettings

    return EndpointSettings(
        model=args.endpoint_model,
        api_key_env=args.api_key_env,
        timeout=float(args.endpoint_timeout),
        connections=args.connections,
        instruction_template=args.instruction_template,
        document_template=args.document_template,
    )


def load_model_or_endpoint(args: argparse.Namespace) -> GritLM | Endpoint:
    """The model that the command line names, or the server that serves it.

    Raises:
      GritError: as `load_model` and `Endpoint`; or the flags of a URL beside a MODEL.
    """
    from grit_jax.evaluation.endpoint import Endpoint, EndpointSettings, is_url

    settings = endpoint_settings(args)
    if is_url(args.model):
        return Endpoint(args.model, settings)
    if settings != EndpointSettings():
        raise GritError(
            "--endpoint-model, --endpoint-timeout, --api-key-env, --connections and the templates"
            f" say how a URL is asked, and {args.model} is none"
        )
    return load_model(args)


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n")
