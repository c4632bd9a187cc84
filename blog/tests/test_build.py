"""The site: built into an empty folder, every link and anchor leads somewhere inside it, and nothing comes from outside."""

import posixpath
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from blog import build, markup, papers
from train.tests.browser import contrast


class Page(HTMLParser):
    """The ids and links of a page, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            assert attributes["id"] not in self.ids, f"id {attributes['id']} twice"
            self.ids.add(attributes["id"])
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.fetched += [attributes["src"]] if attributes.get("src") else []
        assert tag != "script", "the pages need no script"


@pytest.fixture(scope="module")
def pages(site):
    own = (path for path in site.rglob("*.html") if "files" not in path.relative_to(site).parts)
    return {path: Page(path.read_text(encoding="utf-8")) for path in own}


def test_pages(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {"index.html", "bounds.html", "source/index.html", "source/reference_numpy/attention.html"} <= names


def test_every_link_leads_somewhere(pages):
    published = {paper.link for paper in papers.papers()}  # which alone are elsewhere
    for path, page in pages.items():
        for link in page.links:
            if link.startswith("data:") or (path.name == papers.PAGE and link in published):
                continue
            assert not re.match(r"[a-z]+:|//", link), f"{path}: {link} leaves the folder"
            file, _, anchor = link.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            assert target.is_file(), f"{path}: {link}"
            assert not anchor or target not in pages or anchor in pages[target].ids, f"{path}: {link}"


def test_a_room_has_links_to_its_own_spec_twin_and_proof(site):
    table = (site / "source/index.html").read_text(encoding="utf-8").partition("<tbody>")[2]
    for row in re.findall("<tr>(.*?)</tr>", table, re.DOTALL):
        (spec, room), *others = re.findall(r'<a href="((?!\.\./papers)[^"]+)">(.*?)</a>', row)
        assert spec == f"reference_numpy/{room}.html"
        leads = {f"torch_impl/{room}.html": "twin", f"parity_tests/test_{room}.html": "proof"}
        assert all(leads[target] == name for target, name in others), room


def test_every_page_has_one_heading_of_its_own(pages):
    found = [re.findall(r"<h1[^>]*>(.*?)</h1>", path.read_text(encoding="utf-8")) for path in pages]
    assert all(len(headings) == 1 for headings in found)
    assert len({headings[0] for headings in found}) == len(pages)


def test_the_first_link_skips_the_menu(pages):
    for path, page in pages.items():
        assert re.search(r'<body>\s*<a class="skip" href="#main">', path.read_text(encoding="utf-8")), path
        assert "main" in page.ids


def test_the_menu_leads_to_every_report_in_two_steps(site):
    def menu(name):
        nav = re.search(r"<nav.*?</nav>", (site / name).read_text(encoding="utf-8"), re.DOTALL)
        folder = posixpath.dirname(name)
        return {posixpath.normpath(posixpath.join(folder, link)) for link in re.findall(r'href="([^"]+)"', nav[0])}

    reached = menu("index.html").union(*map(menu, menu("index.html")))
    assert {path.name for path in site.glob("*.html")} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_its_background(site, pages, scheme):
    css = (site / "site.css").read_text(encoding="utf-8")
    assert "opacity" not in css  # it would make the ratios below untrue
    root = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme == "dark"]
    named = dict(re.findall(r"--(\w+): (#\w+)", root))
    grounds = ("ground", "panel", "mark")
    pairs = {(ink, ground): (named[ink], named[ground]) for ink in ("text", "quiet", "link") for ground in grounds}
    rules = css if scheme == "dark" else css.rpartition("@media")[0]
    tokens = {}
    for token, rule in re.findall(r"pre \.(\w+) \{(.*?)\}", rules):
        tokens.setdefault(token, {}).update(re.findall(r"([\w-]+): (#\w+)", rule))
    used = {token for path in pages for token in re.findall(r'class="(\w+)"', path.read_text(encoding="utf-8"))}
    for token in used & tokens.keys() - {"w"}:  # spaces have no ink
        for ground in grounds[1:]:
            if "color" in tokens[token]:
                pairs[token, ground] = tokens[token]["color"], tokens[token].get("background-color", named[ground])
    assert {"k", "c1", "gi", "gd"} <= {ink for ink, _ in pairs}
    assert {pair: ratio for pair in pairs if (ratio := contrast(*pairs[pair])) < 4.5} == {}


def test_style_fetches_nothing(site):
    assert "url(" not in (site / "site.css").read_text(encoding="utf-8")


def test_the_post_shows_its_figures_and_formulas(site, pages):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert text.count("<img") >= 3
    assert text.count("<math") > 30
    assert "\\frac" not in text


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert build.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("blog: error: output: expected a folder that is empty or holds a site of ours")
    assert (tmp_path / "precious.txt").exists()
    (tmp_path / "index.html").write_text("a page of my own")
    assert build.main(["--output", str(tmp_path)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "precious.txt"]


def test_a_site_that_cannot_be_built_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.css").write_text(build.STYLE.read_text(encoding="utf-8"))
    (folder / "index.html").write_text("the old one")
    monkeypatch.setattr(build.Site, "pages", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.build(folder)
    assert (folder / "index.html").read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_link_to_nothing_is_an_error(tmp_path):
    site = build.Site(tmp_path)
    with pytest.raises(ValueError, match="expected a link to a file of the repository, got 'no/such/file'"):
        site.markdown("[x](../no/such/file)", "blog/post.md", "index.html")


def test_a_row_that_heads_others_goes_across(tmp_path):
    body = build.Site(tmp_path).markdown(
        "| a | b | c |\n| --- | ---: | --- |\n| **x?** | | |\n| y | 1 | |\n", "README.md", "index.html"
    )
    assert body.count("<td") == 4
    assert '<td colspan="3"><strong>x?</strong></td>' in body


def test_a_long_name_in_a_cell_may_go_on_below(tmp_path):
    body = build.Site(tmp_path).markdown(
        "| a |\n| --- |\n| twin d_blocks.i.attention.key.bias, 4.323 of 4.5 |\n", "README.md", "index.html"
    )
    assert "d_<wbr>blocks.<wbr>i.<wbr>attention" in body
    assert "4.323 of 4.5" in body


def test_no_number_is_broken(pages):
    for path in pages:
        assert not re.search(r"\d\.<wbr>\d", path.read_text(encoding="utf-8")), path


def test_a_page_in_the_post_is_a_picture_on_paper_and_has_a_link(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert re.search(
        r'<iframe [^>]*src="([^"]*attention\.html)"[^>]*></iframe>'
        r'<a class="still" href="\1"><img src="[^"]*attention\.png"[^>]*></a><sub><a href="\1">on its own page</a></sub>',
        text,
    )


@pytest.mark.parametrize(("tex", "expected"), [("a_i", "<msub>"), (r"\mathrm{mean}(x)", "<mi>mean</mi>")])
def test_math(tex, expected):
    assert expected in markup.math(tex)


def test_sums_have_their_limits_below():
    assert "<munder>" in markup.math(r"\left( \sum_i x_i \right)", display=True)


def test_functions_stand_apart_from_their_arguments():
    assert '<mi>log</mi><mspace width="0.167em" /><mi>x</mi>' in markup.math(r"\log x")
    assert '<msup><mi>tanh</mi><mn>2</mn></msup><mspace width="0.167em" />' in markup.math(r"\tanh^2 x")
    assert "mspace" not in markup.math(r"\log(x)")


def test_names_are_no_operators():
    """An operator has spaces around it, before a comma or a bracket as well."""
    assert "<mo>−</mo><mi>∞</mi>" in markup.math(r"-\infty, y")
    assert "<mi>max</mi>" in markup.math(r"\max(x, 0)")


def test_primes_are_raised_once():
    assert '<mi>f</mi><mo lspace="0" rspace="0">′</mo>' in markup.math("f'(x)")


def test_unknown_math_is_an_error():
    with pytest.raises(ValueError, match=r"got \\nosuchcommand"):
        markup.math(r"\nosuchcommand{x}")


def test_slugs_are_those_of_a_code_host():
    assert markup.slug("The backward pass, in full") == "the-backward-pass-in-full"
