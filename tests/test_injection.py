"""recbole_qbert.injection.network: Eq. 3-5 by brute force, gates that save work, modalities that are not there."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.injection.network import DynamicInjection, Fused
from recbole_qbert.injection.training import fit
from tests.helpers import injection_config

WIDTHS = {"text": 6, "image": 4}
ITEMS, DIM = 12, 16


def make(seed=0, widths=WIDTHS, **changes):
    torch.manual_seed(seed)
    model = DynamicInjection(ITEMS, widths, injection_config(modalities=tuple(widths), dropout=0.0, **changes)).eval()
    with torch.no_grad():
        for gate in model.gates:
            gate[2].weight.normal_(std=4.0)  # answers that differ from item to item
            gate[2].bias.zero_()
    return model


def data(seed=1, count=ITEMS, per_item=1, widths=WIDTHS):
    generator = torch.Generator().manual_seed(seed)
    vectors = {name: torch.randn(count, per_item, width, generator=generator) for name, width in widths.items()}
    return vectors, {name: torch.ones(count, per_item, dtype=torch.bool) for name in widths}


def force(model, bias):
    """Make every gate's answer depend on ``bias`` alone, one number a gate or one for all."""
    biases = [bias] * len(model.gates) if isinstance(bias, (int, float)) else bias
    with torch.no_grad():
        for gate, value in zip(model.gates, biases, strict=True):
            gate[2].weight.zero_()
            gate[2].bias.fill_(value)


def count_rows(model):
    """Rows that enter each block, filled in as the model runs."""
    rows = [0] * len(model.blocks)
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(
            lambda _, given, number=number: rows.__setitem__(number, rows[number] + len(given[0]))
        )
    return rows


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("bias", "depth"), [(-50.0, 1), (50.0, 5), ([50.0, 50.0, -50.0, 50.0], 3)])
def test_a_forced_gate_decides_the_depth_of_every_item(bias, depth, training):
    model = make(layers=5).train(training)
    force(model, bias)
    rows = count_rows(model)
    fused = model(torch.arange(ITEMS), *data())
    assert fused.depth.tolist() == [depth] * ITEMS
    assert rows == [ITEMS] * depth + [0] * (5 - depth)


def test_without_gates_all_layers_run_and_their_number_costs_nothing():
    model = make(layers=4, gate="none")
    force(model, -50.0)
    rows = count_rows(model)
    fused = model(torch.arange(ITEMS), *data())
    assert fused.depth.tolist() == [4] * ITEMS
    assert rows == [ITEMS] * 4
    assert fused.expected_gates.item() == 0.0


def test_stopped_items_are_not_computed_and_their_vector_stays():
    """Each item's vector is what comes out when it passes alone through the blocks its gates open."""
    model = make(seed=2, layers=5)
    vectors, present = data()
    rows = count_rows(model)
    with torch.no_grad():
        fused = model(torch.arange(ITEMS), vectors, present)
        computed = list(rows)
        query, chance = model.query(torch.arange(ITEMS)), 0.0
        source = torch.stack([model.align(query, model.shared(n, vectors[n]), present[n]) for n in WIDTHS], 1)
        for item in range(ITEMS):
            hidden, depth = query[item : item + 1], 0
            for number, block in enumerate(model.blocks):
                hidden = block(hidden, source[item : item + 1], torch.ones(1, 2, dtype=torch.bool))
                depth += 1
                if number == 4:
                    break
                going = torch.sigmoid(model.gates[number](hidden)).item()
                chance += going
                if going <= 0.5:
                    break
            assert fused.depth[item] == depth
            close(fused.vector[item], hidden[0])
    assert computed == [int((fused.depth > number).sum()) for number in range(5)]
    assert fused.expected_gates.item() == pytest.approx(chance / ITEMS, rel=1e-4)
    assert len(set(fused.depth.tolist())) > 2  # or the test would say nothing


def test_chance_is_the_mean_number_of_layers_more_that_the_gates_expect():
    model = make(layers=3)
    force(model, [math.log(3.0), -50.0])  # 3/4 to go on, then never
    assert model(torch.arange(ITEMS), *data()).expected_gates.item() == pytest.approx(0.75, abs=1e-5)


def test_in_training_items_go_on_as_often_as_their_gate_says():
    model = make(layers=2).train()
    force(model, math.log(0.25))  # 1 : 4
    torch.manual_seed(0)
    rows = torch.zeros(4000, dtype=torch.long)
    vectors, present = data(count=1)
    wide = (
        {n: v.expand(4000, -1, -1) for n, v in vectors.items()},
        {n: p.expand(4000, -1) for n, p in present.items()},
    )
    assert (model(rows, *wide).depth == 2).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_training_does_not_change_the_value_of_an_open_gate():
    """The straight-through weight is 1 in value: it is there for the gradient only."""
    model = make(layers=3)
    force(model, 50.0)
    first, second = (model.train(mode)(torch.arange(ITEMS), *data()).vector for mode in (True, False))
    close(first, second)


def test_gradients_reach_the_gates_through_the_vector_alone():
    model = make(layers=4).train()
    force(model, 3.0)
    torch.manual_seed(0)
    fused = model(torch.arange(ITEMS), *data())
    fused.vector.square().sum().backward()
    for gate in model.gates:
        assert gate[2].bias.grad.abs().sum() > 0


def test_the_gates_gradient_is_that_of_the_expected_loss_on_average():
    """Chance p of layer 2, linear f: the gradient of p f(h2) + (1 - p) f(h1) by p is f(h2) - f(h1)."""
    model = make(layers=2).train()
    logit = 0.4
    force(model, logit)
    vectors, present = data(count=1)
    many = 4000
    wide = (
        {n: v.expand(many, -1, -1) for n, v in vectors.items()},
        {n: p.expand(many, -1) for n, p in present.items()},
    )
    direction = torch.randn(DIM, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    (model(torch.zeros(many, dtype=torch.long), *wide).vector @ direction).mean().backward()
    with torch.no_grad():
        model.eval()
        values = []
        for bias in (-50.0, 50.0):
            force(model, bias)
            values.append(model(torch.zeros(1, dtype=torch.long), vectors, present).vector[0] @ direction)
    chance = 1 / (1 + math.exp(-logit))
    wanted = float(values[1] - values[0]) * chance * (1 - chance)
    assert model.gates[0][2].bias.grad.item() == pytest.approx(wanted, rel=0.1)


def test_a_layer_costs_its_probability_times_the_price():
    gradients = []
    for price in (0.0, 0.7):
        model = make(layers=2, depth_cost=price)
        force(model, 1.0)
        model.loss(model(torch.arange(ITEMS), *data()), model.query.weight[:ITEMS]).backward()
        gradients.append(model.gates[0][2].bias.grad.item())
    chance = 1 / (1 + math.exp(-1.0))
    assert gradients[1] - gradients[0] == pytest.approx(0.7 * chance * (1 - chance), rel=1e-3)


def test_a_high_price_closes_the_gates():
    vectors, present = arrays()
    depths = []
    for epochs in (0, 20):
        config = injection_config(layers=3, depth_cost=5.0, epochs=epochs, learning_rate=0.02, holdout=0.0)
        depths.append(set(fit(vectors, present, config, 0)[2].tolist()))
    assert depths == [{3}, {1}]


# -------------------------------------------------------------------------------- Eq. 3


def test_one_vector_an_item_is_projected_and_nothing_else():
    model = make()
    vectors, present = data()
    fused = model(torch.arange(ITEMS), vectors, present)
    for name, linear in model.project.items():
        projected = F.normalize(linear(F.normalize(vectors[name][:, 0], dim=1)), dim=1)
        close(fused.aligned[name], projected)


def test_several_vectors_are_weighted_by_their_cosine_with_the_query():
    model = make(temperature=0.3)
    vectors, present = data(per_item=3)
    present["text"][1, 0] = present["text"][2, 1:] = present["text"][3] = False
    query = model.query(torch.arange(ITEMS))
    found = model.align(query, model.shared("text", vectors["text"]), present["text"])
    for item in range(ITEMS):
        points, weights = [], []
        for j in range(3):
            if present["text"][item, j]:
                raw = vectors["text"][item, j]
                points.append(F.normalize(model.project["text"](raw / raw.norm()), dim=0))
                weights.append(torch.exp(F.cosine_similarity(query[item], points[-1], dim=0) / 0.3))
        wanted = sum((w * p for w, p in zip(weights, points, strict=True)), torch.zeros(DIM))
        close(found[item], wanted / sum(weights) if weights else wanted)


def test_the_scale_of_features_does_not_matter():
    model = make()
    vectors, present = data(per_item=2)
    scaled = {name: 7.0 * value for name, value in vectors.items()}
    close(
        model(torch.arange(ITEMS), scaled, present).vector,
        model(torch.arange(ITEMS), vectors, present).vector,
    )


# -------------------------------------------------------------------------------- what is not there


def test_the_numbers_of_a_missing_modality_change_nothing_anywhere():
    model = make()
    vectors, present = data(per_item=2)
    present["text"][:4] = False
    present["image"][3:6] = False  # item 3 has nothing at all
    present["text"][7, 1] = False
    results = []
    for noise in (0.0, 100.0):
        changed = {n: torch.where(present[n][..., None], v, noise * torch.randn_like(v)) for n, v in vectors.items()}
        model.zero_grad()
        fused = model(torch.arange(ITEMS), changed, present)
        loss = model.loss(fused, model.query.weight[:ITEMS])
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert torch.isfinite(gradients).all()
        results.append((fused.vector.detach(), loss.detach(), gradients))
    for left, right in zip(*results, strict=True):
        close(left, right)
    assert fused.present["text"].tolist() == [False] * 4 + [True] * 8
    assert not fused.aligned["text"][:4].any()
    assert not fused.aligned["image"][3:6].any()


def test_an_item_without_image_is_fused_as_if_there_were_only_text():
    """Attention of the block skips the absent vector instead of attending to zeros."""
    both, text = make(), make()
    vectors, present = data()
    present["image"][:] = False
    del text.project["image"]
    text.load_state_dict({k: v for k, v in both.state_dict().items() if "image" not in k})
    close(
        both(torch.arange(ITEMS), vectors, present).vector,
        text(torch.arange(ITEMS), {"text": vectors["text"]}, {"text": present["text"]}).vector,
    )


def test_other_items_of_the_batch_do_not_matter():
    model = make(seed=3)
    vectors, present = data()
    together = model(torch.arange(ITEMS), vectors, present).vector
    alone = model(torch.tensor([5]), {n: v[5:6] for n, v in vectors.items()}, {n: p[5:6] for n, p in present.items()})
    close(together[5:6], alone.vector)


def test_an_item_without_an_id_vector_uses_the_shared_query():
    model = make()
    vectors, present = data(count=2)
    same = {n: v[:1].expand(2, -1, -1) for n, v in vectors.items()}
    fused = model(torch.tensor([model.no_id, model.no_id]), same, present).vector
    close(fused[0], fused[1])
    assert model.no_id == ITEMS
    assert (fused[0] - model(torch.tensor([0, 1]), same, present).vector[0]).abs().max() > 1e-3


# -------------------------------------------------------------------------------- Eq. 5


def infonce(left, right, temperature):
    """Symmetric InfoNCE, one item at a time."""
    total = 0.0
    for a, b in ((left, right), (right, left)):
        for i in range(len(a)):
            match = [math.exp(float(F.cosine_similarity(a[i], b[j], dim=0)) / temperature) for j in range(len(b))]
            total -= math.log(match[i] / sum(match)) / len(a) / 2
    return total


def some_fused(names=("text", "image")):
    torch.manual_seed(4)
    aligned = {name: torch.randn(7, DIM) for name in names}
    there = {name: torch.ones(7, dtype=torch.bool) for name in names}
    return Fused(torch.randn(7, DIM), aligned, there, torch.ones(7, dtype=torch.long), torch.tensor(1.5))


def test_infonce_equals_a_plain_loop():
    model, fused = make(contrast_temperature=0.2), some_fused()
    real = torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    wanted = infonce(fused.vector[real], fused.aligned["text"][real], 0.2)
    assert model.infonce(fused.vector, fused.aligned["text"], real).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("left", [0, 1])
def test_infonce_of_fewer_than_two_items_is_zero_with_a_gradient(left):
    vector = torch.randn(4, DIM, requires_grad=True)
    loss = make().infonce(vector, torch.randn(4, DIM), torch.arange(4) < left)
    loss.backward()
    assert loss.item() == 0.0
    assert not vector.grad.any()


@pytest.mark.parametrize("names", [("text", "image"), ("text",), ("text", "image", "audio")])
def test_the_contrastive_loss_takes_every_pair_once_over_items_that_have_both(names):
    model, fused = make(), some_fused(names)
    fused.present["text"][:2] = False
    if "image" in names:
        fused.present["image"][1:3] = False
    sides = {"fused": (fused.vector, torch.ones(7, dtype=torch.bool))}
    sides |= {name: (fused.aligned[name], fused.present[name]) for name in names}
    wanted = 0.0
    for (left, has), (right, also) in combinations(sides.values(), 2):
        wanted += infonce(left[has & also], right[has & also], model.config.contrast_temperature)
    assert model.contrast(fused).item() == pytest.approx(wanted, rel=1e-4)


def test_the_loss_adds_consistency_with_a_stopped_query_and_the_cost_of_depth():
    model, fused = make(consistency=0.3, depth_cost=0.2), some_fused()
    query = torch.randn(7, DIM, requires_grad=True)
    loss = model.loss(fused, query)
    gap = (fused.vector - query).square().sum(1).mean()
    assert loss.item() == pytest.approx((model.contrast(fused) + 0.3 * gap + 0.2 * 1.5).item(), rel=1e-5)
    assert not loss.requires_grad  # nothing but the query could have asked for one


# -------------------------------------------------------------------------------- fit


def arrays(count=40, per_item=1, seed=1):
    vectors, present = data(seed, count, per_item)
    return {n: v.numpy() for n, v in vectors.items()}, {n: p.numpy() for n, p in present.items()}


@pytest.mark.pipeline
@pytest.mark.parametrize("modalities", [("image",), ("text",), ("image", "text")])
def test_fit_uses_the_modalities_it_is_told_to(modalities):
    vectors, present = arrays()
    model, fused, depth, report = fit(vectors, present, injection_config(modalities=modalities), 0)
    assert set(model.project) == set(modalities)
    assert not model.training
    assert fused.shape == (40, DIM)
    assert fused.dtype == np.float32
    assert depth.shape == (40,)
    assert np.isfinite(fused).all()
    assert report.depth == pytest.approx([float((depth == d).mean()) for d in range(1, 6)])
    assert (report.retrieval is None) == (len(modalities) == 1)
    other = {n: v if n in modalities else v + 1 for n, v in vectors.items()}
    assert np.array_equal(fit(other, present, injection_config(modalities=modalities), 0)[1], fused)


def test_fit_without_modalities_returns_the_queries():
    queries = np.random.default_rng(0).normal(size=(9, DIM)).astype(np.float32)
    _, fused, depth, report = fit({}, {}, injection_config(modalities=()), 0, queries)
    assert np.array_equal(fused, queries)
    assert not depth.any()
    assert report.epochs == 0


def test_an_unknown_modality_is_refused():
    with pytest.raises(ValueError, match=r"injection_modalities.*'audio'.*text, image"):
        fit(*arrays(), injection_config(modalities=("audio",)), 0)


@pytest.mark.pipeline
def test_fit_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone():
    vectors, present = arrays()
    results = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        results.append(fit(vectors, present, injection_config(), seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(results[0][1], results[1][1])
    assert np.array_equal(results[0][2], results[1][2])
    assert results[0][3] == results[1][3]
    assert not np.array_equal(results[0][1], results[2][1])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_id_dropout_trains_the_shared_query_instead_of_the_items_own(share):
    start = np.random.default_rng(0).normal(size=(40, DIM)).astype(np.float32)
    config = injection_config(id_dropout=share, weight_decay=0.0, holdout=0.0)
    query = fit(*arrays(), config, 0, start)[0].query.weight.detach()
    assert np.array_equal(query[:40], start) == (share == 1.0)
    assert bool(query[40].any()) == (share == 1.0)  # it starts at zero


@pytest.mark.pipeline
def test_the_number_of_epochs_is_where_held_out_items_were_best():
    config = injection_config(epochs=12, patience=3, holdout=0.25, learning_rate=0.02)
    _, _, _, report = fit(*arrays(60), config, 0)
    assert report.epochs == int(np.argmin(report.held_out_loss)) + 1
    assert len(report.held_out_loss) in (report.epochs + 3, 12)


def test_items_without_features_are_not_held_out():
    """They would say nothing of the loss; with 4 of 40, the 4 of seed 0's choice, it once was 0 from the first epoch on."""
    vectors, present = arrays()
    empty = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:4]
    for name in present:
        present[name][empty] = False
        vectors[name][empty] = 0.0
    config = injection_config(epochs=6, patience=6, holdout=0.1)
    report = fit(vectors, present, config, 0)[3]
    assert len(report.held_out_loss) == 6 and min(report.held_out_loss) > 0
    rare = {name: np.zeros_like(there) for name, there in present.items()}
    first = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:4].tolist()
    for name, rows in (("text", first[::2]), ("image", first[1::2])):  # one of each kind is held out
        rare[name][rows] = True
    report = fit(vectors, rare, injection_config(epochs=6, holdout=0.5), 0)[3]
    assert report.epochs == 0 and report.more_epochs == 6 and report.held_out_loss == [], "nothing to choose by"


def test_training_aligns_text_and_image_of_the_same_item():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60, 3))
    vectors = {n: (hidden @ random.normal(size=(3, w))).astype(np.float32)[:, None] for n, w in WIDTHS.items()}
    present = {n: np.ones((60, 1), dtype=bool) for n in WIDTHS}
    config = injection_config(epochs=40, holdout=0.0, learning_rate=0.01, layers=2, batch_size=60)
    report = fit(vectors, present, config, 0)[3]
    assert report.retrieval > 0.5  # 1/60 by chance


def test_fused_vectors_are_those_of_the_network_that_comes_back():
    vectors, present = arrays()
    present["image"][:5] = False
    vectors["image"][:5] = 0.0
    model, fused, depth, _ = fit(vectors, present, injection_config(), 3)
    with torch.no_grad():
        again = model(torch.arange(40), *({n: torch.from_numpy(x) for n, x in p.items()} for p in (vectors, present)))
    close(again.vector, torch.from_numpy(fused))
    assert again.depth.tolist() == depth.tolist()
