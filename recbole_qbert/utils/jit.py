"""How this package compiles: with numba, at the first call (some seconds), and kept on disk for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile at the first call; kept beside the function's file, or in the user's cache folder, or nowhere if none can be
    written.

    Kept code is made again when that file changes, not when another one does (this one, for example): all that a function
    calls stands in its file.

    Args:
        function: loops over arrays and numbers.
        options: of ``numba.njit``.
    """
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # numba: 'no locator available'
        return njit(nogil=True, **options)(function)
