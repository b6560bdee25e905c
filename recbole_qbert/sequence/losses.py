"""Losses of stage 3: softmax over items, all (default) or a sample, and over the codes of each level (Eq. 11)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ROWS_CPU = 256  # rows of logits in a chunk: with a few thousand items, they stay in the CPU's cache
MAX_ROWS_GPU = 4096  # a GPU is fastest with few and large steps: a batch of either view for usual settings
MAX_LOGITS = 1 << 25  # logits in a chunk (134 MB in float32): fewer rows for large catalogs ...
MIN_ROWS = 64  # ... but not fewer than this, since each chunk passes over the gradient of all items


def item_softmax_loss(
    hidden: Tensor,
    items: Tensor,
    target: Tensor,
    penalty: Tensor,
    history: tuple[Tensor, Tensor],
    valid: Tensor,
    shares: Tensor | None = None,
    weights: tuple[Tensor | None, Tensor] | None = None,
) -> Tensor:
    """Compute the mean cross-entropy of the target among all items, with a penalty on items of the visible history.

    The logit of item ``i`` at position ``p`` is ``hidden[p] . items[i] - penalty * [i in history of p]``. Product, softmax
    and both gradients are computed together, chunk by chunk: the ``[P, N]`` logits never exist as a whole and are read once
    instead of about four times (autograd would store and re-read them). Under autocast, products have its type; sums and the
    softmax are float32. The paper's loss is over codes (Eq. 11); chosen because it ranks better (docs/results.md).

    Args:
        hidden: ``[P, D]`` float, the encoder's output at the supervised positions.
        items: ``[N, D]`` float, vectors of all items.
        target: ``[P]`` int64 row of the true item; or ``[P, K]`` rows of several, of which the loss takes the mean by
            ``shares``.
        penalty: ``[]`` float, subtracted from the logits of history items.
        history: ``(position, item)``, both ``[S]`` int64: item rows in the visible history of a position, no pair twice,
            sorted by position.
        valid: ``[N]`` bool, false for rows that are not items (padding).
        shares: ``[P, K]`` float, shares of several targets; a row sums to 1, and a target may stand in it twice.
        weights: where ``items`` are a sample, ``(log_weight [N], own [P, L])``: an item counts ``exp(log_weight)`` times,
            and once at positions that have its row number in ``own`` (``candidates``).

    Returns:
        ``[]`` float, mean over positions.
    """
    if shares is None:
        target, shares = target[:, None], hidden.new_ones(len(target), 1)
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return _ItemSoftmax.apply(  # type: ignore[no-untyped-call]
            hidden, items, target, penalty, *history, valid, hidden.dtype, shares, *(weights or (None, None))
        )
    with torch.autocast(device, enabled=False):
        product = torch.get_autocast_dtype(device)
        float32 = hidden.float(), items.float(), target, penalty.float()
        return _ItemSoftmax.apply(*float32, *history, valid, product, shares, *(weights or (None, None)))  # type: ignore[no-untyped-call]


class _ItemSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        items: Tensor,
        target: Tensor,
        penalty: Tensor,
        position: Tensor,
        item: Tensor,
        valid: Tensor,
        product: torch.dtype,
        shares: Tensor,
        log_weight: Tensor | None,
        own: Tensor | None,
    ) -> Tensor:
        count = max(len(hidden), 1)
        grad_hidden, grad_items = torch.empty_like(hidden), torch.zeros_like(items)
        grad_penalty, total = torch.zeros_like(penalty), hidden.new_zeros(())
        low_items = items.to(product)
        invalid = (~valid).nonzero()[:, 0]
        max_rows = MAX_ROWS_CPU if hidden.device.type == "cpu" else MAX_ROWS_GPU
        step = min(max_rows, max(MIN_ROWS, MAX_LOGITS // len(items)))
        bounds = torch.searchsorted(position, torch.arange(0, len(hidden) + step, step, device=position.device)).tolist()
        for number, start in enumerate(range(0, len(hidden), step)):
            rows = hidden[start : start + step].to(product)
            logits = (rows @ low_items.T).to(hidden.dtype)
            if log_weight is not None and own is not None:
                counted_once = own[start : start + step]
                unchanged = logits.gather(1, counted_once)
                logits += log_weight
                logits.scatter_(1, counted_once, unchanged)
            pairs = slice(bounds[number], bounds[number + 1])
            at = (position[pairs] - start, item[pairs])
            logits.index_put_(at, -penalty.expand(len(at[0])), accumulate=True)
            logits[:, invalid] = -torch.inf
            column, share = target[start : start + step], shares[start : start + step].to(logits.dtype)
            logits -= logits.amax(1, keepdim=True)
            shifted = logits.gather(1, column)
            weight = logits.exp_()
            norm = weight.sum(1, keepdim=True)
            total += norm.log().sum() - (share * shifted).sum()
            weight.scatter_add_(1, column, -norm * share)  # now the gradient of the logits, times the norm
            scale = norm.reciprocal()
            grad_penalty -= (weight[at] * scale[at[0], 0]).sum()
            if product == items.dtype:  # scaling the products instead of the logits saves one pass over the logits
                grad_hidden[start : start + step] = (weight @ low_items) * scale
                grad_items.addmm_(weight.T, rows * scale)
            else:
                low = (weight * scale).to(product)  # at most 1: the norm may be too large for float16
                grad_hidden[start : start + step] = low @ low_items
                grad_items += low.T @ rows
        ctx.save_for_backward(grad_hidden / count, grad_items / count, grad_penalty / count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, items, penalty = ctx.saved_tensors
        return grad[0] * hidden, grad[0] * items, None, grad[0] * penalty, None, None, None, None, None, None, None


def code_loss(tables: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of the target's codes, summed over levels, mean over positions (Eq. 11).

    Args:
        tables: ``[P, K, M]`` float logits of every code.
        target: ``[P, K]`` int64 codes of the true item; -1 where the item has no code at a level (missing modality).

    Returns:
        ``[]`` float.
    """
    loss = F.cross_entropy(tables.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")
    return loss / max(len(target), 1)
