"""recbole_qbert.retrieval.index.DenseIndex: both methods give what scoring all items as defined gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.retrieval import sketch_backend, torch_backend
from recbole_qbert.retrieval.index import DenseIndex
from recbole_qbert.sequence import scoring
from tests.test_retrieval import best_of, same

METHODS = ["product", "sketch"]
INF = float("inf")


def defined_scores(states, vectors, bias=None, valid=None, exclude=None, adjust=None, allowed=None):
    """All scores, ``[B, N]``, by the definition, one user and one changed item after the other."""
    scores = scoring.dot_scores(states, vectors)
    if bias is not None:
        scores = scores + bias
    for user in range(len(scores)):
        amounts = {}
        for rows, added in [] if adjust is None else [adjust]:
            for item, amount in zip(
                rows[user].tolist(), torch.as_tensor(added).expand(rows.shape)[user].tolist(), strict=True
            ):
                amounts[item] = min(amounts.get(item, INF), amount)
        for item in [] if exclude is None else exclude[user].tolist():
            amounts[item] = -INF
        for item, amount in amounts.items():
            if item >= 0:
                scores[user, item] += amount
    for mask in (valid, allowed):
        if mask is not None:
            scores[:, ~mask] = -INF
    return scores


def agrees(states, vectors, k, bias=None, valid=None, threads=1, **call):
    scores = defined_scores(states, vectors, bias, valid, **call)
    targets = torch.arange(len(states)) * 7 % len(vectors)
    for method in METHODS:
        index = DenseIndex(vectors, bias=bias, valid=valid, method=method)
        for got, wanted in zip(index.top_k(states, k, threads=threads, **call), best_of(scores, k), strict=True):
            same(got, wanted)
        same(index.rank(states, targets, threads=threads, **call), scoring.rank_of(scores, targets))


@st.composite
def questions(draw):
    """A catalog of any width and scale, often full of ties, and a call with everything that a call can say."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    batch, items, width = draw(st.integers(0, 4)), draw(st.integers(1, 700)), draw(st.integers(1, 70))

    def whole(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    kind = draw(st.sampled_from(["whole", "normal", "repeated", "spread"]))
    if kind == "whole":
        states, vectors = whole(-2, 3, batch, width).float(), whole(-2, 3, items, width).float()
    else:
        states, vectors = (torch.randn(number, width, generator=generator) for number in (batch, items))
    if kind == "repeated":
        vectors = vectors[whole(0, min(items, 5), items)]
    if kind == "spread":  # norms of items and sizes of numbers far apart
        vectors *= 10.0 ** whole(-6, 7, items, 1) * 10.0 ** whole(-3, 4, width)
        states *= 10.0 ** draw(st.integers(-20, 15))
    call = {}
    if draw(st.booleans()):
        call["exclude"] = whole(-1, items, batch, draw(st.integers(0, 6)))
    if draw(st.booleans()):
        rows = whole(-1, items, batch, draw(st.integers(0, 6)))
        single = draw(st.sampled_from([-1.0, 2.0, -INF]))
        call["adjust"] = (rows, whole(-3, 4, *rows.shape).float() if draw(st.booleans()) else single)
    if draw(st.booleans()):
        call["allowed"] = whole(0, 2, items).bool()
    bias = whole(-1, 2, items).float() if draw(st.booleans()) else None
    if bias is not None and draw(st.booleans()):
        bias[::3] = -INF
    return {
        "states": states,
        "vectors": vectors,
        "k": draw(st.integers(0, 30) | st.integers(0, items + 3)),
        "bias": bias,
        "valid": torch.rand(items, generator=generator) < 0.8 if draw(st.booleans()) else None,
        "threads": draw(st.integers(1, 3)),
        **call,
    }


@pytest.mark.pipeline
@settings(max_examples=120, deadline=None)
@given(questions())
def test_ties_scales_changes_and_subsets_agree_with_the_definition(question):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "MIN_CHUNK", 1)
        patch.setattr(torch_backend, "MAX_CHUNK", 90)
        agrees(**question)


def test_a_large_catalog_agrees_with_the_definition_whatever_the_batch():
    generator = torch.Generator().manual_seed(0)
    vectors, states = torch.randn(40_000, 64, generator=generator), torch.randn(9, 64, generator=generator)
    agrees(states, vectors, 50, threads=2)
    agrees(states[:1], vectors, 50, threads=2)
    for method in METHODS:
        index = DenseIndex(vectors, method=method)
        together = index.top_k(states, 50)
        for user in range(len(states)):
            for one, other in zip(together, index.top_k(states[user : user + 1], 50), strict=True):
                same(one[user : user + 1], other)


def test_the_definition_is_the_sum_of_the_products():
    generator = torch.Generator().manual_seed(1)
    for width in (1, 15, 16, 17, 64, 100):
        states, vectors = torch.randn(3, width, generator=generator), torch.randn(20, width, generator=generator)
        exact = states.double() @ vectors.double().T
        assert torch.allclose(scoring.dot_scores(states, vectors).double(), exact, atol=1e-5)


def test_few_items_are_scored_exactly():
    """The sketch is of use: bounds leave few of a hundred thousand items, and items that they leave are never missing."""
    generator = torch.Generator().manual_seed(2)
    vectors, states = torch.randn(100_000, 64, generator=generator), torch.randn(1, 64, generator=generator)
    index = DenseIndex(vectors, method="sketch")
    sketch, scores = index.backend.sketch, scoring.dot_scores(states, vectors)[0]
    rounded, steps, norms, margins = sketch.round(states.numpy())
    words = sketch.words.transpose(0, 2, 1).reshape(-1, 16)[: len(vectors), :, None] >> np.arange(0, 16, 4, dtype=np.uint16)
    levels = (words & 15).reshape(len(vectors), 64).astype(int) - 8
    sums = levels @ rounded[0].view(np.int16).astype(int)
    assert abs(sums).max() < 1 << 15
    bounds = sketch.scales[: len(vectors)] * (steps * sums + norms * sketch.errors[: len(vectors)] + margins)
    assert (bounds >= scores.numpy()).all()
    tenth = scores.topk(10).values[-1].item()
    assert 10 <= (bounds >= tenth).sum() < 0.01 * len(vectors)


def test_small_catalogs_long_answers_and_vast_states_take_the_product(monkeypatch):
    vectors, states = torch.randn(500, 8), torch.randn(2, 8)
    assert "sketch" not in vars(_searched(DenseIndex(vectors), states))
    monkeypatch.setattr(sketch_backend, "MIN_ITEMS", 500)
    assert "sketch" in vars(_searched(DenseIndex(vectors), states))
    assert "sketch" not in vars(_searched(DenseIndex(vectors), states * 1e-9))
    assert "sketch" not in vars(_searched(DenseIndex(vectors), states * 0))
    monkeypatch.setattr(sketch_backend, "MAX_K", 2)
    assert "sketch" not in vars(_searched(DenseIndex(vectors), states))


def _searched(index, states):
    index.top_k(states, 3)
    return index.backend


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarse_products_change_nothing(precision):
    generator = torch.Generator().manual_seed(3)
    vectors, states = torch.randn(3000, 64, generator=generator), torch.randn(20, 64, generator=generator)
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            agrees(states, vectors, 10)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_bits_of_the_cpu():
    generator = torch.Generator().manual_seed(4)
    vectors, states = torch.randn(200_000, 64, generator=generator), torch.randn(70, 64, generator=generator)
    vectors[100_000:] = vectors[:100_000]  # ties
    target = torch.randint(len(vectors), (70,), generator=generator)
    wanted = DenseIndex(vectors, method="sketch").top_k(states, 20), DenseIndex(vectors).rank(states, target)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        index = DenseIndex(vectors.cuda())
        got = index.top_k(states, 20), index.rank(states, target)
        torch.set_float32_matmul_precision("highest")
        for one, other in zip(got[0], wanted[0], strict=True):
            same(one.cpu(), other)
        same(got[1].cpu(), wanted[1])


def test_a_method_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"quick.*auto"):
        DenseIndex(torch.ones(3, 2), method="quick")


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_are_none_are_refused(method):
    index = DenseIndex(torch.ones(3, 2), method=method)
    for states in (torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1e38, INF]])):
        with pytest.raises(ValueError, match="states"):
            index.top_k(states, 1)
