"""The transformer over items: one network for the bidirectional (masked) and the causal view (paper 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.sequence.attention import Attention
from recbole_qbert.sequence.dropout import dropout
from recbole_qbert.sequence.packing import PackedSequences, select_tokens

# Biases have the scale of attention logits (about 1), other weights that of 0.02; see model.PENALTY_SCALE.
BIAS_SCALE = 5.0


class SequenceEncoder(nn.Module):
    """Encode sequences of item vectors by self-attention and feed-forward layers.

    Both views share every weight; only the attention mask differs. Attention has a learned bias for each distance and head.
    Order enters as distance, not as position: most histories of Amazon data have three to six training items, so training
    hardly sees the position of a test item (measured in docs/results.md). The paper gives 4 layers, 4 heads and dropout 0.2;
    width and feed-forward size follow from the parameter counts of its Table 6 (256 and 512).

    Args:
        width: ``D``.
        layers: number of blocks.
        heads: attention heads; must divide ``width``.
        inner: width of the feed-forward layer.
        dropout: probability after the embedding and inside every block.
        attention_dropout: probability on attention weights.
        positions: maximum length of a sequence.
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
        self.blocks = nn.ModuleList(Block(width, inner, dropout, attention_dropout) for _ in range(layers))

    def forward(self, items: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        """Encode left-aligned rows.

        Args:
            items: ``[B, L, D]`` item vectors; those behind a row's length are ignored.
            lengths: ``[B]`` int64, at least 1.
            causal: position ``t`` sees positions up to ``t`` only; otherwise the whole row.

        Returns:
            ``[B, L, D]``, 0 behind a row's length.
        """
        rows = PackedSequences.of(lengths, items.shape[1])
        return rows.pad(self.encode(rows.pack(items), [(rows, causal)]))

    def encode(
        self, tokens: Tensor, groups: Sequence[tuple[PackedSequences, bool]], selected: Tensor | None = None
    ) -> Tensor:
        """Encode packed rows of all lengths and both views at once; only attention treats them group by group.

        Args:
            tokens: ``[T, D]`` item vectors of the rows of all groups, in their order.
            groups: rows of like length, and whether they are causal.
            selected: ``[T]`` bool, tokens whose states to return: the last block computes no others. All when ``None``.

        Returns:
            ``[P, D]`` states of the ``P`` selected tokens, in their order.

        Raises:
            ValueError: a row is longer than ``positions``.
        """
        attention = Attention(groups, BIAS_SCALE * self.distance)
        hidden = dropout(self.norm(tokens), self.rate, self.training)
        for block in self.blocks[:-1]:
            hidden = block(hidden, attention)
        return self.blocks[-1](hidden, attention, selected)


class Block(nn.Module):
    """Post-norm transformer block, as in BERT4Rec and SASRec of RecBole.

    Args:
        width: ``D``.
        inner: width of the feed-forward layer.
        dropout: probability inside the block.
        attention_dropout: probability on attention weights.
        eps: of the layer norms.
    """

    def __init__(self, width: int, inner: int, dropout: float, attention_dropout: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.rate, self.attention_rate = dropout, attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, hidden: Tensor, attention: Attention, selected: Tensor | None = None) -> Tensor:
        context = attention(self.qkv(hidden), self.attention_rate if self.training else 0.0)
        if selected is not None:  # attention reads every token; only the selected ones are computed further
            hidden, context = select_tokens(selected, hidden, context)
        hidden = self.norm_attention(hidden + self._drop(self.mix(context)))
        return self.norm_feed(hidden + self._drop(self.shrink(self._drop(F.gelu(self.grow(hidden))))))

    def _drop(self, values: Tensor) -> Tensor:
        return dropout(values, self.rate, self.training)
