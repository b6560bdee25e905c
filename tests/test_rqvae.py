"""recbole_qbert.quantization.rqvae: planted codes are recovered, Eq. 8 is what it says, no code stays dead."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.quantization import rqvae
from recbole_qbert.quantization.kmeans import kmeans
from recbole_qbert.quantization.residual_quantizer import init_codebooks
from recbole_qbert.quantization.rqvae import RQVAE, fit, reset_dead_codes
from tests.helpers import linear_is_identity, quantizer_config

LEVELS, CODES, WIDTH = 3, 4, 6


def planted(seed):
    """``(codes, vectors)``: all combinations of residuals, each level 20 times finer than the last."""
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn(LEVELS, CODES, WIDTH, generator=generator)
    books = (books - books.mean(1, keepdim=True)) * torch.tensor([20.0**-level for level in range(LEVELS)])[:, None, None]
    codes = torch.cartesian_prod(*[torch.arange(CODES)] * LEVELS)
    return codes, sum(books[level, codes[:, level]] for level in range(LEVELS))


def plain_model(**changes) -> RQVAE:
    """A network whose encoder and decoder return their input."""
    config = quantizer_config(**{"levels": LEVELS, "codes": CODES, "dim": WIDTH, "hidden": (), **changes})
    model = RQVAE(WIDTH, config)
    linear_is_identity(model.encoder)
    linear_is_identity(model.decoder)
    return model


def same_up_to_names(found: torch.Tensor, true: torch.Tensor) -> bool:
    """Each level's codes are a renaming of the planted ones."""
    pairs = [set(zip(found[:, k].tolist(), true[:, k].tolist(), strict=True)) for k in range(true.shape[1])]
    return all(len(p) == len({a for a, _ in p}) == len({b for _, b in p}) == CODES for p in pairs)


# -------------------------------------------------------------------------------- planted codes


@pytest.mark.parametrize("seed", range(5))
def test_planted_codes_are_recovered_level_by_level(seed):
    codes, vectors = planted(seed)
    torch.manual_seed(seed)
    model = plain_model()
    init_codebooks(model, vectors)
    assert same_up_to_names(model.encode(vectors)[0], codes)
    torch.testing.assert_close(model(vectors)[0], vectors, rtol=0, atol=1e-5)


@pytest.mark.pipeline
@pytest.mark.parametrize("seed", [1, 2])
def test_training_recovers_planted_codes_and_reconstructs(seed):
    codes, vectors = planted(seed)
    shape = {"levels": LEVELS, "codes": CODES, "dim": WIDTH, "hidden": (), "batch_size": 64}
    config = quantizer_config(**shape, warmup_epochs=300, epochs=300, learning_rate=0.01, weight_decay=0.0)
    model, report = fit(vectors, config, seed)
    assert not model.training
    assert same_up_to_names(model.encode(vectors)[0], codes)
    assert report.reconstruction[-1] < 0.002 * vectors.square().sum(1).mean()
    # Used alike: every code has a quarter of the items.
    assert report.perplexity[-1] == pytest.approx([CODES] * LEVELS, rel=1e-3)
    assert report.usage[-1] == [1.0] * LEVELS


# -------------------------------------------------------------------------------- Eq. 6-8


def by_hand(vectors, books, beta):
    """Codes and the value of Eq. 8, one item and one code at a time."""
    total, all_codes = 0.0, []
    for vector in vectors:
        residual, codes = vector, []
        for book in books:
            distance = [float((residual - code).square().sum()) for code in book]
            codes.append(distance.index(min(distance)))
            total += (1 + beta) * min(distance)
            residual = residual - book[codes[-1]]
        all_codes.append(codes)
    return all_codes, total / len(vectors)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(1, 5), st.floats(0, 2), st.integers(0, 10**6))
def test_codes_and_quantization_loss_equal_a_plain_recomputation(levels, codes, items, beta, seed):
    torch.manual_seed(seed)
    model = plain_model(levels=levels, codes=codes, beta=beta).double()
    with torch.no_grad():
        model.codebooks.normal_()
    vectors = torch.randn(items, WIDTH, dtype=torch.float64)
    reconstruction, loss, found = model(vectors)
    wanted, value = by_hand(vectors, model.codebooks.detach(), beta)
    assert found.tolist() == wanted
    assert loss.item() == pytest.approx(value, rel=1e-9)
    chosen = sum(model.codebooks[k, found[:, k]] for k in range(levels))
    torch.testing.assert_close(reconstruction, chosen)


def test_gradients_of_eq_8_go_where_its_stop_gradients_let_them():
    """The first term pulls the codebooks to the residuals, the second the encoder to the codes."""
    torch.manual_seed(0)
    beta = 0.25
    model = plain_model(beta=beta).double()
    with torch.no_grad():
        model.codebooks.normal_()
    vectors = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    _, loss, codes = model(vectors)
    loss.backward()
    residual, books, commit = vectors.detach(), model.codebooks.detach(), 0.0
    wanted = torch.zeros_like(books)
    for level in range(LEVELS):
        gap = residual - books[level, codes[:, level]]
        wanted[level].index_add_(0, codes[:, level], -2 * gap / 5)
        commit = commit + 2 * beta * gap / 5
        residual = gap
    torch.testing.assert_close(model.codebooks.grad, wanted)
    torch.testing.assert_close(vectors.grad, commit)


def test_reconstruction_gradient_passes_straight_through_to_the_encoder_only():
    model = plain_model()
    with torch.no_grad():
        model.codebooks.normal_()
    vectors = torch.randn(3, WIDTH, requires_grad=True)
    direction = torch.randn(3, WIDTH)
    (model(vectors)[0] * direction).sum().backward()
    torch.testing.assert_close(vectors.grad, direction)
    assert model.codebooks.grad is None or not model.codebooks.grad.any()


def test_encode_gives_the_codes_of_forward():
    torch.manual_seed(0)
    model = RQVAE(10, quantizer_config())
    with torch.no_grad():
        model.codebooks.normal_()
    vectors = torch.randn(30, 10)
    codes, latents = model.encode(vectors)
    assert torch.equal(codes, model(vectors)[2])
    assert not latents.requires_grad
    torch.testing.assert_close(latents, model.encoder(vectors).detach())


# -------------------------------------------------------------------------------- k-means


def test_kmeans_finds_the_means_of_clusters_far_apart():
    torch.manual_seed(0)
    middle = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    points = middle.repeat_interleave(20, 0) + torch.randn(60, 2)
    wanted = torch.stack([points[i * 20 : i * 20 + 20].mean(0) for i in range(3)])
    centres = kmeans(points, 3, 20)
    torch.testing.assert_close(centres[torch.cdist(wanted, centres).argmin(1)], wanted, rtol=1e-4, atol=1e-4)


def test_one_cluster_is_the_mean():
    points = torch.tensor([[0.0], [1.0], [5.0]])
    assert kmeans(points, 1, 5).tolist() == [[2.0]]


@pytest.mark.parametrize(("distinct", "copies"), [(1, 1), (3, 1), (3, 4), (7, 4)])
@pytest.mark.parametrize("iterations", [0, 10])
def test_fewer_distinct_points_than_clusters_still_give_different_centres(iterations, distinct, copies):
    torch.manual_seed(distinct)
    points = 5 * torch.randn(distinct, 3)
    centres = kmeans(points.repeat(copies, 1), 8, iterations)
    assert centres.shape == (8, 3)
    assert len(torch.unique(centres, dim=0)) == 8
    assert torch.cdist(points, centres).amin(1).max() < 0.5  # every point still has a centre of its own


def test_an_empty_cluster_takes_a_point_far_from_its_centre(monkeypatch):
    """Both centres start in the middle, which is the mean: without the rule they would stay there."""
    points = torch.tensor([[0.0], [-10.0], [10.0]])
    monkeypatch.setattr(torch, "multinomial", lambda *_: torch.tensor([0]))
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor([0]))
    assert sorted(kmeans(points, 2, 10)[:, 0].tolist()) in ([-10.0, 5.0], [-5.0, 10.0])


# -------------------------------------------------------------------------------- dead codes


def test_dead_codes_move_onto_residuals_of_their_level_and_living_ones_stay():
    torch.manual_seed(0)
    _, vectors = planted(0)
    model = plain_model()
    with torch.no_grad():
        model.codebooks.normal_()
    before, residuals = model.codebooks.detach().clone(), model.quantize(vectors)[2]
    dead = torch.zeros(LEVELS, CODES, dtype=torch.bool)
    dead[0, 1] = dead[2, 0] = dead[2, 3] = True
    assert reset_dead_codes(model, vectors, dead) == 3
    assert torch.equal(model.codebooks[~dead], before[~dead])
    for level, code in dead.nonzero().tolist():
        assert torch.cdist(model.codebooks[level, code][None], residuals[:, level].contiguous()).min() < 1e-3


def test_nothing_dead_nothing_moves():
    model = plain_model()
    before = model.codebooks.detach().clone()
    assert reset_dead_codes(model, torch.randn(5, WIDTH), torch.zeros(LEVELS, CODES, dtype=torch.bool)) == 0
    assert torch.equal(model.codebooks, before)


def test_training_brings_dead_codes_into_use(monkeypatch):
    def badly(model, vectors):
        model.codebooks.data.fill_(1e3)
        model.codebooks.data[:, 0] = 0.0

    monkeypatch.setattr(rqvae, "init_codebooks", badly)
    torch.manual_seed(0)
    config = quantizer_config(levels=2, codes=6, epochs=20, batch_size=32)
    _, report = fit(torch.randn(120, 5), config, 0)
    assert report.usage[0] == pytest.approx([1 / 6] * 2)
    assert report.reseeded[0] == 10
    assert min(report.usage[-1]) >= 5 / 6
    assert report.reseeded[-1] == 0  # the last epochs settle


# -------------------------------------------------------------------------------- report, seeds


def test_usage_and_perplexity_by_hand():
    """Three items alike and one apart use two of four codes, 3 : 1."""
    vectors = torch.tensor([[1.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 5.0]])
    config = quantizer_config(levels=1, codes=4, hidden=(), warmup_epochs=0, epochs=1, learning_rate=0.0, weight_decay=0.0)
    _, report = fit(vectors, config, 0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert report.usage == [[0.5]]
    assert report.perplexity[0] == pytest.approx([math.exp(entropy)])
    assert report.reseeded == [2]


def test_reconstruction_error_of_the_report_is_eq_7():
    vectors = torch.randn(40, 5)
    config = quantizer_config(warmup_epochs=0, epochs=1, learning_rate=0.0, weight_decay=0.0, batch_size=16)
    model, report = fit(vectors, config, 0)
    if report.reseeded[0]:  # codes moved after the figure was taken
        pytest.fail("pick vectors that use all codes")
    assert report.reconstruction[0] == pytest.approx((model(vectors)[0] - vectors).square().sum(1).mean().item(), rel=1e-5)


def test_the_report_has_one_entry_an_epoch_after_the_warm_up():
    _, report = fit(torch.randn(30, 5), quantizer_config(warmup_epochs=2, epochs=4), 0)
    assert [len(x) for x in (report.reconstruction, report.usage, report.perplexity, report.reseeded)] == [4] * 4


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    vectors = torch.randn(50, 6)
    results = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        results.append(fit(vectors, quantizer_config(), seed)[0].state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["codebooks"], results[2]["codebooks"])


def test_training_improves_the_reconstruction():
    torch.manual_seed(0)
    vectors = torch.randn(200, 4) @ torch.randn(4, 12)
    _, report = fit(vectors, quantizer_config(levels=3, codes=16, epochs=40, learning_rate=0.01), 0)
    assert report.reconstruction[-1] < 0.6 * report.reconstruction[0]


def test_without_training_epochs_the_codes_are_those_of_kmeans():
    model, _ = fit(torch.randn(60, 5), quantizer_config(epochs=0), 0)
    assert len(torch.unique(model.encode(torch.randn(60, 5))[0], dim=0)) > 1
