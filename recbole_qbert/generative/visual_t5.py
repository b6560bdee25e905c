"""VIP5's network: T5 that reads pictures as tokens, and adapters in frozen weights (Geng et al., EMNLP Findings 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.sentence_t5 import SentenceT5
from recbole_qbert.generative.t5 import Block, DecoderBlock, RMSNorm, T5Sizes

TEXT, PICTURE = 0, 1  # rows of the table of categories; the release has 16, of which 14 are not used


@dataclass(frozen=True)
class Pictures:
    """Vectors of the items' pictures.

    Attributes:
        vectors: ``[N, F]`` float32.
        present: ``[N]`` bool, items that have one.
        tokens: tokens that a picture is read as, ``n``.
    """

    vectors: Tensor
    present: Tensor
    tokens: int


class AdaptedLinear(nn.Linear):
    """A linear layer without bias, and a bottleneck behind it: ``y + up(swish(down(y)))``.

    Args:
        linear: the layer; its weight is shared, not copied.
        reduction: the bottleneck's width is that of the output divided by this number.
    """

    def __init__(self, linear: nn.Linear, reduction: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = linear.weight
        width = max(1, linear.out_features // reduction)
        self.down = nn.Linear(linear.out_features, width)
        self.up = nn.Linear(width, linear.out_features)

    def forward(self, values: Tensor) -> Tensor:
        """Compute ``[..., in]`` to ``[..., out]``."""
        output = F.linear(values, self.weight)
        return output + self.up(F.silu(self.down(output)))


class VisualTokens(nn.Module):
    """Make the tokens of a picture of its vector: two layers and a norm.

    Args:
        inputs: ``F``, width of the vectors.
        width: ``D``.
        tokens: ``n``.
    """

    def __init__(self, inputs: int, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.grow = nn.Linear(inputs, width * tokens // 2)
        self.shape = nn.Linear(width * tokens // 2, width * tokens)
        self.norm = RMSNorm(width * tokens)
        self.missing = nn.Parameter(torch.randn(tokens, width))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Compute ``[P, F]`` to ``[P, n, D]``; items without a picture have learned tokens."""
        made = self.norm(self.shape(torch.tanh(self.grow(vectors))))
        return torch.where(present[:, None, None], made.view(len(vectors), self.tokens, -1), self.missing)


class VisualT5(SentenceT5):
    """Read sentences in which tokens from ``V`` on are pictures: token ``V + n i + k`` is the ``k``-th one of item ``i``.

    A picture's token is not in the token table. Its vector is made of the picture, so it can be read and not written. Each
    one is a word of its own. A table of two categories, text and picture, is added to the encoder's input.

    Args:
        sizes: sizes of the network, ``V`` without pictures.
        starts: ``[V]`` bool, tokens that start a word.
        whole_words: rows of the table of word numbers.
        pictures: the pictures; ``None`` without.
        reduction: of the adapters, which stand behind every attention and feed-forward layer.
    """

    vectors: Tensor
    present: Tensor

    def __init__(self, sizes: T5Sizes, starts: Tensor, whole_words: int, pictures: Pictures | None, reduction: int) -> None:
        super().__init__(sizes, starts, whole_words)
        self.categories = nn.Parameter(torch.randn(2, sizes.d_model))
        self.visual: VisualTokens | None = None
        if pictures is not None:
            self.visual = VisualTokens(pictures.vectors.shape[1], sizes.d_model, pictures.tokens)
            self.register_buffer("vectors", pictures.vectors, persistent=False)
            self.register_buffer("present", pictures.present, persistent=False)
        self._kept_elsewhere: frozenset[str] = frozenset()
        self._add_adapters(reduction)
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_in)  # type: ignore[no-untyped-call]

    def _add_adapters(self, reduction: int) -> None:
        blocks: list[Block] = [*self.encoder.blocks, *self.decoder.blocks]
        for block in blocks:
            block.attention.mix = AdaptedLinear(block.attention.mix, reduction)
            block.feed.shrink = AdaptedLinear(block.feed.shrink, reduction)
            if isinstance(block, DecoderBlock):
                block.cross.mix = AdaptedLinear(block.cross.mix, reduction)

    def source_vectors(self, source: PackedTokens) -> Tensor:
        """Return the vectors of source tokens, their words and their categories, ``[T, D]``."""
        category = (source.tokens >= self.sizes.vocab_size).long()
        return super().source_vectors(source) + F.embedding(category, self.categories)

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens and pictures, ``[T]`` int64 to ``[T, D]``."""
        if self.visual is None:
            return super().token_vectors(tokens)
        is_picture = tokens >= self.sizes.vocab_size
        text = super().token_vectors(tokens.masked_fill(is_picture, 0))
        place = is_picture.nonzero()[:, 0]
        number = tokens[place] - self.sizes.vocab_size
        items, entry = (number // self.visual.tokens).unique(return_inverse=True)  # a picture is computed once a batch
        made = self.visual(self.vectors[items], self.present[items])
        return text.index_copy(0, place, made[entry, number % self.visual.tokens])

    def starts_word(self, tokens: Tensor) -> Tensor:
        """Tell which tokens start a word, ``[T]`` bool."""
        text = super().starts_word(tokens.clamp(max=self.sizes.vocab_size - 1))
        return text | (tokens >= self.sizes.vocab_size)

    def freeze_backbone(self, train_tables: bool) -> None:
        """Freeze the weights of T5, which then are no part of ``state_dict``; norms, adapters and pictures learn.

        Args:
            train_tables: whether the tables of words and categories learn. In the release they stay as they were drawn.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameter in self._learned(train_tables):
            parameter.requires_grad_(True)
        tables = {"words", "categories"}
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self._kept_elsewhere = frozenset(frozen - tables)

    def _learned(self, train_tables: bool) -> Iterator[nn.Parameter]:
        for module in self.modules():
            if isinstance(module, RMSNorm | VisualTokens):
                yield from module.parameters()
            elif isinstance(module, AdaptedLinear):
                yield from module.down.parameters()
                yield from module.up.parameters()
        if train_tables:
            yield self.categories
            if self.words is not None:
                yield self.words


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take frozen weights out of a state: they are the backbone's, whose digest a checkpoint holds."""
    assert isinstance(module, VisualT5)
    for name in module._kept_elsewhere:
        state.pop(prefix + name, None)


def _fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete a state by the frozen weights that the network has."""
    assert isinstance(module, VisualT5)
    own: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    for name in module._kept_elsewhere:
        state.setdefault(prefix + name, own[name].detach())
