"""Split JSON that is not one object a line: one array of objects, or objects that extend over several lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from dataset_prep.amazon.unpacking import FETCH_AGAIN, DamagedFileError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def is_split_json(head: bytes) -> bool:
    """Whether a text that begins with `head` is one array of objects, or objects over several lines.

    JSON lines of which one is damaged are neither: behind the first object of an array is a comma or its end, and indented
    JSON extends every object over lines.
    """
    text = head.decode("utf-8", "ignore").strip()
    if text.startswith("["):
        start = _SPACE.match(text, 1).end()  # type: ignore[union-attr]
        if not text.startswith("{", start):
            return False
        end = _end_of_value(text, start)
        if end is None:
            return "\n" not in text or text.partition("\n")[0].rstrip() in ("[", "[{")  # an object larger than the head
        return text[end:].lstrip()[:1] in ("", ",", "]")
    if text.partition("\n")[0].rstrip() != "{":
        return False
    first = _end_of_value(text, 0)
    if first is None:
        return True
    start = _SPACE.match(text, first).end()  # type: ignore[union-attr]
    second = _end_of_value(text, start) if text.startswith("{", start) else None
    return "\n" in text[start:second] or start == len(text)


def split_json(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """Yield the text of each value of an array, or of each of several values.

    Args:
        pieces: the text in pieces.
        limit: most characters of a value.

    Raises:
        DamagedFileError: the text is not JSON, or ends within a value.
    """
    text, at, array, finished = "", 0, False, False
    started = False
    source = _decoded(pieces)
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if not started and at < len(text):
            started, array = True, text[at] == "["
            at += array
            continue
        if at < len(text) and finished:
            raise DamagedFileError(f"{text[at : at + 50]!r} stands behind the end of the JSON array; {FETCH_AGAIN}")
        if at < len(text) and array and text[at] == "]":
            at, finished = at + 1, True
            continue
        end = None if finished else _end_of_value(text, at)
        if end is not None:
            after = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            if not array or text[after : after + 1] in (",", "]"):
                yield text[at:end].encode()
                at = after + (array and text[after] == ",")
                continue
        if len(text) - at > limit:
            raise DamagedFileError(
                f"a value is not JSON, or longer than 16 MiB; it begins {text[at : at + 100]!r}; {FETCH_AGAIN}"
            )
        more = next(source, "")
        if not more:
            break
        text, at = text[at:] + more, 0
    if text[at:].strip() or (array and not finished):
        raise DamagedFileError(
            f"the JSON is damaged, or ends within a value that begins {text[at : at + 100]!r}; {FETCH_AGAIN}"
        )


def _decoded(pieces: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in pieces:
            if text := decoder.decode(piece):
                yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"the text is not UTF-8 here ({error}); convert the file to UTF-8") from error


def _end_of_value(text: str, start: int) -> int | None:
    """Return where the JSON value at `start` ends; None if it is incomplete or no JSON."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
