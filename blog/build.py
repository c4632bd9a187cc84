"""`make blog`: writes blog/site/, which a browser opens from the folder, with no network and no server.

Pages: the post, the annotated source of the spec with the twin and the proof beside it, and whatever reports the committed
results hold. A page whose results are not there is left out, and with it every link to it.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blog import annotate, markup, papers, source
from blog.post import TEMPLATE, rendered

ROOT = source.ROOT
FOLDER = Path(__file__).parent
SITE = FOLDER / "site"
STYLE = FOLDER / "site.css"
ATTENTION_PAGES = "train/logs/*/attention.html"
PAIR = r'<div class="pair">\1\2</div>'
HEADING = re.compile(
    r"<tr>\s*<td>(<strong>[^<]*</strong>)</td>((?:\s*<td[^>]*></td>)+)\s*</tr>"
)  # a row for a group of rows
BROAD = 1400  # pixels
JOINT = re.compile(r"(?<=\w)(?:(?<!\d)\.|\.(?!\d)|_|::)(?!py\b)(?=\w)")  # after it a long name in a cell may go on below
PACKAGES = (annotate.SPEC, annotate.TWIN, annotate.PROOF)


LOOK = "What each token attends to, in every head of a run, and how that formed: move the slider, or press play."


class Report(NamedTuple):
    """A page made of a Markdown file that some command has written."""

    page: str
    group: str
    """The entry of the menu under which the page stands."""
    title: str
    place: str
    """Where the Markdown is."""


REPORTS = (
    Report("bounds.html", "Proof", "Error over bound", "parity_tests/BOUNDS.md"),
    Report("mutants.html", "Proof", "Mutants", "parity_tests/MUTANTS.md"),
    Report("generic-mutants.html", "Proof", "Generic mutants", "parity_tests/GENERIC_MUTANTS.md"),
    Report("ladder.html", "Experiments", "From bigram to GPT", "train/logs/ladder/ladder.md"),
    Report("pitfalls.html", "Experiments", "Pitfalls", "train/logs/pitfalls/pitfalls.md"),
    Report("ablations.html", "Experiments", "Ablations", "train/logs/ablation/ablation.md"),
    Report("benchmarks.html", "Speed", "Benchmarks", "train/benchmarks/BENCHMARKS.md"),
    Report("benchmarks-zen3.html", "Speed", "Benchmarks: Zen 3", "train/benchmarks/zen3/BENCHMARKS.md"),
    Report("benchmarks-zen5.html", "Speed", "Benchmarks: Zen 5", "train/benchmarks/zen5/BENCHMARKS.md"),
    Report("benchmarks-gpu.html", "Speed", "Benchmarks: GPU", "train/benchmarks/gpu/GPU.md"),
    Report("leaderboard.html", "Speed", "Benchmarks: Loss", "train/benchmarks/LEADERBOARD.md"),
    Report("notes.html", "Speed", "Notes", "train/benchmarks/NOTES.md"),
)


class Page(NamedTuple):
    """One file of the site: its path there, the entry of the menu that leads to it, its title, and its body."""

    path: str
    group: str
    title: str
    body: str
    wide: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site and say where it is; the exit status is 2 where it cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m blog.build", description="Build the site.")
    parser.add_argument("--output", type=Path, default=SITE, help="folder to write: new, empty or with a site in it")
    folder = parser.parse_args(arguments).output
    try:
        build(folder)
    except (ValueError, OSError) as error:
        print(f"blog: error: {error}", file=sys.stderr)
        return 2
    print(f"{folder / 'index.html'}: {len(list(folder.rglob('*.html')))} pages")
    return 0


def build(folder: Path) -> None:
    """Write the whole site; one that the folder holds gives way when the new one is complete.

    Raises ValueError for a folder that holds something else, and for a link that leads nowhere."""
    css = folder / "site.css"
    ours = css.is_file() and css.read_text(encoding="utf-8").startswith(STYLE.read_text(encoding="utf-8").splitlines()[0])
    if folder.exists() and not ours and any(folder.iterdir()):
        raise ValueError(f"output: expected a folder that is empty or holds a site of ours, got {str(folder)!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        site = Site(Path(beside) / "site")
        for page in site.pages():
            site.write(page)
        site.copy_files()
        (site.folder / "site.css").write_text(style(), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        site.folder.rename(folder)


class Site:
    """Where everything of the repository stands in the site, and what of it was linked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: set[str] = set()
        self._attention_pages = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(ATTENTION_PAGES))]
        self._source = [f"{package}/{path.name}" for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]

    def pages(self) -> Iterator[Page]:
        """All pages; those of other source files last, when it is known which of them are linked to."""
        post = rendered(TEMPLATE.read_text(encoding="utf-8"), anchors=True)
        yield Page("index.html", "Post", "The transformer, written twice", self.markdown(post, "blog/post.md", "index.html"))
        for report in REPORTS:
            yield Page(report.page, report.group, report.title, self._report(report), wide=True)
        if self._attention_pages:
            yield Page("look.html", "Attention", "Attention", self._attention(), wide=True)
        yield Page("source/index.html", "Source", "The annotated source", self._contents())
        yield Page(papers.PAGE, "Source", "Papers", self._papers(), wide=True)
        for path in self._source:
            room = Path(path).stem
            annotated = path.startswith(annotate.SPEC) and room != "__init__"
            body = annotate.page(room) if annotated else annotate.plain_page(path)
            yield Page(self._page_of_source(path), "Source", path, body, wide=True)

    def write(self, page: Page) -> None:
        """One page in the frame that all share."""
        path = self.folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * page.path.count("/")
        body = re.sub(r"(<h[12][^>]*>\w+/)(\w+\.py</h)", r"\1<wbr>\2", page.body)  # a path may go on in the next line
        text = templates().get_template("page.html").render(page=page._replace(body=body), up=up, menu=self._menu())
        path.write_text(text, encoding="utf-8")

    def copy_files(self) -> None:
        """The figures and files that pages refer to."""
        for file in sorted(self._files):
            target = self.folder / _copied(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)

    def markdown(self, text: str, origin: str, page: str) -> str:
        """Markdown of the repository's file `origin` as the body of a page, its links led to their places in the site."""
        body = markup.to_html(text)
        body = re.sub(r"(?<=<td>)[^<]{20,}(?=</td>)", lambda f: JOINT.sub(r"\g<0><wbr>", f[0]), body)
        body = HEADING.sub(lambda f: f'<tr><td colspan="{1 + f[2].count("<td")}">{f[1]}</td></tr>', body)
        body = re.sub(r'(href|src)="([^"]+)"', lambda found: f'{found[1]}="{self._led(found[2], origin, page)}"', body)
        body = re.sub(r'<img src="([^"]+)"', lambda found: found[0] + self._breadth(found[1], page), body)
        # A picture that leads to a page of its own is that page here; on paper and on phones it stays a picture.
        return re.sub(
            r'<a href="([^"]+\.html)"><img (src="[^"]+"[^>]* alt="([^"]*)")></a>', lambda f: _framed(f[1], f[3], f[2]), body
        )

    @staticmethod
    def _breadth(source: str, page: str) -> str:
        """The class of a picture that is too broad for a column of text."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), source)).removeprefix("files/")
        with (ROOT / path).open("rb") as file:
            width = int.from_bytes(file.read(20)[16:20])  # a PNG's, after its signature and the head of its first chunk
        return ' class="broad"' if path.endswith(".png") and width > BROAD else ""

    def _led(self, target: str, origin: str, page: str) -> str:
        """A link of the file `origin` as a link of the page."""
        if re.match(r"[a-z]+:|#", target):
            return target
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        return posixpath.relpath(self._place(path, origin), posixpath.dirname(page) or ".") + mark + anchor

    def _place(self, path: str, origin: str) -> str:
        """Where a file or folder of the repository stands in the site. Raises ValueError for one that is not there."""
        if path in self._source:
            return self._page_of_source(path)
        for report in REPORTS:
            if path == report.place:
                return report.page
        if path in PACKAGES:
            return "source/index.html"
        if path.endswith(".py") and (ROOT / path).is_file():
            self._source.append(path)  # written later: pages() is still going through the list
            return self._page_of_source(path)
        if not (ROOT / path).is_file():
            raise ValueError(f"{origin}: expected a link to a file of the repository, got {path!r}")
        self._files.add(path)
        return _copied(path)

    def _report(self, report: Report) -> str:
        """The report, and the pictures beside it that no report there shows."""
        text = (ROOT / report.place).read_text(encoding="utf-8")
        heading = re.match(r"# (.*)\n", text)
        if not heading:
            text = f"# {report.title}\n\n{text}"
        elif report.title.startswith(heading[1]):  # the title says which of several
            text = f"# {report.title}\n{text[heading.end() :]}"
        folder = posixpath.dirname(report.place)
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.md")]
        shown = {posixpath.basename(link) for one in texts for link in markup.links_of(markup.tokens_of(one))}
        pictures = [path.name for path in sorted((ROOT / folder).glob("*.png")) if path.name not in shown]
        extra = "\n\n".join(f"![{Path(name).stem.replace('-', ' ')}]({name})" for name in pictures)
        body = self.markdown(f"{text}\n\n{extra}\n", report.place, report.page)
        # Two samples with nothing but a comment between them are to be compared: side by side, where there is room.
        return re.sub(r"(<pre>(?:(?!</pre>).)*</pre>)\s*<!-- -->\s*(<pre>.*?</pre>)", PAIR, body, flags=re.DOTALL)

    def _attention(self) -> str:
        """The attention pages, one below the other; the run is what a reader may choose by."""
        parts = ["<h1>Attention</h1>", f"<p>{LOOK}</p>"]
        for page in self._attention_pages:
            self._files.add(page)
            name = posixpath.basename(posixpath.dirname(page))
            parts.append(f'<h2 id="{name}">{name} <small><a href="{_copied(page)}">on its own page</a></small></h2>')
            parts.append(_framed(_copied(page), f"attention of the run {name}"))
        return "\n".join(parts)

    def _contents(self) -> str:
        """The list of rooms, each with its twin and its proof."""
        return (
            templates()
            .get_template("contents.html")
            .render(
                rooms=[(room, annotate.summary(room)) for room in annotate.rooms()],
                exists=lambda path: (ROOT / path).is_file(),
            )
        )

    def _papers(self) -> str:
        """What is cited, each work with the places that cite it."""
        return templates().get_template("papers.html").render(papers=papers.papers(), place=self._place_of_line)

    def _place_of_line(self, path: str, line: int) -> str:
        """Where a line of a file of Python stands in the site: of an annotated file, the function that it belongs to."""
        page = self._place(path, papers.PAPERS.name)
        if not path.startswith(annotate.SPEC):
            return f"{page}#L{line}"
        around = [symbol.name for symbol in source.symbols(path).values() if symbol.first <= line <= symbol.last]
        return f"{page}#{around[0]}" if around else page

    @staticmethod
    def _page_of_source(path: str) -> str:
        return f"source/{path.removesuffix('.py')}.html"

    def _menu(self) -> dict[str, list[tuple[str, str]]]:
        """The entries, each with the paths and names of its pages."""
        menu = {
            "Post": [("index.html", "Post")],
            "Source": [("source/index.html", "Annotated source"), (papers.PAGE, "Papers")],
        }
        if self._attention_pages:
            menu["Attention"] = [("look.html", "Attention")]
        for report in REPORTS:
            menu.setdefault(report.group, []).append((report.page, report.title.removeprefix("Benchmarks: ")))
        return menu


def style() -> str:
    """The style sheet: ours, and Pygments' colours for light and dark."""
    from pygments.formatters.html import HtmlFormatter

    light = HtmlFormatter(style="xcode").get_style_defs("pre")
    dark = HtmlFormatter(style="github-dark").get_style_defs("pre")
    rules = STYLE.read_text(encoding="utf-8")
    return f"{rules}\n{_tokens(light)}\n@media screen and (prefers-color-scheme: dark) {{\n{_tokens(dark)}\n}}\n"


def _tokens(definitions: str) -> str:
    """The rules for tokens alone: neither the background nor the line numbers, which are ours."""
    return "\n".join(line for line in definitions.splitlines() if re.match(r"pre \.\w+ ", line) and ".line" not in line)


@cache
def templates() -> Environment:
    """The frame of a page and the list of rooms."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _framed(page: str, title: str, picture: str = "") -> str:
    frame = f'<iframe class="tall" src="{page}" title="{title}" loading="lazy"></iframe>'
    if not picture:
        return frame
    return f'{frame}<a class="still" href="{page}"><img {picture}></a><sub><a href="{page}">on its own page</a></sub>'


def _copied(path: str) -> str:
    return f"files/{path}"


if __name__ == "__main__":
    sys.exit(main())
