"""Find out in which encoding a text file is written."""

from __future__ import annotations

import codecs
from pathlib import Path

from dataset_prep.checks.atomic_lines import LONGEST_LINE, byte_order_mark, encoding_family

GUESSES = ("cp1252", "latin-1")  # what Windows and old Unix tools write in the West; latin-1 reads any bytes


def detect(path: Path, told: str) -> tuple[str, bool]:
    """Return the encoding of a file, and whether it is a guess.

    A byte order mark of UTF-16 or UTF-32 decides, then UTF-8 if anything is in it: text of other encodings is hardly ever
    valid UTF-8. Then what the user says counts. A file of which only some lines are UTF-8 is UTF-8 with bad lines.

    Args:
        path: the file.
        told: RecBole's property ``encoding``.
    """
    marked = byte_order_mark(path) or "utf-8"
    if encoding_family(marked) != "utf-8":
        return marked, False
    if encoding_family(told) in ("utf-16", "utf-32"):
        return told, False
    valid = invalid = 0
    fits = True  # the first guess
    with open(path, "rb") as handle:
        while line := handle.readline(LONGEST_LINE):
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.isascii():
                continue
            if _decodes(line, "utf-8"):
                valid += 1
            else:
                invalid += 1
                fits = fits and _decodes(line, GUESSES[0])
    if not invalid:
        return marked, False
    if encoding_family(told) != "utf-8":
        return told, False
    return (marked, False) if valid else (GUESSES[not fits], True)


def without_mark(text: str, encoding: str) -> str:
    """Remove byte order marks from the start of a text, also those that another encoding has taken for letters."""
    marks = ("\ufeff", codecs.BOM_UTF8.decode(encoding, "replace"))
    while mark := next((mark for mark in marks if text.startswith(mark)), ""):
        text = text.removeprefix(mark)
    return text


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
