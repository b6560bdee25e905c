"""recbole_qbert.sequence.candidates: the softmax over a sample against the full one, and steps that touch few rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.recbole_integration.optimizer import WarmupAdamW, stored_gradients
from recbole_qbert.sequence.candidates import CandidateSampler
from recbole_qbert.sequence.model import SemanticSequenceModel
from tests.helpers import sequence_config

ITEMS = 12
ROWS = torch.tensor([[1, 2, 3, 0], [2, 4, 5, 6], [1, 7, 0, 0], [8, 2, 9, 0], [5, 1, 5, 0]])
LENGTHS = torch.tensor([3, 4, 2, 3, 3])
TAIL = {"tail": 0.1}


def make(loss, **changes):
    torch.manual_seed(0)
    codes = torch.randint(4, (ITEMS, 3))
    codes[0] = -1
    network = SemanticSequenceModel(sequence_config(loss=loss, **changes), codes, 4).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("use_item_embedding", [True, False])
@pytest.mark.parametrize("views", [("causal",), ("masked",), ("causal", "masked")])
def test_a_sample_of_all_items_gives_loss_and_gradients_of_the_full_softmax(views, use_item_embedding):
    full, sampled = (make(loss, views=views, use_item_embedding=use_item_embedding) for loss in ("item", "sampled"))
    expected = full.loss(ROWS, LENGTHS, views, TAIL)
    loss = sampled.loss(ROWS, LENGTHS, views, TAIL, sampler=CandidateSampler(ROWS, ITEMS, ITEMS - 1))
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    for (name, mine), (_, theirs) in zip(sampled.named_parameters(), full.named_parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad.to_dense(), theirs.grad, msg=name)


def estimate(items, log_weight, own, scores):
    """The sum that the softmax of a position divides by, of all items but those of its own row."""
    others = [(item, weight) for item, weight in zip(items.tolist(), log_weight.exp().tolist(), strict=True) if item]
    return sum(scores[item] * weight for item, weight in others if item not in own)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_estimated_sum_is_that_of_all_items_on_average(monkeypatch, size):
    """All batches that a row can be in and all uniform draws, one by one: the mean over them is exact."""
    scores = torch.linspace(0.5, 3.0, ITEMS).tolist()
    own = set(ROWS[0].tolist())
    drawn = 2
    sampler = CandidateSampler(ROWS, ITEMS, drawn)
    batches = list(itertools.combinations(range(1, len(ROWS)), size - 1))
    draws = list(itertools.product(range(1, ITEMS), repeat=drawn))
    total = 0.0
    for batch, draw in itertools.product(batches, draws):
        monkeypatch.setattr(torch, "randint", lambda *_, draw=draw, **__: torch.tensor(draw))
        total += estimate(*sampler.draw(ROWS[[0, *batch]]), own, scores)
    expected = sum(score for item, score in enumerate(scores) if item and item not in own)
    assert total / (len(batches) * len(draws)) == pytest.approx(expected, rel=1e-5)


def test_the_own_row_counts_once_and_later_items_of_it_are_no_heavier():
    """A hand-made sample in which every other item counts e times, against a softmax written out."""
    network = make("sampled", views=("causal",), repeat_penalty="none")

    class Sampler(CandidateSampler):
        def draw(self, batch, generator=None):
            del batch, generator
            weight = torch.ones(ITEMS)
            return torch.arange(ITEMS), weight

    row, length = ROWS[1:2], LENGTHS[1:2]
    loss = network.loss(row, length, "causal", {}, sampler=Sampler(ROWS, ITEMS, 2))
    table = network.item_table()
    logits = network.causal_states(row, length - 1, table) @ table.T
    logits[:, [i for i in range(ITEMS) if i not in row.tolist()[0]]] += 1.0
    logits[:, 0] = -torch.inf
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, row[0, 1:]))


def test_a_step_changes_the_candidates_alone():
    network = make("sampled", views=("causal",))
    sampler = CandidateSampler(ROWS, ITEMS, 1)
    optimizer = WarmupAdamW(
        [{"params": list(network.parameters()), "weight_decay": 0.1}], lr=0.1, betas=(0.9, 0.9), warmup_steps=0
    )
    before = network.item_embedding.detach().clone()
    candidates, _ = sampler.draw(ROWS[:2], torch.Generator().manual_seed(3))
    network.loss(ROWS[:2], LENGTHS[:2], "causal", {}, torch.Generator().manual_seed(3), sampler=sampler).backward()
    optimizer.step()
    changed = (network.item_embedding != before).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) - {0} == set(candidates.tolist()) - {0}, "padding only decays"
    assert len(candidates) < ITEMS


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_with_a_gradient_everywhere_sparse_steps_are_those_of_adamw(steps, seed):
    torch.manual_seed(seed)
    start = torch.randn(6, 3)
    parameters = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [
        WarmupAdamW([{"params": [p], "weight_decay": 0.1}], lr=0.05, betas=(0.9, 0.98), warmup_steps=3) for p in parameters
    ]
    for _ in range(steps):
        gradient = torch.randn(6, 3)
        for sparse, (parameter, optimizer) in enumerate(zip(parameters, optimizers, strict=True)):
            parameter.grad = gradient.to_sparse(1) if sparse else gradient.clone()
            torch.nn.utils.clip_grad_norm_(stored_gradients([parameter]), 0.5)
            optimizer.step()
    torch.testing.assert_close(*parameters)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_step_that_a_scaler_leaves_out_changes_nothing(is_sparse):
    parameter = torch.nn.Parameter(torch.ones(6, 3))
    optimizer = WarmupAdamW([{"params": [parameter], "weight_decay": 0.1}], lr=0.1, betas=(0.9, 0.9), warmup_steps=0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    gradient = torch.full((6, 3), torch.inf)
    parameter.grad = gradient.to_sparse(1) if is_sparse else gradient
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert (parameter == 1).all()


def test_without_a_sampler_the_loss_says_what_is_missing():
    with pytest.raises(ValueError, match="sampler"):
        make("sampled").loss(ROWS, LENGTHS, "causal", {})
