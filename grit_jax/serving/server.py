"""Runs the application: sockets, the warm-up, and an orderly end."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.serving.app import create_app
from grit_jax.serving.service import Service
from grit_jax.serving.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):
    """On SIGTERM or SIGINT: no new connections, open requests are answered, then the end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which raises the signal again when all is done.
        self._service.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(
    model: GritLM, settings: ServeSettings, host: str = "127.0.0.1", port: int = 8000
) -> None:
    """Serves a model until SIGTERM or SIGINT; open requests are answered first.

    Args:
      port: 0 takes a free one.

    Raises:
      GritError: the address cannot be used, or the model's programs cannot be compiled.
    """
    listening = _listen(host, port)
    host, port = listening.getsockname()[:2]
    if host not in LOOPBACK and not settings.api_keys:
        print(
            f"warning: {host} can be reached from other machines, and no key is needed; --api-keys"
            " FILE demands one",
            file=sys.stderr,
        )
    service = Service(model, settings)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.grace) or None,
    )
    server = _Server(config, service)
    failures: list[BaseException] = []
    warming = threading.Thread(
        target=_warm_up, args=(service, server, failures), name="warm-up", daemon=True
    )
    address = f"[{host}]" if ":" in host else host
    print(f"serving {settings.name} on http://{address}:{port}", file=sys.stderr, flush=True)
    warming.start()
    try:
        server.run(sockets=[listening])
    finally:
        service.close()
        listening.close()
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
      GritError: the address is unknown or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GritError(f"--host {host} --port {port}: {reason}; choose another") from None
    return listening


def _warm_up(service: Service, server: _Server, failures: list[BaseException]) -> None:
    if service.compiled:
        return
    try:
        programs = service.warm_up()
    except Exception as error:
        if not service.draining:
            failures.append(error)
            signal.raise_signal(signal.SIGTERM)
        return
    print(f"ready: {programs} programs compiled", file=sys.stderr, flush=True)
