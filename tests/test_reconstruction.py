"""recbole_qbert.injection.reconstruction: decoders, and a start from the modalities side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.data.standardization import Standardization
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.injection.training import _Training, fit
from tests.helpers import injection_config
from tests.test_injection import arrays, close


def some(count=40, per_item=2):
    vectors, present = arrays(count, per_item)
    present["image"][:3] = False
    present["text"][5:9, 1] = False
    for name in vectors:
        vectors[name][~present[name]] = 0.0
    return vectors, present


def state(vectors, present, **changes):
    torch.manual_seed(0)
    config = injection_config(**{"query": "concatenation", "attention": "every_vector", "layers": 3, **changes})
    return _Training(vectors, present, len(vectors["text"]), config, None)


@pytest.mark.parametrize("dim", [4, 16])  # fewer principal axes than the 10 columns, and all of them
def test_an_untrained_network_returns_the_projected_concatenation(dim):
    vectors, present = some()
    concatenation = Concatenation.fit(vectors, present, dim)
    combined = torch.from_numpy(concatenation(vectors, present))
    wanted = Standardization.fit(combined, dim)(combined)
    training = state(vectors, present, dim=dim)
    training.model.common_depth.fill_(3)
    fused = training.fuse()
    close(fused.vector, F.pad(wanted, (0, dim - wanted.shape[1])), 1e-4)
    assert fused.vector.square().sum(1).mean().item() == pytest.approx(1, rel=1e-3)


def test_decoders_start_as_the_way_back():
    vectors, present = some()
    present["image"][:] = True  # so that no target is left out of the mean
    rows = torch.arange(40)
    for dim, wanted in ((16, 0.0), (4, None)):
        training = state(vectors, present, dim=dim)
        errors = training.decoders.errors(training.fuse().vector, rows)
        if wanted is not None:
            assert errors.max().item() == pytest.approx(wanted, abs=1e-6)
        else:
            assert 0.01 < errors.mean().item() < 1  # the variance that four axes do not hold


def test_errors_are_means_over_the_modalities_that_an_item_has():
    vectors, present = some()
    decoders = state(vectors, present).decoders
    rows, fused = torch.tensor([0, 7]), torch.randn(2, 16)
    each = {n: (d(fused) - decoders.targets[n][rows]).square().sum(1) for n, d in decoders.decoders.items()}
    wanted = torch.stack([each["text"][0], (each["text"][1] + each["image"][1]) / 2])
    close(decoders.errors(fused, rows), wanted)
    close(decoders.errors(torch.stack([fused, fused]), rows), torch.stack([wanted, wanted]))


@pytest.mark.pipeline
def test_reconstruction_keeps_what_only_one_modality_knows():
    """Text and image share three of eight directions; Eq. 5 alone drops the others."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(120, 3))
    both = {name: np.concatenate([shared, random.normal(size=(120, 5))], 1) for name in ("text", "image")}
    vectors = {name: matrix.astype(np.float32)[:, None] for name, matrix in both.items()}
    present = {name: np.ones((120, 1), dtype=bool) for name in vectors}
    missing = []
    for weight in (0.0, 10.0):
        config = injection_config(
            query="random", gate="common", layers=2, reconstruction=weight, epochs=40, holdout=0.0, learning_rate=0.01
        )
        fused = torch.from_numpy(fit(vectors, present, config, 0)[1])
        own = torch.from_numpy(vectors["text"][:, 0, 3:])
        fitted = fused @ torch.linalg.lstsq(fused, own).solution
        missing.append(((own - fitted).square().sum() / own.square().sum()).item())
    assert missing[1] < 0.5 * missing[0]


def test_structural_queries_are_reconstructed_too():
    vectors, present = some()
    queries = torch.randn(40, 16)
    queries[:2] = 0.0
    torch.manual_seed(0)
    decoders = _Training(vectors, present, 40, injection_config(query="structural"), queries).decoders
    assert decoders.targets["structural query"] is queries
    assert decoders.present["structural query"].tolist() == [False] * 2 + [True] * 38


# -------------------------------------------------------------------------------- several vectors a modality


def test_every_vector_is_a_key_and_missing_ones_are_masked():
    vectors, present = some(12, 3)
    model = state(vectors, present, query="random").model.eval()
    rows = torch.arange(12)
    given = [{n: torch.from_numpy(x) for n, x in part.items()} for part in (vectors, present)]
    together = model.every_layer(rows, *given)
    noise = {n: torch.where(given[1][n][..., None], v, 100 * torch.randn_like(v)) for n, v in given[0].items()}
    close(model.every_layer(rows, noise, given[1]).vectors, together.vectors)
    for item in range(12):  # alone, and without the columns of vectors that it does not have
        kept = {n: p[item] for n, p in given[1].items()}
        if not all(mask.any() for mask in kept.values()):
            continue
        alone = model.every_layer(
            rows[item : item + 1],
            {n: v[item : item + 1, kept[n]] for n, v in given[0].items()},
            {n: torch.ones(1, int(kept[n].sum()), dtype=torch.bool) for n in kept},
        )
        close(alone.vectors[:, 0], together.vectors[:, item])


def test_attention_to_every_vector_is_attention_to_the_aligned_one_where_there_is_one():
    vectors, present = arrays(20)
    results = []
    for attention in ("every_vector", "aligned"):
        model = state(vectors, present, query="random", attention=attention).model.eval()
        given = [{n: torch.from_numpy(x) for n, x in part.items()} for part in (vectors, present)]
        results.append(model.every_layer(torch.arange(20), *given).vectors)
    close(*results)


def test_the_second_vector_of_an_item_matters_to_attention():
    vectors, present = arrays(20, 2)
    model = state(vectors, present, query="random").model.eval()
    given = [{n: torch.from_numpy(x) for n, x in part.items()} for part in (vectors, present)]
    before = model.every_layer(torch.arange(20), *given).vectors
    given[0]["text"][:, 1] *= -1
    assert (model.every_layer(torch.arange(20), *given).vectors - before).abs().max() > 1e-3
