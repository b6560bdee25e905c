"""Give items that share a published semantic ID different ones, by the collision resolution of stage 2.

Published IDs come without the quantizer. What `collision_resolution.reallocate` needs of it, codebooks and latents, is made

* of the embeddings, if every item has one: the code of a level is the mean of what its items have left of their embedding
  after the levels above; a code that no item has is farther than all others;
* otherwise of the numbers of the codes: code 7 is as near to 8 as to 6. Nothing else is known of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_qbert.quantization.collision_resolution import reallocate

BLOCK = 1 << 22  # numbers in memory at a time


@dataclass(frozen=True)
class CodeSet:
    """The codes of one modality.

    Attributes:
        codes: ``[N, K]`` int16; -1 at all levels of an item without this modality.
        vectors: ``[S, D]`` embeddings that the codes were made of, perhaps memory-mapped; None without them.
        rows: ``[N]`` the row of each item in ``vectors``.
    """

    codes: np.ndarray
    vectors: np.ndarray | None
    rows: np.ndarray


def sharing(codes: np.ndarray) -> np.ndarray:
    """Return ``[N]`` bool: whether an item shares its ID, given as ``[N, K]`` codes, with another."""
    _, number, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return count[number.ravel()] > 1


def separate(sets: Sequence[CodeSet], items: Sequence[str], size: int) -> np.ndarray:
    """Make the IDs, which are the codes of all sets together, unique; IDs that no two items share stay.

    Args:
        sets: the code sets, of which every item has one at least.
        items: ``N`` item tokens.
        size: codes a level.

    Returns:
        ``[N, K]`` codes of all sets, no two rows equal.

    Raises:
        ValueError: more items than IDs.
    """
    result = np.concatenate([code_set.codes for code_set in sets], axis=1)
    shared = sharing(result)
    pattern = np.stack([(code_set.codes >= 0).all(1) for code_set in sets], axis=1)
    for present in np.unique(pattern[shared], axis=0):
        group = (pattern == present).all(1)  # IDs of other patterns have other levels
        levels = np.repeat(present, [code_set.codes.shape[1] for code_set in sets])
        moving = np.flatnonzero(group & shared)
        spaces = [_space(code_set, group, moving, size) for code_set, has in zip(sets, present, strict=True) if has]
        new = reallocate(
            result[np.ix_(moving, levels)],
            np.concatenate([latents for latents, _ in spaces], axis=1),
            _joined([codebooks for _, codebooks in spaces]),
            [items[row] for row in moving],
            result[np.ix_(np.flatnonzero(group & ~shared), levels)],
        )
        result[np.ix_(moving, levels)] = new
    return result


def _space(code_set: CodeSet, group: np.ndarray, moving: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return latents ``[moving, D]`` and codebooks ``[K, M, D]`` of a code set."""
    vectors, rows, levels = code_set.vectors, code_set.rows, code_set.codes.shape[1]
    if vectors is not None and vectors.ndim == 2 and _complete(vectors, rows[group]):
        codebooks = _codebooks(code_set.codes[group], vectors, rows[group], size)
        return vectors[rows[moving]].astype(np.float64), codebooks
    codebooks = np.zeros((levels, size, levels))
    codebooks[np.arange(levels), :, np.arange(levels)] = np.arange(size)
    return code_set.codes[moving].astype(np.float64), codebooks


def _complete(vectors: np.ndarray, rows: np.ndarray) -> bool:
    """Whether all rows hold a vector: finite, and not of zeros."""
    blocks = (vectors[rows[block]] for block in _blocks(len(rows), vectors.shape[1]))
    return all(bool(np.isfinite(block).all() and block.any(1).all()) for block in blocks)


def _blocks(count: int, width: int) -> list[slice]:
    step = max(1, BLOCK // width)
    return [slice(start, start + step) for start in range(0, count, step)]


def _codebooks(codes: np.ndarray, vectors: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Average, level by level, what the levels above leave of the vectors; ``[K, M, D]``.

    Args:
        codes: ``[n, K]`` codes of the items.
        vectors: ``[S, D]`` matrix.
        rows: ``[n]`` the row of each item in it.
        size: codes a level.
    """
    levels, width = codes.shape[1], vectors.shape[1]
    codebooks = np.zeros((levels, size, width))
    for level in range(levels):
        count = np.bincount(codes[:, level], minlength=size)
        largest = 0.0
        for block in _blocks(len(rows), width):
            residual = vectors[rows[block]].astype(np.float64)
            largest = max(largest, float(np.abs(residual).max()))
            residual -= codebooks[np.arange(level), codes[block, :level]].sum(1)
            np.add.at(codebooks[level], codes[block, level], residual)
        codebooks[level] /= np.maximum(count, 1)[:, None]
        codebooks[level, count == 0] = 1e3 * (largest + 1)
    return codebooks


def _joined(codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Put the codebooks of several sets after each other, each in dimensions of its own."""
    width = sum(books.shape[2] for books in codebooks)
    result = np.zeros((sum(len(books) for books in codebooks), codebooks[0].shape[1], width))
    level = place = 0
    for books in codebooks:
        result[level : level + len(books), :, place : place + books.shape[2]] = books
        level, place = level + len(books), place + books.shape[2]
    return result
