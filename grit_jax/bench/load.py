"""`grit bench serve`: many clients at a running server at once, beside one client alone."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import queue
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from grit_jax.bench.traffic import Request, TrafficOptions, requests
from grit_jax.errors import GritError
from grit_jax.runtime.progress import progress

TIMEOUT = 600.0  # seconds that a reply may take
# Seconds after which a client that leaves has left, at most: it goes as soon as the reply begins,
# so that no client waits for an idle server.
LEAVES_AFTER = 0.1
MEMORY_SECONDS = 1.0  # between two readings of the server's memory
PERCENTILES = (50, 90, 99)
RETRIES = 100  # of a request that was refused because too many waited
MOST_FAILURES = 20  # that the report shows


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How much is sent.

    Attributes:
      requests: that all clients send together.
      connections: clients.
      alone: requests that one client sends first, one after another; 0: a tenth of `requests`.
      warm_up: requests before anything is measured, in which programs are compiled.
      api_key: is sent with every request.
    """

    requests: int = 5000
    connections: int = 32
    alone: int = 0
    warm_up: int = 100
    api_key: str | None = None
    traffic: TrafficOptions = TrafficOptions()


@dataclasses.dataclass
class Outcome:
    """What became of a request.

    Attributes:
      status: of the reply; 0: there was none.
      seconds: from sending it to the end of the reply.
      first: seconds to the first token of a stream; None: no stream.
      refusals: times that it was refused because too many waited (429), and sent again.
      problem: what is wrong; None: it ended as it should.
    """

    request: Request
    status: int = 0
    seconds: float = 0.0
    first: float | None = None
    refusals: int = 0
    problem: str | None = None


class Target:
    """A server.

    Raises:
      GritError: an address that is none, or nobody answers there.
    """

    def __init__(self, url: str, api_key: str | None = None):
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 0
        if parts.scheme != "http" or not host:
            raise GritError(f"{url}: expected http://HOST:PORT")
        self.url, self._host, self._port = url, host, port
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page.

        Raises:
          GritError: nobody answers.
        """
        try:
            with contextlib.closing(self.connect()) as connection:
                connection.request("GET", path, headers=self._headers)
                reply = connection.getresponse()
                return reply.status, reply.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise GritError(f"{self.url}: {error}; is grit serve running there?") from None

    def send(self, request: Request) -> Outcome:
        """Sends a request and reads its reply; one that is refused because too many wait is sent
        again after a while."""
        outcome = Outcome(request)
        began = time.monotonic()
        try:
            for _ in range(RETRIES):
                wait = self._try(request, outcome)
                if wait is None:
                    break
                outcome.refusals += 1
                time.sleep(wait)
        except (OSError, http.client.HTTPException) as error:
            outcome.problem = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - began
        return outcome

    def _try(self, request: Request, outcome: Outcome) -> float | None:
        """Sends it once; returns the seconds to wait before it is sent again, or None."""
        began = time.monotonic()
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", request.path, request.body, self._headers)
            if request.expected == "cancelled":
                select.select([connection.sock], [], [], LEAVES_AFTER)
                return None
            reply = connection.getresponse()
            outcome.status, text = reply.status, b""
            if request.streams and reply.status == 200:
                while line := reply.readline():
                    if outcome.first is None and b'"delta":{"content":"' in line:
                        outcome.first = time.monotonic() - began
                    text = line if line.strip() else text
            else:
                text = reply.read()
            if reply.status == 429:
                return float(reply.headers.get("Retry-After", "1"))
        outcome.problem = _problem(request, reply.status, text)
        return None

    def memory(self) -> int | None:
        """Bytes of the server's process, where it tells them."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return int(float(line.split()[1]))
        return None


def _problem(request: Request, status: int, text: bytes) -> str | None:
    """What is wrong with a reply; `text`: its body, or the last event of a stream."""
    if request.expected == "refused":
        return None if 400 <= status < 500 else f"expected a 4xx, got {status}"
    if status != 200:
        return f"{status}: {text[:200].decode('utf-8', 'replace')}"
    if request.streams and text.strip() != b"data: [DONE]":
        return "the stream broke off"
    return None


def bench_serve(url: str, options: LoadOptions) -> dict[str, Any]:
    """Sends mixed requests to a server, first one after another, then from many clients at once.

    Returns:
      `requests, connections, seconds, requests_per_s`; `alone` with the same of one client; their
      ratio, `speedup`; `latency_s` and `first_token_s` with percentiles by kind of request;
      `statuses`; `refused_429`; `failed` and the first `failures`; `memory`: `[seconds, bytes]` of
      the server's process, and `memory_growth` from a fifth of the run to its end, as a share.

    Raises:
      GritError: nobody answers at the address, or the server is not ready.
    """
    target = Target(url, options.api_key)
    status, text = target.get("/ready")
    if status != 200:
        raise GritError(f"{url}: the server is not ready: {text:.200}")
    traffic = options.traffic
    draw = lambda count, seed: requests(count, dataclasses.replace(traffic, seed=seed))
    warm_up = draw(options.warm_up, traffic.seed + 1)
    _run(target, warm_up, options.connections, "warm-up")
    alone_count = options.alone or max(1, options.requests // 10)
    alone, alone_seconds, _ = _run(target, draw(alone_count, traffic.seed + 2), 1, "one at a time")
    outcomes, seconds, memory = _run(
        target, draw(options.requests, traffic.seed), options.connections, "together"
    )
    rate, alone_rate = len(outcomes) / seconds, len(alone) / alone_seconds
    failures = [outcome for outcome in (*alone, *outcomes) if outcome.problem is not None]
    return {
        "requests": len(outcomes),
        "connections": options.connections,
        "seconds": seconds,
        "requests_per_s": rate,
        "alone": {
            "requests": len(alone),
            "seconds": alone_seconds,
            "requests_per_s": alone_rate,
            "latency_s": _percentiles_by_kind(alone, lambda outcome: outcome.seconds),
        },
        "speedup": rate / alone_rate,
        "latency_s": _percentiles_by_kind(outcomes, lambda outcome: outcome.seconds),
        "first_token_s": _percentiles_by_kind(outcomes, lambda outcome: outcome.first),
        "statuses": dict(Counter(str(o.status or "left") for o in outcomes)),
        "refused_429": sum(outcome.refusals for outcome in outcomes),
        "failed": len(failures),
        "failures": [
            {"kind": o.request.kind, "path": o.request.path, "problem": o.problem}
            for o in failures[:MOST_FAILURES]
        ],
        "memory": memory,
        "memory_growth": _growth(memory, seconds),
    }


def _run(
    target: Target, sent: Sequence[Request], connections: int, what: str
) -> tuple[list[Outcome], float, list[tuple[float, int]]]:
    """Sends requests from so many clients; returns outcomes in the order of the requests, seconds,
    and the server's memory over them."""
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for number in itertools.chain(range(len(sent)), [None] * connections):
        waiting.put(number)
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    outcomes: list[Any] = [None] * len(sent)

    def client() -> None:
        while (number := waiting.get()) is not None:
            outcomes[number] = target.send(sent[number])
            done.put(number)

    ended, memory, began = threading.Event(), [], time.monotonic()

    def watch() -> None:
        while True:
            with contextlib.suppress(GritError):
                if (size := target.memory()) is not None:
                    memory.append((round(time.monotonic() - began, 2), size))
            if ended.wait(MEMORY_SECONDS):
                return

    threads = [threading.Thread(target=client, daemon=True) for _ in range(connections)]
    watcher = threading.Thread(target=watch, daemon=True)
    for thread in (*threads, watcher):
        thread.start()
    for _ in progress(range(len(sent)), f"bench serve, {what}", "requests"):
        done.get()
    seconds = time.monotonic() - began
    ended.set()
    watcher.join()
    return outcomes, seconds, memory


def _percentiles_by_kind(
    outcomes: Iterable[Outcome], value: Callable[[Outcome], float | None]
) -> dict[str, dict[str, float]]:
    """Percentiles of a value by kind of request, of those that were answered."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        number = value(outcome)
        if number is not None and outcome.status == 200:
            values.setdefault(outcome.request.kind, []).append(number)
    return {
        kind: {f"p{p}": float(np.percentile(own, p)) for p in PERCENTILES} | {"requests": len(own)}
        for kind, own in sorted(values.items())
    }


def _growth(memory: Sequence[tuple[float, int]], seconds: float) -> float | None:
    """How much the memory has grown from a fifth of the run to its end, as a share: the median of
    the last tenth over that of the second tenth."""
    early = [size for at, size in memory if 0.1 * seconds <= at <= 0.3 * seconds]
    late = [size for at, size in memory if at >= 0.9 * seconds]
    if not early or not late:
        return None
    return float(np.median(late) / np.median(early) - 1)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    alone = result["alone"]
    shown = [
        f"{result['requests']} requests from {result['connections']} clients:"
        f" {result['requests_per_s']:.2f} requests/s; one at a time:"
        f" {alone['requests_per_s']:.2f} requests/s ({result['speedup']:.1f} times)",
        f"failed: {result['failed']}; refused for now (429): {result['refused_429']}; statuses:"
        f" {', '.join(f'{k} x {v}' for k, v in sorted(result['statuses'].items()))}",
    ]
    for name, title in (("latency_s", "seconds"), ("first_token_s", "seconds to the first token")):
        for kind, numbers in result[name].items():
            parts = ", ".join(f"p{p} {numbers[f'p{p}']:.3f}" for p in PERCENTILES)
            shown.append(f"  {kind}, {title}: {parts} ({numbers['requests']:.0f} requests)")
    if result["memory"]:
        last, growth = result["memory"][-1][1], result["memory_growth"]
        change = "" if growth is None else f", {100 * growth:+.1f}% since a fifth of the run"
        shown.append(f"memory of the server: {last / 2**20:.0f} MiB{change}")
    shown += [f"  {f['kind']} {f['path']}: {f['problem']}" for f in result["failures"]]
    return shown
