"""Just-in-time compilation by numba: at the first call (some seconds), cached on disk for later processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function at its first call.

    The code is cached beside the function's file or, if that is read-only, in the user's cache folder, or not at all. It is
    compiled anew when that file changes, but not when another one does (this one, for example), so a function may only call
    functions of its own file.

    Args:
        function: a function that numba can compile.
        options: options of ``numba.njit``.
    """
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # numba: 'no locator available'
        return njit(nogil=True, **options)(function)
