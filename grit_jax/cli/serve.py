"""`grit serve`: one HTTP endpoint for embeddings and answers."""

from __future__ import annotations

import argparse
import importlib.util

from grit_jax.cli import flags
from grit_jax.cli.model import add_model, load_model
from grit_jax.cli.verb import Verb
from grit_jax.errors import GritError

PACKAGES = (
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "llguidance",
    "python_multipart",
)  # of the extra `serve`
# Names of `text.tool_calls.FORMATS`, which `grit --help` does not import.
TOOL_PARSERS = ("hermes", "smollm2", "llama3_json", "mistral")


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--index",
        dest="indices",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an index to answer from, served as a vector store under NAME; may be repeated",
    )
    parser.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA adapter (PEFT's directory) over MODEL, chosen by the model field NAME; may "
        "be repeated",
    )
    parser.add_argument(
        "--files",
        type=flags.path,
        metavar="DIR",
        help="clients may add files to the indices and delete them there; what they upload is kept "
        "in DIR (default: the indices are only read)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: %(default)s, this machine only; 0.0.0.0: all networks)",
    )
    parser.add_argument(
        "--port",
        type=flags.natural,
        default=8000,
        metavar="N",
        help="(default: %(default)s; 0 takes a free one, which is printed)",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="what the field 'model' of requests says (default: MODEL as it is written here)",
    )
    parser.add_argument(
        "--slots",
        type=flags.positive,
        default=16,
        metavar="N",
        help="answers that are generated together (default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        type=flags.positive,
        metavar="N",
        help="tokens of a slot: documents, prompt and answer (default: the model's context, or as "
        "many as 4 GiB hold for all slots)",
    )
    parser.add_argument(
        "--instruction",
        default="",
        metavar="T",
        help="of embedding requests with input_type 'query' and no instruction of their own "
        "(default: none)",
    )
    parser.add_argument(
        "--tool-parser",
        choices=TOOL_PARSERS,
        help="the form in which the model writes calls of functions (default: the one that its "
        "chat template shows)",
    )
    parser.add_argument(
        "--api-keys",
        type=flags.path,
        metavar="FILE",
        help="requests must carry one of the keys in this file, one a line (default: no key)",
    )
    parser.add_argument(
        "--max-queue",
        type=flags.positive,
        default=256,
        metavar="N",
        help="requests that may wait; one more is answered with 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-bytes",
        type=flags.positive,
        default=32 * 2**20,
        metavar="N",
        help="of a request (default: %(default)s)",
    )
    parser.add_argument(
        "--max-request-tokens",
        type=flags.positive,
        default=300_000,
        metavar="N",
        help="of all inputs of a request together (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=flags.positive,
        default=120,
        metavar="SECONDS",
        help="that open requests have to end after SIGTERM (default: %(default)s)",
    )
    parser.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send a span of each request to this OpenTelemetry collector, by OTLP over HTTP, such"
        " as http://localhost:4318 (default: none; needs the extra 'otel')",
    )
    parser.add_argument(
        "--no-warm-up",
        action="store_true",
        help="compile programs when they are first needed, not before the server is ready",
    )


def serve(args: argparse.Namespace) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GritError(
            f"{', '.join(missing)} not installed; run pip install 'grit-jax[serve]' first"
        )
    from grit_jax.serving.server import serve as run
    from grit_jax.serving.settings import (
        ServeLimits,
        ServeSettings,
        read_adapters,
        read_api_keys,
        read_indices,
    )

    endpoint = args.otlp_traces_endpoint
    if endpoint is not None:
        from grit_jax.serving.tracing import traces_endpoint

        endpoint = traces_endpoint(endpoint)
    if args.port > 65535:
        raise GritError(f"--port {args.port}: expected a number up to 65535")
    limits = ServeLimits(
        body_bytes=args.max_body_bytes, tokens=args.max_request_tokens, queue=args.max_queue
    )
    settings = ServeSettings(
        name=args.name or args.model,
        slots=args.slots,
        context=args.context,
        instruction=args.instruction,
        indices=read_indices(args.indices),
        adapters=read_adapters(args.adapters, args.name or args.model),
        tool_parser=args.tool_parser,
        api_keys=read_api_keys(args.api_keys) if args.api_keys else (),
        limits=limits,
        warm_up=not args.no_warm_up,
        grace=args.grace,
        files=args.files,
        traces_endpoint=endpoint,
    )
    model = load_model(args)
    if settings.adapters:
        from grit_jax.inference.adapters import with_adapters

        model = with_adapters(model, settings.adapters)
    run(model, settings, args.host, args.port)


SERVE = Verb("serve", "serve embeddings and answers over HTTP", _serve_flags, serve)
