"""Item IDs as paths in a tree of co-occurrence clusters: collaborative indexing (Hua et al., SIGIR-AP 2023).

Items that the same users chose share the beginning of their IDs. A cluster is a token, and no two clusters share one; a last
token counts the items of a leaf and is shared by all leaves. IDs differ in length, and none is a prefix of another.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

NONE = -1


@dataclass(frozen=True)
class PathIDs:
    """IDs of variable length.

    Attributes:
        ids: ``[N, K]`` int64 tokens from 0 on; -1 behind the end of an ID.
        clusters: number of clusters of all levels; their tokens are 0 to ``clusters - 1``.
        leaves: clusters that are not divided.
        largest: items of the largest leaf, which is the number of last tokens.
        alone: items that occur with no other; each has one token, its own.
    """

    ids: np.ndarray
    clusters: int
    leaves: int
    largest: int
    alone: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.clusters + self.largest + self.alone


def spectral_ids(count: sp.csr_matrix, clusters: int, leaf: int, levels: int) -> PathIDs:
    """Divide items by spectral clustering of their co-occurrence, and clusters of more than ``leaf`` items again.

    An item that occurs with no other is in no cluster and gets a token of its own. The paper's release means to do the same
    with items that are in no training history.

    Args:
        count: ``[N, N]``, in how many training histories two items occur together; symmetric. The diagonal is not used.
        clusters: number of clusters that a cluster is divided into.
        leaf: largest number of items of a cluster that is not divided.
        levels: levels of clusters at most; those of the last level are not divided, whatever their size.

    Raises:
        ValueError: ``clusters`` is above ``leaf``, so that a cluster could be divided into more parts than it has items.
    """
    if clusters > leaf:
        raise ValueError(f"cid_clusters is {clusters} and cid_leaf is {leaf}; set cid_leaf to cid_clusters or more")
    count = sp.csr_matrix(count, dtype=np.float64, copy=True)
    count.setdiag(0.0)
    count.eliminate_zeros()
    together = np.diff(count.indptr) > 0
    ids = np.full((len(together), levels + 1), NONE, dtype=np.int64)
    made, leaves = 0, []
    queue = [(np.flatnonzero(together), 0)] if together.any() else []
    while queue:  # breadth first
        members, level = queue.pop(0)
        for part in _divide(count, members, clusters, leaf):
            ids[part, level] = made
            made += 1
            if len(part) > leaf and level + 1 < levels:
                queue.append((part, level + 1))
            else:
                ids[part, level + 1] = np.arange(len(part))
                leaves.append((part, level + 1))
    for part, level in leaves:
        ids[part, level] += made
    largest = max((len(part) for part, _ in leaves), default=0)
    ids[~together, 0] = made + largest + np.arange((~together).sum())
    longest = int((ids >= 0).sum(1).max(initial=1))
    return PathIDs(ids[:, :longest], made, len(leaves), largest, int((~together).sum()))


def _divide(count: sp.csr_matrix, members: np.ndarray, clusters: int, leaf: int) -> Iterator[np.ndarray]:
    """Divide a cluster; parts come in the order of their first member, so that labels do not matter.

    Members without a neighbor in the cluster are a part of their own. Where that divides nothing, because no member has
    one, runs of ``leaf`` members are parts.
    """
    within = count[members][:, members]
    has_neighbor = np.diff(within.indptr) > 0
    label = np.full(len(members), NONE)
    if has_neighbor.any():
        label[has_neighbor] = _spectral_labels(within[has_neighbor][:, has_neighbor], clusters)
    if (label == label[0]).all():
        label = np.arange(len(members)) // leaf
    _, first, number = np.unique(label, return_index=True, return_inverse=True)
    for part in np.argsort(first):
        yield members[number == part]


def _spectral_labels(affinity: sp.csr_matrix, clusters: int) -> np.ndarray:
    """Label the cluster of each item, ``[n]`` int; as the release does, with scikit-learn's ``cluster_qr``."""
    from sklearn.cluster import spectral_clustering

    items = affinity.shape[0]
    if items <= clusters + 1:  # too small for the eigensolver
        return np.arange(items) % clusters
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        return spectral_clustering(affinity, n_clusters=clusters, assign_labels="cluster_qr", random_state=0)
