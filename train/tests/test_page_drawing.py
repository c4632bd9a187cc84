"""What the attention page draws, call by call and pixel by pixel, of three stacks whose texts differ in length."""

import base64
import io
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.image import imread

from train.attention_page import Moment, QueryKey, attention_page
from train.looking import Stack
from train.tests.browser import contrast, opened
from train.tests.test_attention_page import HEADS, LAYERS, K, picture, said, settled, stack, wait_for

ROWS, COLUMNS = [f"q{row}" for row in range(6)], [*"abcdefghijklm", *(f"k{column}" for column in range(13, 40))]
LOSSES = (3.0, None, 1.25, 2.5)
GENERATOR = np.random.default_rng(5)
MOMENTS = [
    Moment(
        step,
        loss,
        [
            stack(GENERATOR, "encoder", COLUMNS, COLUMNS),
            stack(GENERATOR, "own", ROWS, ROWS)._replace(name="decoder"),  # masked
            stack(GENERATOR, "cross", ROWS, COLUMNS),
        ],
    )
    for step, loss in enumerate(LOSSES)
]
LENGTHS = [(len(COLUMNS), len(COLUMNS)), (len(ROWS), len(ROWS)), (len(ROWS), len(COLUMNS))]
DETAIL = [
    QueryKey(
        *(size * GENERATOR.normal(size=(LAYERS, HEADS, length, K)) for size, length in zip(sizes, lengths, strict=True))
    )
    for sizes, lengths in zip([(0.5, 1), (2, 0.8), (1, 3)], LENGTHS, strict=True)
]
CHOICES = [(0, 1, 0, 11), (1, 0, 2, 4), (2, 1, 1, 3)]  # stack, layer, head, row
LONG = np.random.default_rng(6).dirichlet(np.full(120, 0.1), (9, 120))  # (H, T, T): many heads, many tokens
TOKENS = [f"t{token}" for token in range(120)]

DRAWN = """() => {
  const prototype = CanvasRenderingContext2D.prototype, calls = [], kept = {};
  for (const name of ["strokeRect", "fillRect", "fillText", "moveTo", "lineTo", "stroke"]) {
    kept[name] = prototype[name];
    prototype[name] = function (...given) {
      const { fillStyle: fill, strokeStyle: line, globalAlpha: alpha, lineWidth: width } = this;
      calls.push({ canvas: this.canvas.id, name, given, fill, line, alpha, width, x: this.getTransform().e });
      return kept[name].apply(this, given);
    };
  }
  drawChoice();
  Object.assign(prototype, kept);
  return calls;
}"""


@contextmanager
def window(chromium, folder, moments, detail=None):
    path = folder / "page.html"
    path.write_text(attention_page(moments, "", "", detail=detail), encoding="utf-8")
    with opened(chromium, path, color_scheme="light") as page:
        settled(page)
        yield page


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """One window for all tests: each begins with an address that says all that is chosen."""
    with window(chromium, tmp_path_factory.mktemp("page"), MOMENTS, DETAIL) as page:
        yield page


@pytest.fixture(scope="module")
def long(chromium, tmp_path_factory):
    moments = [Moment(1, None, [Stack("encoder", "", {"layer 0": LONG}, TOKENS, TOKENS)])]
    with window(chromium, tmp_path_factory.mktemp("long"), moments) as page:
        yield page


def choose(page, address):
    page.evaluate("(hash) => { history.replaceState(null, '', hash); return followAddress(); }", address)
    settled(page)


def drawn(page, canvas, name):
    """The calls of a method that a drawing makes on a canvas, in their order."""
    return [call for call in page.evaluate(DRAWN) if call["canvas"] == canvas and call["name"] == name]


def codes(k, layer, head, time=-1):
    """The bytes that stand for the weights, (T, S): 0 for what is masked alone."""
    return codes_of(MOMENTS[time].stacks[k].weights[f"layer {layer}"][head])


def codes_of(weights):
    return np.maximum(np.rint(255 * np.sqrt(weights)).astype(int), weights > 0)


def weights_of(k, layer, head, time=-1):
    """The weights as the page computes with them, (T, S): rounded to 32 bits."""
    return ((codes(k, layer, head, time) / 255) ** 2).astype(np.float32).astype(float)


def vectors(k, layer, head):
    """The queries (T, K) and the keys (S, K) as the page has them: 16-bit multiples of one scale."""
    scales = [abs(array).max() / 32767 for array in DETAIL[k]]
    return [np.rint(array[layer, head] / scale) * scale for array, scale in zip(DETAIL[k], scales, strict=True)]


def pixels(url):
    """(height, width, 4), the numbers from 0 to 255."""
    return np.rint(255 * imread(io.BytesIO(base64.b64decode(url.partition(",")[2])), format="png")).astype(int)


def coloured(page, codes):
    """Every code's colour on the page, red, green, blue and opacity; 0 is clear."""
    colors = np.array(page.evaluate("Array.from(WEIGHT, (weight) => [...colorOf(weight), 255])"))
    return np.where(codes[..., None] > 0, colors[codes], 0)


@pytest.mark.parametrize("time, scale", [(1, "1"), (3, "0.5")])
def test_every_pixel_of_the_matrix_and_of_the_small_pictures_has_the_colour_of_its_weight(page, time, scale):
    for k, layer, head, _ in CHOICES:
        choose(page, f"#stack={k}&layer={layer}&head={head}&time={time}&scale={scale}")
        margin, cell = page.evaluate("[matrix.margin, matrix.cell]")
        down, across = (np.floor(margin + (np.arange(length) + 0.5) * cell).astype(int) for length in LENGTHS[k])
        expected = coloured(page, codes(k, layer, head, time))
        assert (pixels(picture(page))[np.ix_(down, across)] == expected).all()
        small = page.evaluate("Array.from($('overview').children, (button) => button.firstChild.toDataURL())")
        places = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        for place, url in zip(places, small, strict=True):
            assert (pixels(url) == coloured(page, codes(k, *place, time))).all(), place


def test_a_chosen_row_is_framed_across_and_a_chosen_column_down_and_each_has_its_own_label(page):
    choose(page, "#stack=2&layer=1&head=1&row=4&column=17")
    margin, cell, faint, chosen = page.evaluate("[matrix.margin, matrix.cell, theme.faint, theme.chosen]")
    width, height = cell * len(COLUMNS), cell * len(ROWS)
    assert [call["given"] for call in drawn(page, "matrix", "strokeRect")] == [
        [margin - 0.5, margin - 0.5, width + 1, height + 1],
        [margin, margin + 4 * cell, width, cell],
        [margin + 17 * cell, margin, cell, height],
    ]
    axes, rows, columns = np.split(drawn(page, "matrix", "fillText"), [2, 2 + len(ROWS)])
    starts = {call["given"][0]: call["x"] + call["given"][1] for call in axes}
    assert starts.keys() == {"attending", "attended to"}
    assert starts["attending"] < margin <= starts["attended to"], "rows have their name at the left, columns above them"
    assert [call["given"][:3] for call in rows] == [
        [label, margin - 4, margin + (row + 0.5) * cell] for row, label in enumerate(ROWS)
    ]
    assert [call["given"][:3] for call in columns] == [[label, 0, 0] for label in COLUMNS]
    assert [int((call["x"] - margin) // cell) for call in columns] == list(range(len(COLUMNS)))
    for side, place in ((rows, 4), (columns, 17)):
        assert [call["fill"] for call in side] == [chosen if i == place else faint for i in range(len(side))]


def test_of_a_long_text_only_the_chosen_tokens_have_a_label_so_that_none_covers_another(long):
    choose(long, "#layer=0&head=0&row=50&column=17")
    labels = {call["given"][0] for call in drawn(long, "matrix", "fillText")}
    assert labels & set(TOKENS) == {"t50", "t17"}


def test_of_a_long_text_every_pixel_of_a_small_picture_is_the_largest_of_its_weights(long):
    pictures = long.evaluate("Array.from($('overview').children, (button) => button.firstChild.toDataURL())")
    for weights, url in zip(LONG, pictures, strict=True):
        got = pixels(url)
        largest = np.zeros(got.shape[:2], int)
        of = [np.arange(tokens) * size // tokens for size, tokens in zip(largest.shape, weights.shape, strict=True)]
        np.maximum.at(largest, np.ix_(*of), codes_of(weights))
        assert (got == coloured(long, largest)).all()


def test_no_two_of_many_heads_share_a_colour(long):
    choose(long, "#layer=0&head=all&row=50")
    assert len({call["line"] for call in drawn(long, "lines", "stroke")}) == len(LONG)


@pytest.mark.parametrize("choice, faintest", [("", 0.05), ("&row=3", 0.002), ("&column=20", 0.002)])
@pytest.mark.parametrize("head", ["2", "all"])
def test_a_line_for_every_weight_goes_from_who_attends_to_what_is_attended_to(page, choice, faintest, head):
    choose(page, f"#stack=2&layer=1&head={head}{choice}")
    calls = [call for call in page.evaluate(DRAWN) if call["canvas"] == "lines"]
    starts, ends, lines = ([call for call in calls if call["name"] == name] for name in ("moveTo", "lineTo", "stroke"))
    step, middle, colors = page.evaluate("[lineHeight(), theme.middle, HEAD_COLORS]")
    got = [
        (line["line"], start["given"][1] // step, end["given"][1] // step, *np.float32([line["width"], line["alpha"]]))
        for start, end, line in zip(starts, ends, lines, strict=True)
    ]
    expected = [
        (color, row, column, *np.float32([0.5 + thick * weight, min(1, 0.08 + weight)]))
        for each, color, thick in ([(2, middle, 2.5)] if head == "2" else [(i, colors[i], 1.5) for i in range(HEADS)])
        for (row, column), weight in np.ndenumerate(weights_of(2, 1, each))
        if weight >= faintest and choice in ("", f"&row={row}", f"&column={column}")
    ]
    assert got == expected
    assert len({start["given"][0] for start in starts} | {end["given"][0] for end in ends}) == 2
    assert starts[0]["given"][0] < ends[0]["given"][0]


def test_of_two_texts_each_is_named_by_what_it_does(page):
    choose(page, "#stack=2&layer=0&head=0")
    texts = page.evaluate("""Array.from(document.querySelectorAll(".text"), ({ children: [title, text] }) =>
      [title, ...text.children].map((part) => part.innerText))""")
    assert {title: labels for title, *labels in texts} == {"attending": ROWS, "attended to": COLUMNS}


@pytest.mark.parametrize("choice, shaded", [("row=3", "column"), ("column=20", "row")])
def test_of_two_texts_the_other_one_is_shaded_so_that_it_can_be_read_and_bars_are_as_long_as_weights(page, choice, shaded):
    choose(page, f"#stack=2&layer=1&head=1&scale=0.5&{choice}")
    weights = weights_of(2, 1, 1)[3] if shaded == "column" else weights_of(2, 1, 1)[:, 20]
    colors = page.evaluate("(weights) => weights.map(colorOf)", weights.tolist())
    shades = {
        side: page.evaluate(
            """(side) => Array.from(document.querySelector(`.text div[data-side=${side}]`).children,
                 ({ style }) => [style.backgroundColor, style.color])""",
            side,
        )
        for side in ("row", "column")
    }

    def letters(color):
        black, white = (contrast("#{:02x}{:02x}{:02x}".format(*color), ink) for ink in ("#000", "#fff"))
        assert max(black, white) > 4.5
        return "rgb(0, 0, 0)" if black > white else "rgb(255, 255, 255)"

    assert shades.pop(shaded) == [
        [f"rgb({', '.join(map(str, color))})", letters(color)] if weight > 0.002 else ["", ""]
        for weight, color in zip(weights, colors, strict=True)
    ]
    (other,) = shades.values()
    assert other == [["", ""]] * len(other)
    bars = page.evaluate("Array.from(document.querySelectorAll('#ranking i'), (bar) => bar.style.width)")
    expected = page.evaluate(
        """(weights) => weights.map((weight) => {
             const { style } = document.createElement("i");
             style.width = `${100 * weight}%`;
             return style.width;
           })""",
        sorted(weights, reverse=True)[:8],
    )
    assert bars == expected


def test_the_left_half_of_the_lines_chooses_who_attends_and_the_right_half_what_is_attended_to(page):
    choose(page, "#stack=2&layer=1&head=1")
    width, step = page.evaluate("[$('lines').clientWidth, lineHeight()]")
    for x, label, choice in ((5, "q3", [3, None]), (width - 5, "d", [None, 3]), (5, "q3", [3, None])):
        page.hover("#lines", position={"x": x, "y": 3.5 * step})
        assert said(page) == f"{label}: position 3, counted from 0"
        assert page.evaluate("[state.row, state.column]") == choice
    page.mouse.move(0, 0)


@pytest.mark.parametrize("k, layer, head, row", CHOICES)
def test_beside_each_of_the_keys_of_the_largest_weights_stand_its_score_and_weight(page, k, layer, head, row):
    choose(page, f"#stack={k}&layer={layer}&head={head}&row={row}")
    wait_for(page, "detail !== null")
    query, keys = vectors(k, layer, head)
    weights, labels = weights_of(k, layer, head)[row], MOMENTS[-1].stacks[k].columns
    largest = sorted(np.flatnonzero(weights), key=lambda column: (-weights[column], column))[:32]
    expected = ["query", "score  weight"]
    for column in sorted(largest):
        score = (query[row] * keys[column]).sum() / np.sqrt(K)
        expected += [f"{labels[column]} ({column})", f"{score:5.2f}  {weights[column]:6.3f}"]
    assert [call["given"][0] for call in drawn(page, "detail", "fillText")] == expected
    all_of_them = len(largest) == np.count_nonzero(weights)
    which = "every key that it sees" if all_of_them else f"the {len(largest)} keys of the largest weights"
    assert f"products with {which}." in page.inner_text("#detail-about")


@pytest.mark.parametrize("k, layer, head, row", CHOICES)
def test_bars_of_a_query_a_key_and_their_products_go_up_for_what_is_positive(page, k, layer, head, row):
    choose(page, f"#stack={k}&layer={layer}&head={head}&row={row}&column=2")
    wait_for(page, "detail !== null")
    query, keys = vectors(k, layer, head)
    calls = drawn(page, "detail", "fillRect")
    negative, positive = page.evaluate("[theme.negative, theme.positive]")
    assert len(calls) == 3 * (1 + K)
    for index, values in enumerate((query[row], keys[2], query[row] * keys[2])):
        _, *bars = calls[index * (1 + K) :][: 1 + K]
        assert [call["given"][3] for call in bars] == list(-values / abs(values).max() * 28)
        assert [call["fill"] for call in bars] == [negative if value < 0 else positive for value in values]


@pytest.mark.parametrize("k, layer, head, row", CHOICES)
def test_entropy_and_distance_are_means_over_the_rows(page, k, layer, head, row):
    choose(page, f"#stack={k}&layer={layer}&head={head}")
    weights = weights_of(k, layer, head)
    shares = weights / weights.sum(-1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1).mean()
    rows, columns = np.indices(shares.shape)
    far = "" if k == 2 else f", mean distance {(shares * abs(rows - columns)).sum(-1).mean():.1f} tokens"
    title = MOMENTS[-1].stacks[k].title
    assert page.inner_text("#about") == f"{title}: layer {layer}, head {head}; mean entropy {entropy:.2f} nats{far}"


def test_the_curve_of_the_loss_is_highest_where_the_loss_is(page):
    choose(page, "#stack=2&layer=0&head=0")
    points = [point.split(",") for point in page.get_attribute("#loss polyline", "points").split()]
    known = [(step, loss) for step, loss in enumerate(LOSSES) if loss is not None]
    low, high = min(loss for _, loss in known), max(loss for _, loss in known)
    assert [(int(x), float(y)) for x, y in points] == [(step, 1 - (loss - low) / (high - low)) for step, loss in known]
    assert [page.get_attribute("#loss line", name) for name in ("x1", "x2", "y1", "y2")] == ["3", "3", "0", "1"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("choice", ["head=all&off=0&row=3", "head=1&row=3&column=4"])
def test_every_text_stands_out_from_its_background(page, scheme, choice):
    """By WCAG's ratio."""
    page.emulate_media(color_scheme=scheme)
    wait_for(page, f"document.documentElement.dataset.theme === '{scheme}'")
    choose(page, f"#stack=2&layer=1&{choice}")
    seen = page.evaluate("""() => {
      const pen = document.createElement("canvas").getContext("2d");
      const hex = (color) => { pen.fillStyle = color; return pen.fillStyle; };
      const ground = (part) => {
        const { backgroundColor } = getComputedStyle(part);
        return backgroundColor === "rgba(0, 0, 0, 0)" ? ground(part.parentElement) : hex(backgroundColor);
      };
      const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
      return Array.from(document.body.querySelectorAll("*"))
        .filter((part) => part.checkVisibility() && [...part.childNodes].some(isText))
        .map((part) => [part.textContent, hex(getComputedStyle(part).color), ground(part)]);
    }""")
    page.emulate_media(color_scheme="light")
    wait_for(page, "document.documentElement.dataset.theme === 'light'")
    assert {"attending", *ROWS} < {text for text, *_ in seen}
    assert [(*each, ratio) for each in seen if (ratio := contrast(*each[1:])) < 4.5] == []
