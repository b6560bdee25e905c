"""Stage 2: the residual-quantized autoencoder (RQ-VAE), which turns a vector into K codes (paper 3.4, Eq. 6-9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.config.schema import QuantizerConfig
from recbole_qbert.quantization.residual_quantizer import ResidualQuantizer, init_codebooks
from recbole_qbert.utils.resumable_epochs import Epochs, Stateful

ROUND = 100  # steps between two looks at dead codes
STALL = 400  # steps whose mean error is compared with that of as many steps before
STANDSTILL = 0.999


class RQVAE(ResidualQuantizer):
    """Quantize vectors between an MLP encoder and an MLP decoder.

    Args:
        inputs: width ``D`` of the vectors to quantize.
        config: sizes and training settings.
    """

    def __init__(self, inputs: int, config: QuantizerConfig) -> None:
        super().__init__(config.dim, config)
        sizes = [inputs, *config.hidden, config.dim]
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct vectors ``[B, D]`` from their codes.

        Returns:
            ``(reconstruction [B, D], quantization loss [] (Eq. 8), codes [B, K])``.
        """
        latent = self.encoder(vectors)
        codes, quantized, residuals = self.quantize(latent)
        chosen = torch.stack([book[codes[:, level]] for level, book in enumerate(self.codebooks)], 1)
        # Eq. 8 writes z^(k); level k quantizes the residual r^(k-1) of Eq. 6, so that is what commits to the code.
        pull = (residuals.detach() - chosen).square().sum(2)
        commit = (residuals - chosen.detach()).square().sum(2)
        loss = (pull + self.config.beta * commit).sum(1).mean()
        through = latent + (quantized - latent).detach()
        return self.decoder(through), loss, codes


@dataclass(frozen=True)
class QuantizerReport:
    """Figures of a training: one entry a round.

    Attributes:
        reconstruction: mean squared error per vector, Eq. 7.
        usage: share of each level's codes in use, ``K`` numbers.
        perplexity: exp of the entropy of each level's codes, ``K`` numbers; ``M`` when all are used alike.
        reseeded: dead codes that were moved.
    """

    reconstruction: list[float]
    usage: list[list[float]]
    perplexity: list[list[float]]
    reseeded: list[int]


def fit(vectors: Tensor, config: QuantizerConfig, seed: int, epochs: Epochs | None = None) -> tuple[RQVAE, QuantizerReport]:
    """Train the autoencoder on a catalog's vectors.

    The loss is Eq. 9. The paper gives levels, codes, width, learning rate and batch size, and is silent on the rest. The
    network is first trained as a plain autoencoder for ``warmup_steps``, because k-means on the output of a random encoder
    gives codes that the first steps make useless. Then k-means on the residuals of the catalog initialises every level. A
    code that no item chose during a round is moved onto a random residual, so that no code stays dead.

    Training is counted in steps, because a count of epochs trains small catalogs hardly at all and large ones for hours. A
    round is an epoch, or ``ROUND`` steps of a large catalog.

    Args:
        vectors: ``[N, D]`` float32, finite.
        config: sizes and training settings.
        seed: seed of initialisation, batches and k-means.
        epochs: shows the progress, and saves it where the stage can be resumed.

    Returns:
        ``(network in evaluation mode, report)``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RQVAE(vectors.shape[1], config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        report = QuantizerReport([], [], [], [])
        steps_per_round = min(ROUND, math.ceil(len(vectors) / config.batch_size))
        warmup, total = _rounds(config, len(vectors), steps_per_round)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(total, 1), config.learning_rate * 0.01)
        parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for number in (epochs or Epochs()).count(total, parts, vars(report)):
            if number == warmup:
                init_codebooks(model, vectors)
            total_error, usage = 0.0, torch.zeros(config.levels, config.codes)
            seen = 0
            for rows in torch.randperm(len(vectors)).split(config.batch_size)[:steps_per_round]:
                batch = vectors[rows]
                seen += len(rows)
                if number < warmup:
                    reconstruction, loss = model.decoder(model.encoder(batch)), torch.zeros(())
                else:
                    reconstruction, loss, codes = model(batch)
                    usage += F.one_hot(codes, config.codes).sum(0)
                error = (reconstruction - batch).square().sum(1).mean()  # Eq. 7
                optimizer.zero_grad(set_to_none=True)
                (error + loss).backward()
                optimizer.step()
                total_error += error.item() * len(rows)
            schedule.step()
            if number < warmup:
                continue
            share = usage / usage.sum(1, keepdim=True)
            report.reconstruction.append(total_error / seen)
            report.usage.append((usage > 0).float().mean(1).tolist())
            report.perplexity.append(torch.exp(-(share * share.clamp(min=1e-12).log()).sum(1)).tolist())
            window = max(1, STALL // steps_per_round)
            recent = report.reconstruction[-window:]
            before = report.reconstruction[-2 * window : -window]
            if len(before) == window and sum(recent) > STANDSTILL * sum(before):
                report.reseeded.append(0)
                break
            # Not in the last rounds: a code that is moved there would stay untrained.
            report.reseeded.append(reset_dead_codes(model, vectors, usage == 0) if number < total * 0.9 else 0)
        if warmup == total:
            init_codebooks(model, vectors)
    return model.eval(), report


def _rounds(config: QuantizerConfig, items: int, steps_per_round: int) -> tuple[int, int]:
    """Return the number of rounds of warm-up, and of all rounds."""
    batches = math.ceil(items / config.batch_size)
    warmup = config.warmup_steps if config.warmup_epochs is None else config.warmup_epochs * batches
    steps = config.steps if config.epochs is None else config.epochs * batches
    rounds = math.ceil(warmup / steps_per_round)
    return rounds, rounds + math.ceil(steps / steps_per_round)


@torch.no_grad()
def reset_dead_codes(model: RQVAE, vectors: Tensor, dead: Tensor) -> int:
    """Move dead codes onto the residuals of random items at their level.

    Args:
        model: the network; changed in place.
        vectors: ``[N, D]`` float32.
        dead: ``[K, M]`` bool, codes that no item chose.

    Returns:
        The number of codes that were moved.
    """
    if not dead.any():
        return 0
    residuals = {}
    for level in dead.any(1).nonzero()[:, 0].tolist():
        rows = torch.randint(len(vectors), (int(dead[level].sum()),))
        residuals[level] = model.quantize(model.encoder(vectors[rows]))[2][:, level]
    for level, residual in residuals.items():  # all are computed before: a moved code changes the residuals below it
        model.codebooks[level, dead[level]] = residual
    return int(dead.sum())


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
