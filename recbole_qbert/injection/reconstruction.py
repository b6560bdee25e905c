"""Reconstruction of the modalities from the fused vector, and the start of fusion from the modalities side by side.

Eq. 5 keeps what text and image share and drops what only one of them knows. Neither is in the paper; chosen because
concatenation, which drops nothing, ranks better than Eq. 5 alone (docs/findings.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from recbole_qbert.data.item_features import one_vector
from recbole_qbert.data.standardization import Standardization
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.injection.network import DynamicInjection


class Reconstruction(nn.Module):
    """Linear decoders from the fused vector to the standardized vector of each modality; used in training only.

    Args:
        targets: name -> ``[N, A]`` float, zeros for items without one.
        present: name -> ``[N]`` bool.
        width: ``D``, width of fused vectors.
    """

    def __init__(self, targets: Mapping[str, Tensor], present: Mapping[str, Tensor], width: int) -> None:
        super().__init__()
        self.targets, self.present = dict(targets), dict(present)
        self.decoders = nn.ModuleDict({name: nn.Linear(width, target.shape[1]) for name, target in targets.items()})

    def errors(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Compute the squared error of each item as a share of the variance, mean over its modalities: ``[..., B]``.

        Args:
            vectors: ``[..., B, D]`` fused vectors.
            rows: ``[B]`` int64, rows of the catalog.
        """
        total = vectors.new_zeros(vectors.shape[:-1])
        count = vectors.new_zeros(len(rows))
        for name, decoder in self.decoders.items():
            real = self.present[name][rows]
            total = total + (decoder(vectors) - self.targets[name][rows]).square().sum(-1) * real
            count = count + real
        return total / count.clamp(min=1)


def reconstruction(
    vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], width: int, queries: Tensor | None = None
) -> Reconstruction:
    """Make the decoders of a catalog; of several vectors of a modality their mean is reconstructed, as it is concatenated.

    Args:
        vectors: modality -> ``[N, J, D_m]`` float32.
        present: modality -> ``[N, J]`` bool.
        width: ``D``.
        queries: ``[N, D]`` structural vectors to be reconstructed, too; zeros for items without one.
    """
    parts = Concatenation.fit(vectors, present, width).parts
    has = {name: torch.from_numpy(present[name].any(1)) for name in parts}
    means = {name: torch.from_numpy(one_vector(vectors[name], present[name])) for name in parts}
    targets = {name: part(means[name]) * has[name][:, None] for name, part in parts.items()}
    if queries is not None:
        targets["structural query"], has["structural query"] = queries, queries.any(1)
    return Reconstruction(targets, has, width)


@torch.no_grad()
def start_from_concatenation(
    network: DynamicInjection,
    decoders: Reconstruction,
    vectors: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
) -> None:
    """Set ID vectors to the principal axes of the standardized modalities side by side, and decoders to the way back.

    Args:
        network: a network with ``query: concatenation``; its first output is then that projection, of mean squared length 1.
        decoders: its decoders.
        vectors: modality -> ``[N, J, D_m]`` float32.
        present: modality -> ``[N, J]`` bool.
    """
    concatenation = Concatenation.fit(vectors, present, network.config.dim)
    combined = torch.from_numpy(concatenation(vectors, present))
    whole = Standardization.fit(combined, network.config.dim)
    axes = torch.eye(combined.shape[1]) if whole.axes is None else whole.axes
    network.query.weight.zero_()
    network.query.weight[:, : whole.width] = -(whole.mean @ axes) / whole.scale
    first = 0
    for name, part in concatenation.parts.items():
        block = axes[first : first + part.width]
        weight = (block if part.axes is None else part.axes @ block) / part.scale / whole.scale
        start, decoder = network.start[name], decoders.decoders[name]
        assert isinstance(start, nn.Linear) and isinstance(decoder, nn.Linear)
        start.weight.zero_()
        start.weight[: whole.width] = weight.T
        start.bias.zero_()
        start.bias[: whole.width] = -(part.mean @ weight)
        decoder.weight.zero_()
        decoder.weight[:, : whole.width] = block * whole.scale
        decoder.bias.copy_(whole.mean[first : first + part.width])
        first += part.width
