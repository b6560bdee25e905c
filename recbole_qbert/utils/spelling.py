"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """Return `` (did you mean 'x'?)`` for the known words most like ``word`` in any case, or an empty string.

    Args:
        word: the misspelt name.
        known: the valid names.
        count: largest number of suggestions.

    >>> did_you_mean("sasrec", ["GRU4Rec", "SASRec"])
    " (did you mean 'SASRec'?)"
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), sorted(folded), n=count)
    return f" (did you mean {' or '.join(repr(folded[name]) for name in close)}?)" if close else ""
