"""Read the values of metadata fields, which other tools write in other forms: lists as text, lists of objects by column.

`structure` reads text that holds a list or an object, as JSON, Python or numpy write it (a table has no lists)::

    ["a", "b"]      ['a', 'b']      ['a' 'b']      {'large': array(['x', None], dtype=object)}
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from dataset_prep.amazon.cleaning import NA_WORDS, SURROGATE

IMAGE_SIZES = ("hi_res", "large", "thumb")  # the largest first
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[\[\]{}(),:])|(?P<text>[uU]?(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"))"""
    r"""|(?P<word>[^\s\[\]{}(),:'"]+))""",
    re.DOTALL,
)
_WORDS = {"None": None, "null": None, "nan": None, "NaN": None, "True": True, "true": True, "False": False, "false": False}
_CALLS = ("array", "np.array", "list", "tuple", "np.str_", "np.float64", "np.int64")
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class _NoStructure(Exception):
    """The text is no list and no object."""


def structure(text: str) -> list[Any] | dict[str, Any] | None:
    """Read a list or an object from its text; None if the text holds neither.

    Raises:
        ValueError: numpy left out elements when it wrote the text.

    >>> structure("['it\\\\'s' \\"b\\" None]"), structure("{'large': array(['x', None], dtype=object)}")
    (["it's", 'b', None], {'large': ['x', None]})
    >>> structure("[2 Pack] Socks"), structure("3")
    (None, None)
    """
    text = text.strip()
    if not text.startswith(("[", "{", "(", "array(")) or text[-1] not in "]})":
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = _Parser(text).whole()
        except (_NoStructure, RecursionError):
            return None
    return value if isinstance(value, (list, dict)) else None


class _Parser:
    """Recursive descent over the tokens of one value; commas between elements may be missing, as in numpy's text."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self._next = next(self._tokens, None)

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise _NoStructure
            yield match.lastgroup, match[match.lastgroup]
            at = match.end()

    def whole(self) -> Any:
        value = self._value()
        if self._next is not None:
            raise _NoStructure
        return value

    def _take(self) -> tuple[str, str]:
        if self._next is None:
            raise _NoStructure
        token, self._next = self._next, next(self._tokens, None)
        return token

    def _value(self) -> Any:
        group, token = self._take()
        if group == "text":
            return self._text(token)
        if group == "word":
            return self._word(token)
        if token == "{":
            pairs = list(self._elements("}", self._pair))
            return dict(pairs)
        if token in "[(":
            return list(self._elements(_CLOSING[token], self._value))
        raise _NoStructure

    def _elements(self, closing: str, read: Any) -> Iterator[Any]:
        while self._next != ("mark", closing):
            yield read()
            if self._next == ("mark", ","):
                self._take()
        self._take()

    def _pair(self) -> tuple[str, Any]:
        group, key = self._take()
        if group != "text" or self._take() != ("mark", ":"):
            raise _NoStructure
        return self._text(key), self._value()

    @staticmethod
    def _text(token: str) -> str:
        try:
            return str(ast.literal_eval(token))
        except (ValueError, SyntaxError):
            raise _NoStructure from None

    def _word(self, word: str) -> Any:
        if word == "...":
            raise ValueError("a list was shortened ('...') when it was written; write it with all its elements")
        if word in _WORDS:
            return _WORDS[word]
        if word in _CALLS and self._next == ("mark", "("):
            self._take()
            value = self._value()
            while self._take() != ("mark", ")"):  # ", dtype=object"
                pass
            return value
        try:
            return float(word)
        except ValueError:
            raise _NoStructure from None


def strings(value: object) -> tuple[str, ...]:
    """Return the strings in a field that may be missing, a string, a number, a list of these, or the text of a list.

    A text counts as the text of a list if it holds nothing but strings: ``[2020]`` may be a title.

    >>> strings([["a"], "b", None]), strings("['a' 'b']"), strings("nan"), strings("[2020]")
    (('a', 'b'), ('a', 'b'), (), ('[2020]',))
    """
    if isinstance(value, str):
        listed = structure(value)
        if isinstance(listed, list) and all(leaf is None or isinstance(leaf, str) for leaf in leaves(listed)):
            value = listed
        elif value in NA_WORDS:
            return ()
    return tuple(SURROGATE.sub(" ", str(leaf)) for leaf in leaves(value) if _counts(leaf))


def leaves(value: object) -> Iterator[object]:
    """Yield the elements of nested lists in their order, or the value itself if it is no list.

    Without recursion, because input may be nested deeply.
    """
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting.extend(reversed(value))
        else:
            yield value


def _counts(leaf: object) -> bool:
    return type(leaf) in (str, int, float) and leaf != "" and not (isinstance(leaf, float) and math.isnan(leaf))


def details_of(value: object) -> dict[str, Any]:
    """Return the object in a field that may hold it as an object, as its text, or as a list of pairs.

    Raises:
        ValueError: the text is no object, although it names a brand.
    """
    parsed = structure(value) if isinstance(value, str) else value
    if isinstance(parsed, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in parsed):
        parsed = {key: content for key, content in parsed if isinstance(key, str)}
    if isinstance(parsed, dict):
        return parsed
    if isinstance(value, str) and "Brand" in value:
        raise ValueError(f"details must be an object or its JSON text, found {value[:100]!r}")
    return {}


def image_urls(value: object) -> tuple[str, ...]:
    """Return the URL of each image at its largest size.

    Args:
        value: a list of objects with ``hi_res``, ``large``, ``thumb``; one object of lists, as Hugging Face's `datasets`
            keeps it; the text of either; a URL, or a list of URLs.

    Raises:
        ValueError: the value holds URLs in another form, which would be lost.
    """
    parsed = structure(value) if isinstance(value, str) else value
    if isinstance(parsed, dict):
        images = _images_of_columns(parsed)
    elif isinstance(parsed, list):
        images = [structure(image) or image if isinstance(image, str) else image for image in parsed]
    else:
        images = [value]
    urls = tuple(_largest(image) for image in images)
    if not any(urls) and "http" in str(value):
        raise ValueError(f"images must be objects with {', '.join(IMAGE_SIZES)}, found {str(value)[:100]!r}")
    return urls


def _images_of_columns(columns: dict[str, Any]) -> list[object]:
    """Turn an object of lists into a list of objects."""
    lists: dict[str, list[object]] = {}
    for size in IMAGE_SIZES:
        column = columns.get(size)
        column = structure(column) or column if isinstance(column, str) else column
        lists[size] = column if isinstance(column, list) else [] if column in (None, "") else [column]
    lengths = {len(column) for column in lists.values() if column}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(column)} {size}" for size, column in lists.items())
        raise ValueError(f"images has lists of different lengths ({counts}); it must have one entry for each image")
    return [dict(zip(lists, sizes, strict=True)) for sizes in zip_longest(*lists.values())]


def _largest(image: object) -> str:
    if isinstance(image, dict):
        sizes = [strings(image.get(size)) for size in IMAGE_SIZES]
        return next((size[0] for size in sizes if size), "")
    return image if isinstance(image, str) and image.startswith(("http://", "https://")) else ""
