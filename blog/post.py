"""`python -m blog.post`: post.template.md with its numbers, tables and snippets filled in becomes post.md.

The template may name only what exists: a missing fact, function or line is an error, and so is a sentence that rests on a
comparison that no longer holds. A test compares post.md with what this module would write.
"""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from blog import source
from blog.facts import bounds_table, facts, has, ladder_table, mutants, result, sample_lines
from train.checkpoint import write_atomically

FOLDER = Path(__file__).parent
WIDTH = 119
NARROW = 80  # of what a test said: the column of the site has no more
GLUE = "\u2060"  # holds a formula or a piece of code together while lines are broken
FORMULA_OR_CODE = re.compile(r"\$[^$]+\$|`[^`]+`")
PROSE = re.compile(r"\s*(\*\*|\*|\[(?!!))?[^\W\d_]")  # not a heading, list, table, fence, formula, figure or tag
TEMPLATE, POST = FOLDER / "post.template.md", FOLDER / "post.md"


def main() -> None:
    """Write post.md."""
    write_atomically(POST, rendered(TEMPLATE.read_text(encoding="utf-8")).encode())


def rendered(template: str, anchors: bool = False) -> str:
    """The post; with `anchors`, links to functions lead to their place in the annotated source, which a code host has not.

    Raises ValueError or jinja2.UndefinedError for what the template names and the repository lacks."""
    used: dict[str, None] = {}

    def number(name: str) -> str:
        if name not in facts():
            raise ValueError(f"post: expected a fact that exists, got {name!r}")
        used[name] = None
        return facts()[name].text

    def fence(text: str, path: str, name: str) -> str:
        """Code, and a link to where it stands."""
        anchor = f"#{name}" if anchors else ""
        return f"```python\n{text}\n```\n\n<sub>[{path}, {name}](../{path}{anchor})</sub>"

    def code(path: str, name: str) -> str:
        """A function without its docstring."""
        return fence(source.code(path, name), path, name)

    def lines(path: str, name: str, *fragments: str) -> str:
        """The lines of a function that hold these fragments."""
        return fence("\n".join(source.line(path, fragment, name) for fragment in fragments), path, name)

    def ledger() -> str:
        """Each number that was used so far, with its file and command."""
        files: dict[tuple[str, str], list[str]] = {}
        for name in used:
            files.setdefault((facts()[name].file, facts()[name].command), []).append(facts()[name].text)
        rows = [
            f"| `{command}` | [{Path(file).name}](../{file}) | {'; '.join(dict.fromkeys(texts))} |"
            for (file, command), texts in files.items()
        ]
        return "\n".join(["| command | file | numbers taken from it |", "| --- | --- | --- |", *rows])

    names = {
        "n": number,
        "has": has,
        "result": result,
        "exists": lambda path: (source.ROOT / path).exists(),
        "facts": facts(),
        "code": code,
        "lines": lines,
        "line": line,
        "holds": holds,
        "value": lambda name: float(facts()[name].text.replace(",", "").removesuffix(" %")),
        "sample": sample,
        "mutant": mutant,
        "bounds_table": bounds_table,
        "ladder_table": ladder_table,
        "ledger": ledger,
    }
    return wrapped(environment().from_string(template).render(names))


def wrapped(markdown: str) -> str:
    """The same with every paragraph of prose broken into lines anew: filling numbers in changes their length."""
    blocks = markdown.split("\n\n")
    inside = False  # a fence, which may hold empty lines
    for index, block in enumerate(blocks):
        if not inside and PROSE.match(block) and "```" not in block:
            whole = re.sub(FORMULA_OR_CODE, lambda found: re.sub(r"\s+", GLUE, found[0]), block.strip("\n"))
            filled = textwrap.fill(whole, WIDTH, break_long_words=False, break_on_hyphens=False).replace(GLUE, " ")
            before, after = len(block) - len(block.lstrip("\n")), len(block) - len(block.rstrip("\n"))
            blocks[index] = "\n" * before + filled + "\n" * after
        inside ^= block.count("```") % 2 == 1
    return "\n\n".join(blocks)


@cache
def environment() -> Environment:
    """Jinja with nothing that passes silently."""
    return Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)


def holds(claim: bool, what: str) -> str:
    """Nothing, if what a sentence says is so. Raises ValueError if it is not."""
    if not claim:
        raise ValueError(f"post: expected to be true, got otherwise: {what}")
    return ""


def line(path: str, name: str, fragment: str) -> str:
    """One line of a function, for a table."""
    return f"`{source.line(path, fragment, name)}`"


def sample(run: str, count: int) -> str:
    """The beginning of what a run wrote."""
    return f"```\n{sample_lines(run, count)}\n```"


def mutant(name: str) -> str:
    """A named fault, the test that noticed it first, and what the test said."""
    verdict = next((one for one in mutants() if one["name"] == name), None)
    if verdict is None or verdict["outcome"] != "killed":
        raise ValueError(f"post: expected a fault that a test noticed, got {name!r}")
    edit = verdict["edits"][0]
    path, test = verdict["killer"].split("::")
    return "\n".join(
        [
            "```diff",
            f"- {edit['before']}",
            f"+ {edit['after']}",
            "```",
            "",
            f"[{test}](../{path}) answered:",
            "",
            "```",
            textwrap.fill(verdict["message"], NARROW, break_long_words=False, break_on_hyphens=False),
            "```",
        ]
    )


if __name__ == "__main__":
    main()
