"""Markdown, mathematics and code to HTML that needs no network and no script: markdown-it, latex2mathml, Pygments."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name

PRIME = "′"
FUNCTIONS = ("log", "ln", "sin", "cos", "tanh", "exp", "Im")  # the library sets their argument without a space


def to_html(markdown: str) -> str:
    """The body of a page. Math stands between dollars, code in fences, headings get anchors as on a code host."""
    return str(renderer().render(markdown))


def tokens_of(markdown: str) -> list[Token]:
    """What the text consists of, with inline parts as children: for counting words and for finding links."""
    return renderer().parse(markdown)


@cache
def renderer() -> MarkdownIt:
    """CommonMark with tables and math; one for all pages."""
    markdown = MarkdownIt("commonmark", {"highlight": _highlighted}).enable("table")
    markdown.use(anchors_plugin, min_level=1, max_level=4, slug_func=slug)
    markdown.use(dollarmath_plugin, renderer=lambda tex, options: math(tex, options["display_mode"]), allow_digits=False)
    markdown.add_render_rule("table_open", _table)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    markdown.add_render_rule("image", _image)
    return markdown


def slug(title: str) -> str:
    """The anchor that code hosts give a heading: lower case, no punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def math(tex: str, display: bool = False) -> str:
    """LaTeX as MathML. Raises ValueError for a command that the library does not know and would print as text."""
    mathml = convert(tex.strip(), display="block" if display else "inline")
    if unknown := re.search(r"\\[a-zA-Z]+", mathml):
        raise ValueError(f"math: expected LaTeX that latex2mathml knows, got {unknown[0]} in {tex!r}")
    mathml = re.sub(r'(?:<mi mathvariant="normal">\w</mi>){2,}', _upright, mathml)
    tree = ElementTree.fromstring(mathml.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    for element in tree.iter("msub") if display else ():
        if element[0].text == "∑":  # inside brackets the library sets the limits of a sum as a subscript
            element.tag = "munder"
    for element in tree.iter("msup"):
        if element[1].text == PRIME:  # a prime is raised of itself; raised once more it cannot be read
            element.tag, element[1].tag = "mrow", "mo"
            element[1].attrib.update(lspace="0", rspace="0")
    for element in tree.iter("mo"):
        if element.text in ("∞", "max"):  # the library sets them as operators, with spaces around them
            element.tag = "mi"
    for row in [element for element in tree.iter() if element.tag in ("mrow", "math")]:
        for place in range(len(row) - 2, -1, -1):
            name = row[place][0] if row[place].tag == "msup" else row[place]
            if name.text in FUNCTIONS and row[place + 1].text != "(":
                row.insert(place + 1, ElementTree.Element("mspace", width="0.167em"))
    return ElementTree.tostring(tree, encoding="unicode")


def _upright(letters: re.Match[str]) -> str:
    """A name as one identifier: that is upright of itself, and spaced as a word."""
    return "<mi>" + re.sub(r"<[^>]*>", "", letters[0]) + "</mi>"


def code_lines(source: str, language: str = "python") -> list[str]:
    """The source as highlighted HTML, one string per line."""
    formatted = highlight(source, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True))
    return list(formatted.rstrip("\n").split("\n"))


def text_of(tokens: Sequence[Token]) -> str:
    """The prose among the tokens: no code blocks, no display math, no tables."""
    words, inside_table = [], 0
    for token in tokens:
        inside_table += (token.type == "table_open") - (token.type == "table_close")
        if token.type == "inline" and not inside_table:
            words.append(" ".join(child.content for child in token.children or [] if child.type in ("text", "code_inline")))
    return "\n".join(words)


def links_of(tokens: Sequence[Token]) -> list[str]:
    """The targets of all links and images, those in raw HTML too."""
    found: list[str] = []
    for token in tokens:
        for part in (token, *(token.children or [])):
            found += [str(value) for name, value in part.attrs.items() if name in ("href", "src")]
            if part.type in ("html_block", "html_inline"):
                found += [html.unescape(value) for value in re.findall(r'(?:href|src)="([^"]+)"', part.content)]
    return found


def _highlighted(code: str, language: str, _: str) -> str:
    """A fence. Without a language it is text."""
    lines = code_lines(code, language) if language else html.escape(code, quote=False).split("\n")
    return "\n".join(lines)


def _table(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A table in a frame that is scrolled by keys, too, and has the names of the columns as its own."""
    columns = []
    for token, content in pairwise(tokens[index:]):
        if token.type == "thead_close":
            break
        if token.type == "th_open" and content.content:
            columns.append(html.escape(content.content.replace("`", "")))
    return f'<div class="wide" tabindex="0" role="group" aria-label="table: {", ".join(columns)}"><table>\n'


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A figure, which opens in its full size unless it leads elsewhere."""
    token = tokens[index]
    source, text = html.escape(str(token.attrs["src"])), html.escape(token.content)
    picture = f'<img src="{source}" alt="{text}">'
    is_linked = index > 0 and tokens[index - 1].type == "link_open"
    return picture if is_linked else f'<a href="{source}">{picture}</a>'
