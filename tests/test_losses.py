"""recbole_qbert.sequence.losses: the fused softmax loss and its hand-written gradients against plain autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recbole_qbert.sequence import losses


def plain(hidden, items, target, penalty, seen, valid):
    marks = torch.zeros(len(hidden), len(items), dtype=hidden.dtype)
    marks[seen] = 1.0
    logits = hidden @ items.T - penalty * marks
    return F.cross_entropy(logits.masked_fill(~valid, -torch.inf), target)


def case(positions, count=7, width=3, seed=0, share=0.4):
    torch.manual_seed(seed)
    hidden = torch.randn(positions, width, dtype=torch.float64, requires_grad=True)
    items = torch.randn(count, width, dtype=torch.float64, requires_grad=True)
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(1, count, (positions,))
    seen = (torch.rand(positions, count) < share).nonzero(as_tuple=True)
    valid = torch.arange(count) > 0
    return hidden, items, target, penalty, seen, valid


def both(arguments):
    """(value, gradients of hidden, items and penalty) of the loss and of its plain re-computation."""
    found = []
    for function in (losses.item_softmax_loss, plain):
        loss = function(*arguments)
        found.append([loss, *torch.autograd.grad(2.5 * loss, [arguments[0], arguments[1], arguments[3]])])
    return found


@pytest.mark.parametrize("positions", [1, 3, 4, 5, 8, 9, 13])
def test_value_and_gradients_equal_plain_autograd_across_chunks(positions, monkeypatch):
    monkeypatch.setattr(losses, "MAX_ROWS_CPU", 4)
    for mine, true in zip(*both(case(positions, seed=positions)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.9, 1.0]), st.integers(0, 10**6))
def test_value_and_gradients_equal_plain_autograd_for_any_history(positions, count, share, seed):
    """Histories from empty to the whole catalog, target among them or not."""
    for mine, true in zip(*both(case(positions, count=count, seed=seed, share=share)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


def test_the_chunk_does_not_change_the_result(monkeypatch):
    arguments = case(10)
    whole = both(arguments)[0]
    monkeypatch.setattr(losses, "MAX_ROWS_CPU", 3)
    for mine, true in zip(both(arguments)[0], whole, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)


def test_positions_with_the_same_target_add_up_in_the_items_gradient():
    hidden, items, _, penalty, seen, valid = case(6)
    for mine, true in zip(*both((hidden, items, torch.full((6,), 2), penalty, seen, valid)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


def test_padding_takes_no_share_of_the_softmax_and_gets_no_gradient():
    arguments = case(5)
    hidden, items, target, penalty, seen, valid = arguments
    large = items.detach().clone()
    large[0] = 1e3 * hidden[0].detach()
    large.requires_grad_()
    loss = losses.item_softmax_loss(hidden, large, target, penalty, seen, valid)
    torch.testing.assert_close(loss, losses.item_softmax_loss(*arguments))
    loss.backward()
    assert not large.grad[0].any()
    assert large.grad[1:].any()


def test_a_known_answer():
    """Two items with equal logits, a penalty of ln 3 on the wrong one: probability 3/4."""
    hidden, items = torch.zeros(1, 2), torch.zeros(3, 2)
    seen = (torch.tensor([0]), torch.tensor([2]))
    arguments = (
        hidden,
        items,
        torch.tensor([1]),
        torch.tensor(3.0).log(),
        seen,
        torch.tensor([False, True, True]),
    )
    assert losses.item_softmax_loss(*arguments).item() == pytest.approx(-torch.tensor(0.75).log().item(), rel=1e-6)


def test_large_logits_do_not_overflow():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    items = torch.tensor([[0.0], [1.0], [-1.0]], requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    valid = torch.tensor([False, True, True])
    loss = losses.item_softmax_loss(hidden, items, torch.tensor([2]), torch.tensor(0.0), (none, none), valid)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(items.grad).all()


def test_no_positions_give_zero_and_zero_gradients():
    arguments = case(0)
    loss = losses.item_softmax_loss(*arguments)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, [arguments[0], arguments[1], arguments[3]]):
        assert not gradient.any()


def test_code_loss_is_the_sum_of_the_levels_losses_and_skips_absent_levels():
    torch.manual_seed(0)
    tables = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 1, 2], [4, -1, 0], [-1, -1, -1], [2, 2, -1]])
    chance = tables.log_softmax(2)
    wanted = [-chance[p, k, c] for p, row in enumerate(target.tolist()) for k, c in enumerate(row) if c >= 0]
    loss = losses.code_loss(tables, target)
    torch.testing.assert_close(loss, sum(wanted) / 4)
    (gradient,) = torch.autograd.grad(loss, tables)
    assert not gradient[target < 0].any()
    assert gradient[target >= 0].abs().sum(1).min() > 0


def test_code_loss_of_uniform_tables_is_the_number_of_levels_times_log_m():
    loss = losses.code_loss(torch.zeros(2, 4, 16), torch.randint(16, (2, 4)))
    assert loss.item() == pytest.approx(4 * torch.tensor(16.0).log().item(), rel=1e-6)


def test_under_autocast_products_are_rounded_and_nothing_else():
    hidden, items, target, penalty, seen, valid = (
        a.detach().float() if torch.is_tensor(a) and a.is_floating_point() else a for a in case(9)
    )
    leaves = [hidden.requires_grad_(), items.requires_grad_(), penalty.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.item_softmax_loss(hidden, items, target, penalty, seen, valid)
    assert loss.dtype == torch.float32
    mine = torch.autograd.grad(loss, leaves)
    true = torch.autograd.grad(plain(hidden, items, target, penalty, seen, valid), leaves)
    for one, other in zip(mine, true, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def test_gradients_are_finite_in_float16_over_more_items_than_it_can_count():
    torch.manual_seed(0)
    hidden, items = torch.randn(2, 4), 0.02 * torch.randn(150_000, 4)  # flat logits: the norm is near the number of items
    none = torch.empty(0, dtype=torch.int64)
    leaves = [hidden.requires_grad_(), items.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.float16):
        loss = losses.item_softmax_loss(
            hidden, items, torch.tensor([1, 2]), torch.tensor(0.0), (none, none), torch.ones(len(items), dtype=torch.bool)
        )
    assert all(found.isfinite().all() for found in torch.autograd.grad(loss, leaves))
