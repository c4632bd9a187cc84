"""The post is what its template makes of today's results and source; its length, its links and its numbers are held."""

import math
import re

import numpy as np
import pytest
from jinja2 import UndefinedError

from blog import facts, markup, post, source
from blog.post import POST, TEMPLATE, rendered
from parity_tests.bounds import TWIN_FACTOR, bound_of
from parity_tests.within import assert_within
from reference_numpy import attention

WORDS = 1000, 2000
WRITTEN_BY_HAND = {"2017", "30"}  # the year of a paper; the name of a data set, Multi30k


def test_the_post_is_not_stale():
    assert POST.read_text(encoding="utf-8") == rendered(TEMPLATE.read_text(encoding="utf-8")), "run: python -m blog.post"


def test_length():
    prose = markup.text_of(markup.tokens_of(POST.read_text(encoding="utf-8")))
    assert WORDS[0] <= len(re.findall(r"[^\W\d_][\w'’-]*", prose)) <= WORDS[1]


def test_no_number_was_typed_by_hand():
    """Numbers of the prose come from facts; mathematics may have its own."""
    bare = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", TEMPLATE.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = markup.text_of(markup.tokens_of(bare))
    assert set(re.findall(r"\d[\d.,]*\d|\d", prose)) <= WRITTEN_BY_HAND


def test_links_of_the_post():
    """Every link leads to a file or folder of the repository, or to a heading of the post."""
    text = POST.read_text(encoding="utf-8")
    tokens = markup.tokens_of(text)
    headings = {str(token.attrs["id"]) for token in tokens if token.type == "heading_open"}
    links = markup.links_of(tokens)
    assert len(links) > 10
    for link in links:
        path, _, anchor = link.partition("#")
        assert (POST.parent / path).exists() if path else anchor in headings, link
        assert not (path and anchor), f"{link}: a code host has no such anchor"


def test_every_number_names_a_file_and_a_command():
    for name, fact in facts.facts().items():
        assert (source.ROOT / fact.file).exists(), name
        assert fact.command.split()[0] in ("make", "twinformer", "python"), name


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ('{{ n("default.no_such_number") }}', "expected a fact that exists, got 'default.no_such_number'"),
        ('{{ code("reference_numpy/softmax.py", "softmax_sideways") }}', "got 'softmax_sideways'"),
        ('{{ line("reference_numpy/softmax.py", "softmax_backward", "no such text") }}', "got 0"),
        ('{{ line("reference_numpy/no_room.py", "softmax_backward", "return") }}', "got 'reference_numpy/no_room.py'"),
        ('{{ holds(1 > 2, "one is more") }}', "got otherwise: one is more"),
        ('{{ mutant("no_such_fault") }}', "got 'no_such_fault'"),
    ],
)
def test_what_is_gone_is_an_error(template, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rendered(template)


def test_an_unknown_name_is_an_error():
    with pytest.raises(UndefinedError):
        rendered("{{ no_such_name }}")


def test_a_changed_result_changes_the_post(monkeypatch):
    changed = facts.facts() | {"default.loss": facts.Fact("9.999", "train/logs/default/log.jsonl", "make train")}
    monkeypatch.setattr(post, "facts", lambda: changed)
    assert "9.999" in rendered(TEMPLATE.read_text(encoding="utf-8"))


def test_the_ledger_lists_what_was_used():
    assert "| `make train` |" in rendered('{{ n("default.steps") }} {{ ledger() }}')
    assert "make train" not in rendered('{{ n("complexity.T") }} {{ ledger() }}')


def test_wrapping_changes_lines_alone():
    text = "One\ntwo $a\n+ b$ 3.\n\n```\nas\nit is\n\nhere\nalso\n```\n\n| a |\n| - |\n\n- x\n- y\n"
    again = text.replace("One\ntwo $a\n+ b$ 3.", "One two $a + b$ 3.")
    assert post.wrapped(text) == again


def product_of(text, letters, values):
    r"""The value, with these indices, of a sum of products as the post writes it: \sum_t P_{ts} \bar O_{tc}."""
    factors = re.findall(r"(\\bar )?\b([A-Za-z])_\{?(\w+)\}?", re.sub(r"\\sum_\w", "", text))
    indices = ",".join(index for _, _, index in factors)
    return np.einsum(f"{indices}->{letters}", *(values[("bar " if bar else "") + name] for bar, name, _ in factors))


def test_the_derivation_is_that_of_the_code():
    """The equations of the post, read and computed, against the spec's backward, within the bounds of the proof."""
    generator = np.random.default_rng(0)
    query, key, value, d_output = generator.standard_normal((4, 1, 1, 5, 3))

    def backward(q, k, v, d_o):
        return attention.scaled_dot_product_attention_backward(
            d_o, attention.scaled_dot_product_attention_forward(q, k, v)[1]
        )

    truth, bound = bound_of(backward, query, key, value, d_output, format="float64", factor=TWIN_FACTOR)
    text = TEMPLATE.read_text(encoding="utf-8")
    written = re.findall(r"\\bar (\w)_\{(\w+)\} = (\\frac\{1\}\{\\sqrt d\} )?(\\sum_.*?) (?:\\qquad|\$\$)", text)
    equations = {name: (letters, sum_, bool(scale)) for name, letters, scale, sum_ in written}
    assert equations.keys() == set("VPQK")
    d = query.shape[-1]
    values = {name: array[0, 0] for name, array in zip(("Q", "K", "V", "bar O"), (query, key, value, d_output), strict=True)}
    scores = values["Q"] @ values["K"].T / math.sqrt(d)
    values["P"] = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for name in "VP":
        letters, sum_, scaled = equations[name]
        assert not scaled
        values[f"bar {name}"] = product_of(sum_, letters, values)
    (own, rest), *others = re.findall(r"= p_j \\left\( (.*?) - (\\sum_i .*?) \\right\) \$\$", text)
    (jacobian, column), *again = re.findall(r"p_i \(\\delta_\{(\w+)\} - p_(\w)\)", text)
    assert again == [(jacobian, column)] and not others
    rows = []
    for p, bar_p in zip(values["P"], values["bar P"], strict=True):
        row = {"p": p, "bar p": bar_p}
        rows.append(p * (product_of(own, "j", row) - product_of(rest, "", row)))
        derivative = p[:, None] * (np.eye(5) - np.einsum(f"{column},{jacobian}->ij", p, np.ones((5, 5))))  # (i, j)
        np.testing.assert_array_almost_equal_nulp(1 + bar_p @ derivative, 1 + rows[-1], nulp=16)
    values["bar S"] = np.array(rows)
    for name, expected, limit in zip("QKV", truth, bound, strict=True):
        letters, sum_, scaled = equations[name]
        ours = product_of(sum_, letters, values) / (math.sqrt(d) if scaled else 1)
        assert_within(ours[None, None], expected, limit, f"the post's gradient of {name}")
