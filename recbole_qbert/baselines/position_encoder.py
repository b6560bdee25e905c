"""SASRec's causal transformer with learned positions, over packed rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recbole_qbert.config.baseline_schema import VQRecConfig
from recbole_qbert.sequence.attention import Attention
from recbole_qbert.sequence.dropout import dropout
from recbole_qbert.sequence.encoder import Block
from recbole_qbert.sequence.packing import PackedSequences


class PositionEncoder(nn.Module):
    """Encode sequences of item vectors causally; the oldest item has position 0.

    It is the network of RecBole's SASRec. ``SequenceEncoder`` has distances where this has positions.

    Args:
        config: sizes and dropout.
    """

    distance: Tensor

    def __init__(self, config: VQRecConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.position = nn.Parameter(torch.empty(config.max_length, width))
        self.norm = nn.LayerNorm(width, eps)
        self.rate = config.hidden_dropout_prob
        self.blocks = nn.ModuleList(
            Block(width, config.inner_size, self.rate, config.attn_dropout_prob, eps) for _ in range(config.n_layers)
        )
        # Attention adds a bias for each distance, which is 0 here.
        self.register_buffer("distance", torch.zeros(config.n_heads, 2 * config.max_length - 1), persistent=False)

    def forward(self, tokens: Tensor, groups: Sequence[PackedSequences], selected: Tensor | None = None) -> Tensor:
        """Encode packed rows.

        Args:
            tokens: ``[T, D]`` item vectors of the rows of all groups, in their order.
            groups: rows of like length.
            selected: ``[T]`` bool, tokens whose states to return; all when ``None``.

        Returns:
            ``[P, D]`` states of the ``P`` selected tokens.

        Raises:
            ValueError: a row is longer than there are positions.
        """
        attention = Attention([(rows, True) for rows in groups], self.distance)
        place = torch.cat([rows.position % rows.shape[1] for rows in groups])
        hidden = dropout(self.norm(tokens + self.position[place]), self.rate, self.training)
        for block in self.blocks[:-1]:
            hidden = block(hidden, attention)
        return self.blocks[-1](hidden, attention, selected)
