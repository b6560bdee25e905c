"""Code embeddings that start from what items are like, so that a network knows the content of items before it is trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.data.standardization import Standardization

#: Standard deviation that the sum of an item's code embeddings has, relative to that of random embeddings.
SPREAD = 5.0


@torch.no_grad()
def content_codebook(vectors: Tensor, codes: Tensor, size: int, width: int) -> tuple[Tensor, Tensor]:
    """Compute code embeddings whose sum over an item's levels is near to the item's vector.

    Level by level, a code gets the mean of what the levels before it leave of its items' vectors. These are first projected
    on ``width`` principal axes, given the same length, so that none is preferred, and turned at random, which changes no
    likeness and gives every column the same share. The paper is silent; chosen because the network then knows from the first
    step on which items are alike (docs/findings.md).

    Args:
        vectors: ``[N, D']`` float, what is known of the items.
        codes: ``[N, K]`` int64, -1 where an item has no code at a level.
        size: ``M``, codes per level.
        width: ``D``, columns of the embeddings.

    Returns:
        ``(embeddings [K, M, D], known [K, M])``: embeddings in which the mean square of an item's sum is 1, and which codes
        have items. Codes without items have zeros.
    """
    standardization = Standardization.fit(vectors, width)
    columns = torch.randn(width, standardization.width, generator=torch.Generator().manual_seed(0))
    residual = F.normalize(standardization(vectors), dim=1) @ torch.linalg.qr(columns)[0].T * width**0.5
    embeddings, counts = torch.zeros(codes.shape[1], size, width), torch.zeros(codes.shape[1], size)
    for level, code in enumerate(codes.unbind(1)):
        has_code = code >= 0
        code, rest = code[has_code], residual[has_code]
        counts[level] = torch.bincount(code, minlength=size)
        embeddings[level].index_add_(0, code, rest).div_(counts[level].clamp(min=1)[:, None])
        residual[has_code] = rest - embeddings[level, code]
    return embeddings, counts > 0
