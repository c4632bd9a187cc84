"""The site in a browser: nothing wider than the window, every picture there, nothing said on the console, no network."""

import pytest

from train.tests.browser import browser

WINDOWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 360, "height": 800}, "color_scheme": "dark"},
}
SOURCE = ("source/index.html", "source/reference_numpy/attention.html", "source/torch_impl/attention.html")


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.mark.parametrize("window", WINDOWS)
def test_pages_in_a_browser(site, chromium, window):
    pages = [*sorted(path.name for path in site.glob("*.html")), *SOURCE]
    assert "index.html" in pages
    context = chromium.new_context(**WINDOWS[window])
    complaints, requests = [], []
    for name in pages:
        page = context.new_page()
        page.set_default_timeout(120_000)  # milliseconds, for a machine that is busy
        page.on("console", lambda message, name=name: complaints.append((name, message.text)))
        page.on("pageerror", lambda error, name=name: complaints.append((name, str(error))))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name}: wider than the window"
        lines = page.evaluate("[...document.querySelectorAll('nav div')].map((row) => row.clientHeight)")
        assert 1 <= len(lines) <= 2 and max(lines) < 40, f"{name}: a row of the menu takes two lines"
        narrow = "(cell) => cell.textContent.length > 60 && cell.clientWidth < 60"
        cramped = page.evaluate(f"[...document.querySelectorAll('td')].filter({narrow}).length")
        assert cramped == 0, f"{name}: a column too narrow to be read"
        missing = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
        assert page.evaluate(missing) == [], name
        page.close()
    context.close()
    assert complaints == []
    assert all(address.startswith(("file:", "data:")) for address in requests)
