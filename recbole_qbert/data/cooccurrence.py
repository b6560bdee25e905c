"""Co-occurrence of items in training histories.

The caller passes training sequences and nothing of validation or test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


def counts(sequences: Sequence[np.ndarray], items: int) -> sp.csr_matrix:
    """How many sequences hold both items; ``[N, N]`` float32, symmetric, the diagonal counts sequences with the item.

    Args:
        sequences: item rows of each user's training history; an item twice in one counts once.
        items: ``N``.
    """
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    row = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]) if len(sequences) else np.empty(0, np.int64)
    holds = sp.csr_matrix((np.ones(len(row), np.float32), (owner, row)), shape=(len(sequences), items))
    holds.data[:] = 1.0
    return (holds.T @ holds).tocsr()


def cosine(count: sp.csr_matrix) -> sp.csr_matrix:
    """Cosine of the items' user sets: ``c_ij / sqrt(c_ii c_jj)``, zero on the diagonal."""
    scale = 1.0 / np.sqrt(np.maximum(count.diagonal(), 1.0))
    similar = sp.diags(scale) @ count @ sp.diags(scale)
    similar.setdiag(0.0)
    similar.eliminate_zeros()
    return similar.tocsr().astype(np.float32)
