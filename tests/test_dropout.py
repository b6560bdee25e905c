"""recbole_qbert.sequence.dropout: the rate, the scale, the gradient, the seed."""

from __future__ import annotations

import pytest
import torch

from recbole_qbert.sequence.dropout import dropout


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.95])
def test_rate_scale_and_gradient(rate):
    torch.manual_seed(1)
    values = torch.full((1001, 333), 2.0, requires_grad=True)  # no multiple of four
    out = dropout(values, rate, True)
    lost = out == 0
    spread = (rate * (1 - rate) / values.numel()) ** 0.5
    assert abs(float(lost.double().mean()) - rate) < 5 * spread
    assert torch.allclose(out[~lost], torch.tensor(2 / (1 - rate)))
    out.sum().backward()
    assert torch.equal(values.grad == 0, lost) and torch.allclose(values.grad[~lost], torch.tensor(1 / (1 - rate)))


def test_every_place_is_lost_as_often():
    """Four elements share a draw; none of them may be favoured, nor go with its neighbours."""
    torch.manual_seed(2)
    lost = (dropout(torch.ones(200_000, 4), 0.3, True) == 0).double()
    assert torch.allclose(lost.mean(0), torch.full((4,), 0.3, dtype=torch.double), atol=0.006)
    together = torch.corrcoef(lost.T) - torch.eye(4)
    assert float(together.abs().max()) < 0.012


def test_seeds_repeat_and_evaluation_changes_nothing():
    values = torch.randn(7, 5)
    torch.manual_seed(3)
    first, second = dropout(values, 0.5, True), dropout(values, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.5, True), first) and not torch.equal(first, second)
    assert dropout(values, 0.5, False) is values and dropout(values, 0.0, True) is values


def test_half_precision_keeps_its_type():
    torch.manual_seed(4)
    out = dropout(torch.ones(64, 64, dtype=torch.bfloat16), 0.5, True)
    assert out.dtype == torch.bfloat16 and set(out.unique().tolist()) == {0.0, 2.0}
