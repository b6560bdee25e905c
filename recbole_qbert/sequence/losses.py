"""Losses of stage 3: softmax over all items (default) and over each level's codes (Eq. 11 to the letter)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256  # rows of logits held at a time on a CPU, at most: a few thousand items stay in its cache
CHUNK_ELSEWHERE = 4096  # on a GPU, which wants few and large steps: a batch of either view for usual settings
LOGITS = 1 << 25  # in all at a time (134 MB in float32): fewer rows for large catalogs ...
SHORTEST = 64  # ... but no fewer than this: each chunk passes over the gradient of all items


def item_softmax_loss(
    hidden: Tensor, items: Tensor, target: Tensor, penalty: Tensor, seen: tuple[Tensor, Tensor], valid: Tensor
) -> Tensor:
    """Mean cross-entropy of the target among all items, with a penalty on items of the visible history.

    Logit of item ``i`` at position ``p``: ``hidden[p] . items[i] - penalty * [i in history of p]``. Linear map, softmax
    and both gradients are computed together, chunk by chunk, so that the ``[P, N]`` logits never exist as a whole and are
    passed over once instead of about four times (autograd would store and re-read them). Under autocast the products are
    taken in its type, sums and the softmax in float32.

    Args:
        hidden: ``[P, D]`` float, the encoder's output at the supervised positions.
        items: ``[N, D]`` float, composed item table.
        target: ``[P]`` int64 row of the true item.
        penalty: ``[]`` float, subtracted from history items.
        seen: ``(position, item)``, both ``[S]`` int64: item rows in the visible history of a position, no pair twice,
            sorted by position.
        valid: ``[N]`` bool, false for rows that are no items (padding).

    Returns:
        ``[]`` float, mean over positions.
    """
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return _ItemSoftmax.apply(hidden, items, target, penalty, *seen, valid, hidden.dtype)  # type: ignore[no-untyped-call]
    with torch.autocast(device, enabled=False):
        product = torch.get_autocast_dtype(device)
        whole = hidden.float(), items.float(), target, penalty.float()
        return _ItemSoftmax.apply(*whole, *seen, valid, product)  # type: ignore[no-untyped-call]


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
    ) -> Tensor:
        count = max(len(hidden), 1)
        grad_hidden, grad_items = torch.empty_like(hidden), torch.zeros_like(items)
        grad_penalty, total = torch.zeros_like(penalty), hidden.new_zeros(())
        low_items = items.to(product)
        dropped = (~valid).nonzero()[:, 0]
        chunk = CHUNK if hidden.device.type == "cpu" else CHUNK_ELSEWHERE
        step = min(chunk, max(SHORTEST, LOGITS // len(items)))
        bounds = torch.searchsorted(position, torch.arange(0, len(hidden) + step, step, device=position.device)).tolist()
        for number, start in enumerate(range(0, len(hidden), step)):
            rows = hidden[start : start + step].to(product)
            logits = (rows @ low_items.T).to(hidden.dtype)
            pairs = slice(bounds[number], bounds[number + 1])
            at = (position[pairs] - start, item[pairs])
            logits.index_put_(at, -penalty.expand(len(at[0])), accumulate=True)
            logits[:, dropped] = -torch.inf
            wanted = target[start : start + step, None]
            logits -= logits.amax(1, keepdim=True)
            shifted = logits.gather(1, wanted)
            weight = logits.exp_()
            norm = weight.sum(1, keepdim=True)
            total += (norm.log() - shifted).sum()
            weight.scatter_add_(1, wanted, -norm)  # now the gradient of the logits, times the norm
            scale = norm.reciprocal()
            grad_penalty -= (weight[at] * scale[at[0], 0]).sum()
            if product == items.dtype:  # the products are scaled in place of the logits: one pass less over these
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
        return grad[0] * hidden, grad[0] * items, None, grad[0] * penalty, None, None, None, None


def code_loss(tables: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each of the target's codes in its own level, summed over levels, mean over positions (Eq. 11).

    Args:
        tables: ``[P, K, M]`` float logits of every code.
        target: ``[P, K]`` int64 codes of the true item; -1 where the item has no code at a level (missing modality).

    Returns:
        ``[]`` float.
    """
    loss = F.cross_entropy(tables.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")
    return loss / max(len(target), 1)
