"""What is cited: every citation has a title and a link, and both lead to each other on the site."""

import re

import pytest

from blog import annotate, papers, source


def paper(name):
    return next(paper for paper in papers.papers() if paper.name == name)


def test_citations_are_found_across_lines_and_once_each():
    text = "a (Su et\n  al. 2021, eq. 34)\nPress &\nWolf 2017; Gemma Team 2024;\nDao 2023, Dao 2023, in 2017, (2022)"
    found = {"Su et al. 2021": 1, "Press & Wolf 2017": 3, "Gemma Team 2024": 4, "Dao 2023": 5}
    assert papers.citations(text) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('["Su et al. 2021"]', '["Su et al. 2020"]'), "got none for 'Su et al. 2021'"),
        (lambda text: text + '["Nobody 1900"]\ntitle = "none"\nvenue = "none"\n', "got Nobody 1900"),
    ],
)
def test_a_citation_without_an_entry_and_an_entry_without_a_citation_are_errors(tmp_path, monkeypatch, change, message):
    file = tmp_path / "papers.toml"
    file.write_text(change(papers.PAPERS.read_text(encoding="utf-8")), encoding="utf-8")
    monkeypatch.setattr(papers, "PAPERS", file)
    with pytest.raises(ValueError, match=re.escape(message)):
        papers.papers.__wrapped__()


def test_every_place_cites_its_paper():
    assert len(papers.papers()) > 40
    for one in papers.papers():
        for path, line in one.places:
            assert one.name.split()[0] in source.read(path).splitlines()[line - 1], (one.name, path)
    assert "reference_numpy/position.py" in dict(paper("Su et al. 2021").places)


def test_links_are_to_a_paper():
    for one in papers.papers():
        assert re.fullmatch(r"https://\S+", one.link) or "report" in one.venue, one.name
    links = [one.link for one in papers.papers() if one.link]
    assert len(set(links)) == len(links)


def test_docstrings_lead_to_the_papers_and_back(site):
    page = (site / papers.PAGE).read_text(encoding="utf-8")
    anchors = re.findall(r'<dt id="([^"]+)">', page)
    assert anchors == [one.anchor for one in papers.papers()]
    room = (site / "source" / "reference_numpy" / "position.html").read_text(encoding="utf-8")
    assert f'<a href="../../papers.html#{paper("Su et al. 2021").anchor}">Su et al. 2021</a>' in room
    entry = page.partition(f'id="{paper("Su et al. 2021").anchor}"')[2].partition("</dd>")[0]
    assert "https://arxiv.org/abs/2104.09864" in entry
    assert 'href="source/reference_numpy/position.html#rotary_forward"' in entry
    assert 'id="rotary_forward"' in room
    index = (site / "source" / "index.html").read_text(encoding="utf-8")
    assert f'<a href="../papers.html#{paper("Srivastava et al. 2014").anchor}">' in index


def test_a_name_with_an_ampersand_and_a_broken_line_is_linked():
    shown = annotate.docstring_html("By Press &\nWolf 2017, section 2.", [])
    anchor = paper("Press & Wolf 2017").anchor
    assert shown == f'<p>By <a href="../../papers.html#{anchor}">Press &amp;\nWolf 2017</a>, section 2.</p>'
