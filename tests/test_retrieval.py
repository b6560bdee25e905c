"""recbole_qbert.retrieval.index: every way to rank gives what scoring all items and sorting them gives, bit for bit."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.retrieval import index as retrieval_index
from recbole_qbert.retrieval import numba_backend, numba_kernels, torch_backend
from recbole_qbert.retrieval.index import DenseIndex, ItemIndex
from recbole_qbert.sequence import scoring
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.utils import jit
from tests.helpers import sequence_config

METHODS = ["chunked", "merged", "pruned"]
INF = float("inf")


def whole_matrix(tables, codes, bias=None, valid=None, exclude=None, adjust=None, allowed=None):
    """All scores, ``[B, N]``, by the definition and one item after the other where the call names single ones."""
    scores = scoring.code_scores(tables.float(), codes)
    if bias is not None:
        scores = scores + bias
    for user in range(len(scores)):
        amounts = {}
        if adjust is not None:
            added = torch.as_tensor(adjust[1]).expand(adjust[0].shape)[user].tolist()
            for item, amount in zip(adjust[0][user].tolist(), added, strict=True):
                amounts[item] = min(amounts.get(item, INF), amount)
        for item in [] if exclude is None else exclude[user].tolist():
            amounts[item] = -INF
        for item, amount in amounts.items():
            if item >= 0:
                scores[user, item] += amount
    if valid is not None:
        scores[:, ~valid] = -INF
    if allowed is not None:
        mask = (
            allowed
            if allowed.dtype == torch.bool
            else torch.zeros(len(codes), dtype=torch.bool).index_fill(0, allowed, True)
        )
        scores[:, ~mask] = -INF
    return scores


def best_of(scores, k):
    """``ranking.top_k``, padded as an index pads."""
    values, items = scoring.top_k(scores, k)
    missing = k - values.shape[1]
    items = items.masked_fill(values == -INF, -1)
    return torch.nn.functional.pad(values, (0, missing), value=-INF), torch.nn.functional.pad(items, (0, missing), value=-1)


def same(left, right):
    """Equal to the bit; -0.0 is not 0.0."""
    assert left.dtype == right.dtype
    if left.dtype == torch.float32:
        left, right = left.view(torch.int32), right.view(torch.int32)
    assert torch.equal(left, right)


def agrees(tables, codes, size, k, methods=METHODS, threads=1, bias=None, valid=None, **call):
    scores = whole_matrix(tables, codes, bias, valid, **call)
    targets = torch.arange(len(tables)) * 7 % len(codes) if len(codes) else None
    for method in methods:
        index = ItemIndex(codes, size, bias=bias, valid=valid, method=method)
        values, items = index.top_k(tables, k, threads=threads, **call)
        wanted_values, wanted_items = best_of(scores, k)
        same(values, wanted_values)
        same(items, wanted_items)
        if targets is not None:
            same(index.rank(tables, targets, threads=threads, **call), scoring.rank_of(scores, targets))


@st.composite
def questions(draw):
    """A small catalog full of ties, and a call with everything that a call can say."""
    seed = draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    batch, items, levels = draw(st.integers(0, 3)), draw(st.integers(1, 70)), draw(st.sampled_from([3, 4]))
    size = draw(st.sampled_from([2, 5, 40]))
    missing = draw(st.booleans())

    def whole(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    tables = whole(-2, 3, batch, levels, size).float()
    if draw(st.booleans()):
        tables[torch.rand(tables.shape, generator=generator) < 0.2] = -INF
    bias = whole(-1, 2, items).float() if draw(st.booleans()) else None
    if bias is not None and draw(st.booleans()):
        bias[::3] = -INF
    call = {}
    if draw(st.booleans()):
        call["exclude"] = whole(-1, items, batch, draw(st.integers(0, 6)))
    if draw(st.booleans()):
        rows = whole(-1, items, batch, draw(st.integers(0, 6)))
        call["adjust"] = (rows, draw(st.sampled_from([-1.0, 2.0, -INF])))
        if draw(st.booleans()):
            call["adjust"] = (rows, whole(-3, 4, *rows.shape).float())
    kind = draw(st.sampled_from(["all", "mask", "many", "few"]))
    if kind == "mask":
        call["allowed"] = whole(0, 2, items).bool()
    elif kind != "all":
        call["allowed"] = whole(0, items, draw(st.integers(0, 3) if kind == "few" else st.integers(5, 60)))
    return {
        "tables": tables,
        "codes": whole(-1 if missing else 0, size, items, levels),
        "size": size,
        "k": draw(st.integers(0, items + 3)),
        "threads": draw(st.integers(1, 3)),
        "bias": bias,
        "valid": torch.rand(items, generator=generator) < 0.8 if draw(st.booleans()) else None,
        **call,
    }


@pytest.mark.pipeline
@settings(max_examples=250, deadline=None)
@given(questions())
def test_ties_changes_and_subsets_agree_with_the_whole_matrix(question):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "MIN_CHUNK", 1)
        patch.setattr(torch_backend, "MAX_CHUNK", 9)
        agrees(**question)


@pytest.mark.pipeline
@pytest.mark.parametrize(("levels", "size"), [*((levels, 256) for levels in range(1, 9)), (3, 300), (4, 300)])
def test_any_number_of_levels_and_codes(levels, size):
    generator = torch.Generator().manual_seed(levels)
    codes = torch.randint(size, (4000, levels), generator=generator)
    tables = torch.randn(2, levels, size, generator=generator) * 0.7 ** torch.arange(levels)[None, :, None]
    agrees(tables, codes, size, 30)


@pytest.mark.parametrize("missing", [False, True])
def test_pruning_is_exact_where_rounding_is_coarse(missing):
    """Entries from 1e-4 to 1e6: sums in another order, or a bound added up in another order, would differ in most bits."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-1 if missing else 0, 60, (20_000, 4), generator=generator).to(torch.int16)
    size = 10.0 ** torch.randint(-4, 7, (6, 4, 60), generator=generator)
    bias = torch.randn(len(codes), generator=generator) * 1e3
    for some in (None, bias):
        agrees(torch.randn(6, 4, 60, generator=generator) * size, codes, 60, 25, bias=some)


def test_blocks_that_cannot_win_are_not_scored(monkeypatch):
    """The pruned way is that in fact: it looks at few of the runs of items."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 64, (200_000, 4), generator=generator)
    tables = torch.randn(1, 4, 64, generator=generator) * torch.tensor([4.0, 2.0, 0.3, 0.3])[None, :, None]
    index = ItemIndex(codes, 64, method="pruned")
    backend = index.backend
    bounds = backend._bounds(np.asarray(tables))
    limit = index.top_k(tables, 10)[0][0, -1].item()
    runs = np.empty((256, 2), np.int64)
    looked_at = 0
    for first in range(64):
        number = numba_kernels._runs(backend.blocks, bounds, 0, first, np.float32(limit), runs)
        looked_at += (runs[:number, 1] - runs[:number, 0]).sum()
    assert 10 <= looked_at < 0.01 * len(codes)


def test_a_batch_equals_its_users_one_by_one_and_any_number_of_threads():
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 30, (3000, 4), generator=generator)
    tables = torch.randn(7, 4, 30, generator=generator)
    history = torch.randint(-1, 3000, (7, 9), generator=generator)
    for method in METHODS:
        index = ItemIndex(codes, 30, method=method)
        together = index.top_k(tables, 12, adjust=(history, -1.5))
        for threads in (2, 3, 16):
            for one, other in zip(together, index.top_k(tables, 12, adjust=(history, -1.5), threads=threads), strict=True):
                same(one, other)
        for user in range(7):
            alone = index.top_k(tables[user : user + 1], 12, adjust=(history[user : user + 1], -1.5))
            for one, other in zip(together, alone, strict=True):
                same(one[user : user + 1], other)


def test_small_subset_of_a_large_catalog():
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(-1, 50, (5000, 3), generator=generator)
    tables, bias = torch.randn(2, 3, 50, generator=generator), torch.randn(5000, generator=generator)
    valid = torch.rand(5000, generator=generator) < 0.5
    some = torch.randint(0, 5000, (40,), generator=generator)
    mask = torch.zeros(5000, dtype=torch.bool).index_fill(0, some, True)
    exclude, history = some[:6].view(2, 3), some[3:13].view(2, 5)
    for allowed in (some, mask, some[:0]):
        agrees(
            tables,
            codes,
            50,
            20,
            bias=bias,
            valid=valid,
            exclude=exclude,
            adjust=(history, torch.tensor([[2.0], [-3]])),
            allowed=allowed,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tables_of_any_float_type_are_read_as_float32(dtype):
    tables = torch.randn(2, 4, 9).to(dtype)
    agrees(tables, torch.randint(-1, 9, (200, 4)), 9, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_codes_of_any_integer_type(dtype):
    agrees(torch.randn(2, 4, 100), torch.randint(0, 100, (300, 4)).to(dtype), 100, 5)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_catalog_and_an_empty_batch(method):
    index = ItemIndex(torch.zeros(0, 4, dtype=torch.int16), 8, method=method)
    values, items = index.top_k(torch.zeros(2, 4, 8), 3)
    assert values.tolist() == [[-INF] * 3] * 2
    assert items.tolist() == [[-1] * 3] * 2
    index = ItemIndex(torch.zeros(5, 4, dtype=torch.int16), 8, method=method, valid=torch.zeros(5, dtype=torch.bool))
    assert index.top_k(torch.zeros(1, 4, 8), 3)[1].tolist() == [[-1] * 3]
    assert index.top_k(torch.zeros(0, 4, 8), 3)[1].shape == (0, 3)
    assert index.rank(torch.zeros(1, 4, 8), torch.tensor([2])).tolist() == [5]


@pytest.mark.parametrize("method", METHODS)
def test_an_adjusted_item_may_rise_to_the_top(method):
    """A negative penalty lifts an item over every bound of its block."""
    codes = torch.arange(40)[:, None].expand(40, 4).contiguous()
    tables = torch.arange(40.0).expand(1, 4, 40)
    values, items = ItemIndex(codes, 40, method=method).top_k(
        tables, 3, adjust=(torch.tensor([[0, 39]]), torch.tensor([[500.0, -1]]))
    )
    assert items.tolist() == [[0, 39, 38]]
    assert values.tolist() == [[500.0, 155.0, 152.0]]


@pytest.mark.pipeline
@pytest.mark.parametrize("method", METHODS)
def test_an_item_named_several_times_counts_once_with_its_lowest_amount(method):
    index = ItemIndex(torch.arange(5)[:, None], 5, method=method)
    history, amounts = torch.tensor([[2, 4, 2, -1, 3, 2]]), torch.tensor([[1.0, -1.0, -3.0, 9.0, 7.0, 5.0]])
    values, items = index.top_k(torch.zeros(1, 1, 5), 5, adjust=(history, amounts), exclude=torch.tensor([[3, 0]]))
    assert items.tolist() == [[1, 4, 2, -1, -1]]
    assert values.tolist() == [[0.0, -1.0, -3.0, -INF, -INF]]


# -------------------------------------------------------------------------------- dense


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 50), st.integers(0, 55), st.integers(1, 13))
def test_dense_index_agrees_with_the_whole_product(seed, batch, items, k, chunk):
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()  # products of whole numbers do not round

    states, vectors, bias = whole(batch, 6), whole(items, 6), whole(items)
    history, valid = torch.randint(-1, items, (batch, 3), generator=generator), torch.rand(items, generator=generator) < 0.9
    scores = whole_matrix(torch.zeros(batch, 1, 1), torch.zeros(items, 1, dtype=torch.long)) + states @ vectors.T + bias
    scores[:, ~valid] = -INF
    for user in range(batch):
        for item in {item for item in history[user].tolist() if item >= 0}:
            scores[user, item] -= 2.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "MIN_CHUNK", 1)
        patch.setattr(torch_backend, "MAX_CHUNK", chunk)
        index = DenseIndex(vectors, bias=bias, valid=valid)
        for got, wanted in zip(index.top_k(states, k, adjust=(history, -2.0)), best_of(scores, k), strict=True):
            same(got, wanted)
        target = torch.randint(items, (batch,), generator=generator)
        same(index.rank(states, target, adjust=(history, -2.0)), scoring.rank_of(scores, target))


def test_minus_zero_ties_with_zero():
    index = DenseIndex(torch.tensor([[0.0], [-0.0], [0.0]]))
    assert index.top_k(torch.tensor([[-1.0], [1.0]]), 3)[1].tolist() == [[0, 1, 2]] * 2


def test_equal_vectors_tie_against_the_target_however_a_product_rounds():
    vectors = torch.randn(1, 64).expand(5000, 64).contiguous()
    assert DenseIndex(vectors).rank(torch.randn(3, 64), torch.tensor([0, 17, 4999])).tolist() == [5000] * 3


# -------------------------------------------------------------------------------- a network's tables


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["item", "code"])
def test_mean_tables_of_the_views_rank_as_the_network_does(method, loss):
    torch.manual_seed(4)
    codes = torch.randint(8, (60, 4))
    codes[5:9, 2:], codes[0] = -1, -1
    penalty = "learned" if loss == "item" else "none"
    model = SemanticSequenceModel(
        sequence_config(use_item_embedding=False, loss=loss, repeat_penalty=penalty), codes, 8
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        sequences, lengths = torch.randint(1, 60, (5, 7)), torch.tensor([7, 3, 5, 1, 6])
        history = sequences.masked_fill(torch.arange(7) >= lengths[:, None], -1)
        states = [model.states(sequences, lengths, view) for view in ("causal", "masked")]
        tables = [torch.einsum("bd,kmd->bkm", state, model.codebook) for state in states]
        if loss == "code":
            tables = [table.log_softmax(2) + torch.tensor(8.0).log() for table in tables]
        index = ItemIndex(model.codes, 8, valid=model.valid, method=method)
        items = index.top_k((tables[0] + tables[1]) / 2, 59, adjust=(history, -model.penalty))[1]
        scores = model.scores(sequences, lengths).gather(1, items)
    assert items.sort(1).values.tolist() == [list(range(1, 60))] * 5
    assert (scores[:, 1:] - scores[:, :-1] < 1e-5).all()


# -------------------------------------------------------------------------------- refusals and what is missing


def index_of(**changes):
    return ItemIndex(**{"codes": torch.zeros(6, 4, dtype=torch.long), "size": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(6, 4)}, "float32"),
        ({"codes": torch.zeros(6, dtype=torch.long)}, r"\(6,\)"),
        ({"codes": torch.full((2, 4), 3)}, r"\[3, 3\]"),
        ({"codes": torch.full((2, 4), -2)}, r"\[-2, -2\]"),
        ({"bias": torch.zeros(5)}, "bias"),
        ({"bias": torch.full((6,), float("nan"))}, "bias.*NaN"),
        ({"valid": torch.ones(6)}, "valid"),
        ({"method": "quick"}, "quick.*auto"),
        ({"size": 5000, "method": "pruned"}, "5000 codes.*chunked"),
    ],
)
def test_a_catalog_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        index_of(**changes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("tables", "call", "message"),
    [
        (torch.zeros(2, 4, 4), {}, r"\[B, 4, 3\]"),
        (torch.full((2, 4, 3), float("nan")), {}, "tables.*NaN"),
        (torch.full((2, 4, 3), INF), {}, "tables.*NaN"),
        (torch.full((2, 4, 3), 1e38), {}, "float32"),
        (torch.zeros(2, 4, 3), {"k": -1}, "k.*-1"),
        (torch.zeros(2, 4, 3), {"exclude": torch.tensor([[6], [0]])}, r"exclude.*\[0, 6\].*0 to 5"),
        (torch.zeros(2, 4, 3), {"exclude": torch.tensor([[-2], [0]])}, "exclude"),
        (torch.zeros(2, 4, 3), {"exclude": torch.tensor([[1]])}, r"\[2, H\]"),
        (torch.zeros(2, 4, 3), {"exclude": torch.zeros(2, 1)}, "float32"),
        (torch.zeros(2, 4, 3), {"adjust": (torch.zeros(2, 1, dtype=torch.long), float("nan"))}, "adjust.*NaN"),
        (torch.zeros(2, 4, 3), {"adjust": (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 3))}, "amounts"),
        (torch.zeros(2, 4, 3), {"allowed": torch.ones(5, dtype=torch.bool)}, "allowed"),
        (torch.zeros(2, 4, 3), {"allowed": torch.tensor([7])}, "allowed"),
    ],
)
def test_a_question_that_does_not_fit_is_refused(method, tables, call, message):
    with pytest.raises(ValueError, match=message):
        index_of(method=method).top_k(tables, **{"k": 2, **call})


def test_a_target_that_is_no_item_is_refused():
    for target in (torch.tensor([6]), torch.tensor([-1]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="target"):
            index_of().rank(torch.zeros(1, 4, 3), target)


def test_dense_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="vectors"):
        DenseIndex(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="vectors"):
        DenseIndex(torch.ones(2, 2, dtype=torch.long))
    index = DenseIndex(torch.ones(3, 2))
    with pytest.raises(ValueError, match="states"):
        index.top_k(torch.tensor([[-INF, 1.0]]), 1)
    with pytest.raises(ValueError, match=r"\[B, 2\]"):
        index.top_k(torch.ones(1, 3), 1)


def test_the_method_goes_with_the_size(monkeypatch):
    assert index_of().method == "merged"
    monkeypatch.setattr(retrieval_index, "MIN_PRUNED_ITEMS", 6)
    assert index_of().method == "pruned"
    monkeypatch.setattr(numba_backend, "MAX_WIDTH", 2)
    assert index_of().method == "chunked"


def test_where_nothing_can_be_kept_on_disk_it_is_compiled_all_the_same(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(jit, "njit", njit)
    assert jit.compiled(len) is len
    assert asked == [{"nogil": True, "cache": True}, {"nogil": True}]


def test_the_benchmark_writes_one_row_a_measurement_and_ratios(tmp_path, monkeypatch, capsys):
    from benchmarks import ranking as benchmark

    path = tmp_path / "figures.json"
    sizes = "--items 300 --users 1 3 --codes 4 --tables peaked --rounds 2 --k 10 --ways pruned dense"
    monkeypatch.setattr(sys, "argv", ["ranking.py", *sizes.split(), "--json", str(path)])
    benchmark.main()
    figures = json.loads(path.read_text())
    assert {"machine", "versions", "settings", "rows", "ratios"} == set(figures)
    assert [(row["users"], row["way"]) for row in figures["rows"]] == [
        (1, "pruned"),
        (1, "dense"),
        (3, "pruned"),
        (3, "dense"),
    ]
    assert all(row["ms_per_user"] > 0 for row in figures["rows"])
    assert list(figures["ratios"]) == [f"dense/pruned, items 300, users {users}, codes 4, tables peaked" for users in (1, 3)]
    assert "dense/pruned" in capsys.readouterr().out


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits():
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(-1, 256, (200_000, 4), generator=generator)
    tables = torch.randn(3, 4, 256, generator=generator)
    history = torch.randint(-1, 200_000, (3, 20), generator=generator)
    index = ItemIndex(codes.cuda(), 256)
    assert index.method == "chunked"
    scores = whole_matrix(tables, codes, adjust=(history, -2.0))
    for got, wanted in zip(index.top_k(tables, 100, adjust=(history, -2.0)), best_of(scores, 100), strict=True):
        assert got.is_cuda
        same(got.cpu(), wanted)
    same(index.rank(tables, history.abs()[:, 0], adjust=(history, -2.0)).cpu(), scoring.rank_of(scores, history.abs()[:, 0]))
