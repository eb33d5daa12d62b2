"""The report page in a real browser, light and dark, wide and narrow. Skipped where no Chromium is
installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, LOW_CONTRAST, OVERFLOWING, Browser, started
from report_fixture import made_up_hostile_report, made_up_metrics, made_up_report

from grit_jax.quickstart.report import write_html

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from started(lambda: tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    write_html(made_up_report(), made_up_metrics(), folder / "complete.html")
    write_html(made_up_hostile_report(), made_up_metrics(1), folder / "hostile.html")
    write_html(made_up_report(), [], folder / "untrained.html")
    return {page.stem: page for page in folder.glob("*.html")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["complete", "hostile", "untrained"])
def test_page_loads_nothing_complains_of_nothing_and_fits(browser, pages, name, width, scheme):
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate("document.compatMode") == "CSS1Compat"
    methods = [event["method"] for event in browser.events]
    assert "Runtime.consoleAPICalled" not in methods and "Runtime.exceptionThrown" not in methods
    assert [e["params"] for e in browser.events if e["method"] == "Log.entryAdded"] == []
    requested = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requested if not url.startswith("data:")] == [pages[name].as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_colours_follow_the_scheme(browser, pages, scheme):
    browser.open(pages["complete"], width=1200, scheme=scheme)
    assert browser.evaluate(LOW_CONTRAST) == []
    red = int(
        browser.evaluate("getComputedStyle(document.body).backgroundColor")
        .split("(")[1]
        .split(",")[0]
    )
    assert red > 200 if scheme == "light" else red < 60


def test_hostile_text_stays_text(browser, pages):
    browser.open(pages["hostile"], width=1200, scheme="light")
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.querySelectorAll('b:not(.tile b)').length") == 0
    assert "<script>alert('x')</script>" in browser.evaluate("document.body.innerText")


def test_charts_are_drawn_named_and_inside_their_frames(browser, pages):
    browser.open(pages["complete"], width=1200, scheme="light")
    assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") == 9
    assert browser.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].every(s =>"
        " s.getBoundingClientRect().height > 60)"
    )
    outside = """[...document.querySelectorAll('svg[role=img] :is(text, rect, circle)')].filter(e => {
      const a = e.getBoundingClientRect(), b = e.closest('svg').getBoundingClientRect();
      return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
    }).map(e => e.textContent || e.tagName)"""
    assert browser.evaluate(outside) == []


def test_selecting_a_command_gives_the_command(browser, pages):
    browser.open(pages["complete"], width=400, scheme="light")
    copied = """[...document.querySelectorAll('pre')].map(p => {
      getSelection().selectAllChildren(p); return getSelection().toString(); })"""
    assert [text.rstrip("\n") for text in browser.evaluate(copied)] == made_up_report().commands
