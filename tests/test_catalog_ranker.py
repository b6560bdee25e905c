"""recbole_qbert.retrieval.catalog_ranker: the order of the network's own scores, without holding them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recbole_qbert.config.schema import SequenceConfig
from recbole_qbert.retrieval import torch_backend
from recbole_qbert.retrieval.catalog_ranker import CatalogRanker
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.sequence.scoring import rank_of, top_k

ITEMS, LEVELS, SIZE, USERS, LONGEST = 41, 4, 8, 23, 7
CONFIG = SequenceConfig(
    hidden_size=16, n_layers=1, n_heads=2, inner_size=16, hidden_dropout_prob=0.0, attn_dropout_prob=0.0,
    initializer_range=0.4, max_length=LONGEST, views=("causal", "masked"), loss="item", use_item_embedding=True,
    repeat_penalty="learned",
)  # fmt: skip
KINDS = {
    "default": CONFIG,
    "codes": replace(CONFIG, use_item_embedding=False),
    "one view": replace(CONFIG, use_item_embedding=False, views=("causal",), repeat_penalty="none"),
    "excluded": replace(CONFIG, repeat_penalty="exclude"),
    "code loss": replace(CONFIG, use_item_embedding=False, loss="code", repeat_penalty="none"),
    "code loss, excluded": replace(CONFIG, use_item_embedding=False, loss="code", repeat_penalty="exclude"),
}


def make_network(config: SequenceConfig, domains: bool = False) -> SemanticSequenceModel:
    torch.manual_seed(5)
    codes = torch.randint(0, SIZE, (ITEMS, LEVELS))
    codes[3, 2:] = -1  # an item without the second modality
    codes[0] = -1
    of_item = torch.arange(ITEMS) % 3 if domains else None
    network = SemanticSequenceModel(config, codes, SIZE, of_item).eval()
    if network.repeat_penalty is not None:
        torch.nn.init.constant_(network.repeat_penalty, 0.03)
    return network


def histories(domains: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(9)
    sequences = torch.randint(1, ITEMS, (USERS, LONGEST), generator=random)
    target = torch.randint(1, ITEMS, (USERS,), generator=random)
    if domains:  # all of a history, and its target, in the domain of its first item
        of_user = torch.arange(USERS)[:, None] % 3
        sequences = (sequences // 3 * 3 + of_user).clamp(max=ITEMS - 1)
        sequences = torch.where(sequences % 3 == of_user, sequences, of_user + 3)
        target = sequences[:, 0] % 3 + 6
    lengths = torch.randint(1, LONGEST + 1, (USERS,), generator=random)
    sequences[torch.arange(LONGEST) >= lengths[:, None]] = 0
    return sequences, lengths, target


def make_prior() -> CooccurrencePrior:
    random = np.random.default_rng(3)
    prior = CooccurrencePrior([random.integers(1, ITEMS, 5) for _ in range(30)], ITEMS)
    prior.weight.fill_(0.7)
    return prior


def brute_force(network, prior, sequences, lengths, exclude=None):
    with torch.no_grad():
        scores = network.scores(sequences, lengths)
        if prior is not None:
            scores = scores + prior(sequences, lengths)
    if exclude is not None:
        scores.scatter_(1, exclude.clamp(min=0), -torch.inf)
    return scores


@pytest.fixture(params=[1 << 10, 16], ids=["one chunk", "three chunks"])
def chunked(request, monkeypatch):
    monkeypatch.setattr(torch_backend, "MIN_CHUNK", min(16, request.param))
    monkeypatch.setattr(torch_backend, "MAX_CHUNK", request.param)


@pytest.mark.pipeline
@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("with_prior", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_order_and_numbers_are_those_of_the_scores(kind, with_prior, dense):
    network, prior = make_network(KINDS[kind]), make_prior() if with_prior else None
    sequences, lengths, target = histories()
    ranker = CatalogRanker(network, prior, dense=dense)
    for exclude in (None, torch.where(sequences > 0, sequences, -1)):
        scores = brute_force(network, prior, sequences, lengths, exclude)
        wanted, order = top_k(scores, 12)
        found, items = ranker.top_k(sequences, lengths, 12, exclude=exclude)
        assert torch.allclose(found, wanted, atol=2e-5)
        assert torch.equal(items, order)
        assert torch.equal(ranker.rank(sequences, lengths, target, exclude=exclude), rank_of(scores, target))
        raw, same = ranker.top_k(sequences, lengths, 12, exclude=exclude, normalised=False)
        assert torch.equal(same, items)
        apart = raw - found  # one number a user
        assert torch.allclose(apart, apart[:, :1].expand_as(apart), atol=2e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_items_of_other_domains_are_no_answers(dense):
    network = make_network(KINDS["codes"], domains=True)
    sequences, lengths, target = histories(domains=True)
    ranker = CatalogRanker(network, dense=dense)
    scores = brute_force(network, None, sequences, lengths)
    wanted, order = top_k(scores, 8)
    found, items = ranker.top_k(sequences, lengths, 8)
    assert torch.equal(items, order) and torch.allclose(found, wanted, atol=2e-5)
    assert torch.equal(ranker.rank(sequences, lengths, target), rank_of(scores, target))


def test_more_answers_than_items_are_empty_places():
    sequences, lengths, _ = histories()
    scores, items = CatalogRanker(make_network(CONFIG)).top_k(sequences, lengths, ITEMS + 3)
    assert (items[:, ITEMS - 1 :] == -1).all() and (scores[:, ITEMS - 1 :] == -torch.inf).all()
    assert (items[:, : ITEMS - 1].sort(1).values == torch.arange(1, ITEMS)).all()


def test_lifts_are_what_the_prior_adds_above_its_floor():
    prior = make_prior()
    sequences, lengths, _ = histories()
    items, amounts = prior.sparse_logits(sequences, lengths)
    filled = torch.full((USERS, ITEMS), prior.base_logit)
    user, place = (items >= 0).nonzero(as_tuple=True)
    assert len({(int(u), int(i)) for u, i in zip(user, items[user, place], strict=True)}) == len(user)  # none twice
    filled[user, items[user, place]] += amounts[user, place]
    assert torch.allclose(filled, prior(sequences, lengths), atol=1e-6)
    nobody, nothing = CooccurrencePrior([np.array([1]), np.array([2])], ITEMS).sparse_logits(sequences, lengths)
    assert nobody.shape == nothing.shape == (USERS, 0)  # items that never occur together


def test_the_passes_hold_no_whole_matrix(monkeypatch):
    """Scores are asked for a chunk at a time, whatever is asked."""
    monkeypatch.setattr(torch_backend, "MIN_CHUNK", 8)
    monkeypatch.setattr(torch_backend, "MAX_CHUNK", 8)
    network = make_network(KINDS["default"])
    ranker, widest = CatalogRanker(network), []
    scorer = ranker.index.chunked.scorer

    def watched(queries):
        score = scorer(queries)

        def part(start, stop):
            found = score(start, stop)
            widest.append(found.shape[1])
            return found

        return part

    monkeypatch.setattr(ranker.index.chunked, "scorer", watched)
    sequences, lengths, target = histories()
    ranker.top_k(sequences, lengths, 5)
    ranker.rank(sequences, lengths, target)
    assert max(widest) == 8 and sum(widest) >= 3 * ITEMS


@pytest.mark.parametrize("kind", ["default", "codes", "code loss"])
def test_no_histories_no_answers(kind):
    ranker = CatalogRanker(make_network(KINDS[kind]), make_prior(), dense=False)
    nobody, lengths = torch.empty(0, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    scores, items = ranker.top_k(nobody, lengths, 3)
    assert scores.shape == items.shape == (0, 3) and ranker.rank(nobody, lengths, lengths).shape == (0,)
