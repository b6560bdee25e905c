"""Compiled kernels of stage 3 for CPUs: attention over packed rows, and dropout.

torch would pad the rows, copy queries, keys and values for each head, and draw, store and re-read a mask for each dropout;
this took as much of a training step as all matrix products together. Here rows stay packed, and no mask is stored: whether
an element is dropped is a hash of its position and two seeds, which the backward pass computes again.

Letters as in the package; ``W`` is ``2 L - 1`` distances, ``H`` heads, ``R`` rows, ``S`` the sum of ``H * length ** 2`` over
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from recbole_qbert.utils.jit import compiled

Array = np.ndarray
RUN = 1 << 12  # elements that a thread processes at a time

# Sums may be taken in another order, so that they become vector instructions; -inf and NaN are preserved.
SUMS = {"reassoc", "contract", "nsz", "arcp"}


def summing(function: Callable[..., Any]) -> Any:
    """Compile with sums in any order, the same in every call; a division by 0 is not an error, as in numpy."""
    return compiled(function, fastmath=SUMS, error_model="numpy")


@njit(inline="always")
def _hash(position: Any, low: Any, high: Any) -> Any:
    """Hash a position to a number below 2 ** 32, with one seed before and one in the middle."""
    number = (position * 0x9E3779B1 + low) & 0xFFFFFFFF
    number ^= number >> 16
    number = (number * 0x7FEB352D) & 0xFFFFFFFF
    number ^= (number >> 15) ^ high
    number = (number * 0x846CA68B) & 0xFFFFFFFF
    return number ^ (number >> 16)


@compiled
def drop(values: Array, limit: Any, low: Any, high: Any, factor: Any, out: Array, first: int, last: int) -> None:
    """Drop elements of ``values [n]`` or scale them, in runs ``first`` to ``last`` of ``RUN`` elements.

    Args:
        values: ``[n]`` float.
        limit, low, high: the hash below which an element is dropped, and the seeds.
        factor: what the other elements are multiplied with.
        out: ``[n]`` result.
        first, last: runs.
    """
    zero = out.dtype.type(0)
    for position in range(first * RUN, min(last * RUN, len(out))):
        out[position] = values[position] * factor if _hash(np.uint64(position), low, high) >= limit else zero


@summing
def attend(
    joint: Array, distance: Array, start: Array, length: Array, causal: Array, weight_start: Array, scale: Array, limit: Any,
    low: Any, high: Any, weight: Array, out: Array, first: int, last: int,
) -> None:  # fmt: skip
    """Attend in rows ``first`` to ``last``: fill their part of ``weight [S]`` (softmax, before dropout) and of ``out``.

    Args:
        joint: ``[T, 3 D]`` query, key and value of every token.
        distance: ``[H, W]`` added to the logits.
        start: ``[R]`` first token of each row.
        length: ``[R]`` number of tokens of each row.
        causal: ``[R]`` bool, whether a token sees those up to itself only.
        weight_start: ``[R]`` index of the row's first weight; the weight of query i and key j follows it by
            ``(head * length + i) * length + j``.
        scale: ``[2]`` factor of the products, and of a weight that is not dropped.
        limit, low, high: the hash below which a weight is dropped (0: no dropout), and the seeds.
        weight, out: results; ``out`` ``[T, D]``.
        first, last: rows.
    """
    heads, middle, width = distance.shape[0], distance.shape[1] // 2, out.shape[1]
    size, step = np.uint64(width // heads), np.uint64(3 * width)  # unsigned: no index is checked for being negative
    product_scale, kept_scale = scale[0], scale[1]
    zero, one = joint.dtype.type(0), joint.dtype.type(1)  # of the type of joint, so that no sum becomes wider
    tokens, context = joint.ravel(), out.ravel()
    for row in range(first, last):
        count = length[row]
        for head in range(heads):
            query = np.uint64(start[row]) * step + np.uint64(head) * size
            into = np.uint64(start[row] * width) + np.uint64(head) * size
            keys = query + np.uint64(width)
            for i in range(count):
                end = i + 1 if causal[row] else count
                index = weight_start[row] + (head * count + i) * count
                key, top = keys, zero
                for j in range(end):
                    logit = zero
                    for d in range(size):
                        logit += tokens[query + d] * tokens[key + d]
                    key += step
                    logit = logit * product_scale + distance[head, middle + j - i]
                    weight[index + j] = logit
                    top = logit if j == 0 else max(top, logit)
                norm = zero
                for j in range(end):
                    part = np.exp(weight[index + j] - top)
                    weight[index + j] = part
                    norm += part
                inverse = one / norm
                for d in range(size):
                    context[into + d] = 0
                value = keys + np.uint64(width)
                for j in range(end):
                    part = weight[index + j] * inverse
                    weight[index + j] = part
                    if limit == 0 or _hash(np.uint64(index + j), low, high) >= limit:
                        part *= kept_scale
                        for d in range(size):
                            context[into + d] += part * tokens[value + d]
                    value += step
                query += step
                into += np.uint64(width)


@summing
def attend_backward(
    joint: Array, distance: Array, start: Array, length: Array, causal: Array, weight_start: Array, scale: Array, limit: Any,
    low: Any, high: Any, weight: Array, grad: Array, out: Array, bias: Array, first: int, last: int,
) -> None:  # fmt: skip
    """Compute the gradients of ``attend`` in rows ``first`` to ``last``: fill ``out [T, 3 D]``, add to ``bias [H, W]``.

    Args:
        joint, distance, start, length, causal, weight_start, scale, limit, low, high: as for ``attend``.
        weight: ``[S]`` as ``attend`` filled it.
        grad: ``[T, D]`` gradient of the ``out`` of ``attend``.
        out, bias: results: the gradients of ``joint`` and ``distance``.
        first, last: rows.
    """
    heads, middle, width = distance.shape[0], distance.shape[1] // 2, grad.shape[1]
    size, step = np.uint64(width // heads), np.uint64(3 * width)
    product_scale, kept_scale, zero = scale[0], scale[1], joint.dtype.type(0)
    tokens, grad_context, grad_tokens = joint.ravel(), grad.ravel(), out.ravel()
    grad_weight = np.empty(length.max(), joint.dtype)
    for row in range(first, last):
        count = length[row]
        out[start[row] : start[row] + count] = 0
        for head in range(heads):
            query = np.uint64(start[row]) * step + np.uint64(head) * size
            source = np.uint64(start[row] * width) + np.uint64(head) * size
            keys = query + np.uint64(width)
            for i in range(count):
                end = i + 1 if causal[row] else count
                index = weight_start[row] + (head * count + i) * count
                mean, value = zero, keys + np.uint64(width)
                for j in range(end):
                    change = zero
                    if limit == 0 or _hash(np.uint64(index + j), low, high) >= limit:
                        part = weight[index + j] * kept_scale
                        for d in range(size):
                            change += grad_context[source + d] * tokens[value + d]
                        for d in range(size):
                            grad_tokens[value + d] += part * grad_context[source + d]
                        change *= kept_scale
                    grad_weight[j] = change
                    mean += weight[index + j] * change
                    value += step
                key = keys
                for j in range(end):
                    change = weight[index + j] * (grad_weight[j] - mean)
                    bias[head, middle + j - i] += change
                    change *= product_scale
                    for d in range(size):
                        grad_tokens[query + d] += change * tokens[key + d]
                    for d in range(size):
                        grad_tokens[key + d] += change * tokens[query + d]
                    key += step
                query += step
                source += np.uint64(width)
