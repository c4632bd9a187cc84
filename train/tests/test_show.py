"""The attention page from Python, for weights of any model."""

import html
import itertools
import math
import re

import numpy as np
import pytest
import torch

from train.show import show
from train.tests.browser import browser, opened

WORDS = ["the", "cat", "sat"]


def causal(heads=2, T=3):
    weights = np.tri(T) * np.ones((heads, T, T))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "attention",
    [[causal(), causal()], (torch.from_numpy(causal())[None].bfloat16(),) * 2, np.stack([causal(), causal()])],
    ids=["arrays", "as Hugging Face's models return them", "one array"],
)
def test_weights_of_any_model(attention, tmp_path):
    page = show(attention, WORDS, title="A model of <mine>")
    page.save(str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == page.text
    assert "A model of &lt;mine&gt;" in text
    assert "2 layers, 2 heads" in text
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*"></iframe>', page._repr_html_())
    assert html.unescape(frame[1]) == text


def test_keys_of_another_text():
    page = show([np.full((1, 3, 2), 0.5)], WORDS, ["le", "chat"])
    assert '"rows":["the","cat","sat"],"columns":["le","chat"],"same":false' in page.text


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ([], "attention: expected the weights of at least one layer, got none"),
        ([causal(T=4)], r"attention: expected \(H, 3, 3\) for layer 0 and these labels, got \(2, 4, 4\)"),
        ([np.stack([causal(), causal()])], r"attention: expected \(H, 3, 3\) for layer 0 .* got \(2, 2, 3, 3\)"),
        ([causal(), causal(3)], "attention: expected as many heads in every layer"),
        ([causal() - 0.5], "attention: expected weights of at least 0 that add up to at most 1 in layer 0"),
        ([causal(), 2 * causal()], "add up to at most 1 in layer 1"),
        ([causal() * np.nan], "expected weights of at least 0"),
    ],
)
def test_what_cannot_be_shown(attention, message):
    with pytest.raises(ValueError, match=message):
        show(attention, WORDS)


@pytest.mark.parametrize(
    ("T", "S", "message"), [(0, 0, "tokens: expected at least one"), (3, 0, "keys: expected at least one")]
)
def test_texts_without_a_token(T, S, message):
    with pytest.raises(ValueError, match=message):
        show([np.zeros((1, T, S))], WORDS[:T], WORDS[:S])


def test_means_are_over_rows_that_attend_and_over_heads(tmp_path):
    """Head 0 spreads its weight over four words, head 1 looks at one; half of the rows see nothing."""
    weights = np.zeros((2, 4, 4))
    weights[0, :2], weights[1, :2, 0] = 1 / 4, 1
    show([weights], [*WORDS, "down"]).save(str(tmp_path / "page.html"))
    with browser() as chromium, opened(chromium, tmp_path / "page.html") as page:
        for head, entropy in (
            ("0", f"mean entropy {math.log(4):.2f}"),
            ("all", f"mean entropy of a head {math.log(4) / 2:.2f}"),
        ):
            page.select_option("#head", label=head)
            page.wait_for_function(f"document.getElementById('about').textContent.includes({entropy!r})")


def test_keys_of_the_browser_are_left_alone(tmp_path):
    show([causal()], WORDS).save(str(tmp_path / "page.html"))
    with browser() as chromium, opened(chromium, tmp_path / "page.html") as page:
        page.focus("#matrix")
        taken = "(event) => !document.getElementById('matrix').dispatchEvent(new KeyboardEvent('keydown', event))"
        event = {"key": "ArrowLeft", "bubbles": True, "cancelable": True}
        assert page.evaluate(taken, event)
        assert not page.evaluate(taken, event | {"altKey": True})  # the page before


def test_in_a_browser(tmp_path):
    """Words stand apart, and every one of twelve heads has a colour of its own."""
    show([causal(heads=12)] * 2, WORDS).save(str(tmp_path / "page.html"))
    with browser() as chromium, opened(chromium, tmp_path / "page.html") as page:
        page.select_option("#head", label="all")
        colours = page.eval_on_selector_all("#overview button", "all => all.map(b => b.style.getPropertyValue('--mark'))")
        assert len(colours) == 24
        assert len(set(colours)) == 12
        boxes = [word.bounding_box() for word in page.query_selector_all(".text span")]
        assert all(right["x"] > left["x"] + left["width"] + 3 for left, right in itertools.pairwise(boxes))
