"""The product and ``examples/minimal_qbert4rec.py`` are held to each other and to committed values.

Both get the same weights, or the same seed, and must give the same vectors, codes, IDs, losses, gradients and ranks. The
expected values are in ``tests/golden/expected.json``; ``python -m tests.test_golden`` writes them anew.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.injection import network as injection_network
from recbole_qbert.injection import training as injection_training
from recbole_qbert.quantization import collision_resolution, rqvae, semantic_ids
from recbole_qbert.sequence import masking, scoring
from recbole_qbert.sequence.model import SemanticSequenceModel
from tests.helpers import injection_config, quantizer_config, sequence_config

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = GOLDEN / "expected.json"
SEED = 2028  # features that differ by 3e-6 give the same IDs: no code hangs on the rounding of a CPU


def _load_minimal() -> Any:
    spec = importlib.util.spec_from_file_location("minimal_qbert4rec", GOLDEN.parents[1] / "examples/minimal_qbert4rec.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


minimal = _load_minimal()
# The random streams of dropout differ; everything else is the same in both.
SETTINGS: dict[str, Any] = {**vars(minimal.SETTINGS), "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
NAMES = "hidden_size n_layers n_heads inner_size hidden_dropout_prob attn_dropout_prob".split()


def _with_prefix(prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in SETTINGS.items() if key.startswith(prefix)}


def _injection_config() -> Any:
    return injection_config(**_with_prefix("injection_"), modalities=("text", "image"), query="random", dropout=0.0)


def _close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def _same_gradients(left: torch.nn.Module, right: torch.nn.Module) -> None:
    others = dict(right.named_parameters())
    assert set(dict(left.named_parameters())) == set(others)
    for name, parameter in left.named_parameters():
        if parameter.grad is None:
            assert others[name].grad is None, name
            continue
        other = others[name].grad
        assert other is not None, name
        _close(parameter.grad, other)


@pytest.fixture(scope="module")
def data() -> Any:
    return minimal.read_data(GOLDEN / "Tiny")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------- stage 1


def _both_injections(data: Any, training: bool) -> Iterator[tuple[Any, Any, Tensor]]:
    """Each network with what it made of the catalog, and its loss; the weights are those of the first."""
    count, widths = len(data.items), {name: matrix.shape[2] for name, matrix in data.vectors.items()}
    torch.manual_seed(1)
    product: Any = injection_network.DynamicInjection(count, widths, _injection_config())
    for gate in product.gates:  # decide item by item, not all alike
        torch.nn.init.normal_(gate[0].weight, std=3.0)
        torch.nn.init.normal_(gate[2].weight, std=3.0)
        torch.nn.init.zeros_(gate[2].bias)
    other = minimal.DynamicInjection(count, widths, minimal.SETTINGS)
    other.load_state_dict(product.state_dict())
    rows = torch.arange(count)
    for network in (product, other):
        network.train(training)
        torch.manual_seed(2)
        fused = network(rows, data.vectors, data.present)
        loss = network.loss(fused, network.query(rows)) if network is product else other.loss(fused)
        loss.backward()
        yield network, fused, loss


@pytest.mark.parametrize("training", [False, True])
def test_the_same_weights_fuse_items_alike(data, training):
    (product, fused, loss), (other, other_fused, other_loss) = _both_injections(data, training)
    _close(fused.vector, other_fused["vector"])
    assert fused.depth.tolist() == other_fused["depth"].tolist()
    assert len(set(fused.depth.tolist())) > 1, "no gate decided anything"
    _close(loss, other_loss)
    _same_gradients(product, other)


# ------------------------------------------------------------------------------------------------------- stage 2


def test_the_same_weights_quantize_alike():
    torch.manual_seed(3)
    vectors = torch.randn(40, 16)
    product = rqvae.RQVAE(16, quantizer_config(**_with_prefix("rq_")))
    torch.nn.init.normal_(product.codebooks)
    other = minimal.RQVAE(16, minimal.SETTINGS)
    other.load_state_dict(product.state_dict())
    results = []
    for network in (product, other):
        reconstruction, loss, codes = network(vectors)
        ((reconstruction - vectors).square().sum(1).mean() + loss).backward()
        results.append((reconstruction, loss, codes))
    assert torch.equal(results[0][2], results[1][2])
    _close(results[0][0], results[1][0])
    _close(results[0][1], results[1][1])
    _same_gradients(product, other)


@pytest.mark.parametrize("seed", range(5))
def test_colliding_ids_are_reallocated_alike(seed):
    random = np.random.default_rng(seed)
    codebooks, latents = random.normal(size=(3, 3, 4)), random.normal(size=(25, 4))
    codes = random.integers(2, size=(25, 3))  # 25 items on 8 of 27 IDs: whole prefixes fill up
    items = [f"i{number}" for number in random.permutation(25)]
    product = collision_resolution.reallocate(codes, latents, codebooks, items)
    np.testing.assert_array_equal(product, minimal.reallocate(codes, latents, codebooks, items))
    assert (product != codes).any()


@pytest.mark.pipeline
def test_stages_1_and_2_give_the_committed_ids(data, expected):
    network, fused, depth = minimal.fuse(data.vectors, data.present, minimal.SETTINGS, SEED)
    vectors, present = ({n: m.numpy() for n, m in group.items()} for group in (data.vectors, data.present))
    product, product_fused, product_depth, _ = injection_training.fit(vectors, present, _injection_config(), SEED)
    _close(torch.from_numpy(product_fused), fused, 1e-4)
    assert product_depth.tolist() == depth.tolist()
    _close(product.query.weight, network.query.weight, 1e-4)
    codes = minimal.quantize(fused, data.items, minimal.SETTINGS, SEED)
    assert dict(zip(data.items, codes.tolist(), strict=True)) == expected["ids"]


# ------------------------------------------------------------------------------------------------------- stage 3


def _both_models(data: Any, ids: dict[str, list[int]]) -> tuple[SemanticSequenceModel, Any]:
    """Both networks with the same weights, large enough for every part to matter."""
    codes = F.pad(torch.tensor([ids[item] for item in data.items]), (0, 0, 1, 0), value=-1)
    names = {name: SETTINGS[name] for name in NAMES}
    config = sequence_config(**names, max_length=SETTINGS["MAX_ITEM_LIST_LENGTH"])
    torch.manual_seed(4)
    product = SemanticSequenceModel(config, codes, SETTINGS["rq_codes"])
    with torch.no_grad():
        for parameter in product.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = minimal.SemanticSequenceModel(minimal.SimpleNamespace(**SETTINGS), codes)
    other.load_state_dict(product.state_dict())
    return product, other


MASKS = [minimal.PRETRAIN_MASKS, minimal.FINETUNE_MASKS]


@pytest.mark.parametrize("ratios", MASKS)
def test_the_same_weights_give_the_same_loss_and_gradients(data, expected, ratios):
    product, other = _both_models(data, expected["ids"])
    sequences, lengths = minimal.pad([history[:-2] for history in data.histories])
    loss = product.loss(sequences, lengths, ("causal", "masked"), ratios, torch.Generator().manual_seed(5))
    hidden = masking.draw(lengths, sequences.shape[1], ratios, torch.Generator().manual_seed(5))
    other_loss = other.loss(sequences, lengths, hidden)
    loss.backward()
    other_loss.backward()
    _close(loss, other_loss)
    _same_gradients(product, other)


def test_the_same_weights_rank_alike(data, expected):
    product, other = _both_models(data, expected["ids"])
    sequences, lengths = minimal.pad([history[:-1] for history in data.histories])
    target = torch.tensor([history[-1] for history in data.histories])
    with torch.no_grad():
        scores, other_scores = product.eval().scores(sequences, lengths), other.eval().scores(sequences, lengths)
    _close(scores, other_scores)
    assert torch.equal(scoring.rank_of(scores, target), minimal.rank_of(other_scores, target))


@pytest.mark.parametrize(("strategy", "ratio"), [("random", 0.3), ("span", 0.3), ("multi_region", 0.3), ("tail", 0.3)])
def test_both_hide_the_same_number_of_items(strategy, ratio):
    torch.manual_seed(6)
    lengths = torch.arange(2, 20)
    mask = minimal.draw_masks(lengths, 20, {strategy: ratio})
    assert mask.sum(1).tolist() == masking.hidden_count(lengths, ratio).tolist()
    if strategy == "tail":
        assert torch.equal(mask, masking.tail(lengths, 20, ratio))
    if strategy == "span":
        assert ((mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0] == 1).all()
    if strategy == "multi_region":
        assert not (mask[:, 1:] & mask[:, :-1]).any()


def losses_of_three_steps(data: Any, ids: dict[str, list[int]]) -> tuple[list[float], list[float]]:
    """Loss before each of three steps of AdamW on all users, of the product and of the minimal model."""
    sequences, lengths = minimal.pad([history[:-2] for history in data.histories])
    results = []
    for network in _both_models(data, ids):
        optimizer = torch.optim.AdamW(network.parameters(), lr=SETTINGS["learning_rate"], betas=SETTINGS["adam_betas"])
        masks, losses = torch.Generator().manual_seed(7), []
        for _ in range(4):
            if isinstance(network, SemanticSequenceModel):
                loss = network.loss(sequences, lengths, ("causal", "masked"), minimal.PRETRAIN_MASKS, masks)
            else:
                loss = network.loss(
                    sequences, lengths, masking.draw(lengths, sequences.shape[1], minimal.PRETRAIN_MASKS, masks)
                )
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(losses)
    return results[0], results[1]


def test_loss_after_three_steps(data, expected):
    product, other = losses_of_three_steps(data, expected["ids"])
    assert product == pytest.approx(other, abs=1e-4)
    assert product == pytest.approx(expected["losses"], abs=1e-4)


# -------------------------------------------------------------------------------------- whole runs, and their figures


def run_product(folder: Path) -> tuple[dict[str, list[int]], float]:
    """Run all stages through RecBole; the IDs, and NDCG@10 on test."""
    from recbole.quick_start import run_recbole

    import recbole_qbert  # noqa: F401

    settings = {
        **SETTINGS,
        "data_path": str(GOLDEN),
        "semantic_id_dir": str(folder),
        "checkpoint_dir": str(folder),
        "semantic_ids": "fused",
        "fusion": "injection",
        "quantizer": "rqvae",
        "injection_query": "random",
        "injection_gate": "paper",
        "injection_attention": "aligned",
        "injection_reconstruction": 0.0,
        "code_init": "random",
        "injection_dropout": 0.0,
        "hidden_dropout_prob": 0.1,
        "attn_dropout_prob": 0.1,
        "warmup_steps": 0,
        "show_progress": False,
        "state": "ERROR",
        "use_gpu": False,
        "seed": SEED,
    }
    figures = run_recbole(model="QBERT4Rec", dataset="Tiny", config_dict=settings)["test_result"]
    ids = semantic_ids.load(folder / "Tiny.sid")
    return dict(zip(ids.items, ids.codes.tolist(), strict=True)), float(figures["ndcg@10"])


def run_minimal(data: Any, ids: dict[str, list[int]]) -> float:
    """Train the minimal model on given IDs as its command line does; NDCG@10 on test."""
    torch.manual_seed(SEED)
    codes = F.pad(torch.tensor([ids[item] for item in data.items]), (0, 0, 1, 0), value=-1)
    model = minimal.SemanticSequenceModel(minimal.SETTINGS, codes)
    histories = [history[:-2] for history in data.histories]
    minimal.train(model, histories, minimal.PRETRAIN_MASKS, SETTINGS["pretrain_epochs"])
    minimal.train(model, histories, minimal.FINETUNE_MASKS, SETTINGS["epochs"])
    return minimal.ndcg_at_10(model, data.histories)


@pytest.mark.pipeline
def test_the_products_run_gives_the_committed_ids_and_ndcg(tmp_path, expected):
    ids, ndcg = run_product(tmp_path)
    assert ids == expected["ids"]
    assert ndcg == pytest.approx(expected["product_ndcg"], abs=0.02)  # one rank of 64 users may differ on another CPU


@pytest.mark.pipeline
def test_the_minimal_run_gives_the_committed_ndcg(data, expected):
    assert run_minimal(data, expected["ids"]) == pytest.approx(expected["minimal_ndcg"], abs=0.02)


def main() -> None:
    import tempfile

    data = minimal.read_data(GOLDEN / "Tiny")
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory() as folder:
        ids, ndcg = run_product(Path(folder))
    values = {
        "ids": {item: ids[item] for item in data.items},
        "losses": [round(loss, 5) for loss in losses_of_three_steps(data, ids)[0]],
        "product_ndcg": round(ndcg, 4),
        "minimal_ndcg": round(run_minimal(data, ids), 4),
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    EXPECTED.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
