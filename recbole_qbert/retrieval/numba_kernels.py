"""Compiled kernels of ``topk_merged``: scan runs of items, keep the k best, skip what cannot be among them.

There is one compiled version for each number of pairs and type of codes, made at the
first use (some seconds) and kept on disk. Loops over items take plain arrays: handing on a tuple of them counts references.

Letters as in ``topk_layout``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recbole_qbert.retrieval.numba_layout import Array, Blocks, Bounds, Items, Users
from recbole_qbert.utils.jit import compiled

# Items that are compared with the k-th best score in one go. The loop over them holds nothing but look-ups, additions and
# a comparison, so that it becomes vector instructions; on a hit it is run again item by item.
BLOCK = 128
CORNER = 16  # the first look at the catalog: items whose two leading codes are both among this many best ones


@compiled
def top_k(items: Items, blocks: Blocks, users: Users, bounds: Bounds, allowed: Array, scores: Array, rows: Array) -> None:
    """Fill ``scores [B, k]`` float32 and ``rows [B, k]`` int64, ``k >= 1``, best first, -inf and -1 where items run out.

    ``allowed`` is ``[N]`` bool by item row, or ``[0]``. With blocks, only items are scored whose block may hold one of the
    best: the result is the same.
    """
    width = bounds.row.shape[1]
    runs = np.empty((max(CORNER * CORNER, width), 2), np.int64)
    for user in range(len(users.tables)):
        merged, special, best, found = _merge(users.tables[user]), users.items[user], scores[user], rows[user]
        size, floor = 0, np.float32(-np.inf)
        for step in range(width + 1):
            if step <= 1:  # after the first look anew, now knowing a score that k items reach
                floor = best[0] if step == 1 and size == len(best) else floor
                size = _start(items, users, user, merged, allowed, best, found)
            if step == 0:
                number = _first_look(items, blocks, bounds, user, runs)
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
                special,
                allowed,
                runs[:number],
                floor,
                best,
                found,
                size,
            )
        _sort(best, found, size)


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
    """Fill ``result [B]`` int64 with the number of items whose score is not below the target's, the target among them.

    Args:
        items, blocks, users, bounds, allowed: as for ``top_k``.
        target: ``[B]`` int64 item rows.
        places: ``[B]`` int64, where they stand in the order of the index; -1: nowhere.
        worst: the rank of a target that is no answer.
        result: changed in place.
    """
    width = bounds.row.shape[1]
    runs = np.empty((max(CORNER * CORNER, width), 2), np.int64)
    for user in range(len(users.tables)):
        result[user] = worst
        if places[user] < 0 or not _is_allowed(allowed, target[user]):
            continue
        merged, special, amounts = _merge(users.tables[user]), users.items[user], users.amounts[user]
        score = _score(items, merged, places[user])
        own = _find(special, target[user])
        score = score + amounts[own] if own >= 0 else score
        if score == -np.inf:
            continue
        count = 0
        for at in range(len(special)):  # the runs below count these by the tables alone
            place = users.places[user, at]
            if place >= 0 and _is_allowed(allowed, special[at]):
                plain = _score(items, merged, place)
                count += int(plain + amounts[at] >= score) - int(plain >= score)
        for step in range(max(width, 1)):
            if width == 0:
                number = _first_look(items, blocks, bounds, user, runs)
            else:
                first = bounds.firsts[user, step]
                if bounds.row[user, first] < score:
                    break
                number = _runs(blocks, bounds, user, first, score, runs)
            count += _count(items.codes, items.rows, items.bias, items.pairs, merged, allowed, runs[:number], score)
        result[user] = count


@compiled
def _merge(tables: Array) -> Array:
    """Tables of pairs of levels, ``[2P, W]`` to ``[P, W * W]``: ``t0 + t1``, never -0.0."""
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
    """An item's sum over levels, in the order of ``ranking.add_up``."""
    total = merged[0, codes[0, place]]
    for pair in range(1, len(pairs)):
        total += merged[pair, codes[pair, place]]
    return total


@compiled
def _score(items: Items, merged: Array, place: int) -> float:
    total = _sum(merged, items.codes, items.pairs, place)
    return total + items.bias[place] if len(items.bias) else total


@njit(inline="always")
def _is_allowed(allowed: Array, row: int) -> bool:
    return len(allowed) == 0 or allowed[row]


@compiled
def _find(rows: Array, row: int) -> int:
    """Where a row stands among ascending ones; -1: nowhere."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low if low < len(rows) and rows[low] == row else -1


@compiled
def _start(items: Items, users: Users, user: int, merged: Array, allowed: Array, best: Array, found: Array) -> int:
    """Begin with the items that have a score of their own, whatever it is; scans leave them out. Returns how many."""
    for at in range(len(best)):
        best[at], found[at] = -np.inf, -1
    size = 0
    for at in range(users.items.shape[1]):
        place = users.places[user, at]
        if place >= 0 and _is_allowed(allowed, users.items[user, at]):
            score = _score(items, merged, place) + users.amounts[user, at]
            if score > -np.inf:
                size = _offer(best, found, size, score, users.items[user, at])
    return size


@compiled
def _first_look(items: Items, blocks: Blocks, bounds: Bounds, user: int, runs: Array) -> int:
    """Runs of the likeliest blocks; of all items, where there are no blocks. Returns how many runs."""
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
    """Runs of the blocks of one ``a`` whose bound reaches a limit, neighbours in one. Returns how many runs."""
    start, ceiling, two, seconds = blocks.start, blocks.ceiling, bounds.two[user], bounds.seconds[user]
    rest, one = bounds.rest[user], bounds.one[user, first]
    width, best_bias = len(two), np.float32(0.0)
    if len(ceiling):
        best_bias = blocks.row_ceiling[first]
    # A bound rises with two[b], so those that reach the limit, had their blocks the best bias, are the first of the sorted.
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
    special: Array,
    allowed: Array,
    runs: Array,
    floor: float,
    best: Array,
    found: Array,
    size: int,
) -> int:
    """Offer the items of some runs that score ``floor`` or better and are not special; returns the number now kept."""
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
                if score >= limit and score > -np.inf and _is_allowed(allowed, row) and _find(special, row) < 0:
                    size = _offer(best, found, size, score, row)
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
    """Allowed items in some runs that score at least ``score`` by the tables and biases."""
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
                count += total >= score and _is_allowed(allowed, rows[place])
    return count


# The k best are a heap with the worst of them at place 0: the lowest score, and the highest row among equal ones.
@njit(inline="always")
def _worse(score: float, row: int, other: float, other_row: int) -> bool:
    return score < other or (score == other and row > other_row)


@compiled
def _offer(best: Array, found: Array, size: int, score: float, row: int) -> int:
    """Keep an item if it is among the best; returns how many are kept."""
    if size == len(best):
        if _worse(best[0], found[0], score, row):
            _sink(best, found, size, score, row)
        return size
    at = size
    while at > 0 and _worse(score, row, best[(at - 1) // 2], found[(at - 1) // 2]):
        best[at], found[at] = best[(at - 1) // 2], found[(at - 1) // 2]
        at = (at - 1) // 2
    best[at], found[at] = score, row
    return size + 1


@compiled
def _sink(best: Array, found: Array, size: int, score: float, row: int) -> None:
    """Put an item in the place of the worst of the first ``size``."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _worse(best[child + 1], found[child + 1], best[child], found[child]):
            child += 1
        if not _worse(best[child], found[child], score, row):
            break
        best[at], found[at] = best[child], found[child]
        at = child
    best[at], found[at] = score, row


@compiled
def _sort(best: Array, found: Array, size: int) -> None:
    """The heap's ``size`` items in order, best first."""
    for last in range(size - 1, 0, -1):
        score, row = best[last], found[last]
        best[last], found[last] = best[0], found[0]
        _sink(best, found, last, score, row)
