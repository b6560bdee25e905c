"""Compiled kernels of ``sketch_backend``: pack vectors into 4 bits a number, scan them, score what may be among the best.

Letters: ``N`` items, ``D`` numbers of a vector, ``G`` groups of four of them, ``S`` items of a block (``BLOCK``).
"""

from __future__ import annotations

import numpy as np

from recbole_qbert.retrieval.numba_kernels import find, is_allowed
from recbole_qbert.retrieval.numba_layout import Array
from recbole_qbert.utils.jit import compiled

BLOCK = 256  # items scanned at once: their words and sums stay in the first cache, whatever the number of users
STRIP = 64  # items whose bounds are compared at once, by vector instructions; if one is reached, they are looked at singly
PENDING = 32  # candidates that are scored together, so that their vectors are fetched from memory side by side
LANES = 16  # partial sums of an exact score, as in scoring.row_dots
LEVELS = 7  # a number is one of -7 ... 7 times the scale of its item
ZERO = 8  # what 0 is stored as
TINY = np.float32(1e-25)  # least scale: that of a vector of zeros. With smaller ones, margins could underflow


@compiled
def pack(vectors: Array, words: Array, scales: Array, errors: Array) -> float:
    """Round vectors to 4 bits a number.

    Args:
        vectors: ``[N, D]`` float32, finite.
        words: ``[blocks, G, S]`` uint16, filled here: bits ``4 i`` to ``4 i + 3`` of a word are number ``4 g + i``.
        scales: ``[blocks * S]`` float32, filled here: an item's number is about ``scale * (bits - ZERO)``.
        errors: ``[blocks * S]`` float32, filled here: distance between a vector and what is stored of it, over its scale.

    Returns:
        The largest norm of what is stored of a vector, over its scale.
    """
    longest = 0.0
    for item in range(len(vectors)):
        largest = np.float32(0.0)
        for at in range(vectors.shape[1]):
            largest = max(largest, abs(vectors[item, at]))
        scale = max(largest / np.float32(LEVELS), TINY)
        scales[item] = scale
        length, error = 0.0, 0.0
        for at in range(4 * words.shape[1]):
            number = 0.0
            if at < vectors.shape[1]:
                number = float(vectors[item, at]) / float(scale)
            level = min(max(np.rint(number), -LEVELS), LEVELS)
            length += level * level
            error += (number - level) * (number - level)
            bits = np.uint16(np.int64(level) + ZERO)
            words[item // BLOCK, at // 4, item % BLOCK] |= np.uint16(bits << np.uint16(4 * (at % 4)))
        errors[item] = np.sqrt(error)
        longest = max(longest, length)
    return np.sqrt(longest)


@compiled
def top_k(
    words: Array,
    scales: Array,
    errors: Array,
    vectors: Array,
    bias: Array,
    queries: Array,
    rounded: Array,
    steps: Array,
    norms: Array,
    margins: Array,
    changed: Array,
    amounts: Array,
    allowed: Array,
    first: int,
    last: int,
    scores: Array,
    rows: Array,
) -> None:
    """Fill ``scores [B, k]`` float32 and ``rows [B, k]`` int64, ``k >= 1``, best first, -inf and -1 where items run out.

    No score of an item is above ``scale * (step * sum + (norm * error + margin))``, plus its bias, where ``sum`` is the
    product of the rounded query and the item's bits less ``ZERO``. Items whose bound reaches the k-th best score so far are
    scored exactly.

    Args:
        words, scales: what ``pack`` made of ``vectors``.
        errors: ``[blocks * S]`` uint8, the errors in steps of ``1 / 255`` of the largest, rounded up.
        vectors: ``[N, D]`` float32.
        bias: ``[N]`` float32 added to the scores, or ``[0]``.
        queries: ``[B, D]`` float32.
        rounded: ``[B, 4 G]`` uint16, the rounded queries; negative ones as their complement.
        steps, norms, margins: ``[B]`` float32; ``norms`` are over the steps of ``errors``.
        changed: ``[B, H]`` int64 ascending rows of items with changed scores; unused entries (-1) come first.
        amounts: ``[B, H]`` float32 added to their scores.
        allowed: ``[N]`` bool by item row, or ``[0]`` if all are.
        first, last: blocks to scan; the items with changed scores are offered by whoever scans block 0.
        scores, rows: results.
    """
    sums, lanes = np.empty(BLOCK, np.uint16), np.empty(LANES, np.float32)
    pending, count = np.empty((len(queries), PENDING + BLOCK), np.int64), np.zeros(len(queries), np.int64)
    for user in range(len(queries)):
        scores[user], rows[user] = -np.inf, -1
        if first == 0:
            _offer_changed(
                vectors, bias, queries[user], changed[user], amounts[user], allowed, lanes, scores[user], rows[user]
            )
    for block in range(first, last):
        for user in range(len(queries)):
            _sum(words, block, rounded, user, sums)
            count[user] = _candidates(
                scales,
                errors,
                bias,
                sums,
                block * BLOCK,
                min((block + 1) * BLOCK, len(vectors)),
                steps[user],
                norms[user],
                margins[user],
                scores[user, -1],
                changed[user],
                allowed,
                pending[user],
                count[user],
            )
            if count[user] >= PENDING or block == last - 1:
                _offer(vectors, bias, queries[user], pending[user, : count[user]], lanes, scores[user], rows[user])
                count[user] = 0


@compiled
def _candidates(
    scales: Array,
    errors: Array,
    bias: Array,
    sums: Array,
    start: int,
    stop: int,
    step: float,
    norm: float,
    margin: float,
    limit: float,
    changed: Array,
    allowed: Array,
    pending: Array,
    count: int,
) -> int:
    """Append the items of a block whose bound reaches a limit to the first ``count`` of ``pending``; return their number."""
    worst = norm * np.float32(255) + margin  # the first look takes the largest error for that of each item
    for low in range(start, stop, STRIP):
        high, hit = min(low + STRIP, stop), False
        if len(bias) == 0:
            for row in range(low, high):
                hit |= scales[row] * (step * np.float32(np.int16(sums[row - start])) + worst) >= limit
        else:
            for row in range(low, high):
                hit |= scales[row] * (step * np.float32(np.int16(sums[row - start])) + worst) + bias[row] >= limit
        if not hit:
            continue
        for row in range(low, high):
            rest = norm * np.float32(errors[row]) + margin
            bound = scales[row] * (step * np.float32(np.int16(sums[row - start])) + rest)
            if len(bias):
                bound += bias[row]
            if bound >= limit and is_allowed(allowed, row) and find(changed, row) < 0:
                pending[count] = row
                count += 1
    return count


@compiled
def _offer(vectors: Array, bias: Array, query: Array, pending: Array, lanes: Array, scores: Array, rows: Array) -> None:
    """Score items exactly and insert those that are among the best."""
    touched = np.float32(0.0)
    for row in pending:  # loads that do not wait for each other, unlike those of the sums below
        for at in range(0, vectors.shape[1], LANES):
            touched = max(touched, vectors[row, at])
    if touched == np.inf:  # never: vectors are finite. Without a use of them, the loads would be left out
        return
    for row in pending:
        score = _score(vectors, bias, query, row, lanes)
        if _is_better(score, row, scores, rows):
            _insert(scores, rows, score, row)


@compiled
def _is_better(score: float, row: int, scores: Array, rows: Array) -> bool:
    """Tell whether an item belongs among the best; one at -inf does not."""
    return score > scores[-1] or (score == scores[-1] and score > -np.inf and row < rows[-1])


@compiled
def _sum(words: Array, block: int, rounded: Array, user: int, sums: Array) -> None:
    """Fill ``sums [S]`` with the products of a rounded query and a block's items, modulo 2 ** 16."""
    offset = np.uint16(0)
    for at in range(rounded.shape[1]):
        offset = np.uint16(offset - np.uint16(ZERO) * rounded[user, at])
    sums[:] = offset
    for group in range(words.shape[1]):
        one, two = rounded[user, 4 * group], rounded[user, 4 * group + 1]
        three, four = rounded[user, 4 * group + 2], rounded[user, 4 * group + 3]
        for at in range(BLOCK):
            word = words[block, group, at]
            total = one * np.uint16(word & np.uint16(15))
            total += two * np.uint16((word >> np.uint16(4)) & np.uint16(15))
            total += three * np.uint16((word >> np.uint16(8)) & np.uint16(15))
            total += four * np.uint16(word >> np.uint16(12))
            sums[at] = np.uint16(sums[at] + total)


@compiled
def _score(vectors: Array, bias: Array, query: Array, row: int, lanes: Array) -> float:
    """Score an item as ``scoring.row_dots`` does, to the bit; ``lanes [LANES]`` float32 is scratch space."""
    width = len(query)
    lanes[:] = 0.0
    for start in range(0, width - LANES + 1, LANES):
        for lane in range(LANES):
            lanes[lane] += query[start + lane] * vectors[row, start + lane]
    for at in range(width - width % LANES, width):
        lanes[at % LANES] += query[at] * vectors[row, at]
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0] + bias[row] if len(bias) else lanes[0]


@compiled
def _offer_changed(
    vectors: Array,
    bias: Array,
    query: Array,
    changed: Array,
    amounts: Array,
    allowed: Array,
    lanes: Array,
    scores: Array,
    rows: Array,
) -> None:
    """Insert the items with changed scores, which scans leave out."""
    for at in range(len(changed)):
        if changed[at] >= 0 and is_allowed(allowed, changed[at]):
            score = _score(vectors, bias, query, changed[at], lanes) + amounts[at]
            if _is_better(score, changed[at], scores, rows):
                _insert(scores, rows, score, changed[at])


@compiled
def _insert(scores: Array, rows: Array, score: float, row: int) -> None:
    """Insert an item that belongs before the last one, which drops out; best first, of equal scores the lower row."""
    at = len(scores) - 1
    while at > 0 and (scores[at - 1] < score or (scores[at - 1] == score and rows[at - 1] > row)):
        scores[at], rows[at] = scores[at - 1], rows[at - 1]
        at -= 1
    scores[at], rows[at] = score, row
