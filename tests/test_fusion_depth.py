"""recbole_qbert.injection.depth and its use in training: gates that learn what going on is worth, and the test of depth."""

from __future__ import annotations

import pytest
import torch

from recbole_qbert.injection import depth
from recbole_qbert.injection.network import DynamicInjection
from recbole_qbert.injection.training import _Training, fit
from recbole_qbert.quantization import tokenizer
from tests.helpers import injection_config
from tests.test_injection import DIM, ITEMS, WIDTHS, arrays, close, count_rows, data, make


def made_layers(count, seed):
    """Outputs of three layers, and losses: the sign of the first entry tells whether depth 1 or depth 3 is better."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, count, DIM, generator=generator)
    vectors[1:, :, 0] = vectors[0, :, 0]
    needs_more = vectors[0, :, 0] > 0
    losses = torch.where(needs_more, torch.tensor([[1.0], [1.1], [0.2]]), torch.tensor([[0.2], [0.9], [1.0]]))
    return vectors, losses + 0.1 * torch.randn(3, count, generator=generator), needs_more


def test_gates_learn_who_gains_by_going_on_and_pass_the_permutation_test_on_other_items():
    torch.manual_seed(0)
    model = DynamicInjection(1, WIDTHS, injection_config(layers=3, gate="dynamic", learning_rate=0.02))
    vectors, losses, _ = made_layers(400, 1)
    depth.fit_gates(model, vectors, losses)
    vectors, losses, needs_more = made_layers(300, 2)
    chosen = depth.of_logits(model.gate_logits(vectors))
    assert ((chosen == 3) == needs_more).float().mean() > 0.9
    test = depth.permutation_test(losses, chosen, 0.002)
    assert test.beats_permuted and test.beats_common
    assert test.learned < 0.4 and test.permuted == pytest.approx(0.6, abs=0.05)
    shuffled = chosen[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    chance = depth.permutation_test(losses, shuffled, 0.002)
    assert not chance.beats_permuted and "NOT better than chance" in chance.sentence()


def test_the_loss_of_gates_is_the_regret_weighted_cross_entropy_of_the_right_answers():
    losses = torch.tensor([[1.0, 0.5], [0.9, 0.9], [0.1, 2.0]])
    logits = torch.tensor([[2.0, 0.3], [-1.0, 1.5]])
    # Item 0: its second gate stops at .9, so going on from layer 1 is worth 1 - .9 - cost. Item 1: the second gate goes on
    # (to 2), so going on from layer 1 leads there.
    cost, wrong = 0.05, torch.nn.functional.softplus
    second = (0.75 * wrong(torch.tensor(1.0)) + 1.15 * wrong(torch.tensor(1.5))) / 2
    first = (0.05 * wrong(torch.tensor(-2.0)) + 1.6 * wrong(torch.tensor(0.3))) / 2
    assert depth.gate_loss(logits, losses, cost).item() == pytest.approx((first + second).item(), rel=1e-5)


def test_the_permutation_test_by_hand():
    losses = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 2.5]])
    test = depth.permutation_test(losses, torch.tensor([1, 2, 2]), 0.0)
    assert (test.learned, test.oracle) == (pytest.approx(1.5), pytest.approx(1.5))
    assert test.fixed == pytest.approx([2.0, 5.5 / 3]) and test.common == 2
    assert test.share == pytest.approx([1 / 3, 2 / 3])
    assert test.learned < test.permuted < 2.0 and test.permuted_sd > 0  # the deals: 4.5 / 3, 6.5 / 3, 6 / 3
    assert depth.permutation_test(losses, torch.tensor([1, 2, 2]), 0.2).common == 1  # a layer that costs more than it gains


def test_one_depth_for_all_is_no_better_than_chance():
    test = depth.permutation_test(torch.rand(3, 40), torch.full((40,), 2), 0.0)
    assert test.permuted == pytest.approx(test.learned) and test.permuted_sd == pytest.approx(0.0, abs=1e-6)
    assert not test.beats_permuted


# -------------------------------------------------------------------------------- the network


def test_an_item_stops_in_use_where_the_gates_said_in_training():
    model = make(layers=4, gate="dynamic", seed=2)
    with torch.no_grad():
        layers = model.every_layer(torch.arange(ITEMS), *data())
        fused = model(torch.arange(ITEMS), *data())
        chosen = depth.of_logits(model.gate_logits(layers.vectors))
    assert fused.depth.tolist() == chosen.tolist() and len(set(chosen.tolist())) > 1
    close(fused.vector, layers.vectors[chosen - 1, torch.arange(ITEMS)])
    assert model.train()(torch.arange(ITEMS), *data()).depth.tolist() == chosen.tolist()  # nothing is drawn


def test_a_common_depth_computes_as_many_layers_and_is_saved():
    model = make(layers=4, gate="common")
    model.common_depth.fill_(2)
    weights = tokenizer.injection_weights(model)
    loaded = tokenizer._load_injection(weights, model.config)
    rows = count_rows(loaded)
    fused = loaded(torch.full((ITEMS,), loaded.no_id), *data())
    assert fused.depth.tolist() == [2] * ITEMS and rows == [ITEMS, ITEMS, 0, 0]


def test_settings_of_before_version_0_3_mean_the_papers_gate():
    settings = {**vars(injection_config(gate="dynamic"))}
    assert tokenizer._injection_config(settings).gate == "dynamic"
    del settings["attention"], settings["reconstruction"]
    assert tokenizer._injection_config(settings).gate == "paper"
    assert tokenizer._injection_config({**settings, "gate": "none"}).gate == "none"


# -------------------------------------------------------------------------------- training


def training(count=40, **changes):
    vectors, present = arrays(count)
    torch.manual_seed(0)
    return _Training(vectors, present, count, injection_config(**changes), None)


def test_deep_supervision_gives_every_layer_a_gradient_and_gates_none():
    state = training(gate="dynamic", layers=4)
    state.loss(torch.arange(40), torch.arange(40)).backward()
    for block in state.model.blocks:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (block.mix.weight, block.feed[2].weight))
    assert all(p.grad is None for p in state.model.gates.parameters())


@pytest.mark.parametrize("gate", ["dynamic", "none"])
def test_the_loss_is_eq_5_of_every_layer_or_of_the_last(gate):
    state = training(gate=gate, layers=3, dropout=0.0, consistency=0.3)
    rows = torch.arange(40)
    layers = state.model.every_layer(rows, *state.select(rows))
    wanted = 0.0
    for vector in layers.vectors if gate == "dynamic" else layers.vectors[-1:]:
        one = state.model.item_losses(vector, layers).mean() + 0.3 * (vector - layers.start).square().sum(1).mean()
        wanted += one.item() / (3 if gate == "dynamic" else 1)
    wanted += state.model.modality_contrast(layers).item()
    assert state.loss(rows, rows).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("passes", "by_gates"), [((True, True), True), ((True, False), False), ((False, True), False)])
def test_auto_leaves_the_depth_to_gates_only_where_these_pass_the_test(passes, by_gates):
    test = {"beats_permuted": passes[0], "beats_common": passes[1], "common": 2}
    depths = {}
    for gate in ("auto", "dynamic", "common"):
        state = training(gate=gate, layers=3)
        state.use_depth(test)
        depths[gate] = int(state.model.common_depth)
    assert depths == {"auto": 0 if by_gates else 2, "dynamic": 0, "common": 2}


@pytest.mark.pipeline
@pytest.mark.parametrize("gate", ["auto", "dynamic", "common", "paper", "none"])
def test_every_kind_of_gate_reports_the_permutation_test(gate, caplog):
    caplog.set_level("INFO")
    config = injection_config(gate=gate, layers=3, epochs=3, holdout=0.25, query="concatenation", reconstruction=1.0)
    *_, reached, report = fit(*arrays(60), config, 0)
    test = depth.DepthTest(**report.depth_test)
    assert test.items == 15 and len(test.fixed) == 3 and sum(test.share) == pytest.approx(1)
    assert test.oracle <= min(test.learned, min(test.fixed)) + 1e-6
    assert any(test.sentence() in record.getMessage() for record in caplog.records)
    if gate == "common":
        assert set(reached.tolist()) == {test.common}
    if gate == "none":
        assert set(reached.tolist()) == {3} and not test.beats_permuted


@pytest.mark.pipeline
def test_the_network_is_trained_once(monkeypatch):
    """The epochs after the choice of their number go on from the best weights, and now see all items."""
    vectors, present = arrays(40)
    config = injection_config(epochs=4, patience=4, holdout=0.25, gate="none", learning_rate=0.0001)
    seen, epoch = [], _Training.epoch
    monkeypatch.setattr(_Training, "epoch", lambda self, rows: (seen.append(rows), epoch(self, rows))[1])
    model, _, _, report = fit(vectors, present, config, 3)
    assert report.epochs == 4, "the loss still falls"  # so the best weights are the last
    assert [len(rows) for rows in seen] == [30] * 4 + [40] * report.more_epochs and report.more_epochs == 1
    monkeypatch.undo()
    torch.manual_seed(3)
    order = torch.randperm(40)
    other = _Training(vectors, present, 40, config, None)
    for _ in range(4):
        other.epoch(order[10:])
    other.epoch(torch.arange(40))
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
