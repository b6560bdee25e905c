"""Optimized product quantization against brute force: rotation, distortion, codes; what is fitted on what, and the cache."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from recbole_qbert.config.baseline_schema import ProductQuantizerConfig
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.pipeline import product_codes
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization import product_quantizer
from recbole_qbert.quantization.product_quantizer import ProductQuantizer


def points(count=200, width=12, seed=0, dtype=torch.float32):
    """Correlated dimensions, so that a rotation is of use."""
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 4, generator=random, dtype=dtype)
    mixed = latent @ torch.randn(4, width, generator=random, dtype=dtype)
    return mixed + 0.1 * torch.randn(count, width, generator=random, dtype=dtype)


def fit(vectors, groups=4, codes=8, rounds=10, sample=10_000, seed=1):
    return product_quantizer.fit(vectors, groups, codes, rounds=rounds, sample=sample, seed=seed)


def test_the_rotation_is_orthogonal_and_every_round_lowers_the_distortion():
    vectors = points()
    fitted = [fit(vectors, rounds=rounds) for rounds in range(8)]
    for quantizer in fitted:
        assert torch.allclose(quantizer.rotation @ quantizer.rotation.T, torch.eye(12), atol=1e-5)
    # Without k-means after the last round, distortion never rises; with it, it does not from the first rotation on.
    values = [quantizer.distortion(vectors) for quantizer in fitted]
    assert values[-1] < 0.9 * values[0] and max(values[1:]) < values[0]


def test_rounds_never_raise_the_distortion(monkeypatch):
    monkeypatch.setattr(product_quantizer, "LAST", 0)
    vectors = points()
    values = [fit(vectors, rounds=rounds).distortion(vectors) for rounds in range(1, 9)]
    assert all(after <= before + 1e-6 for before, after in pairwise(values))


def test_it_beats_product_quantization_without_a_rotation(monkeypatch):
    vectors = points(400)
    rotated = fit(vectors, rounds=20).distortion(vectors)
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: (torch.eye(len(matrix)), None))
    plain = fit(vectors, rounds=0)
    assert torch.equal(plain.rotation, torch.eye(12)) and rotated <= plain.distortion(vectors)


@pytest.mark.parametrize("change", [lambda x: x + 5.0, lambda x: x * 4.0], ids=["shift", "scale"])
def test_shift_and_scale_of_all_vectors_change_no_code(change):
    vectors = points(dtype=torch.float64)
    before, after = fit(vectors).encode(vectors), fit(change(vectors)).encode(change(vectors))
    assert torch.equal(before, after)


def test_codes_are_the_nearest_centers():
    vectors, quantizer = points(), fit(points())
    rotated = (vectors - quantizer.mean) / quantizer.scale @ quantizer.rotation.T
    codes = quantizer.encode(vectors)
    assert codes.shape == (200, 4) and len(codes.unique()) == 8
    for item in range(0, 200, 17):
        for group in range(4):
            distance = (rotated[item, 3 * group : 3 * group + 3] - quantizer.centers[group]).square().sum(1)
            assert distance[codes[item, group]] <= distance.min() + 1e-5
    again = ProductQuantizer.of_tensors(quantizer.tensors())
    assert torch.equal(again.encode(vectors), codes)


def test_the_global_random_state_stays_and_the_seed_decides():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (fit(points(), seed=seed).encode(points()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_sample_of_a_large_catalog_is_enough():
    vectors = points(400)
    assert fit(vectors, sample=200).distortion(vectors) < 1.3 * fit(vectors).distortion(vectors)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [({"groups": 5}, r"opq_groups is 5.*12.*1, 2, 3, 4, 6, 12"), ({"codes": 201}, r"opq_codes is 201.*at most 200")],
)
def test_sizes_that_do_not_fit_are_refused(sizes, complaint):
    with pytest.raises(ValueError, match=complaint):
        fit(points(), **sizes)


# ------------------------------------------------------------------------------------------------------------- of a catalog
CONFIG = ProductQuantizerConfig(groups=4, codes=8, rounds=3, sample=1000)


def catalog(folder, histories):
    return Catalog("Toy", folder / "data", tuple(f"i{n}" for n in range(60)), histories)


def features(text, image=None):
    present = {"text": np.ones((60, 1), bool)}
    vectors = {"text": text[:, None].numpy()}
    if image is not None:
        vectors["image"], present["image"] = image[:, None].numpy(), np.ones((60, 1), bool)
    return ItemFeatures(tuple(f"i{n}" for n in range(60)), vectors, present, {"text": str(text.sum().item())})


def build(tmp_path, text, histories, **changes):
    return product_codes.load_or_build(catalog(tmp_path, histories), features(text), CONFIG, 1, tmp_path / "out", **changes)


def test_items_outside_the_training_part_get_codes_and_move_nothing(tmp_path):
    text = points(60)
    histories = [np.arange(0, 40), np.array([3, 5])]
    codes, figures = build(tmp_path / "a", text, histories)
    assert figures["fitted_on"] == 40 and codes.shape == (60, 4) and codes.min() >= 0
    moved = text.clone()
    moved[40:] += 7.0
    others, _ = build(tmp_path / "b", moved, histories)
    assert (others[:40] == codes[:40]).all() and not (others[40:] == codes[40:]).all()


def test_an_item_without_a_vector_has_no_code_and_twins_are_counted(tmp_path):
    text = points(60)
    text[1] = text[0]
    given = features(text)
    given.present["text"][7] = False
    histories = [np.arange(60)]
    codes, figures = product_codes.load_or_build(catalog(tmp_path, histories), given, CONFIG, 1, tmp_path / "out")
    assert (codes[7] == -1).all() and (np.delete(codes, 7, 0) >= 0).all() and (codes[0] == codes[1]).all()
    assert figures["without_vector"] == 1 and figures["fitted_on"] == 59
    assert figures["distinct"] == len(np.unique(np.delete(codes, 7, 0), axis=0))
    assert figures["items_that_share_codes"] >= 2


def test_codes_are_read_again_until_their_input_changes(tmp_path, monkeypatch):
    text, histories = points(60), [np.arange(60)]
    first, figures = build(tmp_path, text, histories)
    runs = []
    plain = product_quantizer.fit
    monkeypatch.setattr(product_quantizer, "fit", lambda *args, **more: runs.append(1) or plain(*args, **more))
    again, same = build(tmp_path, text, histories)
    assert (again == first).all() and same == json.loads(json.dumps(figures)) and not runs
    build(tmp_path, text, [np.arange(59)])
    build(tmp_path, text, [np.arange(59)], rebuild=True)
    assert len(runs) == 2


def test_no_vector_in_the_training_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Toy: no item of the training part has text features"):
        build(tmp_path, points(60), [])
