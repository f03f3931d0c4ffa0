"""The page in a real browser: it shows what was written, follows, and survives."""

import re

import pytest

from runtime.serve import WebPage
from runtime.track import Event
from tests.browser import BROWSER, open_page, start_browser, wait_until
from tests.pages import open_pages, plain, port_of
from tests.results import news, result

pytest.importorskip("starlette", reason="needs starlette: pip install starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")

TOKEN = "correct-horse-battery"


@pytest.fixture
def pages():
    with open_pages() as open_one:
        yield open_one


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    with start_browser() as started:
        yield started


def text_of(tab, selector):
    return tab.locator(selector).first.inner_text()


# Mean colour of a card's picture, as the browser shows it.
COLOUR = """number => {
  const image = document.querySelectorAll(".card img")[number], canvas = document.createElement("canvas");
  if (!image.naturalWidth) return null;
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


# The least contrast (WCAG 2.2, 1.4.3) of any text with the ground that it stands on.
LEAST_CONTRAST = """() => {
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const parts = numbers(getComputedStyle(element).backgroundColor);
      if (parts.length < 4 || parts[3] > 0.5) return getComputedStyle(element).backgroundColor;
    }
  };
  let least = 21;
  const texts = "h1, h2, h3, h3 span, #summary, .state, dt, dd, li *, .counts, .ticks, button";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.getClientRects().length) continue;
    const both = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    least = Math.min(least, (both[0] + 0.05) / (both[1] + 0.05));
  }
  return least;
}"""


@pytest.mark.parametrize("width, height, colours", [(1280, 800, "light"), (360, 740, "dark")], ids=["desk", "phone"])
def test_in_a_browser(browser, pages, width, height, colours):
    complaints = []
    page = pages(labels=["front door", "a yard whose name is so long that it cannot stand on one line of a phone"],
                 clock=lambda: 1000.0)
    page.write(result(0, persons=2, events=[Event("enter", 4)]), plain(250))
    page.write(result(0, persons=1, source=1), plain(60))
    tab = open_page(browser, page.url, width, height, colours, complaints)
    wait_until(tab, "document.querySelectorAll('.card.live').length === 2")
    assert text_of(tab, "#summary") == "2 of 2 sources live" and text_of(tab, "#persons") == "3 persons now"
    assert text_of(tab, ".card .persons") == "2"
    assert text_of(tab, ".card h2") == "front door"
    assert "person 4 came" in text_of(tab, ".card ul")
    assert tab.evaluate("document.querySelector('.card .stroke').getAttribute('d')").startswith("M119 0")
    wait_until(tab, "document.querySelector('.card img').naturalWidth === 320")
    assert min(tab.evaluate(COLOUR, 0)) > 245

    # It follows: other numbers, another picture.
    page.write(result(1, persons=5, events=[Event("lost", 4)]), plain(128))
    wait_until(tab, "document.querySelector('.card .persons').innerText === '5'")
    assert "person 4 left" in text_of(tab, ".card li")
    wait_until(tab, f"({COLOUR})(0)?.[0] < 140")

    # A source is lost, and comes back.
    page.write(news("lost", "no answer within 10 s <b>", source=1))
    wait_until(tab, "document.querySelectorAll('.card.lost').length === 1")
    lost = tab.locator(".card").nth(1)
    assert lost.locator(".state").inner_text() == "lost" and "no answer within 10 s <b>" in lost.inner_text()
    assert lost.locator(".persons").inner_text() == "–"
    assert tab.title() == "⚠ 1 of 2 not live – Poses"
    page.write(result(1, persons=1, source=1), plain(60))
    wait_until(tab, "document.querySelectorAll('.card.live').length === 2")
    assert not lost.locator(".why").is_visible()

    # A file is over, which is nothing to be warned of.
    page.write(news("ended", "front door is over"))
    wait_until(tab, "document.querySelectorAll('.card.ended').length === 1")
    assert text_of(tab, ".card .state") == "ended" and text_of(tab, ".card .why") == "ended 0 s ago"
    assert text_of(tab, ".card .persons") == "–"
    assert text_of(tab, "#summary") == "1 of 2 sources live, 1 ended" and tab.title() == "1 – Poses"

    # Nothing is wider than the screen, nothing is unreadable, and nothing was complained of.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.querySelectorAll('dd, dt')].every(e => e.scrollWidth <= e.clientWidth + 1)")
    assert tab.evaluate(LEAST_CONTRAST) >= 4.5
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", ground)[0]) < 60) == (colours == "dark")
    assert complaints == []
    tab.context.close()


def test_the_page_survives_a_restart_of_the_server(browser):
    page = WebPage("0", ["door"])
    port = port_of(page)
    for index in range(3):
        page.write(result(index), plain(250))
    tab = open_page(browser, page.url, 800, 900, "light")
    wait_until(tab, "document.querySelector('.card img')?.naturalWidth === 320")
    page.close()
    wait_until(tab, "!document.getElementById('trouble').hidden")
    assert "No connection to the server since" in text_of(tab, "#trouble")
    assert tab.title() == "⚠ no connection – Poses"
    # The new server counts its pictures from 1 again, has more sources, and the page knows nothing of it.
    page = WebPage(str(port), ["door", "yard"])
    try:
        page.write(result(0, persons=4), plain(10))
        page.write(result(0, source=1), plain(10))
        wait_until(tab, "document.getElementById('trouble').hidden")
        wait_until(tab, "document.querySelectorAll('.card.live').length === 2")
        assert text_of(tab, ".card .persons") == "4"
        wait_until(tab, f"({COLOUR})(0)?.[0] < 20")
    finally:
        page.close()
        tab.context.close()


def test_with_the_keyboard_and_the_pointer(browser, pages):
    page = pages(clock=lambda: 1000.0)
    for source in (0, 1):
        page.write(result(0, persons=2, source=source), plain(90))
    tab = open_page(browser, page.url, 1280, 800, "light")
    wait_until(tab, "document.querySelectorAll('.card.live').length === 2")
    before = tab.locator(".picture").first.bounding_box()["width"]
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Enlarge"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    tab.keyboard.press("Enter")
    assert tab.locator(".picture").first.bounding_box()["width"] > 1.3 * before
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.keyboard.press("Enter")
    assert tab.locator(".picture").first.bounding_box()["width"] == before
    chart = tab.locator("svg").first.bounding_box()
    tab.mouse.move(chart["x"] + chart["width"] - 1, chart["y"] + 20)
    assert text_of(tab, ".value") == "2.0, now"
    tab.mouse.move(chart["x"] + 1, chart["y"] + 20)
    assert text_of(tab, ".value") == "no frames, 9 min ago"
    assert tab.evaluate("[...document.querySelectorAll('img, svg, ul')].every("
                        "e => e.getAttribute('alt') || e.getAttribute('aria-label'))")
    tab.context.close()


def test_signing_in(browser, pages):
    page = pages(token=TOKEN)
    page.write(result(0), plain(90))
    complaints = []
    tab = open_page(browser, page.url.partition("?")[0], 360, 740, "light")
    assert "This page needs its token" in tab.inner_text("body")
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.fill("input", TOKEN)
    tab.click("button")
    wait_until(tab, "document.querySelectorAll('.card').length === 2")
    assert TOKEN not in tab.url
    wait_until(tab, "document.querySelector('.card img').naturalWidth === 320")
    assert complaints == []
    tab.context.close()
