"""T5, an encoder-decoder transformer (Raffel et al. 2020), over packed token sequences.

It computes what ``T5ForConditionalGeneration`` of transformers does for the tied, ungated model, with the same
initialization, but without work on padding, with one product for query, key and value, and with a vocabulary of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_qbert.generative.attention import CrossAttention, SelfAttention
from recbole_qbert.generative.packed_tokens import LengthGroups, PackedTokens
from recbole_qbert.generative.relative_bias import distance_table
from recbole_qbert.sequence.dropout import dropout

PAD = 0  # the decoder starts with it
EPSILON = 1e-6  # of the norm


@dataclass(frozen=True)
class T5Sizes:
    """Sizes of a T5; fields as transformers' ``T5Config`` names them.

    Attributes:
        vocab_size: ``V``, rows of the token table, the padding at 0 included.
        d_model: ``D``.
        d_ff: width of the feed-forward layer.
        d_kv: width of a head; ``num_heads * d_kv``, here ``W``, need not be ``D``.
        num_heads: ``H``.
        num_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        dropout_rate: on embeddings, attention weights, inner feed-forward states and the outputs of sub-blocks.
        relative_attention_num_buckets: buckets of distances.
        relative_attention_max_distance: distance from which on all share a bucket.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    dropout_rate: float
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


@dataclass(frozen=True)
class Encoded:
    """The encoder's output.

    Attributes:
        states: ``[T, D]`` of the packed source tokens.
        rows: their rows.
    """

    states: Tensor
    rows: LengthGroups


class T5(nn.Module):
    """Encoder, decoder, and the token table that both share with the output.

    Args:
        sizes: sizes of the network.
    """

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Parameter(torch.empty(sizes.vocab_size, sizes.d_model))
        self.encoder: Stack[Block] = Stack(sizes, [Block(sizes) for _ in range(sizes.num_layers)], two_sided=True)
        blocks = [DecoderBlock(sizes) for _ in range(sizes.num_decoder_layers)]
        self.decoder: Stack[DecoderBlock] = Stack(sizes, blocks, two_sided=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights from T5's normal distributions, which stand in for the scale of attention."""
        sizes = self.sizes
        narrow, wide = sizes.d_model**-0.5, (sizes.num_heads * sizes.d_kv) ** -0.5
        query = (sizes.d_model * sizes.d_kv) ** -0.5
        self.embedding.normal_()
        for stack in (self.encoder, self.decoder):
            stack.distance.normal_(std=narrow)
        blocks: list[Block] = [*self.encoder.blocks, *self.decoder.blocks]
        for block in blocks:
            block.attention.joint.weight.normal_(std=narrow)
            block.attention.joint.weight[: sizes.num_heads * sizes.d_kv].normal_(std=query)
            block.attention.mix.weight.normal_(std=wide)
            block.feed.grow.weight.normal_(std=narrow)
            block.feed.shrink.weight.normal_(std=sizes.d_ff**-0.5)
        for decoder_block in self.decoder.blocks:
            decoder_block.cross.query.weight.normal_(std=query)
            decoder_block.cross.joint.weight.normal_(std=narrow)
            decoder_block.cross.mix.weight.normal_(std=wide)

    def source_vectors(self, source: PackedTokens) -> Tensor:
        """Return the vectors of source tokens, ``[T, D]``; networks that add to them or replace some override this."""
        return F.embedding(source.tokens, self.embedding)

    def encode(self, source: PackedTokens) -> Encoded:
        """Encode source sequences."""
        hidden = self.drop(self.source_vectors(source))
        attention = SelfAttention(source.rows, self.encoder.distances(source.rows.longest))
        for block in self.encoder.blocks:
            hidden = block.feed(block.attention(hidden, attention))
        return Encoded(self.drop(self.encoder.norm(hidden)), source.rows)

    def decode(self, inputs: Tensor, encoded: Encoded) -> Tensor:
        """Compute the decoder's states of known targets.

        Args:
            inputs: ``[B, Q]`` int64 tokens that precede each position, ``PAD`` first; rows as packed in ``encoded``.
            encoded: the encoded sources.

        Returns:
            ``[B, Q, D]``.
        """
        rows, positions = inputs.shape
        hidden = self.drop(F.embedding(inputs.flatten(), self.embedding))
        targets = LengthGroups.of(torch.full((rows,), positions, device=inputs.device))
        attention = SelfAttention(targets, self.decoder.distances(positions), causal=True)
        across = CrossAttention(encoded.rows, self.sizes.num_heads)
        for block in self.decoder.blocks:
            hidden = block.attention(hidden, attention)
            hidden = block.cross(hidden.view(rows, positions, -1), encoded.states, across).flatten(0, 1)
            hidden = block.feed(hidden)
        return self.drop(self.decoder.norm(hidden)).view(rows, positions, -1)

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits of all tokens, ``[..., D]`` to ``[..., V]``."""
        return F.linear(states * self.sizes.d_model**-0.5, self.embedding)

    def drop(self, values: Tensor) -> Tensor:
        """Apply dropout in training."""
        return dropout(values, self.sizes.dropout_rate, self.training)

    def body_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the token table."""
        return (parameter for name, parameter in self.named_parameters() if name != "embedding")


def shift(targets: Tensor) -> Tensor:
    """Return the decoder's inputs: ``targets [B, Q]`` one place to the right, behind the start token."""
    return F.pad(targets[:, :-1], (1, 0), value=PAD)


class RMSNorm(nn.Module):
    """Divide vectors by their root mean square and scale them by learned weights; no mean, no bias.

    Args:
        width: ``D``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        """Normalize ``[..., D]``."""
        return _RMSNorm.apply(values, self.weight)  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """Autograd's own backward pass would store and read about twice as much."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        inverse = values.square().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()
        unit = values * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, weight = ctx.saved_tensors
        product = grad[0] * unit
        along = (product @ weight)[..., None] / unit.shape[-1]
        return (grad[0] * weight).addcmul_(unit, along, value=-1).mul_(inverse), product.flatten(0, -2).sum(0)


class Block(nn.Module):
    """Self-attention and the feed-forward layer.

    Args:
        sizes: sizes of the network.
    """

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.attention = _SelfSubBlock(sizes)
        self.feed = _FeedForward(sizes)


class DecoderBlock(Block):
    """A block with cross-attention between self-attention and the feed-forward layer.

    Args:
        sizes: sizes of the network.
    """

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__(sizes)
        self.cross = _CrossSubBlock(sizes)


AnyBlock = TypeVar("AnyBlock", bound=Block)


class Stack(nn.Module, Generic[AnyBlock]):
    """Blocks of the encoder or decoder, with one table of position biases and a final norm.

    Args:
        sizes: sizes of the network.
        blocks: the blocks.
        two_sided: whether tokens see those behind them.
    """

    def __init__(self, sizes: T5Sizes, blocks: Sequence[AnyBlock], two_sided: bool) -> None:
        super().__init__()
        self.max_distance, self.two_sided = sizes.relative_attention_max_distance, two_sided
        self.distance = nn.Parameter(torch.empty(sizes.num_heads, sizes.relative_attention_num_buckets))
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(sizes.d_model)

    @property
    def blocks(self) -> list[AnyBlock]:
        """Return the blocks in their order."""
        return [cast(AnyBlock, layer) for layer in self.layers]

    def distances(self, longest: int) -> Tensor:
        """Return the biases of the distances in rows of at most ``longest`` tokens, ``[H, 2 longest - 1]``."""
        return distance_table(self.distance, longest, self.max_distance, self.two_sided)


class _SelfSubBlock(nn.Module):
    norm: RMSNorm

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        width = sizes.num_heads * sizes.d_kv
        self.rate = sizes.dropout_rate
        self.norm = RMSNorm(sizes.d_model)
        self.joint = nn.Linear(sizes.d_model, 3 * width, bias=False)  # query, key, value
        self.mix = nn.Linear(width, sizes.d_model, bias=False)

    def forward(self, hidden: Tensor, attention: SelfAttention) -> Tensor:
        context = attention(self.joint(self.norm(hidden)), self.rate if self.training else 0.0)
        return hidden + dropout(self.mix(context), self.rate, self.training)


class _CrossSubBlock(nn.Module):
    norm: RMSNorm

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        width = sizes.num_heads * sizes.d_kv
        self.rate = sizes.dropout_rate
        self.norm = RMSNorm(sizes.d_model)
        self.query = nn.Linear(sizes.d_model, width, bias=False)
        self.joint = nn.Linear(sizes.d_model, 2 * width, bias=False)  # key, value
        self.mix = nn.Linear(width, sizes.d_model, bias=False)

    def forward(self, hidden: Tensor, states: Tensor, attention: CrossAttention) -> Tensor:
        rate = self.rate if self.training else 0.0
        context = attention(self.query(self.norm(hidden)), self.joint(states), rate)
        return hidden + dropout(self.mix(context), self.rate, self.training)


class _FeedForward(nn.Module):
    norm: RMSNorm

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.rate = sizes.dropout_rate
        self.norm = RMSNorm(sizes.d_model)
        self.grow = nn.Linear(sizes.d_model, sizes.d_ff, bias=False)
        self.shrink = nn.Linear(sizes.d_ff, sizes.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = dropout(F.relu(self.grow(self.norm(hidden))), self.rate, self.training)
        return hidden + dropout(self.shrink(inner), self.rate, self.training)
