"""Findings of the doctor, and a counter of the lines of a file that share a fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("error", "warning", "mended", "ok")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``error``: the data cannot be used as intended; ``warning``: they can, but a person should know this first;
            ``mended``: what `fix` did; ``ok``.
        where: the file, and the first line concerned if there is one.
        what: the result in words.
        what_to_do: the way out; empty for ``mended`` and ``ok``.
    """

    level: str
    where: str
    what: str
    what_to_do: str = ""


def worst(findings: Iterable[Finding]) -> int:
    """Return the exit code: 1 if there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def as_text(findings: Iterable[Finding]) -> str:
    """Write findings as lines for a person: errors first, and the way out below each."""
    lines = []
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        lines.append(f"{finding.level:<8} {finding.where}: {finding.what}")
        if finding.what_to_do:
            lines.append(f"{'':<8} -> {finding.what_to_do}")
    return "\n".join(lines)


def refused(error: Exception, path: Path) -> Finding:
    """Turn an exception of a loader, ``path:line: what; what to do``, into a finding."""
    text = str(error)
    where = str(path)
    if text.startswith(where):
        text = text[len(where) :].lstrip(": ")
        number, colon, rest = text.partition(": ")
        if colon and number.isdecimal():
            where, text = f"{where}:{number}", rest
    what, _, to_do = text.rpartition("; ")
    return Finding("error", where, what or to_do, to_do if what else "repair or remove the file")


class FaultCounter:
    """Count the faulty lines of one file by kind of fault, and remember the first line of each kind.

    Args:
        path: the file.
        kinds: kind -> (level, what, what to do); ``{lines}`` is replaced by the number of lines in words, ``{first}`` by the
            content of the first, the names of ``words`` by their values.
        words: other words in braces.
    """

    def __init__(self, path: Path, kinds: dict[str, tuple[str, str, str]], **words: str) -> None:
        self.path, self.kinds, self.words = path, kinds, words
        self.counts: dict[str, list[int]] = {}  # kind -> [first line, number of lines]
        self.first: dict[str, str] = {}

    def note(self, kind: str, line: int, content: str = "") -> None:
        """Count a fault.

        Args:
            kind: a key of ``kinds``.
            line: number of the line.
            content: the faulty text; shown if it is the first of its kind.
        """
        if kind in self.counts:
            self.counts[kind][1] += 1
        else:
            self.counts[kind] = [line, 1]
            self.first[kind] = repr(content if len(content) <= 60 else content[:60] + "…")

    def forget(self, kind: str) -> bool:
        """Take a kind of fault back; false if it was never counted."""
        self.first.pop(kind, None)
        return bool(self.counts.pop(kind, None))

    def findings(self) -> list[Finding]:
        """Return one finding per kind, in the order of the first lines."""
        result = []
        for kind, (line, count) in sorted(self.counts.items(), key=lambda entry: entry[1]):
            level, what, way_out = self.kinds[kind]
            lines = "1 line" if count == 1 else f"{count:,} lines"
            what = what.format(lines=lines, first=self.first[kind], **self.words)
            result.append(Finding(level, f"{self.path}:{line}", what, way_out))
        return result
