"""A trained model as one ONNX graph: padded histories in, scores of all items out; for servers without Python or torch.

The graph is the network in plain operations on padded rows. The packing and the compiled kernels of ``sequence`` compute the
same numbers; tests hold one to the other. Item vectors and the prior's neighbors are constants of the graph.
"""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.encoder import BIAS_SCALE, Block, SequenceEncoder
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.sequence.scoring import pad_missing_level
from recbole_qbert.utils.atomic import atomic_write

OPSET = 17
MAX_NEIGHBORS = 1 << 26  # entries of the prior's table, 12 bytes each; an ONNX file ends at 2 GB


class ScoringGraph(nn.Module):
    """Score all items for padded histories, as ``Recommender.scores`` does.

    Args:
        network: a trained network of one catalog.
        prior: added to the scores, or None.

    Raises:
        ValueError: a network of several catalogs, or a prior with items of too many neighbors for a table.
    """

    table: Tensor

    def __init__(self, network: SemanticSequenceModel, prior: CooccurrencePrior | None) -> None:
        super().__init__()
        if network.domains is not None:
            raise ValueError("the network ranks several catalogs; fine-tune it on one data set, and export that")
        self.network, self.prior = network, None if prior is None else _PriorGraph(prior)
        self.register_buffer("table", network.item_table().detach().clone(), persistent=False)

    def forward(self, histories: Tensor) -> Tensor:
        """Score all items.

        Args:
            histories: ``[B, L]`` int64 rows of items, from 1, oldest first, padded with 0 at the end; ``L`` is
                ``max_length``, and each has at least 1 item.

        Returns:
            ``[B, N + 1]`` float32; column ``i`` is row ``i``, and the first, padding, is -inf.
        """
        network, lengths = self.network, (histories > 0).sum(1)
        is_item = torch.arange(self.table.shape[0]) > 0
        marks = torch.zeros(histories.shape[0], self.table.shape[0]).scatter(1, histories, 1.0) * is_item
        total = torch.zeros_like(marks)
        for view in network.config.ranking_views:
            state = self._state(histories, lengths, view)
            if network.config.loss == "code":
                total = total + self._code_scores(state)
            else:
                logits = state @ self.table.T - network.penalty * marks
                total = total + logits.masked_fill(~is_item, -torch.inf).log_softmax(1)
        scores = (total / len(network.config.ranking_views)).masked_fill(~is_item, -torch.inf)
        if network.config.repeat_penalty == "exclude":
            scores = scores.masked_fill(marks > 0, -torch.inf)
        return scores if self.prior is None else scores + self.prior(histories, lengths)

    def _state(self, histories: Tensor, lengths: Tensor, view: str) -> Tensor:
        """Encode histories into states, ``[B, D]``."""
        vectors = F.embedding(histories, self.table)
        if view == "masked":  # [MASK] follows the last item
            vectors = F.pad(vectors, (0, 0, 0, 1))
            position = torch.arange(vectors.shape[1])
            is_mask = (position == lengths[:, None])[:, :, None]
            vectors, lengths = torch.where(is_mask, self.network.mask_vector, vectors), lengths + 1
        hidden = _encode(self.network.encoder, vectors, lengths, view == "causal")
        last = (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0]

    def _code_scores(self, state: Tensor) -> Tensor:
        network = self.network
        tables = network.code_log_ratios(torch.einsum("bd,kmd->bkm", state, network.codebook))
        padded, size = pad_missing_level(tables), tables.shape[2]
        codes = torch.where(network.codes < 0, size, network.codes.long())
        levels = [padded[:, level].index_select(1, codes[:, level]) for level in range(codes.shape[1])]
        return torch.stack(levels).sum(0)


class _PriorGraph(nn.Module):
    """``CooccurrencePrior`` by a table of each item's neighbors, padded to the longest list."""

    neighbors: Tensor
    evidence: Tensor

    def __init__(self, prior: CooccurrencePrior) -> None:
        super().__init__()
        item, neighbor = prior.pair
        count = torch.bincount(item, minlength=prior.items)
        widest = int(count.max()) if len(item) else 0
        if prior.items * widest > MAX_NEIGHBORS:
            raise ValueError(
                f"the co-occurrence prior has an item with {widest} neighbors among {prior.items} items, too many for a "
                "table in an ONNX file; export the model as a folder (--format folder)"
            )
        value = prior.value * (prior.size / (prior.size + prior.shrink).clamp(min=1e-12))
        value = value + prior.content_weight * prior.likeness
        column = torch.arange(len(item)) - (count.cumsum(0) - count)[item]  # pairs are sorted by item
        neighbors, evidence = torch.zeros(prior.items, widest, dtype=torch.int64), torch.zeros(prior.items, widest)
        neighbors[item, column], evidence[item, column] = neighbor, value.float()
        self.register_buffer("neighbors", neighbors)
        self.register_buffer("evidence", evidence)
        self.items, self.log_decay = prior.items, math.log(float(prior.decay))
        self.weight, self.epsilon = float(prior.weight), float(prior.epsilon)

    def forward(self, histories: Tensor, lengths: Tensor) -> Tensor:
        position = torch.arange(histories.shape[1])
        is_later = position[None, :] > position[:, None]
        repeated = ((histories[:, :, None] == histories[:, None, :]) & is_later).any(2)  # counts once, as the newer one
        counts = (histories > 0) & ~repeated
        age = (lengths[:, None] - 1 - position).clamp(min=0).float()
        factor = torch.where(counts, torch.exp(age * self.log_decay), 0.0)
        evidence = self.evidence[histories] * factor[:, :, None]
        total = torch.zeros(histories.shape[0], self.items)
        total = total.scatter_add(1, self.neighbors[histories].flatten(1), evidence.flatten(1))
        total = total.scatter(1, histories, 0.0)
        share = total / total.sum(1, keepdim=True).clamp(min=1e-12)
        return self.weight * torch.log(share + self.epsilon)


def _encode(encoder: SequenceEncoder, vectors: Tensor, lengths: Tensor, causal: bool) -> Tensor:
    """Encode padded rows, ``[B, L, D]``; what is behind a row's length is meaningless."""
    position = torch.arange(vectors.shape[1])
    offset = position[None, :] - position[:, None]
    bias = BIAS_SCALE * encoder.distance[:, offset + encoder.distance.shape[1] // 2]
    is_hidden = offset > 0 if causal else (position >= lengths[:, None])[:, None, None, :]
    bias = bias.masked_fill(is_hidden, -torch.inf)
    hidden = encoder.norm(vectors)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        hidden = _block(block, hidden, bias, len(encoder.distance))
    return hidden


def _block(block: Block, hidden: Tensor, bias: Tensor, heads: int) -> Tensor:
    length, width = hidden.shape[1:]
    joint = block.qkv(hidden).view(-1, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    query, key, value = joint[0], joint[1], joint[2]
    weights = (query @ key.transpose(2, 3) * (width // heads) ** -0.5 + bias).softmax(3)
    context = (weights @ value).transpose(1, 2).reshape(-1, length, width)
    hidden = block.norm_attention(hidden + block.mix(context))
    return block.norm_feed(hidden + block.shrink(F.gelu(block.grow(hidden))))


def require_onnx() -> None:
    """Raise ImportError where the package onnx is not installed."""
    if find_spec("onnx") is None:
        raise ImportError("an ONNX file is written with the package onnx, which is not installed (pip install onnx)")


def write_onnx(network: SemanticSequenceModel, prior: CooccurrencePrior | None, path: Path) -> None:
    """Write a model as an ONNX file with input ``histories [B, L]`` int64 and output ``scores [B, N + 1]``; any ``B``.

    Args:
        network: a trained network of one catalog, on the CPU.
        prior: added to the scores, or None.
        path: file to write.

    Raises:
        ImportError: onnx is not installed.
        ValueError: as for :class:`ScoringGraph`.
    """
    require_onnx()
    graph = ScoringGraph(network, prior).eval()
    example = torch.zeros(2, network.config.max_length, dtype=torch.int64)
    example[:, 0] = 1
    with atomic_write(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the age of this exporter, and on sizes that are constants here
        torch.onnx.export(
            graph,
            (example,),
            str(temporary),
            input_names=["histories"],
            output_names=["scores"],
            dynamic_axes={"histories": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter takes one package more, and its form changes from version to version
        )
