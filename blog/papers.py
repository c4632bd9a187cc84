"""The works that are cited, from papers.toml: their titles and links, and the lines that cite them.

A citation is a name and a year, "Su et al. 2021". One that papers.toml does not have is an error, and so is an entry that
nothing cites.
"""

from __future__ import annotations

import html
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from blog import source
from blog.markup import slug

PAPERS = Path(__file__).with_name("papers.toml")
PAGE = "papers.html"
CITING = ("reference_numpy/*.py", "torch_impl/*.py", "parity_tests/*.py", "train/*.py", "train/benchmarks/*.py")
ALSO_CITING = ("README.md", "blog/post.template.md", "train/*.toml")  # of which no line can be linked to
SURNAME = r"[A-Z][\w-]+"
CITATION = re.compile(rf"\b{SURNAME}(?:\s+et\s+al\.|\s+&\s+{SURNAME}|\s+Team)?\s+(?:19|20)\d\d\b")


class Paper(NamedTuple):
    """One work: the name under which it is cited, and what papers.toml has of it."""

    name: str
    title: str
    venue: str
    link: str
    """Where it can be read; empty where it is on paper only."""
    places: list[tuple[str, int]]
    """Files of Python that cite it, and the line of the first citation in each."""

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return slug(self.name)


@cache
def papers() -> list[Paper]:
    """All of them, by name. Raises ValueError for a citation without an entry, and for an entry without a citation."""
    entries = tomllib.loads(PAPERS.read_text(encoding="utf-8"))
    cited: dict[str, list[tuple[str, int]]] = {name: [] for name in entries}
    used = set()
    for pattern in (*CITING, *ALSO_CITING):
        for path in sorted(source.ROOT.glob(pattern)):
            file = path.relative_to(source.ROOT).as_posix()
            for name, line in citations(path.read_text(encoding="utf-8")).items():
                if name not in entries:
                    raise ValueError(
                        f"papers: expected an entry of {PAPERS.name} for what {file} cites, got none for {name!r}"
                    )
                used.add(name)
                if pattern in CITING:
                    cited[name].append((file, line))
    if unused := entries.keys() - used:
        raise ValueError(f"papers: expected entries of {PAPERS.name} that are cited, got {', '.join(sorted(unused))}")
    return [Paper(name, e["title"], e["venue"], e.get("link", ""), cited[name]) for name, e in sorted(entries.items())]


def citations(text: str) -> dict[str, int]:
    """What a text cites, and the line of its first citation."""
    found: dict[str, int] = {}
    for match in CITATION.finditer(text):
        found.setdefault(" ".join(match[0].split()), text.count("\n", 0, match.start()) + 1)
    return found


def linked(escaped: str, page: str) -> str:
    """HTML text with its citations led to their place on the page of papers, which stands at `page`."""

    def link(found: re.Match[str]) -> str:
        return f'<a href="{page}#{slug(" ".join(html.unescape(found[0]).split()))}">{found[0]}</a>'

    names = (r"\s+".join(map(re.escape, html.escape(paper.name).split())) for paper in papers())
    return re.sub("|".join(names), link, escaped)
