"""Parse one line of text to a record: JSON, or the text of a Python dict as in the 2014 edition."""

from __future__ import annotations

import ast
import json
import math
import re
from itertools import accumulate
from typing import Any

import msgspec

MAX_EXACT = 1 << 20  # characters; Python's own parser needs some hundred bytes of memory per character
MAX_DEPTH = 900  # of nested lists and objects; some versions of Python read more, which no later step is made for


def parse_record(line: bytes, python_text: bool) -> dict[str, Any]:
    """Parse the object on a line.

    Args:
        line: JSON, as Python's `json` reads it (NaN and Infinity are numbers; of equal keys the last counts).
        python_text: also accept the text of a Python dict.

    Raises:
        ValueError: the line is neither, is not UTF-8, or is nested too deeply.
    """
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        record = _parse_leniently(line.decode("utf-8-sig"), python_text)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record


def _depth(line: bytes) -> int:
    """Return how deep brackets are nested, those in text included."""
    return max(accumulate({91: 1, 123: 1, 93: -1, 125: -1}.get(byte, 0) for byte in line))


def _parse_leniently(text: str, python_text: bool) -> Any:
    try:
        try:
            return json.loads(text, parse_int=_integer)
        except ValueError:
            if not python_text:
                raise
        return _python_literal(text)
    except (RecursionError, MemoryError):
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 1000 else math.inf  # int() refuses more than 4,300 digits


_JSON_WORD = re.compile(r"\b(?:true|false|null|NaN|Infinity)\b")  # JSON, but not Python
_PYTHON_TOKEN = re.compile(
    r"""'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"|\b(?:None|True|False|true|false|null|NaN|Infinity)\b"""
)
_IN_JSON = {"None": "null", "True": "true", "False": "false"}


def _python_literal(text: str) -> Any:
    """Evaluate a Python literal without running code; rewrite it as JSON where possible, which is much faster."""
    try:
        if '"' not in text and "\\" not in text and not _JSON_WORD.search(text):
            return msgspec.json.decode(text.replace("'", '"'))
        return msgspec.json.decode(_PYTHON_TOKEN.sub(_as_json, text))
    except (ValueError, SyntaxError, msgspec.DecodeError):
        pass
    try:
        if len(text) < MAX_EXACT:
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError):  # their messages may contain addresses, which differ from run to run
        pass
    raise ValueError("neither JSON nor the text of a Python dict")


def _as_json(token: re.Match[str]) -> str:
    text = token[0]
    if text[0] not in "'\"":
        return _IN_JSON.get(text, "?")  # '?' is not JSON either: the text then goes to the exact parser
    if "\\" in text:
        return json.dumps(ast.literal_eval(text))
    return '"' + text[1:-1].replace('"', '\\"') + '"'
