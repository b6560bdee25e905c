"""Structural item vectors, from which the ID vectors of stage 1 can start.

The paper names 'structural features' (3.1) and never defines them. We read them as co-occurrence in training histories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from recbole_qbert.data.cooccurrence import counts


def vectors(sequences: Sequence[np.ndarray], items: int, width: int, seed: int, own_left_out: bool = False) -> np.ndarray:
    """Compute item vectors from training interactions: truncated SVD of the positive pointwise mutual information.

    The paper is silent on what structural features are.

    Args:
        sequences: training histories as item rows.
        items: ``N``.
        width: ``D``; a tiny catalog has ``N - 1`` dimensions, and zeros in the others.
        seed: seed of the randomised SVD.
        own_left_out: count one history less for every pair. Whichever user holds a pair, the count is then that of the
            other users: a network that is trained on a history does not find the answer in vectors made of this history.

    Returns:
        ``[N, D]`` float32; zeros for items that never co-occur in training (cold items; with ``own_left_out`` also those
        that share a history with no item twice).
    """
    from sklearn.utils.extmath import randomized_svd  # slow to import, needed once

    count = counts(sequences, items)
    own_count = count.diagonal()
    if own_left_out:
        count.data -= 1.0  # entries are the pairs that some history holds
    count.setdiag(0.0)
    count.eliminate_zeros()
    pairs = count.tocoo()
    information = np.log(pairs.data * max(len(sequences), 1) / (own_count[pairs.row] * own_count[pairs.col]))
    keep = information > 0
    positive = sp.csr_matrix((information[keep], (pairs.row[keep], pairs.col[keep])), shape=count.shape)
    result = np.zeros((items, width), dtype=np.float32)
    rank = min(width, items - 1)
    if positive.nnz and rank > 0:
        left, strength, _ = randomized_svd(positive, n_components=rank, random_state=seed)
        result[:, :rank] = left * np.sqrt(strength)
        result[positive.getnnz(1) == 0] = 0.0  # the decomposition leaves rounding errors there
    return result
