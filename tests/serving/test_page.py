"""The page at `/`: its files, and what a person does with it in a real browser."""

from __future__ import annotations

import contextlib
import re

import pytest
from browser import CHROMIUM, LOW_CONTRAST, OVERFLOWING, started

from grit_jax.serving.page import PAGE

QUESTION = "Which river is quiet?"


def test_its_files_come_from_this_server_alone(server):
    for path in PAGE:
        status, text, headers = server.send(path)
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
        assert not re.search(r"(?:https?:)?//[a-z]", text), path  # no address of another server
    html = server.send("/")[1]
    assert set(re.findall(r'(?:src|href)="(/[^"]*)"', html)) == {"/page.css", "/page.js"}
    assert "<script>" not in html and "style=" not in html and " on" + "click=" not in html


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with contextlib.closing(started(lambda: tmp_path_factory.mktemp("profile"))) as browsers:
        yield next(browsers)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
STAGES = ("encode_query", "search", "load", "queue", "prefill", "decode")
SHOWN = "document.querySelector('#turns').innerText"


def open_page(browser, server, width=1280, scheme="light"):
    browser.open(f"{server.url}/", width=width, scheme=scheme)
    browser.wait_for("document.querySelector('#model').textContent === 'tiny'")
    browser.wait_for("document.querySelector('#store').value === 'docs'")


def send(browser, text):
    """Types a question, sends it with Enter and waits for the facts below the answer."""
    turns = browser.evaluate("document.querySelectorAll('.turn').length")
    browser.evaluate("document.querySelector('#question').focus()")
    browser.write(text)
    browser.press("Enter")
    browser.wait_for(f"document.querySelectorAll('.turn').length === {turns + 2}")
    browser.wait_for("!document.querySelector('#send').hidden")


@needs_chromium
@pytest.mark.browser
def test_an_answer_over_documents_and_its_comparison(browser, server):
    open_page(browser, server)
    browser.evaluate(
        "document.querySelector('#tokens').value = 6; document.querySelector('#k').value = 2"
    )
    send(browser, QUESTION)
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 6}
    reply = server.post("/v1/chat/completions", model="tiny", store="docs", mode="doc", k=2, **body)
    said = "document.querySelectorAll('.said')[1].textContent"
    assert browser.evaluate(said) == reply["choices"][0]["message"]["content"]
    shown = browser.evaluate(SHOWN)
    for document in reply["grit"]["documents"]:
        assert document["id"] in shown and document["text"] in shown
    assert "mode doc" in shown and "cache composed" in shown and "from caches" in shown
    browser.evaluate("document.querySelector('.turn details:last-of-type').open = true")
    browser.evaluate("[...document.querySelectorAll('.turn button')].at(-1).click()")
    # All stages that the total is the sum of.
    assert reply["grit"]["timings"].keys() == {*STAGES, "total"}
    browser.wait_for(f"document.querySelectorAll('.bar.read').length === {len(STAGES)}")
    read = server.post(
        "/v1/chat/completions", model="tiny", store="docs", mode="doc-then-query", k=2, **body
    )
    answer = "Answer from reading: " + read["choices"][0]["message"]["content"]
    texts = browser.evaluate("[...document.querySelectorAll('.said')].map(e => e.textContent)")
    assert answer in texts
    complaints = [
        e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert complaints == []
    asked = {
        e["params"]["request"]["url"]
        for e in browser.events
        if e["method"] == "Network.requestWillBeSent"
    }
    assert all(url.startswith((server.url, "data:")) for url in asked)


@needs_chromium
@pytest.mark.browser
@pytest.mark.parametrize("store", ["", "docs"])
def test_chat_keeps_its_turns_and_shows_errors(browser, server, store):
    open_page(browser, server)
    browser.evaluate(
        f"document.querySelector('#store').value = '{store}';"
        " document.querySelector('#tokens').value = 3"
    )
    send(browser, "<b>One</b>")
    send(browser, "Two")
    assert browser.evaluate("document.querySelectorAll('#turns b:not(.facts b)').length") == 0
    turns = browser.evaluate("[...document.querySelectorAll('.said')].map(e => e.textContent)")
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), turns, strict=False)
    ]
    over = {"store": store, "mode": "doc"} if store else {}
    body = {"messages": messages, "temperature": 0, "max_tokens": 3, **over}
    reply = server.post("/v1/chat/completions", model="tiny", **body)
    assert turns[3] == reply["choices"][0]["message"]["content"]
    browser.evaluate("document.querySelector('#tokens').value = 100000")
    send(browser, "Three")
    words = "context" if not store else "does not fit"
    assert words in browser.evaluate("document.querySelector('.error').textContent")


@needs_chromium
@pytest.mark.browser
def test_embeddings_are_compared(browser, server, tiny_model):
    open_page(browser, server)
    browser.evaluate("document.querySelector('#tab-chat').focus()")
    browser.press("ArrowRight")
    assert browser.evaluate("!document.querySelector('#compare').hidden")
    browser.evaluate("document.querySelector('#queries').value = 'amber\\nquiet river'")
    browser.evaluate("document.querySelector('#documents').value = 'a river\\na stone\\namber'")
    browser.evaluate("document.querySelector('#instruction').value = 'Find it'")
    browser.evaluate("document.querySelector('#texts').requestSubmit()")
    browser.wait_for("document.querySelectorAll('#matrix td').length === 6")
    shown = browser.evaluate(
        "[...document.querySelectorAll('#matrix td')].map(e => Number(e.textContent))"
    )
    q = tiny_model.encode(["amber", "quiet river"], instruction="Find it")
    d = tiny_model.encode(["a river", "a stone", "amber"])
    assert shown == pytest.approx((q @ d.T).ravel().tolist(), abs=6e-4)
    assert browser.evaluate("document.querySelectorAll('#matrix td.best').length") == 2


@needs_chromium
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(browser, server, width, scheme):
    open_page(browser, server, width, scheme)
    browser.evaluate("document.querySelector('#tokens').value = 4")
    send(browser, QUESTION)
    assert browser.evaluate("document.documentElement.dataset.theme") == scheme
    for tab in ("chat", "compare"):
        browser.evaluate(f"document.querySelector('#tab-{tab}').click()")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(OVERFLOWING) == []
        assert browser.evaluate(LOW_CONTRAST) == []
    browser.evaluate("document.querySelector('#tab-chat').click()")
    heights = "[...document.querySelectorAll('.settings :is(select, input, button)')].map(e => e.offsetHeight)"
    assert len(set(browser.evaluate(heights))) == 1
    assert browser.evaluate("document.querySelector('#mode').offsetWidth") > 150
    # Every control has a name that is read aloud.
    nameless = """[...document.querySelectorAll('input, select, textarea, button')].filter(e =>
      !e.labels?.length && !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.id)"""
    assert browser.evaluate(nameless) == []
