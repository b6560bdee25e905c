"""Co-occurrence of items in training histories.

The caller passes training histories only, nothing of validation or test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


def counts(sequences: Sequence[np.ndarray], items: int) -> sp.csr_matrix:
    """Count for each pair of items the histories that hold both.

    Args:
        sequences: item rows of each user's training history; an item that occurs twice in one counts once.
        items: ``N``.

    Returns:
        ``[N, N]`` float32, symmetric; the diagonal counts the histories that hold the item.
    """
    user = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    row = (
        np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
        if len(sequences)
        else np.empty(0, np.int64)
    )
    occurs = sp.csr_matrix((np.ones(len(row), np.float32), (user, row)), shape=(len(sequences), items))
    occurs.data[:] = 1.0
    return (occurs.T @ occurs).tocsr()


def cosine(count: sp.csr_matrix) -> sp.csr_matrix:
    """Compute the cosine of the items' user sets, ``c_ij / sqrt(c_ii c_jj)``: ``[N, N]`` float32, zero on the diagonal."""
    scale = 1.0 / np.sqrt(np.maximum(count.diagonal(), 1.0))
    similar = sp.diags(scale) @ count @ sp.diags(scale)
    similar.setdiag(0.0)
    similar.eliminate_zeros()
    return similar.tocsr().astype(np.float32)
