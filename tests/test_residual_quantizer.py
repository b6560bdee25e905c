"""Residual k-means, standardization, concatenation, and the figures on what IDs keep."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recbole_qbert.data.standardization import Standardization
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.quantization import fidelity, residual_quantizer, rqvae
from tests.helpers import quantizer_config


def test_an_id_is_the_nearest_code_of_what_is_left_level_by_level():
    torch.manual_seed(0)
    vectors = torch.randn(300, 6)
    config = quantizer_config(method="residual_kmeans", levels=3, codes=8)
    model = residual_quantizer.fit(vectors, config, seed=4)
    codes, latents = model.encode(vectors)
    assert torch.equal(latents, vectors)
    left = vectors.clone()
    for level in range(3):
        distance = (left[:, None] - model.codebooks[level].detach()[None]).square().sum(2)
        assert torch.equal(codes[:, level], distance.argmin(1))
        left -= model.codebooks[level].detach()[codes[:, level]]
    torch.testing.assert_close(model.decode(codes), vectors - left)


def test_every_level_leaves_less_and_the_same_seed_gives_the_same_codes():
    torch.manual_seed(0)
    vectors = torch.randn(400, 5) @ torch.randn(5, 12)
    vectors -= vectors.mean(0)
    config = quantizer_config(method="residual_kmeans", levels=4, codes=8)
    one, two = (residual_quantizer.fit(vectors, config, seed=1) for _ in range(2))
    codes = one.encode(vectors)[0]
    assert torch.equal(codes, two.encode(vectors)[0])
    explained = fidelity.explained_variance(one, vectors, codes)
    by_hand = [
        1 - float((vectors - one.decode(codes[:, : k + 1])).square().sum() / vectors.square().sum()) for k in range(4)
    ]
    assert explained == pytest.approx(by_hand)
    assert all(late > early for early, late in itertools.pairwise(explained)) and explained[-1] > 0.8


def test_k_means_of_a_large_catalog_sees_a_sample_of_it():
    torch.manual_seed(0)
    centers = 10 * torch.randn(8, 4)
    vectors = centers[torch.randint(8, (2000,))] + 0.01 * torch.randn(2000, 4)
    config = quantizer_config(method="residual_kmeans", levels=1, codes=8, kmeans_sample=200)
    model = residual_quantizer.fit(vectors, config, seed=0)
    assert torch.cdist(centers, model.codebooks[0].detach()).min(1).values.max() < 0.1


@pytest.mark.parametrize("rows", [7, 8192])
def test_neighbors_kept_counts_common_neighbors_by_brute_force(rows, monkeypatch):
    monkeypatch.setattr(fidelity, "ROWS", rows)
    torch.manual_seed(0)
    vectors, rebuilt = torch.randn(40, 5), torch.randn(40, 5)
    model, codes = residual_quantizer.ResidualQuantizer(5, quantizer_config(levels=1, codes=40)), torch.arange(40)[:, None]
    model.codebooks.data[0] = rebuilt  # every item has a code of its own

    def nearest(matrix: torch.Tensor, row: int) -> set[int]:
        similar = torch.nn.functional.cosine_similarity(matrix[row : row + 1], matrix)
        return set(sorted((n for n in range(40) if n != row), key=lambda n: -float(similar[n]))[:10])

    by_hand = np.mean([len(nearest(vectors, row) & nearest(rebuilt, row)) / 10 for row in range(40)])
    assert fidelity.neighbors_kept(model, vectors, codes) == pytest.approx(by_hand)
    assert fidelity.neighbors_kept(model, vectors[:11], codes[:11]) is None
    model.codebooks.data[0] = 3 * vectors
    assert fidelity.neighbors_kept(model, vectors, codes) == 1.0


def test_standardization_keeps_the_axes_of_most_variance():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(500, 3, generator=generator) * torch.tensor([5.0, 3.0, 2.0])
    turn = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    vectors = 7 + torch.cat([hidden, 1e-3 * torch.randn(500, 7, generator=generator)], 1) @ turn
    standard = Standardization.fit(vectors, 3)
    result = standard(vectors)
    assert result.shape == (500, 3) and standard.width == 3
    assert result.mean(0).abs().max() < 1e-4 and float(result.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
    centered = vectors - vectors.mean(0)
    torch.testing.assert_close(  # distances are those of the vectors, but for the scale
        torch.cdist(result, result) * standard.scale, torch.cdist(centered, centered), rtol=1e-3, atol=1e-2
    )
    again = Standardization.of_tensors(standard.tensors())
    torch.testing.assert_close(again(vectors), result, rtol=0, atol=0)


def test_vectors_that_are_narrow_enough_are_only_centered_and_scaled():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    standard = Standardization.fit(vectors, 2)
    assert standard.axes is None
    torch.testing.assert_close(standard(vectors), torch.tensor([[-1.0, -2.0], [1.0, 2.0]]) / 5**0.5)


def test_concatenation_weighs_modalities_alike_and_leaves_out_what_is_missing():
    random = np.random.default_rng(0)
    vectors = {
        "text": 100 * random.normal(size=(50, 1, 4)).astype(np.float32),
        "image": random.normal(size=(50, 2, 3)).astype(np.float32),
    }
    present = {"text": np.ones((50, 1), bool), "image": np.ones((50, 2), bool)}
    present["image"][:5] = False
    present["image"][5:10, 1] = False
    vectors["image"][~present["image"]] = 0
    fusion = Concatenation.fit(vectors, present, 128)
    fused = fusion(vectors, present)
    assert fused.shape == (50, 7) and not fused[:5, 4:].any()
    assert (fused[:, :4] ** 2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    assert (fused[5:, 4:] ** 2).sum(1).mean() == pytest.approx(1, rel=1e-4)
    mean = np.concatenate([vectors["image"][5:10, 0], vectors["image"][10:].mean(1)])
    expected = mean - mean.mean(0)
    np.testing.assert_allclose(fused[5:, 4:], expected / np.sqrt((expected**2).sum(1).mean()), rtol=1e-4, atol=1e-5)
    again = Concatenation.of_tensors(dict(sorted(fusion.tensors().items(), reverse=True)))  # files keep no order
    np.testing.assert_array_equal(again(vectors, present), fused)


@pytest.mark.parametrize(("items", "per_epoch"), [(64, 4), (20, 2)])
def test_training_is_counted_in_steps_or_in_epochs_if_these_are_given(items, per_epoch, monkeypatch):
    monkeypatch.setattr(rqvae, "STANDSTILL", 2.0)  # never
    vectors = torch.randn(items, 6)
    by_steps = quantizer_config(warmup_epochs=None, epochs=None, warmup_steps=4, steps=10)
    assert len(rqvae.fit(vectors, by_steps, 0)[1].reconstruction) == -(-10 // per_epoch)
    by_epochs = quantizer_config(warmup_epochs=1, epochs=3, steps=1000)
    assert len(rqvae.fit(vectors, by_epochs, 0)[1].reconstruction) == 3


def test_a_round_of_a_large_catalog_is_a_part_of_an_epoch(monkeypatch):
    monkeypatch.setattr(rqvae, "ROUND", 3)
    config = quantizer_config(warmup_epochs=None, epochs=None, warmup_steps=3, steps=9)  # 16 vectors a step
    report = rqvae.fit(torch.randn(160, 6), config, 0)[1]
    assert len(report.reconstruction) == 3


def test_training_ends_when_the_error_stands_still(monkeypatch):
    monkeypatch.setattr(rqvae, "STALL", 8)
    config = quantizer_config(warmup_epochs=None, epochs=None, warmup_steps=2, steps=4000, learning_rate=1e-9)
    report = rqvae.fit(torch.randn(64, 6), config, 0)[1]
    assert len(report.reconstruction) < 100
