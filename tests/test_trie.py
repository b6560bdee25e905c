"""The trie of IDs against dictionaries of prefixes."""

import numpy as np
import pytest
import torch

from recbole_qbert.generative.trie import Trie


def random_ids(seed, items=60, levels=4, size=4, full=False):
    """IDs of mixed length; some are prefixes of others, some are shared, some items have none; item 0 is padding."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, size, (items, levels)) + np.arange(levels) * size + 1
    lengths = np.full(items, levels) if full else random.integers(0, levels + 1, items)
    lengths[0] = 0
    ids[np.arange(levels) >= lengths[:, None]] = -1
    return ids


def path(trie, node):
    tokens = []
    while node:
        tokens.append(int(trie.token[node]))
        node = int(trie.parent[node])
    return tuple(tokens[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_children_and_items_are_those_of_the_prefixes(seed):
    ids = random_ids(seed)
    trie = Trie.of(ids)
    ends = {}
    for item, row in enumerate(ids.tolist()):
        if row[0] >= 0:
            ends.setdefault(tuple(token for token in row if token >= 0), []).append(item)
    prefixes = {key[:length] for key in ends for length in range(len(key) + 1)}
    paths = {path(trie, node): node for node in range(len(trie))}
    assert len(paths) == len(trie) and set(paths) == prefixes
    for prefix, node in paths.items():
        below = sorted(other for other in prefixes if len(other) == len(prefix) + 1 and other[: len(prefix)] == prefix)
        entry, child = trie.children(torch.tensor([node]))
        assert [path(trie, number) for number in child.tolist()] == below and not entry.any()
        assert trie.items_at(torch.tensor([node]))[1].tolist() == ends.get(prefix, [])
        assert bool(trie.has_children(torch.tensor(node))) == bool(below)
        assert bool(trie.has_items(torch.tensor(node))) == (prefix in ends)
        assert int(trie.depth[node]) == len(prefix)
    for item, row in enumerate(ids.tolist()):
        assert int(trie.node_of[item]) == paths.get(tuple(t for t in row if t >= 0), 0) or row[0] < 0
    assert (trie.node_of[torch.from_numpy(ids[:, 0] < 0)] == -1).all()
    assert trie.height == max(map(len, prefixes))


def test_children_of_several_nodes_keep_their_order():
    trie = Trie.of(np.array([[1, 3], [1, 4], [2, 3], [2, 5]]))
    entry, child = trie.children(torch.tensor([2, 0, 1, 2]))
    assert entry.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert trie.token[child].tolist() == [3, 5, 1, 2, 3, 4, 3, 5]
    assert trie.widest == 2 and trie.height == 2


def test_what_is_no_catalog_is_refused():
    with pytest.raises(ValueError, match="no item has an ID"):
        Trie.of(np.full((3, 2), -1))
    with pytest.raises(ValueError, match="item 1"):
        Trie.of(np.array([[1, 2], [-1, 2]]))
