"""The site in a browser: nothing wider than the window, every picture there, nothing said on the console, no network."""

import pytest

from train.tests.browser import browser

WINDOWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 360, "height": 800}, "color_scheme": "dark", "is_mobile": True},
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
        broad = page.evaluate("document.documentElement.scrollWidth")
        assert broad <= WINDOWS[window]["viewport"]["width"], f"{name}: wider than the window"
        assert page.evaluate("document.documentElement.lang") == "en", f"{name}: read aloud as another language"
        lines = page.evaluate("[...document.querySelectorAll('nav div')].map((row) => row.clientHeight)")
        assert 1 <= len(lines) <= 2 and max(lines) < 40, f"{name}: a row of the menu takes two lines"
        here = page.evaluate(
            "[...document.querySelectorAll('nav div')].map((row) => row.querySelectorAll('[aria-current]').length)"
        )
        assert here == [1] * len(lines), f"{name}: a row of the menu does not say where this is"
        narrow = "(cell) => cell.textContent.length > 60 && cell.clientWidth < 60"
        cramped = page.evaluate(f"[...document.querySelectorAll('td')].filter({narrow}).length")
        assert cramped == 0, f"{name}: a column too narrow to be read"
        missing = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
        assert page.evaluate(missing) == [], name
        silent = "[...document.images].filter(image => !image.alt).map(image => image.src)"
        assert page.evaluate(silent) == [], f"{name}: a picture without a description"
        page.close()
    context.close()
    assert complaints == []
    assert all(address.startswith(("file:", "data:")) for address in requests)


@pytest.fixture(scope="module")
def post(site, chromium):
    page = chromium.new_page(**WINDOWS["desktop"])
    page.set_default_timeout(120_000)  # milliseconds, for a machine that is busy
    page.goto((site / "index.html").as_uri())
    yield page
    page.close()


def test_the_first_key_shows_a_link_that_skips_the_menu(post):
    post.keyboard.press("Tab")
    left, top = post.evaluate("(({ left, top }) => [left, top])(document.activeElement.getBoundingClientRect())")
    assert min(left, top) >= 0
    post.keyboard.press("Enter")
    post.keyboard.press("Tab")
    assert post.evaluate("document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize(
    "media, width, seen", [("screen", 1280, "iframe"), ("screen", 390, ".still"), ("print", 1280, ".still")]
)
def test_of_a_page_in_the_post_and_its_picture_one_is_seen(post, media, width, seen):
    post.set_viewport_size({"width": width, "height": 900})
    post.emulate_media(media=media)
    assert [part for part in ("iframe", ".still") if post.is_visible(part)] == [seen]
