"""recbole_qbert.sequence.cooccurrence_prior: counts, vectors and the prior by hand on tiny histories."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.data.content_neighbors import nearest
from recbole_qbert.data.cooccurrence import cosine, counts
from recbole_qbert.injection.structural_vectors import vectors
from recbole_qbert.sequence import cooccurrence_prior, prior_fitting
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.prior_fitting import EPSILONS, WEIGHTS, fit_prior
from recbole_qbert.sequence.scoring import rank_of

HISTORIES = [np.array(h) for h in ([0, 1, 1], [1, 2], [0, 1, 2], [3])]  # item 4 is in nobody's history
COUNTS = [[2, 2, 1, 0, 0], [2, 3, 2, 0, 0], [1, 2, 2, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]

SEQUENCES = st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=12)


def test_counts_by_hand():
    assert counts(HISTORIES, 5).toarray().tolist() == COUNTS


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_counts_equal_brute_force(sequences):
    found = counts([np.array(s, dtype=np.int64) for s in sequences], 8).toarray()
    for i in range(8):
        for j in range(8):
            assert found[i, j] == sum(i in s and j in s for s in sequences)


def test_no_histories_count_nothing():
    assert counts([], 3).toarray().tolist() == [[0] * 3] * 3


def test_cosine_by_hand():
    found = cosine(counts(HISTORIES, 5)).toarray()
    wanted = np.zeros((5, 5))
    wanted[0, 1] = wanted[1, 0] = 2 / math.sqrt(2 * 3)
    wanted[0, 2] = wanted[2, 0] = 1 / 2
    wanted[1, 2] = wanted[2, 1] = 2 / math.sqrt(2 * 3)
    assert found == pytest.approx(wanted)


# -------------------------------------------------------------------------------- item vectors


def positive_information(sequences, items):
    """PPMI, one pair at a time."""
    matrix = np.zeros((items, items))
    for i in range(items):
        for j in range(items):
            both, one, other = (sum(set(w) <= set(s) for s in sequences) for w in ([i, j], [i], [j]))
            if i != j and both:
                matrix[i, j] = max(math.log(both * len(sequences) / (one * other)), 0.0)
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_full_rank_vectors_hold_the_whole_ppmi_matrix(seed):
    """With P = U S V', the vectors X = U sqrt(S) give X X' = U S U', whose square is P P'."""
    random = np.random.default_rng(seed)
    sequences = [random.choice(9, random.integers(2, 6), replace=False).tolist() for _ in range(15)]
    wanted = positive_information(sequences, 10)  # item 9 is cold, so the rank is at most N - 1
    assert wanted.any()
    found = vectors([np.array(s) for s in sequences], 10, 9, 0).astype(float)
    gram = found @ found.T
    assert gram @ gram == pytest.approx(wanted @ wanted.T, abs=1e-3)
    assert not found[9].any()


def test_fewer_dimensions_keep_the_strongest():
    random = np.random.default_rng(0)
    sequences = [random.choice(20, 4, replace=False) for _ in range(40)]
    full = vectors(sequences, 20, 19, 0)
    part = vectors(sequences, 20, 5, 0)
    strength = np.linalg.svd(positive_information(sequences, 20))[1]
    assert (part**2).sum(0) == pytest.approx(strength[:5], rel=0.02)
    assert np.abs(np.abs((full[:, :2] * part[:, :2]).sum(0)) - strength[:2]).max() < 0.05 * strength[0]


def test_vectors_of_tiny_catalogs_are_filled_up_with_zeros():
    found = vectors([np.array([0, 1]), np.array([2])], 3, 8, 0)
    assert found.shape == (3, 8)
    assert found.dtype == np.float32
    assert found[0].any()
    assert not found[2].any()  # never with another item
    assert not found[:, 2:].any()


@pytest.mark.parametrize("sequences", [[], [[0], [1]], [[0, 1, 2]]])
def test_without_evidence_all_vectors_are_zero(sequences):
    assert not vectors([np.array(s) for s in sequences], 3, 4, 0).any()


def test_items_of_the_same_company_get_like_vectors():
    sequences = [np.array(s) for s in ([0, 2], [1, 2], [0, 3], [1, 3], [4, 5], [4, 6], [7])]
    found = vectors(sequences, 8, 7, 0)
    norm = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    match = norm @ norm.T
    assert match[0, 1] > 0.99
    assert abs(match[0, 4]) < 0.01


def test_with_the_own_sequence_left_out_a_pair_of_one_history_says_nothing():
    """A pair that n histories hold counts n - 1: what each of them would find without itself."""
    sequences = [np.array(s) for s in ([0, 1], [2, 3], [2, 3], [4, 5], [4, 5], [4, 5])]
    found = vectors(sequences, 6, 6, 0, own_left_out=True).astype(float)
    assert not found[:2].any() and vectors(sequences, 6, 6, 0)[:2].any()
    # PPMI of the other pairs: log(1 * 6 / (2 * 2)) and log(2 * 6 / (3 * 3)).
    lengths = np.square(found).sum(1)
    assert lengths[2:] == pytest.approx([math.log(6 / 4)] * 2 + [math.log(12 / 9)] * 2, abs=1e-5)


def test_vectors_are_the_same_for_the_same_seed():
    sequences = [np.random.default_rng(n).choice(30, 5, replace=False) for n in range(40)]
    assert np.array_equal(vectors(sequences, 30, 6, 1), vectors(sequences, 30, 6, 1))


# -------------------------------------------------------------------------------- the prior


def test_share_by_hand():
    prior = CooccurrencePrior(HISTORIES, 5)
    share = prior.share(torch.tensor([[0, 4, 9], [0, 0, 2]]), torch.tensor([1, 3]))  # 9 stands behind the row's length
    a, b = 2 / math.sqrt(6), 1 / 2
    assert share[0].tolist() == pytest.approx([0, a / (a + b), b / (a + b), 0, 0])
    assert share[1].tolist() == pytest.approx([0, 1, 0, 0, 0])  # items of the history take nothing


@pytest.mark.pipeline
@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5), min_size=1, max_size=4))
def test_share_equals_brute_force_and_is_zero_on_the_history(training, histories):
    prior = CooccurrencePrior([np.array(s, dtype=np.int64) for s in training], 8)
    lengths = torch.tensor([len(h) for h in histories])
    rows = torch.tensor([h + [7] * (5 - len(h)) for h in histories])
    similar = cosine(counts([np.array(s, dtype=np.int64) for s in training], 8)).toarray()
    share = prior.share(rows, lengths)
    for row, history in zip(share.tolist(), histories, strict=True):
        wanted = np.array([0.0 if i in history else sum(similar[i, j] for j in set(history)) for i in range(8)])
        assert row == pytest.approx((wanted / wanted.sum() if wanted.sum() else wanted).tolist(), abs=1e-6)
        assert sum(row) == pytest.approx(1.0 if wanted.sum() else 0.0, abs=1e-5)
        assert all(row[item] == 0.0 for item in history)


def test_a_prior_knows_only_what_it_was_given():
    """The same training histories, the same shares; a held-out pair shows only where it is passed."""
    question = (torch.tensor([[0]]), torch.tensor([1]))
    training = [np.array([0, 1]), np.array([2, 3])]
    one, same = (
        CooccurrencePrior(training, 4).share(*question),
        CooccurrencePrior(training, 4).share(*question),
    )
    leaked = CooccurrencePrior([*training, np.array([0, 3])], 4).share(*question)
    assert torch.equal(one, same)
    assert one[0].tolist() == [0, 1, 0, 0]
    assert leaked[0, 3] > 0


def test_weight_zero_adds_nothing_and_other_weights_add_the_log_share():
    prior = CooccurrencePrior(HISTORIES, 5)
    question = (torch.tensor([[0]]), torch.tensor([1]))
    assert not prior(*question).any()
    prior.weight.fill_(2.0)
    prior.epsilon.fill_(0.01)
    torch.testing.assert_close(prior(*question), 2 * torch.log(prior.share(*question) + 0.01))


def test_only_what_is_fitted_is_kept_in_a_checkpoint():
    prior = CooccurrencePrior(HISTORIES, 5)
    assert set(prior.state_dict()) == {"weight", "epsilon", "shrink", "decay", "content_weight"}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from([0.0, 2.5]),
    st.sampled_from([1.0, 0.7]),
    st.booleans(),
)
def test_evidence_equals_brute_force(training, asked, shrink, decay, with_history):
    prior = CooccurrencePrior([np.array(history) for history in training], 8, shrink, decay)
    width = max(map(len, asked))
    sequences = torch.tensor([history + [0] * (width - len(history)) for history in asked])
    row, item, found = prior.evidence(sequences, torch.tensor([len(history) for history in asked]), with_history)
    mine = dict(zip(zip(row.tolist(), item.tolist(), strict=True), found.tolist(), strict=True))
    holds = [set(history) for history in training]
    true = {}
    for user, history in enumerate(asked):
        for i in range(8):
            total = 0.0
            for j in set(history) - {i}:
                together = sum(i in held and j in held for held in holds)
                size = math.sqrt(sum(i in held for held in holds) * sum(j in held for held in holds))
                age = history[::-1].index(j)  # of its newest occurrence
                total += decay**age * together / (size + shrink) if together else 0.0
            if total > 0 and (with_history or i not in history):
                true[user, i] = total
    assert mine.keys() == true.keys() and len(mine) == len(row)
    for key, value in true.items():
        assert mine[key] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("key", ["shrink", "decay"])
def test_shrink_and_decay_are_fitted(key):
    """Pairs of rare items mislead (shrink), or old items do (decay); the other knob changes nothing."""
    if key == "shrink":  # 0 goes with 1 in 1 of 1 and with 2 in 30 of 40 cases: the larger share is the rarer pair
        training = [np.array([0, 1])] + [np.array([3, 2])] * 30 + [np.array([3]), np.array([2])] * 10
        history, target = [3, 0], 2
    else:  # the newest item's neighbour is the answer, the older one's is stronger
        training = [np.array([0, 1])] * 20 + [np.array([3, 2])] * 9 + [np.array([3])] * 11
        history, target = [0, 3], 2
    prior = CooccurrencePrior(training, 5)
    batch = (lambda: torch.zeros(1, 5), torch.tensor([history]), torch.tensor([2]), torch.tensor([target]))
    found = fit_prior(prior, lambda: [batch])
    assert found[key] != (0.0 if key == "shrink" else 1.0)
    assert prior.share(*batch[1:3]).argmax() == target and found["ndcg@10"] == 1.0


# ---------------------------------------------------------------------------- likeness of content


def likeness(seed: int, items: int) -> sp.csr_matrix:
    random = np.random.default_rng(seed)
    dense = np.where(random.random((items, items)) < 0.3, random.random((items, items)), 0.0).astype(np.float32)
    np.fill_diagonal(dense, 0.0)
    return sp.csr_matrix(dense)


@pytest.mark.parametrize("content_weight", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_evidence_of_content_equals_brute_force(seed, content_weight):
    random = np.random.default_rng(seed)
    training = [random.choice(8, random.integers(1, 6), replace=False) for _ in range(9)]
    content, shrink, decay = likeness(seed, 9), 2.5, 0.7  # item 8 is in no history
    prior = CooccurrencePrior(training, 9, shrink, decay, content, content_weight)
    count = counts(training, 9).toarray()
    scale = cosine(counts(training, 9)).sum() / content.sum()
    history = [3, 8, 1]
    expected = np.zeros(9)
    for age, j in enumerate(reversed(history)):
        for i in set(range(9)) - set(history):
            both = count[i, j] / (math.sqrt(count[i, i] * count[j, j]) + shrink)
            expected[i] += decay**age * (both + content_weight * scale * content[j, i])
    share = prior.share(torch.tensor([history]), torch.tensor([3]))[0].numpy()
    assert share == pytest.approx(expected / max(expected.sum(), 1e-12), rel=1e-4, abs=1e-7)


def test_pairs_of_content_alone_are_dropped_where_it_has_no_weight():
    content = likeness(1, 5)
    plain = CooccurrencePrior(HISTORIES, 5)
    prior = CooccurrencePrior(HISTORIES, 5, content=content)
    prior.drop_unused_pairs()
    assert torch.equal(prior.pair, plain.pair) and torch.equal(prior.value, plain.value)
    kept = CooccurrencePrior(HISTORIES, 5, content=content, content_weight=0.1)
    kept.drop_unused_pairs()
    assert kept.pair.shape[1] > plain.pair.shape[1]


def test_a_state_of_a_prior_without_content_loads():
    state = CooccurrencePrior(HISTORIES, 5, shrink=3.0).state_dict()
    del state["content_weight"]
    prior = CooccurrencePrior(HISTORIES, 5, content_weight=0.5)
    prior.load_state_dict(state)
    assert prior.content_weight == 0 and prior.shrink == 3


def test_a_state_with_content_is_refused_where_there_is_none():
    state = CooccurrencePrior(HISTORIES, 5, content=likeness(1, 5), content_weight=0.5).state_dict()
    with pytest.raises(ValueError, match=r"content_weight 0\.5.*features"):
        CooccurrencePrior(HISTORIES, 5).load_state_dict(state)


def test_nearest_equals_brute_force_and_leaves_the_featureless_alone():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(60, 5)).astype(np.float32)
    vectors[7] = 0
    found = nearest(vectors).toarray()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -1)
    for row in range(60):
        expected = np.zeros(60)
        top = np.argsort(-similar[row], kind="stable")[:20]
        expected[top] = np.maximum(similar[row, top], 0) ** 3
        assert found[row] == pytest.approx(expected, abs=1e-5)
    assert not found[7].any() and not found[:, 7].any()


def test_content_is_fitted_where_it_helps_and_left_out_where_it_does_not():
    """Item 4 is in nobody's history; its content is that of item 0."""
    content = sp.csr_matrix(([1.0], ([0], [4])), shape=(5, 5), dtype=np.float32)
    for target, expected in ((4, True), (1, False)):
        prior = CooccurrencePrior(HISTORIES, 5, content=content)
        batch = (lambda: torch.zeros(1, 5), torch.tensor([[0]]), torch.tensor([1]), torch.tensor([target]))
        found = fit_prior(prior, lambda batch=batch: [batch])
        assert (found["content_weight"] > 0) == expected == (float(prior.content_weight) > 0)
        assert found["ndcg@10"] > found["ndcg@10_without"]


# -------------------------------------------------------------------------------- its weight


class Evidence:
    """Stands for a prior whose shares are given, whatever shrink and decay."""

    def __init__(self, share):
        self.given, self.weight, self.epsilon = share, torch.tensor(-1.0), torch.tensor(-1.0)
        self.shrink, self.decay, self.items = torch.tensor(0.0), torch.tensor(1.0), max(share.shape)
        self.content_weight, self.likeness = torch.tensor(0.0), torch.zeros(0)
        self.pair = torch.zeros(2, 0, dtype=torch.long)

    def shrunk(self, shrink):
        return torch.zeros(0)

    def neighbor_pairs(self, sequences, lengths):
        row, item = self.given[sequences[:, 0]].nonzero(as_tuple=True)
        return cooccurrence_prior.NeighborPairs(row, item, pair=sequences[:, 0], age=row, target=row)

    def drop_unused_pairs(self):
        pass

    def shares(self, links, users):
        return self.given[links.pair][links.row, links.item]


def ask(users):
    return torch.arange(users)[:, None], torch.ones(users, dtype=torch.long)


@pytest.mark.parametrize("wanted", [0.4, 1.0, 2.0])
def test_the_planted_weight_is_found(wanted):
    """The first user needs ``wanted`` or more, the second bears ``wanted`` and no more."""
    lighter, heavier = (WEIGHTS[WEIGHTS.index(wanted) + step] for step in (-1, 1))
    prior = Evidence(torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]))
    gap = math.log(0.9 / 0.1)  # what a weight of 1 moves between the first two items
    scores = torch.tensor([[0.0, gap * (lighter + wanted) / 2, -99.0], [0.0, -gap * (wanted + heavier) / 2, -99.0]])
    found = fit_prior(prior, lambda: [(lambda: scores, *ask(2), torch.tensor([0, 0]))])
    assert found["weight"] == wanted == pytest.approx(prior.weight.item())
    assert found["ndcg@10"] == 1.0
    assert found["ndcg@10_without"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert prior.epsilon.item() in [pytest.approx(e) for e in EPSILONS]


def test_misleading_evidence_gets_no_weight():
    prior = Evidence(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    found = fit_prior(prior, lambda: [(lambda: torch.tensor([[1.0, 0.0], [0.0, 1.0]]), *ask(2), torch.tensor([0, 1]))])
    assert found["weight"] == 0.0 == prior.weight.item()
    assert found["ndcg@10"] == found["ndcg@10_without"] == 1.0


def test_all_batches_count_alike_by_user():
    """One user in the first batch is hurt by evidence that helps three in the second."""
    prior = Evidence(torch.tensor([[0.01, 0.99]] * 3))
    good = (lambda: torch.tensor([[0.1, 0.0]] * 3), *ask(3), torch.tensor([1, 1, 1]))
    bad = (lambda: torch.tensor([[0.1, 0.0]]), *ask(1), torch.tensor([0]))
    found = fit_prior(prior, lambda: [bad, good])
    assert found["weight"] > 0
    assert found["ndcg@10"] == pytest.approx((3 + 1 / math.log2(3)) / 4)
    assert found["ndcg@10_without"] == pytest.approx((1 + 3 / math.log2(3)) / 4)


def test_targets_below_rank_ten_gain_nothing():
    prior = Evidence(torch.full((1, 20), 0.05))
    scores = torch.arange(20.0)[None]
    for target, gain in ((19, 1.0), (10, 1 / math.log2(11)), (9, 0.0)):
        batch = (lambda: scores, *ask(1), torch.tensor([target]))
        found = fit_prior(prior, lambda batch=batch: [batch])
        assert found["ndcg@10"] == pytest.approx(gain)


def test_the_grid_holds_no_weight_and_both_edges():
    assert WEIGHTS[0] == 0.0
    assert list(WEIGHTS) == sorted(WEIGHTS)
    assert prior_fitting.WEIGHTS[-1] > 2.4


@pytest.mark.parametrize("seed", range(3))
def test_ranks_by_evidence_alone_equal_those_of_the_evidence_of_every_choice(seed):
    random = np.random.default_rng(seed)
    items, users = 40, 60
    training = [random.integers(1, items, random.integers(1, 8)) for _ in range(50)]
    content = sp.random(items, items, density=0.1, random_state=seed, dtype=np.float32, format="csr")
    sequences = torch.from_numpy(random.integers(1, items, (users, 6)))  # with items that occur twice
    lengths, target = torch.from_numpy(random.integers(1, 7, users)), torch.from_numpy(random.integers(0, items, users))
    grid = [
        prior_fitting.Evidence(shrink, decay, weight)
        for shrink in (0.0, 3.0)
        for decay in (1.0, 0.7)
        for weight in (0.0, 0.3)
    ]
    prior = CooccurrencePrior(training, items, content=content)
    ranks = prior_fitting._Channels(prior, grid).ranks(sequences, lengths, target)
    for choice, found in zip(grid, ranks, strict=True):
        choice.give_to(prior)
        evidence = torch.zeros(users, items)
        row, item, value = prior.evidence(sequences, lengths)
        evidence[row, item] = value
        needed = evidence.gather(1, target[:, None])
        brute = torch.where(needed[:, 0] > 0, (evidence >= needed * (1 - 1e-6)).sum(1), items)
        assert torch.equal(found, brute)


def test_the_fit_is_that_of_all_scores_of_all_points():
    """Ranks of targets come from lists of the items with evidence; a score of every item gives the same, to the last bit."""
    random = np.random.default_rng(3)
    items, users = 60, 50
    training = [random.choice(np.arange(1, items), random.integers(2, 7), replace=False) for _ in range(80)]
    asked = [training[number] for number in random.integers(0, len(training), users)]
    lengths = torch.tensor([len(history) - 1 for history in asked])
    sequences = torch.zeros(users, 6, dtype=torch.long)
    for row, history in enumerate(asked):
        sequences[row, : len(history) - 1] = torch.from_numpy(history[:-1])
    target = torch.tensor([int(history[-1]) if row % 3 else 7 for row, history in enumerate(asked)])
    scores = torch.from_numpy(random.integers(-9, 9, (users, items)) * 0.25).float()  # ties, and many
    scores[:, 0] = -torch.inf
    scores[4, target[4]] = -torch.inf

    def gain(scores):
        rank = rank_of(scores, target)
        return torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0).sum().item()

    prior, best = CooccurrencePrior(training, items), {}
    for shrink in prior_fitting.SHRINKS:
        for decay in prior_fitting.DECAYS:
            share = CooccurrencePrior(training, items, shrink, decay).share(sequences, lengths)
            best[shrink, decay] = gain(share), share
    chosen = max(best, key=lambda point: best[point][0])
    share = best[chosen][1]
    points = {(w, e): gain(scores + w * torch.log(share + e)) for e in EPSILONS for w in WEIGHTS}
    half = [
        (lambda part=part: scores[part], sequences[part], lengths[part], target[part]) for part in (slice(20), slice(20, 50))
    ]
    found = fit_prior(prior, lambda: half)
    assert (found["shrink"], found["decay"]) == chosen
    assert (found["weight"], found["epsilon"]) == max(points, key=points.__getitem__) and found["weight"] > 0
    assert found["ndcg@10"] == pytest.approx(max(points.values()) / users, rel=1e-6)
    assert found["ndcg@10_without"] == pytest.approx(gain(scores) / users, rel=1e-6)
    assert len(set(points.values())) > 20
