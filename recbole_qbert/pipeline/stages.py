"""Stages 1 and 2 as pure functions: from features to fused vectors to semantic IDs. They read and write no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from recbole_qbert.config.schema import InjectionConfig, QuantizerConfig
from recbole_qbert.data.item_features import STRUCTURE, ItemFeatures, one_vector
from recbole_qbert.data.standardization import Standardization
from recbole_qbert.injection import structural_vectors
from recbole_qbert.injection import training as injection_training
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.quantization import collision_resolution, fidelity, residual_quantizer, rqvae, semantic_ids, tokenizer
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.io import digest
from recbole_qbert.utils.resumable_epochs import Epochs

REALLOCATE, DIGIT = "reallocate", "digit"


@dataclass(frozen=True)
class FusedItems:
    """Result of stage 1.

    Attributes:
        vectors: ``[N, D]`` float32.
        depth: ``[N]`` int16, layers computed for each item; ``None`` without a network.
        weights: weights of the network, as the tokenizer needs them for new items.
        report: figures of the training.
    """

    vectors: np.ndarray
    depth: np.ndarray | None
    weights: dict[str, torch.Tensor]
    report: dict[str, Any]


@dataclass(frozen=True)
class QuantizedItems:
    """Result of stage 2.

    Attributes:
        ids: semantic IDs of the ``N`` items, all different.
        weights: weights of the quantizers, as the tokenizer needs them for new items.
        report: health of each code set.
    """

    ids: SemanticIDs
    weights: dict[str, torch.Tensor]
    report: dict[str, Any]


def fuse(
    features: ItemFeatures,
    histories: Sequence[np.ndarray],
    config: InjectionConfig,
    seed: int,
    epochs: Epochs | None = None,
) -> FusedItems:
    """Run stage 1: inject the modalities of each item into one vector (paper 3.3).

    Args:
        features: features of the ``N`` items.
        histories: training histories as rows of the items. Only structural queries use them.
        config: settings of the stage.
        seed: seed of everything random.
        epochs: counter that shows progress and resumes.

    Returns:
        The fused vectors, depths, weights and figures.

    Raises:
        ValueError: the features lack a modality that ``config`` names.
    """
    queries = None
    if needs_histories(features, config):
        # Where nothing else describes an item, its own histories do.
        own_left_out = bool(features.vectors)
        queries = structural_vectors.vectors(histories, len(features.items), config.dim, seed, own_left_out)
        queries /= max(float(np.sqrt((queries**2).sum(1).mean())), 1e-6)
    chosen = InjectionConfig(**{**asdict(config), "modalities": tuple(features.vectors)})
    network, fused, depth, report = injection_training.fit(features.vectors, features.present, chosen, seed, queries, epochs)
    weights = tokenizer.injection_weights(network)
    return FusedItems(fused.astype(np.float32), depth.astype(np.int16), weights, asdict(report))


def with_structure(features: ItemFeatures, histories: Sequence[np.ndarray], width: int, seed: int) -> ItemFeatures:
    """Add structural vectors as a modality (paper 3.1): principal axes of co-occurrence in the training histories.

    Every pair of items counts one history less than hold it, so that no user's own history tells of the pairs in it
    (``own_left_out``). What is left of it comes by way of third items; docs/findings.md has figures.

    Args:
        features: features of the ``N`` items.
        histories: training histories as rows of the items.
        width: ``D``.
        seed: seed of the decomposition.
    """
    vectors = structural_vectors.vectors(histories, len(features.items), width, seed, own_left_out=True)
    inputs = features.inputs | {STRUCTURE: digest([width, seed, [history.tolist() for history in histories]])}
    return replace(features.with_vectors(STRUCTURE, vectors), inputs=inputs)


def concatenate(features: ItemFeatures, width: int) -> FusedItems:
    """Run stage 1 without a network: put the standardized modalities of each item side by side.

    Args:
        features: features of the ``N`` items, of at least one modality.
        width: principal axes kept of each modality.

    Returns:
        The vectors, ``[N, modalities * width]`` at most, the map for new items, and figures.
    """
    fusion = Concatenation.fit(features.vectors, features.present, width)
    vectors = fusion(features.vectors, features.present)
    return FusedItems(vectors, None, fusion.tensors(), {"fusion": "concatenation", "width": vectors.shape[1]})


def needs_histories(features: ItemFeatures, config: InjectionConfig) -> bool:
    """Return whether stage 1 starts from structural vectors. Without features nothing else describes an item."""
    return config.query == "structural" or not features.vectors


def quantize(
    features: ItemFeatures,
    fused: np.ndarray | None,
    code_sets: Sequence[str],
    config: QuantizerConfig,
    seed: int,
    epochs: Callable[[str], Epochs | None] = lambda code_set: None,
    collisions: str = REALLOCATE,
) -> QuantizedItems:
    """Run stage 2: quantize the vectors of each code set and resolve collisions (paper 3.4).

    Args:
        features: features of the ``N`` items.
        fused: ``[N, D]`` vectors of stage 1, for the code set ``fused``.
        code_sets: ``fused`` or modalities, in the order of their letters.
        config: settings of the stage.
        seed: seed of everything random.
        epochs: function from a code set to the counter that shows its progress and resumes it.
        collisions: what happens to items that share an ID: ``reallocate`` moves them, ``digit`` appends a level that counts
            them (TIGER).

    Returns:
        The IDs, weights and health of each code set.

    Raises:
        ValueError: there are more items than IDs.
    """
    codes, report = [], []
    prefixes: list[str] = []
    weights: dict[str, torch.Tensor] = {}
    levels = config.levels + (collisions == DIGIT)
    for number, code_set in enumerate(code_sets):
        vectors, described = _vectors_of(code_set, features, fused)
        letters = semantic_ids.prefixes_of(levels, number)
        items = [features.items[row] for row in np.flatnonzero(described)]
        own = epochs(code_set)
        vectors = vectors if described.all() else vectors[described]
        final, health, tensors = _quantize_set(vectors, items, letters, config, seed, own, collisions)
        of_all_items = np.full((len(features.items), levels), -1, dtype=np.int16)
        of_all_items[described] = final
        codes.append(of_all_items)
        prefixes += letters
        weights |= {f"{code_set}.{key}": value for key, value in tensors.items()}
        report.append({"code_set": code_set, **health})
    joined = np.concatenate(codes, 1)
    size = max(config.codes, int(joined.max(initial=0)) + 1)  # a digit may count further than there are codes
    ids = SemanticIDs(features.items, joined, tuple(prefixes), size)
    return QuantizedItems(ids, weights, {"code_sets": report})


def _quantize_set(
    vectors: np.ndarray,
    items: Sequence[str],
    prefixes: tuple[str, ...],
    config: QuantizerConfig,
    seed: int,
    epochs: Epochs | None,
    collisions: str,
) -> tuple[np.ndarray, dict[str, Any], dict[str, torch.Tensor]]:
    """Train the quantizer of one code set, encode and resolve collisions; return codes, health and weights."""
    # The same mean and length for every encoder, so that learning rate and beta mean the same.
    standardization = Standardization.fit(torch.from_numpy(vectors), config.axes)
    inputs = standardization(torch.from_numpy(vectors))
    reseeded = None
    if config.method == "rqvae":
        model: residual_quantizer.ResidualQuantizer
        model, report = rqvae.fit(inputs, config, seed, epochs)
        reseeded = sum(report.reseeded)
    else:
        model = residual_quantizer.fit(inputs, config, seed)
    before, latents = model.encode(inputs)
    shared = before.numpy()
    if collisions == DIGIT:
        final, shared = collision_resolution.append_digit(shared, items), np.pad(shared, ((0, 0), (0, 1)))
    else:
        final = collision_resolution.reallocate(shared, latents.numpy(), model.codebooks.detach().numpy(), items)
    final_codes = torch.from_numpy(final[:, : config.levels]).long()
    health = semantic_ids.health(shared, final, config.codes, prefixes)
    health["explained_per_level"] = fidelity.explained_variance(model, inputs, final_codes)
    health["neighbors_kept"] = fidelity.neighbors_kept(model, inputs, final_codes)
    health["reseeded_codes"] = reseeded
    return final.astype(np.int16), health, {**standardization.tensors(), **model.state_dict()}


def _vectors_of(code_set: str, features: ItemFeatures, fused: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors to quantize, ``[N, D]``, and which items have one, ``[N]``; several vectors are averaged."""
    if code_set == "fused":
        assert fused is not None
        return fused, np.ones(len(fused), dtype=bool)
    vectors, present = features.vectors[code_set], features.present[code_set]
    described = present.any(1)
    mean = one_vector(vectors, present)
    undescribed = ~np.any([there.any(1) for there in features.present.values()], axis=0)
    if code_set == next(iter(features.vectors)) and undescribed.any():
        # An item without any modality needs an ID, too: it gets the vector of the average item.
        mean = mean.copy()
        mean[undescribed] = mean[described].mean(0) if described.any() else 0.0
        described = described | undescribed
    return mean, described
