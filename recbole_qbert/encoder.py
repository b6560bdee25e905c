"""The transformer over items: one network for the bidirectional (masked) and the causal view (paper 3.5, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.dropout import dropout
from recbole_qbert.packing import Rows

# Biases live on the scale of attention logits (about 1), other weights on that of 0.02; see network.PENALTY_SCALE.
BIAS_SCALE = 5.0


class SequenceEncoder(nn.Module):
    """Layers of self-attention and feed-forward over ``[B, L, D]``, with a learned attention bias a distance and head.

    Both views share every weight; only the attention mask differs. Order enters as distance, not as position: most
    histories of Amazon data have three to six training items, so the position of a test item would be one that training
    hardly saw. (Measured in docs/results.md.) The paper gives 4 layers, 4 heads and dropout 0.2; width and feed-forward
    size follow from the parameter counts of its Table 6 (256 and 512).

    Args:
        width: ``D``.
        layers: number of blocks.
        heads: attention heads; must divide ``width``.
        inner: width of the feed-forward layer.
        dropout: probability after the embedding and inside every block.
        attention_dropout: probability on attention weights.
        positions: most positions a sequence can have.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        positions: int,
    ) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.empty(heads, 2 * positions - 1))
        self.norm = nn.LayerNorm(width)
        self.rate = dropout
        self.blocks = nn.ModuleList(_Block(width, heads, inner, dropout, attention_dropout) for _ in range(layers))

    def forward(self, items: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        """Encode left-aligned rows.

        Args:
            items: ``[B, L, D]`` item vectors; what stands behind a row's length is ignored.
            lengths: ``[B]`` int64, at least 1.
            causal: position ``t`` sees positions up to ``t`` only; otherwise all of the row.

        Returns:
            ``[B, L, D]``; positions behind a row's length hold no meaning.
        """
        bias = self.bias(items.shape[1], lengths, causal)
        return self.encode(items.flatten(0, 1), [(Rows.whole(items), bias)]).view_as(items)

    def bias(self, width: int, lengths: Tensor, causal: bool) -> Tensor:
        """What is added to attention logits: the bias of each distance, -inf where a position may not look.

        Args:
            width: ``L``.
            lengths, causal: as for :meth:`forward`.

        Returns:
            ``[1, H, L, L]`` (causal: the same for all rows) or ``[B, H, L, L]``.
        """
        position = torch.arange(width, device=lengths.device)
        offset = position[None, :] - position[:, None]
        bias = BIAS_SCALE * self.distance[None, :, offset + self.distance.shape[1] // 2]
        if causal:  # a real position never looks at the padding behind it: no other mask is needed
            return bias.masked_fill(offset > 0, -torch.inf)
        return bias.masked_fill((position >= lengths[:, None])[:, None, None, :], -torch.inf)

    def encode(self, tokens: Tensor, groups: Sequence[tuple[Rows, Tensor]]) -> Tensor:
        """Encode packed rows, of all lengths and both views at once; only attention looks at them group by group.

        Args:
            tokens: ``[T, D]`` item vectors of the rows of all groups, in their order.
            groups: rows of like length, and their attention bias.

        Returns:
            ``[T, D]``.
        """
        hidden = dropout(self.norm(tokens), self.rate, self.training)
        for block in self.blocks:
            hidden = block(hidden, groups)
        return hidden


class _Block(nn.Module):
    """Post-norm transformer block, as in BERT4Rec and SASRec of RecBole."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.rate, self.attention_rate = heads, dropout, attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, groups: Sequence[tuple[Rows, Tensor]]) -> Tensor:
        parts = self.qkv(hidden).split([len(rows.real) for rows, _ in groups])
        seen = [rows.pack(self._attend(rows.pad(part), bias)) for part, (rows, bias) in zip(parts, groups, strict=True)]
        hidden = self.norm_attention(hidden + self._drop(self.mix(torch.cat(seen))))
        return self.norm_feed(hidden + self._drop(self.shrink(self._drop(F.gelu(self.grow(hidden))))))

    def _attend(self, joint: Tensor, bias: Tensor) -> Tensor:
        size, length, width = joint.shape
        query, key, value = joint.view(size, length, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        if self.training and self.attention_rate > 0 and joint.device.type == "cpu":
            # What torch does here too, it has no fused kernel with dropout for CPUs; but for the cheaper dropout.
            weight = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3) + bias).softmax(3)
            seen = dropout(weight, self.attention_rate, True) @ value
        else:
            rate = self.attention_rate if self.training else 0.0
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        return seen.transpose(1, 2).reshape(size, length, width // 3)

    def _drop(self, values: Tensor) -> Tensor:
        return dropout(values, self.rate, self.training)
