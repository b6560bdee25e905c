"""Compiled kernels of ``numba_backend``: scan runs of items, keep the k best, and skip blocks that cannot hold one of them.

Each number of pairs and type of codes has a compiled version, which is made at the first use (some seconds) and cached on
disk. Functions with loops over items take plain arrays, because passing a tuple of arrays counts references.

Letters as in ``numba_layout``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recbole_qbert.retrieval.numba_layout import Array, Blocks, Bounds, Items, Users
from recbole_qbert.utils.jit import compiled

# Items that are compared with the k-th best score at once. The loop over them has only look-ups, additions and a comparison,
# so that it becomes vector instructions; if any item is good enough, they are scanned again one by one.
BLOCK = 128
CORNER = 16  # the first scan covers items whose two leading codes are both among this many best ones


@compiled
def top_k(items: Items, blocks: Blocks, users: Users, bounds: Bounds, allowed: Array, scores: Array, rows: Array) -> None:
    """Fill ``scores [B, k]`` float32 and ``rows [B, k]`` int64, ``k >= 1``, best first, -inf and -1 where items run out.

    Args:
        items, blocks, users, bounds: the catalog and the queries.
        allowed: ``[N]`` bool by item row, or ``[0]`` if all are.
        scores, rows: results. With blocks, only blocks that may hold one of the best items are scanned; the results are the
            same.
    """
    width = bounds.row.shape[1]
    runs = np.empty((max(CORNER * CORNER, width), 2), np.int64)
    for user in range(len(users.tables)):
        merged, changed, best, best_rows = _merge(users.tables[user]), users.items[user], scores[user], rows[user]
        size, floor = 0, np.float32(-np.inf)
        for step in range(width + 1):
            if step <= 1:  # the second step starts anew, with the k-th best score of the first scan as a lower bound
                floor = best[0] if step == 1 and size == len(best) else floor
                size = _start(items, users, user, merged, allowed, best, best_rows)
            if step == 0:
                number = _first_runs(items, blocks, bounds, user, runs)
            else:
                first = bounds.firsts[user, step - 1]
                limit = best[0] if size == len(best) else floor
                if bounds.row[user, first] < limit:
                    break
                number = _runs(blocks, bounds, user, first, limit, runs)
            size = _scan(
                items.codes,
                items.rows,
                items.bias,
                items.pairs,
                merged,
                changed,
                allowed,
                runs[:number],
                floor,
                best,
                best_rows,
                size,
            )
        _sort(best, best_rows, size)


@compiled
def rank(
    items: Items,
    blocks: Blocks,
    users: Users,
    bounds: Bounds,
    allowed: Array,
    target: Array,
    places: Array,
    worst: int,
    result: Array,
) -> None:
    """Count the items whose score is not below the target's, the target included.

    Args:
        items, blocks, users, bounds, allowed: as for ``top_k``.
        target: ``[B]`` int64 item rows.
        places: ``[B]`` int64, their positions in the order of the index; -1 if not there.
        worst: rank of a target that cannot be recommended.
        result: ``[B]`` int64, changed in place.
    """
    width = bounds.row.shape[1]
    runs = np.empty((max(CORNER * CORNER, width), 2), np.int64)
    for user in range(len(users.tables)):
        result[user] = worst
        if places[user] < 0 or not is_allowed(allowed, target[user]):
            continue
        merged, changed, amounts = _merge(users.tables[user]), users.items[user], users.amounts[user]
        score = _score(items, merged, places[user])
        own = find(changed, target[user])
        score = score + amounts[own] if own >= 0 else score
        if score == -np.inf:
            continue
        count = 0
        for at in range(len(changed)):  # correct their count: the runs below use their unchanged scores
            place = users.places[user, at]
            if place >= 0 and is_allowed(allowed, changed[at]):
                plain = _score(items, merged, place)
                count += int(plain + amounts[at] >= score) - int(plain >= score)
        for step in range(max(width, 1)):
            if width == 0:
                number = _first_runs(items, blocks, bounds, user, runs)
            else:
                first = bounds.firsts[user, step]
                if bounds.row[user, first] < score:
                    break
                number = _runs(blocks, bounds, user, first, score, runs)
            count += _count(items.codes, items.rows, items.bias, items.pairs, merged, allowed, runs[:number], score)
        result[user] = count


@compiled
def _merge(tables: Array) -> Array:
    """Merge the tables of each pair of levels, ``[2P, W]`` to ``[P, W * W]``: ``t0 + t1``, never -0.0."""
    levels, size = tables.shape
    merged = np.empty((levels // 2, size * size), np.float32)
    for pair in range(levels // 2):
        for first in range(size):
            one = tables[2 * pair, first]
            for second in range(size):
                merged[pair, first * size + second] = np.float32(0.0) + (one + tables[2 * pair + 1, second])
    return merged


@njit(inline="always")
def _sum(merged: Array, codes: Array, pairs: tuple[int, ...], place: int) -> float:
    """Sum an item's entries over levels, in the order of ``scoring.sum_levels``."""
    total = merged[0, codes[0, place]]
    for pair in range(1, len(pairs)):
        total += merged[pair, codes[pair, place]]
    return total


@compiled
def _score(items: Items, merged: Array, place: int) -> float:
    total = _sum(merged, items.codes, items.pairs, place)
    return total + items.bias[place] if len(items.bias) else total


@njit(inline="always")
def is_allowed(allowed: Array, row: int) -> bool:
    """Tell whether an item may be recommended; ``allowed`` is empty where all may."""
    return len(allowed) == 0 or allowed[row]


@compiled
def find(rows: Array, row: int) -> int:
    """Find the index of a row in ascending rows; -1 if it is not there."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low if low < len(rows) and rows[low] == row else -1


@compiled
def _start(items: Items, users: Users, user: int, merged: Array, allowed: Array, best: Array, best_rows: Array) -> int:
    """Start the heap with the items whose scores are changed, which scans leave out; return its size."""
    for at in range(len(best)):
        best[at], best_rows[at] = -np.inf, -1
    size = 0
    for at in range(users.items.shape[1]):
        place = users.places[user, at]
        if place >= 0 and is_allowed(allowed, users.items[user, at]):
            score = _score(items, merged, place) + users.amounts[user, at]
            if score > -np.inf:
                size = _offer(best, best_rows, size, score, users.items[user, at])
    return size


@compiled
def _first_runs(items: Items, blocks: Blocks, bounds: Bounds, user: int, runs: Array) -> int:
    """Fill ``runs`` with the most promising blocks, or all items if there are no blocks; return the number of runs."""
    width = bounds.row.shape[1]
    if width == 0:
        runs[0, 0], runs[0, 1] = 0, len(items.rows)
        return 1
    number = 0
    for a in range(min(CORNER, width)):
        for b in range(min(CORNER, width)):
            block = bounds.firsts[user, a] * width + bounds.seconds[user, b]
            runs[number, 0], runs[number, 1] = blocks.start[block], blocks.start[block + 1]
            number += 1
    return number


@compiled
def _runs(blocks: Blocks, bounds: Bounds, user: int, first: int, limit: float, runs: Array) -> int:
    """Fill ``runs`` with the blocks of one ``a`` whose bound reaches a limit, adjacent ones joined; return their number."""
    start, ceiling, two, seconds = blocks.start, blocks.ceiling, bounds.two[user], bounds.seconds[user]
    rest, one = bounds.rest[user], bounds.one[user, first]
    width, best_bias = len(two), np.float32(0.0)
    if len(ceiling):
        best_bias = blocks.row_ceiling[first]
    # A bound rises with two[b]: with the best bias, the blocks that reach the limit are the first in the sorted order.
    low, high = 0, width
    while low < high:
        middle = (low + high) // 2
        if _bound(one, two[seconds[middle]], rest, best_bias) >= limit:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0
    if low == width and len(ceiling) == 0:
        runs[0, 0], runs[0, 1] = start[first * width], start[(first + 1) * width]
        return 1
    least = two[seconds[low - 1]]
    number, running = 0, False
    for second in range(width):
        block = first * width + second
        reaches = two[second] >= least
        if reaches and len(ceiling):
            reaches = _bound(one, two[second], rest, ceiling[block]) >= limit
        if reaches:
            if not running:
                runs[number, 0] = start[block]
                number += 1
            runs[number - 1, 1] = start[block + 1]
        running = reaches
    return number


@compiled
def _bound(one: float, two: float, rest: Array, bias: float) -> float:
    bound = one + two
    for pair in range(len(rest)):
        bound += rest[pair]
    return bound + bias


@compiled
def _scan(
    codes: Array,
    rows: Array,
    bias: Array,
    pairs: tuple[int, ...],
    merged: Array,
    changed: Array,
    allowed: Array,
    runs: Array,
    floor: float,
    best: Array,
    best_rows: Array,
    size: int,
) -> int:
    """Offer the unchanged items of some runs that score at least ``floor`` to the heap; return its size."""
    limit = best[0] if size == len(best) else floor
    for run in range(len(runs)):
        for first in range(runs[run, 0], runs[run, 1], BLOCK):
            last, hits = min(first + BLOCK, runs[run, 1]), 0
            if len(bias) == 0:
                for place in range(first, last):
                    hits += _sum(merged, codes, pairs, place) >= limit
            else:
                for place in range(first, last):
                    hits += _sum(merged, codes, pairs, place) + bias[place] >= limit
            if hits == 0:
                continue
            for place in range(first, last):
                score, row = _sum(merged, codes, pairs, place), rows[place]
                if len(bias):
                    score += bias[place]
                if score >= limit and score > -np.inf and is_allowed(allowed, row) and find(changed, row) < 0:
                    size = _offer(best, best_rows, size, score, row)
                    limit = best[0] if size == len(best) else floor
    return size


@compiled
def _count(
    codes: Array,
    rows: Array,
    bias: Array,
    pairs: tuple[int, ...],
    merged: Array,
    allowed: Array,
    runs: Array,
    score: float,
) -> int:
    """Count the allowed items of some runs whose unchanged score is at least ``score``."""
    count = 0
    for run in range(len(runs)):
        start, stop = runs[run, 0], runs[run, 1]
        if len(bias) + len(allowed) == 0:
            for place in range(start, stop):
                count += _sum(merged, codes, pairs, place) >= score
        else:
            for place in range(start, stop):
                total = _sum(merged, codes, pairs, place)
                if len(bias):
                    total += bias[place]
                count += total >= score and is_allowed(allowed, rows[place])
    return count


# The k best items are a heap with the worst at index 0: the lowest score, and among equal scores the highest row.
@njit(inline="always")
def _worse(score: float, row: int, other: float, other_row: int) -> bool:
    return score < other or (score == other and row > other_row)


@compiled
def _offer(best: Array, best_rows: Array, size: int, score: float, row: int) -> int:
    """Put an item into the heap if it is among the best; return the size of the heap."""
    if size == len(best):
        if _worse(best[0], best_rows[0], score, row):
            _sink(best, best_rows, size, score, row)
        return size
    at = size
    while at > 0 and _worse(score, row, best[(at - 1) // 2], best_rows[(at - 1) // 2]):
        best[at], best_rows[at] = best[(at - 1) // 2], best_rows[(at - 1) // 2]
        at = (at - 1) // 2
    best[at], best_rows[at] = score, row
    return size + 1


@compiled
def _sink(best: Array, best_rows: Array, size: int, score: float, row: int) -> None:
    """Replace the worst of the first ``size`` items."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _worse(best[child + 1], best_rows[child + 1], best[child], best_rows[child]):
            child += 1
        if not _worse(best[child], best_rows[child], score, row):
            break
        best[at], best_rows[at] = best[child], best_rows[child]
        at = child
    best[at], best_rows[at] = score, row


@compiled
def _sort(best: Array, best_rows: Array, size: int) -> None:
    """Sort the ``size`` items of the heap, best first."""
    for last in range(size - 1, 0, -1):
        score, row = best[last], best_rows[last]
        best[last], best_rows[last] = best[0], best_rows[0]
        _sink(best, best_rows, last, score, row)
