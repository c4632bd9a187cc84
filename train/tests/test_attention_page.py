"""The attention page: what is packed comes back, what does not fit is left out and said, and a browser shows all of it."""

import base64
import json
import re
import zlib
from typing import Any

import numpy as np
import pytest

from train.attention_page import Moment, QueryKey, attention_page, renewed
from train.cli import main
from train.looking import Stack
from train.tests.browser import opened
from train.tests.runs import options, run

TEXT = "the king\nand "
LAYERS, HEADS, K = 2, 3, 5
LABELS = [{" ": "␣", "\n": "↵"}.get(symbol, symbol) for symbol in TEXT]
STEPS = (0, 7, 50)


def weights(generator, T, S, causal=False):
    scores = np.exp(2 * generator.normal(size=(HEADS, T, S))) * (np.tri(T, S) if causal else 1)
    return scores / scores.sum(-1, keepdims=True)


def stack(generator, name="own", rows=LABELS, columns=LABELS):
    layers = {f"layer {i}": weights(generator, len(rows), len(columns), name == "own") for i in range(LAYERS)}
    return Stack(name, f"{name} attention", layers, list(rows), list(columns))


@pytest.fixture
def moments():
    generator = np.random.default_rng(0)
    return [Moment(step, 4.0 / (1 + step), [stack(generator)]) for step in STEPS]


@pytest.fixture
def detail():
    generator = np.random.default_rng(1)
    return [QueryKey(*generator.normal(size=(2, LAYERS, HEADS, len(TEXT), K)))]


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(codes, dtype: Any = np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(codes)), dtype)


def test_weights_come_back_within_what_their_format_can_hold(moments):
    data = data_of(attention_page(moments, "a title", "a line"))
    assert [moment["step"] for moment in data["moments"]] == list(STEPS)
    for moment, packed in zip(moments, data["moments"], strict=True):
        expected = np.stack(list(moment.stacks[0].weights.values()))
        got = (unpacked(packed["codes"]).reshape(expected.shape) / 255.0) ** 2
        bound = np.maximum((2 * np.sqrt(expected) + 1 / 510) / 510, 1 / 255**2)
        assert (abs(got - expected) <= bound).all()
        assert ((got == 0) == (expected == 0)).all(), "0 stands for what is masked, and for nothing else"


def test_how_far_off_a_weight_can_be_is_said_and_rounded_up():
    between = ((np.arange(255) + 0.5) / 255) ** 2  # two codes, so that none can be further off
    row = Stack("cross", "", {"layer 0": between[None, None]}, ["q"], ["k"] * 255)
    page = attention_page([Moment(1, None, [row])], "", "")
    worst = abs((unpacked(data_of(page)["moments"][0]["codes"]) / 255.0) ** 2 - between).max()
    digits = re.search(r"off by less than 0\.(\d+)", page)[1]
    assert worst < float(f"0.{digits}") < worst + 10.0 ** -len(digits)


def test_queries_and_keys_come_back(moments, detail):
    packed = data_of(attention_page(moments, "", "", detail=detail))["detail"]
    values = unpacked(packed["codes"], "<i2").reshape(2, LAYERS, HEADS, len(TEXT), K)
    for got, scale, expected in zip(values, packed["scales"], detail[0], strict=True):
        assert (abs(got * scale - expected) <= scale * (0.5 + 1e-9)).all()


def test_a_page_has_room_for_so_much(moments, detail):
    page = attention_page(moments, "", "", detail=detail)
    parts = [len(moment["codes"]) for moment in data_of(page)["moments"]]
    own = len(attention_page(moments[-1:], "", "")) - parts[-1]
    less = data_of(attention_page(moments, "", "", most_bytes=own + parts[0] + parts[2]))
    assert [moment["step"] for moment in less["moments"]] == [0, 50]
    assert less["detail"] is None
    assert "2 of 3 kept steps" in attention_page(moments, "", "", most_bytes=own + parts[0] + parts[2])
    assert "kept steps" not in page
    with pytest.raises(ValueError, match="take a shorter one"):
        attention_page(moments, "", "", most_bytes=1000)
    with pytest.raises(ValueError, match="moments: expected at least one, got none"):
        attention_page([], "", "")


def test_a_page_is_renewed_around_its_numbers(moments, detail):
    page = attention_page(moments, "a <title>", "a {{line}}", detail=detail)
    assert renewed(page) == page
    assert renewed(page.replace("color-scheme: light", "color-scheme: none")) == page
    with pytest.raises(ValueError, match="page: expected an attention page, got something else"):
        renewed("<p>something else</p>")


def test_no_text_can_leave_its_place(moments):
    nasty = ["</script><script>alert(1)</script>", "{{script}}", "<!--", *LABELS[3:]]
    moments = [moment._replace(stacks=[moment.stacks[0]._replace(rows=nasty, columns=nasty)]) for moment in moments]
    page = attention_page(moments, "<b>{{data}}", "&amp;")
    assert data_of(page)["stacks"][0]["rows"] == nasty
    assert page.count("</script>") == 2
    assert "<title>&lt;b&gt;{{data}}</title>" in page
    assert "http:" not in page and "https:" not in page and "src=" not in page


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def path(tmp_path, moments, detail):
    path = tmp_path / "page.html"
    path.write_text(attention_page(moments, "A <run>", "small", detail=detail), encoding="utf-8")
    return path


def wait_for(page, condition):
    """Asks again and again; the page's own policy forbids a waiting function inside it."""
    for _ in range(6000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"{condition} did not come true")


def settled(page):
    """Waits until the page has drawn what was asked for last."""
    wait_for(page, "shown !== null && document.documentElement.dataset.shown === String(requested) && planned === null")


def picture(page, canvas="matrix"):
    settled(page)
    return page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def said(page):
    settled(page)
    return page.inner_text("#said")


def weight_of(moments, time, layer, head, row, column):
    weight = moments[time].stacks[0].weights[f"layer {layer}"][head, row, column]
    return (np.rint(255 * np.sqrt(weight)) / 255) ** 2


def test_layer_head_step_and_theme_change_what_is_shown(chromium, path, moments):
    with opened(chromium, path, "#layer=0&head=0", color_scheme="light") as page:
        seen = {picture(page)}
        assert page.inner_text("h1") == "A <run>"
        assert "layer 0, head 0" in page.inner_text("#about")
        page.select_option("#layer", "1")
        seen.add(picture(page))
        assert "layer 1, head 0" in page.inner_text("#about")
        page.select_option("#head", "2")
        seen.add(picture(page))
        page.select_option("#head", "-1")
        seen.add(picture(page))
        assert "mean of all heads" in page.inner_text("#about")
        page.focus("#time")
        page.keyboard.press("ArrowLeft")
        seen.add(picture(page))
        assert page.inner_text("#when").split("\n") == ["step 7 of 50", "training loss 0.500 nats"]
        page.keyboard.press("Home")
        seen.add(picture(page))
        assert page.inner_text("#when").startswith("step 0 of 50")
        page.select_option("#scale", "0.5")
        seen.add(picture(page))
        page.click("#theme")
        seen.add(picture(page))
        assert len(seen) == 8, "every choice gives another picture"
        page.click("#overview button:nth-child(6)")
        assert (settled(page), page.inner_text("#about"))[1].startswith("own attention: layer 1, head 2;")
        assert page.locator("#overview button[aria-pressed=true]").count() == 1


def test_keys_and_pointer_show_the_numbers_of_the_model(chromium, path, moments):
    with opened(chromium, path, "#layer=0&head=0") as page:
        assert said(page) == "No token is chosen."
        page.focus("#matrix")
        for key in ("Home", *["ArrowDown"] * 5, *["ArrowRight"] * 3):
            page.keyboard.press(key)
        assert said(page) == f"i (5) → e (2): weight {weight_of(moments, 2, 0, 0, 5, 2):.3f}"
        row = [weight_of(moments, 2, 0, 0, 5, column) for column in range(6)]
        numbers = [float(text) for text in page.locator("#ranking td:last-child").all_inner_texts()]
        assert numbers == [round(weight, 3) for weight in sorted(row, reverse=True)]
        page.hover(".text span:nth-child(1)")
        assert said(page).startswith("i (5)"), "what a key chose is kept"
        page.keyboard.press("Escape")
        assert said(page) == "No token is chosen."
        page.hover(".text span:nth-child(3)")
        assert said(page) == "e: position 2, counted from 0"
        page.hover(
            "#matrix",
            position=page.evaluate("({x: matrix.margin + 1.5 * matrix.cell, y: matrix.margin + 4.5 * matrix.cell})"),
        )
        assert said(page) == f"k (4) → h (1): weight {weight_of(moments, 2, 0, 0, 4, 1):.3f}"
        page.hover("#lines", position={"x": 5, "y": 5})
        assert said(page) == "t: position 0, counted from 0"


def test_whoever_uses_the_keyboard_sees_where_it_is(chromium, path):
    with opened(chromium, path) as page:
        settled(page)
        places = []
        while page.keyboard.press("Tab") or page.evaluate("document.activeElement !== document.body"):
            outline = page.evaluate(
                "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
            )
            assert outline == ["solid", "3px"]
            places.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        heads = [f"layer {layer}, head {head}" for layer in range(LAYERS) for head in range(HEADS)]
        assert places == ["theme", "layer", "head", "scale", "direction", "play", "time", "", "matrix", "lines", *heads]


def test_no_label_is_cut(chromium, tmp_path):
    generator, labels = np.random.default_rng(3), list("fjW") * 4
    path = tmp_path / "page.html"
    path.write_text(attention_page([Moment(1, None, [stack(generator, "cross", labels, labels)])], "", ""), encoding="utf-8")
    with opened(chromium, path) as page:
        settled(page)
        width, margin, axis, opaque = page.evaluate("""(() => {
            const { width, height } = $("matrix");
            const { data } = $("matrix").getContext("2d").getImageData(0, 0, width, height);
            const opaque = Array.from({ length: width * height }, (_, pixel) => Number(data[4 * pixel + 3] > 0));
            return [width, matrix.margin, AXIS, opaque.join("")];
        })()""")
        inked = np.array(list(opaque)).reshape(-1, width) == "1"
        assert inked[axis : margin - 2].any(), "labels stand above the matrix"
        assert inked[:, axis : margin - 2].any(), "and beside it"
        assert inked[:axis, margin:].any(), "the name of the columns above them"
        assert inked[margin:, :axis].any(), "and of the rows"
        assert not inked[0].any()
        assert not inked[:, 0].any()


def column_of_lines(page):
    """The pixels, (height, 4), halfway between who attends and what is attended to."""
    settled(page)
    line = "$('lines').getContext('2d').getImageData($('lines').width / 2, 0, 1, $('lines').height)"
    return np.array(page.evaluate(f"Array.from({line}.data)")).reshape(-1, 4)


def written(tmp_path, layers, labels):
    path = tmp_path / "page.html"
    seen = Stack("own", "own attention", {f"layer {i}": np.stack(heads) for i, heads in enumerate(layers)}, labels, labels)
    path.write_text(attention_page([Moment(1, None, [seen])], "", ""), encoding="utf-8")
    return path


def test_heads_that_attend_to_the_same_token_are_all_seen(chromium, tmp_path):
    path = written(tmp_path, [[np.eye(5), np.full((5, 5), 0.2), np.eye(5)]], list("abcde"))
    with opened(chromium, path, "#head=all&row=2") as page:  # a level line
        pixels = column_of_lines(page)
        frames = page.evaluate("Array.from($('overview').children, (button) => getComputedStyle(button).borderColor)")
        colors = [[int(part) for part in re.findall(r"\d+", frame)] + [255] for frame in frames]
        first, _, last = (np.flatnonzero((pixels == color).all(-1)) for color in colors)
        assert len(first)
        assert len(last)
        assert last.mean() - first.mean() == 4, "two pixels between one head and the next"
        assert "frame: colour of its lines" in page.inner_text("#overview-about")
        page.select_option("#head", "0")
        settled(page)
        assert "frame" not in page.inner_text("#overview-about")


def test_of_all_heads_some_can_be_left_out(chromium, path, moments):
    heads = moments[-1].stacks[0].weights["layer 0"].shape[0]
    with opened(chromium, path, "#layer=0&head=0") as page:
        settled(page)
        assert not page.is_visible("#heads")
        page.select_option("#head", "-1")
        settled(page)
        every = picture(page, "lines"), picture(page)
        switches = page.locator("#heads button")
        assert [switches.nth(head).get_attribute("aria-pressed") for head in range(heads)] == ["true"] * heads
        switches.nth(1).click()
        settled(page)
        assert switches.nth(1).get_attribute("aria-pressed") == "false"
        assert page.inner_text("#about").startswith("own attention: layer 0, mean of heads 0, 2;")
        page.focus("#matrix")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        mean = np.mean([weight_of(moments, -1, 0, head, 0, 0) for head in (0, 2)])
        assert said(page).endswith(f"weight {mean:.3f}")
        assert page.evaluate("Array.from($('overview').children, (b) => b.ariaPressed)")[:heads] == ["true", "false", "true"]
        wait_for(page, "location.hash.includes('off=1') && location.hash.includes('column')")
        with opened(chromium, path, page.evaluate("location.hash")) as other:
            assert picture(other, "lines") == picture(page, "lines")
        page.keyboard.press("Escape")
        assert picture(page, "lines") != every[0]
        switches.nth(1).click()
        settled(page)
        assert (picture(page, "lines"), picture(page)) == every
        for head in range(heads):
            switches.nth(head).click()
        settled(page)
        assert (picture(page, "lines"), picture(page)) == every, "after the last one all come back"
    with opened(chromium, path, "#layer=0&head=all&off=0.1.2.x") as page:
        assert page.inner_text("#about").startswith("own attention: layer 0, mean of all heads;")


def test_a_page_opens_at_the_head_that_is_sharpest_and_looks_elsewhere(chromium, tmp_path):
    T = 8
    first, before, even = np.eye(1, T).repeat(T, 0), np.eye(T)[[0, *range(T - 1)]], np.full((T, T), 1 / T)
    path = written(
        tmp_path, [[np.eye(T), first, even], [even, 0.8 * before + 0.2 * even, 0.6 * before + 0.4 * even]], list("abcdefgh")
    )
    with opened(chromium, path) as page:
        pixels = column_of_lines(page)
        assert page.inner_text("#about").startswith("own attention: layer 1, head 1;")
        assert page.evaluate("[state.row, state.column]") == [None, None]
        step = page.evaluate("lineHeight()")
        assert [row for row in range(1, T) if not pixels[row * step, 3]] == [], "every row has its line"
        assert page.inner_text("#lines-about") == "attending → attended to, weight\u00a0≥\u00a00.05"
        assert page.evaluate("location.hash") == "", "nothing was chosen yet"


def test_the_address_has_what_is_chosen_and_chooses(chromium, path):
    with opened(chromium, path) as page:
        start = (settled(page), page.inner_text("#about"))[1]
        page.select_option("#layer", "1")
        page.select_option("#head", "-1")
        page.select_option("#scale", "0.5")
        page.focus("#matrix")
        page.keyboard.press("Home")
        wait_for(page, "location.hash.includes('row')")
        address = page.evaluate("location.hash")
        assert address == "#stack=0&layer=1&head=all&time=2&row=0&scale=0.5&direction=row"
        with opened(chromium, path, address) as other:
            assert picture(other) == picture(page)
        page.evaluate("location.hash = 'layer=0&head=2&time=1&column=4'")
        wait_for(page, "state.head === 2")
        assert said(page) == "k: position 4, counted from 0"
        assert page.inner_text("#about").startswith("own attention: layer 0, head 2;")
        assert page.inner_text("#when").startswith("step 7 of 50")
        assert [page.input_value(f"#{name}") for name in ("layer", "head", "scale", "time")] == ["0", "2", "1", "1"]
        page.evaluate("location.hash = ''")
        wait_for(page, "state.column === null")
        assert (settled(page), page.inner_text("#about"))[1] == start


def test_scales_and_axes_have_names(chromium, path):
    with opened(chromium, path) as page:
        settled(page)
        options = page.locator("#scale option").all_inner_texts()
        assert options == ["weight", "square root of the weight (shows small ones)"]
        assert page.inner_text("#colours").split() == ["weight", "0", "1"]
        colors_of = "[0, 0.25, 1].map((weight) => `rgb(${colorOf(weight).join(', ')})`)"
        seen = []
        for scale in ("1", "0.5"):
            page.select_option("#scale", scale)
            settled(page)
            stops = re.findall(r"rgb\(.*?\)", page.evaluate("getComputedStyle($('bar')).backgroundImage"))
            assert [stops[0], stops[len(stops) // 4], stops[-1]] == page.evaluate(colors_of)
            seen.append(stops)
        assert seen[0] != seen[1]
        assert "rows attend, columns are attended to" in page.get_attribute("#matrix", "aria-label")
        assert (
            page.inner_text("#loss-about")
            == "line: training loss, 0.08 to 4.00 nats, at the 3 steps 0, 7, 50, drawn at equal distances"
        )


def test_a_link_beyond_the_text_chooses_the_last_token(chromium, path):
    with opened(chromium, path, "#row=3&column=9999") as page:
        settled(page)
        assert page.evaluate("[state.row, state.column]") == [3, 12]


def test_playing_again_begins_at_the_first_moment(chromium, path):
    with opened(chromium, path) as page:
        settled(page)
        page.click("#play")
        assert page.evaluate("state.time") == 0
        page.select_option("#head", "1")  # what is shown meanwhile is of that moment


def test_query_and_key_give_the_score(chromium, path, moments, detail):
    with opened(chromium, path, "#layer=1&head=2&row=8&column=3") as page:
        settled(page)
        wait_for(page, "!document.getElementById('detail').hidden")
        product = float(detail[0].query[1, 2, 8] @ detail[0].key[1, 2, 3])
        assert f"Sum {product:.2f}, divided by √{K}: {product / np.sqrt(K):.2f}; softmax" in page.inner_text("#detail-about")
        page.focus("#time")
        page.keyboard.press("Home")
        settled(page)
        assert page.locator("#detail").is_hidden(), "queries and keys are those of the last step"


def test_one_query_against_every_key(chromium, path, moments, detail):
    """A line for each key that the query sees, in the colour of each product's sign, all on one scale."""
    with opened(chromium, path, "#layer=1&head=2&row=8") as page:
        settled(page)
        wait_for(page, "!document.getElementById('detail').hidden")
        about = page.inner_text("#detail-about")
        assert about.startswith(f"{K} channels: query of {LABELS[8]} (8), then its products with every key that it sees.")
        query, keys = detail[0].query[1, 2, 8], detail[0].key[1, 2]
        products = keys * query  # (S, K)
        key, channel = np.unravel_index(np.abs(products[:9]).argmax(), (9, K))  # what is drawn without any transparency
        colour = page.evaluate(
            """([key, channel]) => {
              const canvas = document.getElementById("detail"), scale = canvas.width / canvas.clientWidth;
              const room = document.getElementById("detail-figure").clientWidth - 226;
              const cell = Math.max(2, Math.min(18, room / DATA.detail.width));
              const [x, y] = [110 + channel * cell + cell / 2 - 0.5, 16 * (key + 1) + 6 + 8];
              const pixel = canvas.getContext("2d").getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data;
              const digits = [...pixel.slice(0, 3)].map((part) => part.toString(16).padStart(2, "0"));
              return [`#${digits.join("")}`, theme.positive, theme.negative];
            }""",
            [int(key), int(channel)],
        )
        assert colour[0] == colour[1 if products[key, channel] > 0 else 2]
        height = page.evaluate("document.getElementById('detail').clientHeight")
        assert height == 16 * (9 + 1) + 6, "nine keys, none later than the query"


def test_who_attends_to_a_token_is_shown_too(chromium, path, moments):
    with opened(chromium, path, "#layer=0&head=0") as page:
        page.select_option("#direction", "column")
        page.focus(".text div")
        page.keyboard.press("Home")
        settled(page)
        assert page.inner_text("#ranking-about") == "t (0) is attended to by"
        column = sorted((weight_of(moments, 2, 0, 0, row, 0) for row in range(13)), reverse=True)[:8]
        numbers = [float(text) for text in page.locator("#ranking td:last-child").all_inner_texts()]
        assert numbers == [round(weight, 3) for weight in column]


def test_the_page_follows_the_colours_of_the_system_until_told_otherwise(chromium, path):
    with opened(chromium, path, color_scheme="dark") as page:
        color = "getComputedStyle(document.body).backgroundColor"
        settled(page)
        dark = page.evaluate(color)
        page.emulate_media(color_scheme="light")
        wait_for(page, f"{color} !== '{dark}'")
        page.click("#theme")
        settled(page)
        assert page.evaluate(color) == dark
        assert page.get_attribute("#theme", "aria-pressed") == "true"


def test_hundreds_of_tokens_on_a_phone(chromium, tmp_path):
    labels = ["Wörter"] * 3 + list("abcdefghij" * 30)
    generator = np.random.default_rng(2)
    path = tmp_path / "page.html"
    path.write_text(attention_page([Moment(1, None, [stack(generator, "own", labels, labels)])], "", ""), encoding="utf-8")
    with opened(chromium, path, viewport={"width": 360, "height": 640}, device_scale_factor=2) as page:
        settled(page)
        assert page.locator("#training").is_hidden(), "there is nothing to slide over"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
        page.focus("#matrix")
        page.keyboard.press("ArrowUp")
        assert said(page) == "j: position 302, counted from 0"


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_every_kind_of_model(chromium, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr("train.generated.HELD_OUT", 10)  # a small test set is answered soon
    task = {"decoder": "language_model", "encoder": "masked_language_model", "encoder_decoder": "reverse"}[kind]
    folder = run(options(tmp_path / "run", task=task, context=17, steps=3, snapshots=2, evaluate_every=0))
    text = TEXT.replace("i", "▒") if kind == "encoder" else TEXT
    texts = ["--source", "cafe", "--text", "efac"] if kind == "encoder_decoder" else ["--text", text]
    path = tmp_path / "page.html"
    assert main(["attention", "--run", str(folder), *texts, "--html", str(path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    rows = data_of(path.read_text(encoding="utf-8"))["stacks"][0]["rows"]
    assert ("▒" in rows) == (kind == "encoder")
    with opened(chromium, path) as page:
        settled(page)
        assert page.inner_text("#when").startswith("step 3 of 3")
        if kind == "encoder_decoder":
            assert page.input_value("#stack") == "2", "of two sentences, how one looks at the other comes first"
            page.focus('.text div[data-side="row"]')
            page.keyboard.press("Home")
            assert said(page) == "e: position 0, counted from 0"
            assert page.locator(".text").count() == 2
        else:
            assert page.locator("#stack").is_hidden()
        before = picture(page)
        page.focus("#time")
        page.keyboard.press("Home")
        assert picture(page) != before
