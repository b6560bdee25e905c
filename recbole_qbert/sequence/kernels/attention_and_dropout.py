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

from recbole_qbert.utils.jit import compiled

Array = np.ndarray
RUN = 1 << 12  # elements that a thread takes at a time

# Sums may be taken in another order, which is what makes them vector instructions; -inf and NaN stay what they are.
SUMS = {"reassoc", "contract", "nsz", "arcp"}


def summing(function: Callable[..., Any]) -> Any:
    """``compiled``, with sums in any order, the same in every call; a division by 0 is no error, as in numpy."""
    return compiled(function, fastmath=SUMS, error_model="numpy")


@njit(inline="always")
def _number(place: Any, low: Any, high: Any) -> Any:
    """A number below 2 ** 32 that looks random: a 32-bit integer hash of the place, with a seed at either end."""
    number = (place * 0x9E3779B1 + low) & 0xFFFFFFFF
    number ^= number >> 16
    number = (number * 0x7FEB352D) & 0xFFFFFFFF
    number ^= (number >> 15) ^ high
    number = (number * 0x846CA68B) & 0xFFFFFFFF
    return number ^ (number >> 16)


@compiled
def drop(values: Array, limit: Any, low: Any, high: Any, factor: Any, out: Array, first: int, last: int) -> None:
    """Of ``values [n]``, runs ``first`` to ``last`` of ``RUN`` elements: dropped, or times ``factor``, into ``out [n]``."""
    nothing = out.dtype.type(0)
    for place in range(first * RUN, min(last * RUN, len(out))):
        out[place] = values[place] * factor if _number(np.uint64(place), low, high) >= limit else nothing


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
    size, step = np.uint64(width // heads), np.uint64(3 * width)  # unsigned: no place is checked for being negative
    products, kept, nothing, one = scale[0], scale[1], joint.dtype.type(0), joint.dtype.type(1)  # no number is wider
    tokens, seen = joint.ravel(), out.ravel()
    for row in range(first, last):
        count = length[row]
        for head in range(heads):
            query = np.uint64(start[row]) * step + np.uint64(head) * size
            into = np.uint64(start[row] * width) + np.uint64(head) * size
            keys = query + np.uint64(width)
            for i in range(count):
                end = i + 1 if causal[row] else count
                place = at[row] + (head * count + i) * count
                key, top = keys, nothing
                for j in range(end):
                    logit = nothing
                    for d in range(size):
                        logit += tokens[query + d] * tokens[key + d]
                    key += step
                    logit = logit * products + distance[head, middle + j - i]
                    weight[place + j] = logit
                    top = logit if j == 0 else max(top, logit)
                norm = nothing
                for j in range(end):
                    part = np.exp(weight[place + j] - top)
                    weight[place + j] = part
                    norm += part
                inverse = one / norm
                for d in range(size):
                    seen[into + d] = 0
                value = keys + np.uint64(width)
                for j in range(end):
                    part = weight[place + j] * inverse
                    weight[place + j] = part
                    if limit == 0 or _number(np.uint64(place + j), low, high) >= limit:
                        part *= kept
                        for d in range(size):
                            seen[into + d] += part * tokens[value + d]
                    value += step
                query += step
                into += np.uint64(width)


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
    size, step = np.uint64(width // heads), np.uint64(3 * width)
    products, kept, nothing = scale[0], scale[1], joint.dtype.type(0)
    tokens, given, slopes = joint.ravel(), grad.ravel(), out.ravel()
    share = np.empty(length.max(), joint.dtype)  # the slope of each weight
    for row in range(first, last):
        count = length[row]
        out[start[row] : start[row] + count] = 0
        for head in range(heads):
            query = np.uint64(start[row]) * step + np.uint64(head) * size
            source = np.uint64(start[row] * width) + np.uint64(head) * size
            keys = query + np.uint64(width)
            for i in range(count):
                end = i + 1 if causal[row] else count
                place = at[row] + (head * count + i) * count
                mean, value = nothing, keys + np.uint64(width)
                for j in range(end):
                    change = nothing
                    if limit == 0 or _number(np.uint64(place + j), low, high) >= limit:
                        part = weight[place + j] * kept
                        for d in range(size):
                            change += given[source + d] * tokens[value + d]
                        for d in range(size):
                            slopes[value + d] += part * given[source + d]
                        change *= kept
                    share[j] = change
                    mean += weight[place + j] * change
                    value += step
                key = keys
                for j in range(end):
                    change = weight[place + j] * (share[j] - mean)
                    bias[head, middle + j - i] += change
                    change *= products
                    for d in range(size):
                        slopes[query + d] += change * tokens[key + d]
                    for d in range(size):
                        slopes[key + d] += change * tokens[query + d]
                    key += step
                query += step
                source += np.uint64(width)
