"""What the attention page does for a key, for the pointer, for the player and for a window of another width."""

import pytest

from train.attention_page import attention_page
from train.tests.browser import opened
from train.tests.test_attention_page import said, wait_for
from train.tests.test_page_drawing import DETAIL, MOMENTS, choose, window

TEXT = ".text div[data-side=row]"


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """One window for all tests: each begins with an address that says all that is chosen."""
    with window(chromium, tmp_path_factory.mktemp("page"), MOMENTS, DETAIL) as page:
        yield page


@pytest.mark.parametrize(
    "part, place, words",
    [
        ("#matrix", "({ x: matrix.margin + 4.5 * matrix.cell, y: matrix.margin + 2.5 * matrix.cell })", "q2 (2) → e (4): "),
        ("#lines", "({ x: 5, y: 3.5 * lineHeight() })", "q3: position 3"),
        (f"{TEXT} span:nth-child(2)", "({ x: 3, y: 3 })", "q1: position 1"),
    ],
    ids=["matrix", "lines", "text"],
)
def test_what_is_pointed_at_is_left_with_the_pointer_and_a_click_keeps_it_until_another_click(page, part, place, words):
    choose(page, "#stack=2&layer=1&head=1")
    position = page.evaluate(place)
    for act, left in ((page.hover, "No token is chosen."), (page.click, words), (page.click, "No token is chosen.")):
        act(part, position=position)
        page.mouse.move(0, 0)
        assert said(page).startswith(left)


@pytest.mark.parametrize(
    "part, key, words",
    [
        ("#matrix", "ArrowUp", "q2 (2) → e (4): "),
        ("#matrix", "ArrowDown", "q4 (4) → e (4): "),
        ("#matrix", "ArrowLeft", "q3 (3) → d (3): "),
        ("#matrix", "ArrowRight", "q3 (3) → f (5): "),
        (TEXT, "ArrowLeft", "q2: position 2"),
        (TEXT, "ArrowRight", "q4: position 4"),
    ],
)
def test_an_arrow_key_goes_where_it_points(page, part, key, words):
    choose(page, "#stack=2&layer=1&head=1&row=3" + ("&column=4" if part == "#matrix" else ""))
    page.focus(part)
    page.keyboard.press(key)
    assert said(page).startswith(words)


def test_playing_ends_at_the_last_step(page):
    choose(page, f"#stack=2&layer=1&head=1&time={len(MOMENTS) - 2}")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Stop"
    wait_for(page, f"$('when').textContent.startsWith('step {MOMENTS[-1].step} of')")
    assert page.get_attribute("#play", "aria-label") == "Play the training"


def test_all_is_drawn_anew_for_a_window_of_another_width(page):
    choose(page, "#stack=0&layer=1&head=1")
    width = page.evaluate("$('matrix').width")
    page.set_viewport_size({"width": 400, "height": 720})
    wait_for(page, "document.documentElement.scrollWidth <= 400")
    page.set_viewport_size({"width": 1280, "height": 720})
    wait_for(page, f"$('matrix').width === {width}")


def test_without_scripts_the_page_says_what_it_lacks(chromium, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(attention_page(MOMENTS[:1], "A run", ""), encoding="utf-8")
    with opened(chromium, path, java_script_enabled=False) as page:
        assert "JavaScript" in page.inner_text("body")
