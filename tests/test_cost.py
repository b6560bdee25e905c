"""recbole_qbert.experiments.suites.cost: parameters and operations are those of formulas written down by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import recbole_qbert  # noqa: F401  sets up RecBole
from benchmarks import model_cost
from recbole_qbert.experiments.suites import cost
from recbole_qbert.sequence.kernels.dispatch import without_kernels

SMALL = cost.Sizes(items=37, width=16, layers=2, heads=2, inner=24, max_length=10)
TABLE = SMALL.items + 1  # rows of the item table, the padding's among them


def blocks(sizes: cost.Sizes, positions: int, asked: int | None = None) -> int:
    """Operations of a transformer's layers on one row: query, key, value; attention; mixing and feed-forward.

    The last two are computed for ``asked`` positions only in the last layer, by ours.
    """
    width, inner = sizes.width, sizes.inner
    seeing, going_on = 6 * positions * width**2 + 4 * positions**2 * width, 2 * width * (width + 2 * inner)
    last = positions if asked is None else asked
    return sizes.layers * seeing + going_on * ((sizes.layers - 1) * positions + last)


def product(rows: int, sizes: cost.Sizes = SMALL) -> int:
    """Operations of scoring the item table from so many states."""
    return 2 * rows * (sizes.items + 1) * sizes.width


# -------------------------------------------------------------------------------------------------- operations
def test_scoring_of_the_default_is_the_causal_view_its_product_and_the_composition() -> None:
    found = cost.scoring(cost.build("QBERT4Rec", SMALL))
    assert found.row == blocks(SMALL, 10, 1) + product(1)
    assert found.batch == TABLE * 8 * SMALL.width  # one code set of eight levels, one addition each
    assert found.a_row(4) == found.row + found.batch / 4


def test_scoring_of_the_paper_is_one_view_and_a_sum_of_code_scores() -> None:
    subject = cost.build("QBERT4Rec (paper)", SMALL)
    sizes = subject.sizes
    assert (sizes.width, sizes.layers, sizes.heads, sizes.inner, sizes.items) == (256, 4, 4, 512, 37)
    found = cost.scoring(subject)
    assert found.row == blocks(sizes, 11, 1) + 2 * 4 * 256 * 256 + 4 * TABLE
    assert found.batch == TABLE * 4 * 256


def test_training_of_the_default_is_three_times_its_products() -> None:
    """Forward and two gradients; the softmax computes its gradients in its own forward and is not counted twice."""
    found = cost.training(cost.build("QBERT4Rec", SMALL))
    hidden = 3  # of 11 positions, the share 0.3
    # Both views read all 11 items, in one batch; the last of them predicts nothing in the causal view.
    assert found.row == 3 * (blocks(SMALL, 11, 10) + blocks(SMALL, 11, hidden) + product(10) + product(hidden))
    assert found.batch == 2 * TABLE * 8 * SMALL.width  # composed once for both views, and differentiated


@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec"])
def test_recboles_transformers(name: str) -> None:
    subject = cost.build(name, SMALL)
    last, places = (2 * 10 * 16 * 16, 3) if name == "BERT4Rec" else (0, 1)  # BERT4Rec: one more layer, int(.3 * 10) places
    assert cost.scoring(subject) == cost.Operations(0, blocks(SMALL, 10) + last + product(1))
    gathering = 2 * places * 10 * 16 * 2 if name == "BERT4Rec" else 0  # by a product with a one-hot matrix, and its gradient
    assert cost.training(subject).row == 3 * (blocks(SMALL, 10) + last + product(places)) + gathering
    assert subject.rows_a_user == 10


def test_recboles_gru() -> None:
    gates = SMALL.layers * 10 * 2 * 3 * (16 * 16 + 16 * 16)
    assert cost.scoring(cost.build("GRU4Rec", SMALL)).row == gates + 2 * 10 * 16 * 16 + product(1)


def test_torchs_counter_alone_misses_attention_on_cpus_and_products_in_place() -> None:
    """Why there are formulas beside it; when this fails, torch has learned to count, and what it counts is counted twice."""
    query, square = torch.randn(1, 2, 8, 4), torch.randn(3, 3)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(query, query, query)
        square.addmm_(square, square)
    assert counter.get_total_flops() == 0


@pytest.mark.pipeline
@pytest.mark.parametrize("name", cost.MODELS)
def test_no_product_of_any_model_goes_uncounted(name: str) -> None:
    """Names of operations that multiply matrices, whatever they are called, against those that have a formula."""
    seen = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    subject = cost.build(name, SMALL)
    with without_kernels(), sdpa_kernel(SDPBackend.MATH), Names():
        subject.loss(torch.ones(2, 11, dtype=torch.int64)).backward()
        subject.module.eval()
        with torch.no_grad():
            subject.score(torch.ones(2, 10, dtype=torch.int64))
    products = {op for op in seen if re.search(r"mm|mv|dot|outer|linear|conv|attention|gru|rnn|bag|select$", str(op))}
    products -= {torch.ops.aten.select}  # a view
    assert products and products <= {*flop_registry, *cost._MISSING}


# -------------------------------------------------------------------------------------------------- parameters
def test_parameters_of_the_paper_are_those_of_its_table_and_the_codes() -> None:
    """3.71M = 2.11M + 256 x 6,250: the published count is the encoder and item rows; code tables are not in it."""
    found = cost.parameters(cost.build("QBERT4Rec (paper), item embedding", cost.Sizes(6250)).module)
    assert found["parameters_codes"] == 4 * 256 * 256
    assert found["parameters_items"] == 256 * 6251
    assert found["parameters"] - found["parameters_codes"] == pytest.approx(3.71e6, rel=0.002)


@pytest.mark.pipeline
@pytest.mark.parametrize("name", cost.MODELS)
def test_parameters_grow_by_what_is_said(name: str) -> None:
    less, more = (cost.parameters(cost.build(name, cost.Sizes(items)).module) for items in (50, 150))
    assert more["parameters"] - less["parameters"] == 100 * less["parameters_an_item"]
    parts = less["parameters_codes"] + less["parameters_items"] + less["parameters_encoder"]
    assert parts == less["parameters"] == sum(p.numel() for p in cost.build(name, cost.Sizes(50)).module.parameters())
    grows = {"QBERT4Rec": 64, "QBERT4Rec (paper), item embedding": 256, "SASRec": 64, "BERT4Rec": 65, "GRU4Rec": 64}
    assert less["parameters_an_item"] == grows.get(name, 0)


# ---------------------------------------------------------------------------------------------------- the whole
@pytest.mark.pipeline
def test_measure_gives_a_row_for_each_model_and_batch() -> None:
    models = ["QBERT4Rec", "QBERT4Rec (paper)", "SASRec"]
    rows, ratios = cost.measure(SMALL, models, batches=[1, 3], rounds=2)
    assert [(row["model"], row["batch"]) for row in rows] == [(model, batch) for batch in (1, 3) for model in models]
    assert all(0 < row["ms_a_user_best"] <= row["ms_a_user"] for row in rows)
    ours, theirs = rows[0], rows[2]
    assert ours["flops_training_user"] == ours["flops_training_row"]
    assert theirs["flops_training_user"] == 10 * theirs["flops_training_row"]
    assert ours["flops_composition"] == TABLE * 8 * 16 and theirs["flops_composition"] == 0
    assert set(ratios) == {
        "ms_a_user: SASRec/QBERT4Rec, items 37, batch 1",
        "ms_a_user: SASRec/QBERT4Rec, items 37, batch 3",
        "flops_training_user: SASRec/QBERT4Rec, items 37",
    }


@pytest.mark.pipeline
@pytest.mark.parametrize("name", cost.MODELS)
def test_what_is_timed_finds_the_best_items(name: str) -> None:
    subject = cost.build(name, SMALL)
    subject.module.eval()
    histories = torch.randint(1, 38, (3, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, found = subject.score(histories), subject.ranker()(histories)
    scores[:, 0] = -torch.inf
    assert scores.shape == (3, 38)
    assert torch.allclose(scores.gather(1, found), scores.topk(10).values, atol=1e-5)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length is 3"):
        cost.Sizes(10, max_length=3)
    with pytest.raises(ValueError, match=r"width 15.*heads 2"):
        cost.Sizes(10, width=15)
    with pytest.raises(ValueError, match="items is 0"):
        cost.Sizes(0)
    with pytest.raises(ValueError, match="'SASrec'"):
        cost.build("SASrec", SMALL)
    with pytest.raises(ValueError, match="rounds 0"):
        cost.measure(SMALL, ["SASRec"], rounds=0)


def test_the_papers_own_figures_are_fifty_times_the_parameters() -> None:
    for row in cost.published():
        assert row["copied"] is True
        assert row["flops_as_the_paper"] == pytest.approx(50 * row["parameters"], rel=0.002)


@pytest.mark.pipeline
def test_the_command_writes_rows_ratios_and_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--items", "20", "--width", "8", "--max_length", "6", "--models", "QBERT4Rec", "SASRec"]
    options += ["--batch", "1", "--rounds", "1", "--threads", "1"]
    model_cost.main([*options, "--json", str(tmp_path / "cost.json")])
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["settings"]["items"] == [20] and written["machine"]["cores"]
    assert [row["model"] for row in written["rows"]][:2] == ["QBERT4Rec", "SASRec"]
    assert [row["items"] for row in written["rows"] if row.get("copied")] == [6250, 9416, 13839]
    assert len(written["ratios"]) == 2
    with pytest.raises(SystemExit, match="2"):
        model_cost.main([*options, "--width", "7"])
    assert "width 7 is not a multiple" in capsys.readouterr().err
