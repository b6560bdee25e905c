"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known word most like ``word`` in any case, or an empty string.

    >>> did_you_mean("sasrec", ["GRU4Rec", "SASRec"])
    " (did you mean 'SASRec'?)"
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), sorted(folded), n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""
