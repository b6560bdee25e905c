"""Compiled kernel of the prior's fit: the rank of each user's target by evidence alone, for many choices of the evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from recbole_qbert.utils.jit import compiled

Array = np.ndarray
HELD, PASSED, REACHED = range(3)  # rows of the marks of items


@compiled
def ranks_by_evidence(
    first: Array,
    neighbor: Array,
    values: Array,
    powers: Array,
    mixture: Array,
    sequences: Array,
    lengths: Array,
    target: Array,
    ranks: Array,
) -> None:
    """Fill ``ranks [K, B]`` int64: how many items have at least the evidence of the target, which is one of them.

    A channel is a value of pairs together with a decay: ``t_i = sum_j value[j, i] * power[age_j]`` over the items ``j`` of
    the history. The evidence of a choice is a sum of channels. A target without evidence has the rank ``N``.

    Args:
        first: ``[N + 1]`` int64; the pairs of item ``j`` are ``first[j]`` to ``first[j + 1]``.
        neighbor: ``[P]`` int64, the other item of each pair.
        values: ``[P, C]`` float32.
        powers: ``[D, L]`` float32, decay to the power of the age.
        mixture: ``[K, C * D]`` float32, weights of the channels in each choice.
        sequences: ``[B, L]`` int64 histories, left-aligned. Their own items have no evidence.
        lengths: ``[B]`` int64.
        target: ``[B]`` int64.
        ranks: ``[K, B]``, filled here.
    """
    items = len(first) - 1
    total = np.zeros((items, mixture.shape[1]), np.float32)
    marks = np.full((3, items), -1, np.int64)
    found = np.empty(items, np.int64)
    for user in range(len(sequences)):
        count = _collect(first, neighbor, values, powers, sequences[user, : lengths[user]], user, total, marks, found)
        goal = target[user]
        for choice in range(len(mixture)):
            needed = np.float32(0.0)
            if marks[REACHED, goal] == user:
                needed = _evidence(mixture[choice], total[goal])
            rank = 0
            for number in range(count):
                rank += not _evidence(mixture[choice], total[found[number]]) < needed
            ranks[choice, user] = rank if needed > 0 else items


@njit(inline="always")
def _collect(
    first: Array,
    neighbor: Array,
    values: Array,
    powers: Array,
    history: Array,
    user: int,
    total: Array,
    marks: Array,
    found: Array,
) -> int:
    """Sum the channels of every item that the history leads to.

    Args:
        first, neighbor, values, powers: as of ``ranks_by_evidence``.
        history: ``[L]`` int64 items of the user, the oldest first.
        user: a number that no other user has.
        total: ``[N, C * D]`` float32, filled here at the items that are found.
        marks: ``[3, N]`` int64, the last user whose history holds an item, has passed its pairs on, has reached it.
        found: ``[N]`` int64, filled here with the items that are found.

    Returns:
        How many are found.
    """
    count, decays = 0, len(powers)
    for item in history:
        marks[HELD, item] = user
    for age in range(len(history)):  # from the newest: an item that occurs twice counts once, with the smaller age
        item = history[len(history) - 1 - age]
        if marks[PASSED, item] == user:
            continue
        marks[PASSED, item] = user
        for pair in range(first[item], first[item + 1]):
            other = neighbor[pair]
            if marks[HELD, other] == user:
                continue
            if marks[REACHED, other] != user:
                marks[REACHED, other] = user
                found[count] = other
                count += 1
                total[other] = 0.0
            for channel in range(total.shape[1]):
                total[other, channel] += values[pair, channel // decays] * powers[channel % decays, age]
    return count


@njit(inline="always")
def _evidence(weights: Array, channels: Array) -> Any:
    """Evidence of an item, the weighted sum of its channels."""
    evidence = np.float32(0.0)
    for channel in range(len(channels)):
        evidence += weights[channel] * channels[channel]
    return evidence
