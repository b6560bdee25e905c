"""Tuples of arrays that ``numba_backend`` passes to the compiled kernels; their types are part of a compiled version.

An absent array has length 0 and is not None, so that it needs no compiled version of its own.

Letters: ``n`` items of the index in its order, ``P`` pairs of levels, ``W`` entries a level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Items(NamedTuple):
    """Items in the order of the index.

    Attributes:
        codes: ``[P, n]`` uint16 or uint32, ``W * first + second`` for the two codes of a pair.
        rows: ``[n]`` int32 item rows; ascending among items with the same two leading codes.
        bias: ``[n]`` float32, added to the sum of the pairs; or ``[0]``.
        pairs: ``P`` zeros. The length of a tuple is known at compile time, so that the loop over it is unrolled.
    """

    codes: Array
    rows: Array
    bias: Array
    pairs: tuple[int, ...]


class Blocks(NamedTuple):
    """Blocks of consecutive items with the same two leading codes ``a, b``.

    Attributes:
        start: ``[W * W + 1]`` int64, first item of block ``W * a + b``; ``[0]`` for a catalog without blocks.
        ceiling: ``[W * W]`` float32, the highest bias in the block; or ``[0]``.
        row_ceiling: ``[W]`` float32, the highest bias among the blocks of ``a``; 0 without biases, -inf without items.
    """

    start: Array
    ceiling: Array
    row_ceiling: Array


class Users(NamedTuple):
    """Queries and changes of ``B`` users.

    Attributes:
        tables: ``[B, 2P, W]`` float32, finite or -inf.
        items: ``[B, H]`` int64, ascending rows of items with changed scores; unused entries (-1) come first.
        places: ``[B, H]`` int64, position of each in the order of the index; -1 if it is not there.
        amounts: ``[B, H]`` float32 added to their scores.
    """

    tables: Array
    items: Array
    places: Array
    amounts: Array


class Bounds(NamedTuple):
    """Upper bounds for each user.

    No item of block ``a, b`` scores above ``(((one[a] + two[b]) + rest[0]) + rest[1] …) + ceiling[a, b]``.

    Attributes:
        one, two: ``[B, W]`` float32.
        rest: ``[B, P - 1]`` float32.
        row: ``[B, W]`` float32, the bound of all blocks of ``a``; -inf where there is none.
        firsts: ``[B, W]`` int64, the ``a`` by descending ``row``.
        seconds: ``[B, W]`` int64, the ``b`` by descending ``two``.
    """

    one: Array
    two: Array
    rest: Array
    row: Array
    firsts: Array
    seconds: Array
