"""T5 with what P5 adds to the encoder's input: a vector for the number of the word that a token belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.sentences import word_numbers
from recbole_qbert.generative.t5 import T5, T5Sizes
from recbole_qbert.generative.t5_weights import Backbone, copy_weights


class SentenceT5(T5):
    """Read sentences (Geng et al., RecSys 2022, P5).

    Args:
        sizes: sizes of the network.
        starts: ``[V]`` bool, tokens that start a word.
        whole_words: rows of the table of word numbers; words beyond share the last one. 0: no such table.
    """

    starts: Tensor

    def __init__(self, sizes: T5Sizes, starts: Tensor, whole_words: int) -> None:
        super().__init__(sizes)
        self.register_buffer("starts", starts, persistent=False)
        self.words = nn.Parameter(torch.randn(whole_words, sizes.d_model)) if whole_words else None

    def source_vectors(self, source: PackedTokens) -> Tensor:
        """Return the vectors of source tokens and their words, ``[T, D]``."""
        vectors = self.token_vectors(source.tokens)
        if self.words is None:
            return vectors
        number = word_numbers(source.tokens, source.rows.lengths, self.starts_word(source.tokens))
        return vectors + F.embedding(number.clamp(max=len(self.words) - 1), self.words)

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, ``[T]`` int64 to ``[T, D]``."""
        return F.embedding(tokens, self.embedding)

    def starts_word(self, tokens: Tensor) -> Tensor:
        """Tell which tokens start a word, ``[T]`` int64 to ``[T]`` bool."""
        return self.starts[tokens]


@torch.no_grad()
def start_from(network: T5, backbone: Backbone, new_rows: str) -> None:
    """Copy pretrained weights into a network; its new tokens keep rows of their own.

    Current versions of transformers draw new rows around the mean of the old ones, so that all new tokens start as one.

    Args:
        network: a new network of the backbone's sizes, with more tokens.
        backbone: the weights.
        new_rows: ``unit`` leaves new rows as they were drawn, from N(0, 1); ``table`` gives them the spread of the old ones.

    Raises:
        ValueError: the weights are of other sizes; names a tensor.
    """
    copy_weights(network, backbone.weights)
    if new_rows == "table":
        old = len(backbone.weights["shared.weight"])
        network.embedding[old:] *= network.embedding[:old].std()
