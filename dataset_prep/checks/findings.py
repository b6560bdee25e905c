"""What the doctor says: findings, and how many lines of a file share one fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("error", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``error``: the data cannot be used, or not as they are meant; ``warning``: they can, and a person should know
            this first; ``ok``.
        where: file, with the first line that it is about where there is one.
        what: what is so.
        what_to_do: how to get rid of it; empty for ``ok``.
    """

    level: str
    where: str
    what: str
    what_to_do: str = ""


def worst(findings: Iterable[Finding]) -> int:
    """Exit code: 1 when there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def as_text(findings: Iterable[Finding]) -> str:
    """Findings as lines for a person: errors first, and what to do below each."""
    lines = []
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        lines.append(f"{finding.level:<8} {finding.where}: {finding.what}")
        if finding.what_to_do:
            lines.append(f"{'':<8} -> {finding.what_to_do}")
    return "\n".join(lines)


def refused(error: Exception, path: Path) -> Finding:
    """An error of the library as a finding: ``path:line: what; what to do``."""
    text = str(error)
    where = str(path)
    if text.startswith(where):
        text = text[len(where) :].lstrip(": ")
        number, colon, rest = text.partition(": ")
        if colon and number.isdecimal():
            where, text = f"{where}:{number}", rest
    what, _, to_do = text.rpartition("; ")
    return Finding("error", where, what or to_do, to_do if what else "repair or remove the file")


class Faults:
    """Faults of the lines of one file, by kind; of each kind the count and the first line are kept.

    Args:
        path: the file.
        kinds: kind -> (level, what, what to do); ``{lines}`` and ``{first}`` stand for the count in words and for what the
            first of them holds.
    """

    def __init__(self, path: Path, kinds: dict[str, tuple[str, str, str]]) -> None:
        self.path, self.kinds = path, kinds
        self.seen: dict[str, list[int]] = {}
        self.first: dict[str, str] = {}

    def note(self, kind: str, line: int, first: bytes = b"") -> None:
        """Count a fault; ``first`` is shown when it is the first of its kind."""
        if kind in self.seen:
            self.seen[kind][1] += 1
        else:
            self.seen[kind] = [line, 1]
            text = first.decode("utf-8", "replace")
            self.first[kind] = repr(text if len(text) <= 60 else text[:60] + "…")

    def findings(self) -> list[Finding]:
        """One finding a kind, in the order of the lines."""
        result = []
        for kind, (line, count) in sorted(self.seen.items(), key=lambda entry: entry[1]):
            level, what, to_do = self.kinds[kind]
            lines = "1 line" if count == 1 else f"{count:,} lines"
            result.append(Finding(level, f"{self.path}:{line}", what.format(lines=lines, first=self.first[kind]), to_do))
        return result
