"""Find out in which encoding a text file is written."""

from __future__ import annotations

from pathlib import Path

from dataset_prep.checks.atomic_lines import LONGEST_LINE, byte_order_mark, encoding_family

GUESSES = ("cp1252", "latin-1")  # what Windows and old Unix tools write in the West; latin-1 reads any bytes


def detect(path: Path, told: str) -> tuple[str, bool]:
    """Return the encoding of a file, and whether it is a guess.

    A byte order mark decides, then UTF-8 if anything is in it: text of other encodings is hardly ever valid UTF-8. Then what
    the user says counts. A file of which only some lines are UTF-8 is UTF-8 with bad lines.

    Args:
        path: the file.
        told: RecBole's property ``encoding``.
    """
    if marked := byte_order_mark(path):
        return marked, False
    if encoding_family(told) in ("utf-16", "utf-32"):
        return told, False
    valid = invalid = 0
    fits = True  # the first guess
    with open(path, "rb") as handle:
        while line := handle.readline(LONGEST_LINE):
            if line.isascii():
                continue
            if _decodes(line, "utf-8"):
                valid += 1
            else:
                invalid += 1
                fits = fits and _decodes(line, GUESSES[0])
    if not invalid:
        return "utf-8", False
    if encoding_family(told) != "utf-8":
        return told, False
    return ("utf-8", False) if valid else (GUESSES[not fits], True)


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
