"""Named faults: the classic mistakes of people who write a transformer, each as a small change of one twin's text.

They stand in mutants.toml, whose head says what each field means. `make mutants` makes them one at a time and records which
test notices (MUTANTS.md). A proof that lets one pass has a hole. The gallery of pitfalls takes the same faults by name, to
show what training with them looks like.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC, TWIN = "reference_numpy", "torch_impl"


@dataclass(frozen=True)
class Mutant:
    """One fault: `before`, which must occur exactly once in the file, is replaced by `after`."""

    name: str
    mistake: str
    file: str
    before: str
    after: str
    reason: str = ""

    def applied_to(self, text: str) -> str:
        """The text with the fault. Raises ValueError unless `before` occurs exactly once."""
        count = text.count(self.before)
        if count != 1:
            raise ValueError(
                f"{self.name}: expected exactly one place in {self.file} that reads {self.before!r}, got {count}"
            )
        return text.replace(self.before, self.after)


@dataclass(frozen=True)
class Twice:
    """The same mistake in both twins, forward and backward: they agree with each other, so only an outsider can notice."""

    mistake: str
    parts: list[str]
    reason: str = ""


def mutated_files(mutants: tuple[Mutant, ...], root: Path = ROOT) -> dict[str, str]:
    """Path from the root -> text with all these faults at once. Raises ValueError for one that does not apply."""
    files: dict[str, str] = {}
    for mutant in mutants:
        text = files.get(mutant.file) or (root / mutant.file).read_text(encoding="utf-8")
        files[mutant.file] = mutant.applied_to(text)
    return files


_CONTENT = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
MUTANTS = tuple(Mutant(name, **fields) for name, fields in _CONTENT.items() if "parts" not in fields)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
TWICE = {name: Twice(**fields) for name, fields in _CONTENT.items() if "parts" in fields}
