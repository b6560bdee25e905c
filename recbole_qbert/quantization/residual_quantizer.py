"""Residual quantization: a vector becomes K codes, each the nearest to what the codes before it leave (paper Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_qbert.config.schema import QuantizerConfig
from recbole_qbert.quantization.kmeans import kmeans, nearest_center

ROWS = 8192  # vectors encoded at a time


class ResidualQuantizer(nn.Module):
    """Quantize vectors by K residual codebooks, without an autoencoder around them.

    Args:
        inputs: width ``D`` of the vectors.
        config: sizes and training settings.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, inputs: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.codebooks = nn.Parameter(torch.zeros(config.levels, config.codes, inputs))

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose at each level the code nearest to the residual that the levels before it left (Eq. 6).

        Args:
            latent: ``[B, d]`` float.

        Returns:
            ``(codes [B, K] int64, quantized [B, d], residuals [B, K, d])``: the codes, the sum of their vectors, and the
            residual before each level.
        """
        codes, residuals, residual, quantized = [], [], latent, torch.zeros_like(latent)
        for book in self.codebooks:
            residuals.append(residual)
            # Squared distances by the expanded square: one matrix product instead of a [B, M, d] difference.
            distance = book.square().sum(1) - 2 * residual.detach() @ book.detach().T
            code = distance.argmin(1)
            chosen = book[code]
            codes.append(code)
            quantized = quantized + chosen
            residual = residual - chosen.detach()
        return torch.stack(codes, 1), quantized, torch.stack(residuals, 1)

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the codes and latents of vectors ``[N, D]``, without gradient.

        Returns:
            ``(codes [N, K] int64, latents [N, d] float)``.
        """
        latent = vectors  # of a large catalog, a copy would be a large part of the memory
        if not isinstance(self.encoder, nn.Identity):
            latent = torch.cat([self.encoder(part) for part in vectors.split(ROWS)])
        codes = torch.cat([self.quantize(part)[0] for part in latent.split(ROWS)])
        return codes, latent

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Rebuild vectors from the first levels of their codes, ``[N, K']`` with ``1 <= K' <= K``; ``[N, D]``."""
        level = torch.arange(codes.shape[1])
        return torch.cat([self.decoder(self.codebooks[level, part].sum(1)) for part in codes.split(ROWS)])


@torch.no_grad()
def init_codebooks(model: ResidualQuantizer, vectors: Tensor) -> None:
    """Set every level by k-means on the residuals that the levels before it leave.

    Of a large catalog, ``kmeans_sample`` random vectors are clustered: the centers of many more are the same within noise.

    Args:
        model: the quantizer; its codebooks are changed in place.
        vectors: ``[N, D]`` float32.
    """
    if len(vectors) > model.config.kmeans_sample:
        vectors = vectors[torch.randperm(len(vectors))[: model.config.kmeans_sample]]
    residual = model.encode(vectors)[1]
    for book in model.codebooks:
        book.copy_(kmeans(residual, len(book), model.config.kmeans_iterations))
        residual = residual - book[nearest_center(residual, book)]


def fit(vectors: Tensor, config: QuantizerConfig, seed: int) -> ResidualQuantizer:
    """Fit residual k-means: the codebooks of ``init_codebooks`` on the vectors themselves.

    Args:
        vectors: ``[N, D]`` float32, finite.
        config: sizes and training settings.
        seed: seed of k-means.

    Returns:
        The quantizer in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualQuantizer(vectors.shape[1], config)
        init_codebooks(model, vectors)
    return model.eval()
