"""MISSRec's transformer: an encoder over a row's interests, and a decoder over its items that looks at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_qbert.config.baseline_schema import MISSRecConfig
from recbole_qbert.sequence.dropout import dropout


class Dropout(nn.Module):
    """Dropout by ``sequence.dropout``, which is quicker than torch's on a CPU."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Drop elements of values of any shape."""
        return dropout(values, self.rate, self.training)


class InterestTransformer(nn.Module):
    """Post-norm layers as in ``torch.nn.Transformer``, whose weights fit, with a final norm of encoder and decoder.

    Only the state of each row's last item is asked for, so the last decoder layer computes no other: keys and values of all
    items, and one query a row.

    Args:
        config: sizes and dropout; ``n_layers`` of the encoder and as many of the decoder.
    """

    def __init__(self, config: MISSRecConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        sizes = (width, config.n_heads, config.inner_size, config.hidden_dropout_prob, "gelu", eps)
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(*sizes, batch_first=True) for _ in range(config.n_layers))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(*sizes, batch_first=True) for _ in range(config.n_layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        for layer in (*self.encoder, *self.decoder):
            for name in [name for name, part in layer.named_children() if isinstance(part, nn.Dropout)]:
                setattr(layer, name, Dropout(config.hidden_dropout_prob))
        for module in self.modules():
            if isinstance(module, nn.Linear):  # in-projections are no Linear, and keep torch's Xavier start
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, interests: Tensor, no_interest: Tensor, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode rows.

        Args:
            interests: ``[B, W, D]``.
            no_interest: ``[B, W]`` bool, true at padding; at least one entry of a row is false.
            items: ``[B, L, D]``, left-aligned.
            lengths: ``[B]`` int64, at least 1.

        Returns:
            ``(states [B, D] of the last items, encoded interests [B, W, D])``.
        """
        memory = interests
        for layer in self.encoder:
            memory = layer(memory, src_key_padding_mask=no_interest)
        memory = self.encoder_norm(memory)
        no_item = torch.arange(items.shape[1], device=lengths.device) >= lengths[:, None]
        hidden = items
        for layer in self.decoder[:-1]:
            hidden = layer(hidden, memory, tgt_key_padding_mask=no_item, memory_key_padding_mask=no_interest)
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1][:, None]
        state = self._last_layer(last, hidden, no_item, memory, no_interest)
        return self.decoder_norm(state)[:, 0], memory

    def _last_layer(self, query: Tensor, hidden: Tensor, no_item: Tensor, memory: Tensor, no_interest: Tensor) -> Tensor:
        """Apply the last decoder layer at one position of each row, ``query [B, 1, D]``."""
        layer: Any = self.decoder[-1]
        context = layer.self_attn(query, hidden, hidden, key_padding_mask=no_item, need_weights=False)[0]
        state = layer.norm1(query + layer.dropout1(context))
        context = layer.multihead_attn(state, memory, memory, key_padding_mask=no_interest, need_weights=False)[0]
        state = layer.norm2(state + layer.dropout2(context))
        fed = layer.linear2(layer.dropout(layer.activation(layer.linear1(state))))
        return layer.norm3(state + layer.dropout3(fed))
