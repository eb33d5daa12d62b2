"""Mixed requests from many clients at a server in a process of its own."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter

import pytest
from served_folders import save_served
from served_process import running

from grit_jax.bench.load import Target
from grit_jax.bench.traffic import TrafficOptions, requests

pytestmark = pytest.mark.slow
TRAFFIC = TrafficOptions(store="docs", new_tokens=24)
CLIENTS = 16


@pytest.fixture(scope="module")
def arguments(tiny_model, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    served = save_served(tiny_model, sentences[:8], folder)
    return [*served, "--slots", "16", "--context", "512", "--no-warm-up"]


def test_sigterm_under_load_loses_no_accepted_request(arguments):
    """What the server has begun it ends: each client that it counts as answered has the whole
    reply."""
    # Clients that leave are left out: their requests end with them.
    sent = [r for r in requests(400, TRAFFIC) if r.expected == "answered"]
    with running(*arguments) as (process, client, lines):
        target, left = Target(client.url), iter(sent)
        outcomes: list = []

        def work() -> None:
            for request in taken():
                outcomes.append(target.send(request))
                if outcomes[-1].status == 0:
                    return

        lock = threading.Lock()

        def taken():
            while True:
                with lock:
                    request = next(left, None)
                if request is None:
                    return
                yield request

        threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 3 * CLIENTS:
            threads[0].join(0.05)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(300)
        assert process.wait(120) == 0
    log = [json.loads(line) for line in lines if line.startswith('{"time"')]
    statuses = Counter(line["status"] for line in log if line["method"] == "POST")
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    assert 3 * CLIENTS <= len(answered) < len(sent)
    assert not [o.problem for o in answered if o.problem]
    assert statuses == {200: len(answered)}
