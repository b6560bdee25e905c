"""Exact ranks, cut-off ranks and beams against item-by-item forcing on random networks and random IDs."""

import pytest
import torch

from recbole_qbert.generative import search
from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.t5 import T5, T5Sizes
from recbole_qbert.sequence.scoring import rank_of
from tests.test_trie import random_ids

VOCAB = 20


def network(seed=0, spread=1.0):
    torch.manual_seed(seed)
    model = T5(T5Sizes(VOCAB, 16, 24, 4, 3, 2, 2, 0.1)).eval()
    with torch.no_grad():
        model.embedding.mul_(spread)  # wider: a surer network, whose best items are far ahead
    return model


def sources(seed=0, rows=13, longest=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    tokens = torch.randint(1, VOCAB, (rows, longest), generator=generator)
    return torch.where(torch.arange(longest) < lengths[:, None], tokens, -1)


def ends_marked(ids, mark=19):
    """Give every ID an end mark, so that the probabilities of all IDs sum to 1 at most."""
    marked = torch.full((len(ids), ids.shape[1] + 1), -1)
    marked[:, :-1] = ids
    has = ids[:, 0] >= 0
    marked[has, (ids[has] >= 0).sum(1)] = mark
    return marked


def one_by_one(model, ids, matrix):
    """Score every item for every row alone, by the plain decoder."""
    scores = torch.full((len(matrix), len(ids)), -torch.inf)
    for row in range(len(matrix)):
        source = PackedTokens.of(matrix[row : row + 1])
        encoded = model.encode(source)
        for item, tokens in enumerate(ids.tolist()):
            tokens = [token for token in tokens if token >= 0]
            if tokens:
                states = model.decode(torch.tensor([[0, *tokens[:-1]]]), encoded)
                log = model.logits(states)[0].log_softmax(1)
                scores[row, item] = log[torch.arange(len(tokens)), tokens].sum()
    return scores


def case(seed, full=False, marked=False, spread=1.0):
    ids = torch.from_numpy(random_ids(seed, items=40, full=full))
    return network(seed, spread), ends_marked(ids) if marked else ids, sources(seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["mixed", "full", "marked"])
def test_exact_scores_are_those_of_forcing_item_by_item(seed, kind):
    """IDs of mixed length, prefixes of others, shared ones; and IDs of one length; and IDs with an end mark."""
    model, ids, matrix = case(seed, full=kind == "full", marked=kind == "marked")
    with torch.no_grad():
        expected = one_by_one(model, ids, matrix)
    source = PackedTokens.of(matrix)
    ranker = ItemRanker(model, ids)
    scores = ranker.scores(source)
    assert torch.equal(scores == -torch.inf, expected == -torch.inf)
    there = expected > -torch.inf
    assert torch.allclose(scores[there], expected[there], atol=1e-5)
    items = torch.arange(len(matrix)) % len(ids)
    one = ranker.item_scores(source, items)
    assert torch.allclose(one, expected[torch.arange(len(matrix)), items], atol=1e-5)
    if kind != "mixed":  # of items with equal IDs one counts; a prefix would count its continuations twice
        unique = torch.unique(ids[ids[:, 0] >= 0], dim=0, return_inverse=True)[1]
        first = torch.stack([(unique == number).nonzero()[0, 0] for number in range(int(unique.max()) + 1)])
        total = scores[:, (ids[:, 0] >= 0).nonzero()[:, 0][first]].exp().sum(1)
        assert (total < 1 + 1e-5).all() and (total > 0).all()


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("most", [1, 5, 10])
@pytest.mark.parametrize("excluding", [False, True])
def test_ranks_up_to_a_cutoff_are_exact(spread, most, excluding):
    """For every user, targets good and bad, with twins, with items left out, and for a target that is left out itself."""
    model, ids, matrix = case(7, spread=spread)
    source = PackedTokens.of(matrix)
    generator = torch.Generator().manual_seed(3)
    exact = ItemRanker(model, ids, "exact")
    scores = exact.scores(source)
    for number in range(6):
        if number < 3:
            target = scores.topk(1 + number * 4).indices[:, -1]
        else:
            target = torch.randint(1, len(ids), (len(matrix),), generator=generator)
        exclude = torch.randint(-1, len(ids), (len(matrix), 5), generator=generator) if excluding else None
        if exclude is not None:
            exclude[0, 0] = target[0]
        shown = scores.clone()
        if exclude is not None:
            for row, items in enumerate(exclude.tolist()):
                shown[row, [item for item in items if item >= 0]] = -torch.inf
        own = shown.gather(1, target[:, None])
        expected = torch.where(own[:, 0] > -torch.inf, (shown >= own).sum(1), len(ids))
        assert torch.equal(exact.rank(source, target, most, exclude), expected)
        if exclude is None and (scores[:, 1:] > -torch.inf).all():
            assert torch.equal(expected, rank_of(scores, target))
        got = ItemRanker(model, ids, "cutoff").rank(source, target, most, exclude)
        assert torch.equal(got, expected.clamp(max=most + 1)), number


def test_the_best_items_are_exact_with_and_without_some_left_out():
    model, ids, matrix = case(11)
    source = PackedTokens.of(matrix)
    exact, cutoff = ItemRanker(model, ids, "exact"), ItemRanker(model, ids, "cutoff")
    scores = exact.scores(source)
    for exclude in (None, torch.randint(-1, len(ids), (len(matrix), 6), generator=torch.Generator().manual_seed(1))):
        shown = scores.clone()
        for row, items in enumerate([] if exclude is None else exclude.tolist()):
            shown[row, [item for item in items if item >= 0]] = -torch.inf
        for ranker in (exact, cutoff):
            best, items = ranker.top_k(source, 8, exclude)
            assert torch.allclose(best, shown.topk(8).values, atol=1e-5)
            assert torch.allclose(shown.gather(1, items), best, atol=1e-5)
            assert all(len(set(row)) == 8 for row in items.tolist())
    best, items = cutoff.top_k(source, len(ids) + 5)
    missing = int((scores[0] == -torch.inf).sum()) + 5
    assert (items[:, -missing:] == -1).all() and (best[:, -missing:] == -torch.inf).all()
    assert (items[:, : len(ids) + 5 - missing] >= 0).all()


@pytest.mark.parametrize("full", [True, False])
def test_a_beam_as_wide_as_the_catalog_finds_all_and_a_narrow_one_only_real_items(full):
    model, ids, matrix = case(5, full=full)
    source = PackedTokens.of(matrix)
    scores = ItemRanker(model, ids, "exact").scores(source)
    target = torch.randint(1, len(ids), (len(matrix),), generator=torch.Generator().manual_seed(2))
    wide = ItemRanker(model, ids, "beam", beams=200).rank(source, target, 10)
    assert torch.equal(wide, ItemRanker(model, ids, "exact").rank(source, target, 10))
    narrow = ItemRanker(model, ids, "beam", beams=3)
    best, items = narrow.top_k(source, 3)
    assert torch.allclose(scores.gather(1, items.clamp(min=0))[items >= 0], best[items >= 0], atol=1e-5)
    if full:  # greedy search: the best child at every level
        ranker = ItemRanker(model, ids, "beam", beams=1)
        node = torch.zeros(1, dtype=torch.int64)
        row = PackedTokens.of(matrix[4:5])
        encoded, tokens = model.encode(row), [0]
        while bool(ranker.trie.has_children(node)):
            child = ranker.trie.children(node)[1]
            with torch.no_grad():
                logits = model.logits(model.decode(torch.tensor([tokens]), encoded))[0, -1]
            node = child[logits[ranker.trie.token[child]].argmax()][None]
            tokens.append(int(ranker.trie.token[node]))
        assert int(ranker.top_k(row, 1)[1][0, 0]) in ranker.trie.items_at(node)[1].tolist()
    with pytest.raises(ValueError, match=r"beams is 3.*10"):
        narrow.rank(source, target, 10)
    with pytest.raises(ValueError, match="'best'"):
        ItemRanker(model, ids, "best")


def test_walks_that_take_too_much_memory_are_cut_into_smaller_ones(monkeypatch):
    model, ids, matrix = case(2)
    source = PackedTokens.of(matrix)
    target = torch.full((len(matrix),), 5)
    ranker = ItemRanker(model, ids)
    expected = ranker.rank(source, target, 10)
    monkeypatch.setattr(search, "MOST_PREFIXES", 3)
    assert torch.equal(ranker.rank(source, target, 10), expected)


def test_an_untrained_softmax_without_logits_ties_all_items_against_the_model():
    """All-zero tables: every item has minus the sum of the logarithms of the vocabulary, and the target is ranked last."""
    model, ids, matrix = case(3, full=True)
    with torch.no_grad():
        model.embedding.zero_()
    ranker = ItemRanker(model, ids, "exact")
    scores = ranker.scores(PackedTokens.of(matrix))
    expected = -4 * torch.tensor(float(VOCAB)).log()
    assert torch.allclose(scores[:, 1:], expected.expand(len(matrix), len(ids) - 1))
    ranks = ranker.rank(PackedTokens.of(matrix), torch.full((len(matrix),), 9), 10)
    assert (ranks == len(ids) - 1).all()
    assert (ItemRanker(model, ids).rank(PackedTokens.of(matrix), torch.full((len(matrix),), 9), 10) == 11).all()
