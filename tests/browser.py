"""A headless Chromium for tests of pages: the machine's own, driven by Playwright; no browser is fetched."""

import contextlib
import shutil
import time

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def start_browser():
    """A Playwright browser that is closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_page(browser, url, width, height, colours, complaints=None):
    """A new tab, at 1 pixel a CSS pixel; `colours`: "light" or "dark". What it complains of goes to `complaints`."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours,
                                  has_touch=width < 600)
    tab = context.new_page()
    if complaints is not None:
        tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(url)
    return tab


def wait_until(tab, condition, seconds=20):
    """Until a JavaScript expression is true. Playwright's own wait evaluates in the page, whose policy forbids it."""
    end = time.monotonic() + seconds
    while not tab.evaluate(condition):
        assert time.monotonic() < end, f"waited in vain for {condition}; the page shows {tab.inner_text('body')!r}"
        tab.wait_for_timeout(50)
