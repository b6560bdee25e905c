"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """Return `` (did you mean 'x'?)`` for the known words most like ``word``, or an empty string.

    Args:
        word: the misspelt name.
        known: the valid names.
        count: largest number of suggestions.
    """
    close = difflib.get_close_matches(word, list(known), n=count)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
