"""Compiled kernels of stage 3 on CPUs: attention over packed rows, and dropout.

torch would pad the rows, copy queries, keys and values a head, and draw, keep and read again a mask for each dropout; of a
training step this was as much as all matrix products together. Here rows stay packed, and nothing is drawn in advance:
whether an element is dropped is a function of its place and of two seeds, so that the backward pass asks again.

Letters as in the package; ``W`` is ``2 L - 1`` distances, ``R`` rows, ``S`` the sum of ``H * length ** 2`` over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from recbole_qbert.compiled import compiled

Array = np.ndarray
RUN = 1 << 12  # elements that a thread takes at a time
LIMIT = 1 << 32  # an element is dropped when its number, below this, is below ``limit``

# Sums may be taken in another order, which is what makes them vector instructions; -inf and NaN stay what they are.
SUMS = {"reassoc", "contract", "nsz", "arcp"}


def summing(function: Callable[..., Any]) -> Any:
    """``compiled``, with sums in any order; the same order in every call."""
    return compiled(function, fastmath=SUMS)


@njit(inline="always")
def _number(place: Any, low: Any, high: Any) -> Any:
    """A number below ``LIMIT`` that looks random: a 32-bit integer hash of the place, with a seed at either end."""
    number = (place * 0x9E3779B1 + low) & 0xFFFFFFFF
    number ^= number >> 16
    number = (number * 0x7FEB352D) & 0xFFFFFFFF
    number ^= (number >> 15) ^ high
    number = (number * 0x846CA68B) & 0xFFFFFFFF
    return number ^ (number >> 16)


@compiled
def drop(values: Array, limit: Any, low: Any, high: Any, factor: Any, out: Array, first: int, last: int) -> None:
    """Of ``values [n]``, runs ``first`` to ``last`` of ``RUN`` elements: dropped, or times ``factor``, into ``out [n]``."""
    for place in range(first * RUN, min(last * RUN, len(out))):
        out[place] = values[place] * factor if _number(np.uint64(place), low, high) >= limit else 0


@summing
def attend(
    joint: Array, distance: Array, start: Array, length: Array, causal: Array, at: Array, scale: Array, limit: Any,
    low: Any, high: Any, weight: Array, out: Array, first: int, last: int,
) -> None:  # fmt: skip
    """Attention of rows ``first`` to ``last``: fills their part of ``weight [S]`` (softmax, before dropout) and of ``out``.

    Args:
        joint: ``[T, 3 D]`` query, key and value of every token.
        distance: ``[H, W]`` added to the logits.
        start: ``[R]`` first token of each row.
        length: ``[R]`` its tokens.
        causal: ``[R]`` bool, whether a token sees those up to itself only.
        at: ``[R]`` where the row's weights begin; that of query i and key j lies at ``(head * length + i) * length + j``.
        scale: ``[2]`` of the products, and of a weight that is not dropped.
        limit, low, high: of dropout; 0 for none.
        weight, out: results; ``out`` ``[T, D]``.
        first, last: rows.
    """
    heads, middle, width = distance.shape[0], distance.shape[1] // 2, out.shape[1]
    size = width // heads
    products, kept, nothing = scale[0], scale[1], scale[0] * 0
    for row in range(first, last):
        count, begin = length[row], start[row]
        for head in range(heads):
            low_q, low_k, low_v = head * size, width + head * size, 2 * width + head * size
            for i in range(count):
                end = i + 1 if causal[row] else count
                place = at[row] + (head * count + i) * count
                query = joint[begin + i, low_q : low_q + size]
                top = nothing
                for j in range(end):
                    key = joint[begin + j, low_k : low_k + size]
                    logit = nothing
                    for d in range(size):
                        logit += query[d] * key[d]
                    logit = logit * products + distance[head, middle + j - i]
                    weight[place + j] = logit
                    top = logit if j == 0 else max(top, logit)
                norm = nothing
                for j in range(end):
                    part = np.exp(weight[place + j] - top)
                    weight[place + j] = part
                    norm += part
                seen = out[begin + i, low_q : low_q + size]
                seen[:] = 0
                for j in range(end):
                    part = weight[place + j] / norm
                    weight[place + j] = part
                    if limit == 0 or _number(np.uint64(place + j), low, high) >= limit:
                        part *= kept
                        value = joint[begin + j, low_v : low_v + size]
                        for d in range(size):
                            seen[d] += part * value[d]


@summing
def attend_backward(
    joint: Array, distance: Array, start: Array, length: Array, causal: Array, at: Array, scale: Array, limit: Any,
    low: Any, high: Any, weight: Array, grad: Array, out: Array, bias: Array, first: int, last: int,
) -> None:  # fmt: skip
    """Gradients of ``attend``: those of rows ``first`` to ``last`` into ``out [T, 3 D]``, and added to ``bias [H, W]``.

    Args:
        joint, distance, start, length, causal, at, scale, limit, low, high: as for ``attend``.
        weight: what ``attend`` has left there.
        grad: ``[T, D]``, of its ``out``.
        out, bias: results, for ``joint`` and ``distance``.
        first, last: rows.
    """
    heads, middle, width = distance.shape[0], distance.shape[1] // 2, grad.shape[1]
    size = width // heads
    products, kept, nothing = scale[0], scale[1], scale[0] * 0
    slope = np.empty(length.max(), joint.dtype)
    for row in range(first, last):
        count, begin = length[row], start[row]
        out[begin : begin + count] = 0
        for head in range(heads):
            low_q, low_k, low_v = head * size, width + head * size, 2 * width + head * size
            for i in range(count):
                end = i + 1 if causal[row] else count
                place = at[row] + (head * count + i) * count
                given = grad[begin + i, low_q : low_q + size]
                mean = nothing
                for j in range(end):
                    change = nothing
                    if limit == 0 or _number(np.uint64(place + j), low, high) >= limit:
                        part = weight[place + j] * kept
                        value, value_out = joint[begin + j, low_v : low_v + size], out[begin + j, low_v : low_v + size]
                        for d in range(size):
                            change += given[d] * value[d]
                        for d in range(size):
                            value_out[d] += part * given[d]
                        change *= kept
                    slope[j] = change
                    mean += weight[place + j] * change
                query, query_out = joint[begin + i, low_q : low_q + size], out[begin + i, low_q : low_q + size]
                for j in range(end):
                    change = weight[place + j] * (slope[j] - mean)
                    bias[head, middle + j - i] += change
                    change *= products
                    key, key_out = joint[begin + j, low_k : low_k + size], out[begin + j, low_k : low_k + size]
                    for d in range(size):
                        query_out[d] += change * key[d]
                    for d in range(size):
                        key_out[d] += change * query[d]
