"""MISSRec: interests, fusion and transformer against re-computations by hand; the model inside RecBole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_qbert.baselines import interests
from recbole_qbert.baselines.interest_transformer import InterestTransformer
from recbole_qbert.baselines.missrec import MISSRecNetwork
from recbole_qbert.config.baseline_schema import MISSRecConfig
from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_recbole import QUICK as QUICK_OF_OTHERS
from tests.helpers_recbole import write_dataset

PUBLISHED = read_properties(property_file("model/MISSRec.yaml"))
SMALL = {"hidden_size": 12, "n_heads": 2, "inner_size": 16, "max_length": 6, "hidden_dropout_prob": 0.0}
ITEMS = 9


def config(**changes):
    values = {name: PUBLISHED[name] for name in MISSRecConfig.__dataclass_fields__ if name in PUBLISHED}
    return MISSRecConfig(**{**values, "max_length": PUBLISHED["MAX_ITEM_LIST_LENGTH"], **changes})


def network(modalities=("text", "image"), without_image=(), **changes):
    torch.manual_seed(0)
    vectors, present = {}, {}
    for number, name in enumerate(modalities):
        vectors[name] = torch.randn(ITEMS + 1, 7 + number)
        present[name] = torch.arange(ITEMS + 1) > 0
        if name == "image":
            present[name][list(without_image)] = False
        vectors[name][~present[name]] = 0.0
    made = MISSRecNetwork(config(**{**SMALL, **changes}), vectors, present)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.discover_interests(torch.Generator().manual_seed(1))
    return made


HISTORIES = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 1, 9, 0, 0, 0], [2, 8, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3, 2, 1])
TARGETS = torch.tensor([7, 2, 5, 1])


# --------------------------------------------------------------------------------------------------------- interests
def test_interests_of_six_points_by_hand(monkeypatch):
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0], [4.2, 0.5], [1.9, 0.5]])
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.tensor([3, 0, 1, 2, 4, 5]))
    owner, centers = interests.cluster(points, 2, torch.Generator())
    # Drawn: (4, 1) and (0, 0). The last point is nearer to the second, whose mean moves to it.
    torch.testing.assert_close(centers, torch.tensor([[12.2 / 3, 0.5], [1.9 / 3, 0.5]]))
    assert owner.tolist() == [1, 1, 0, 0, 0, 1]


def test_as_many_interests_as_points_are_the_points_and_the_generator_decides():
    points = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    owner, centers = interests.cluster(points, 40, torch.Generator().manual_seed(1))
    assert sorted(owner.tolist()) == list(range(40))
    torch.testing.assert_close(centers[owner], points)
    few = [interests.cluster(points, 6, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(few[0][0], few[1][0]) and torch.equal(few[0][1], few[1][1])
    assert not torch.equal(few[0][1], few[2][1])


def test_equal_points_leave_empty_clusters_at_zero():
    points = torch.ones(4, 3)
    owner, centers = interests.cluster(points, 3, torch.Generator().manual_seed(0))
    assert len(owner.unique()) == 1 and (centers.abs().sum(1) > 0).sum() == 1


def released_batch(points, ratio):
    """The release's rule: a batch is 2048 or int(1.1 K), and a remainder of at most K is merged into it."""
    count = max(math.ceil(ratio * points), 1)
    size = 2048 if int(1.1 * count) > count and count <= 2048 else int(1.1 * count)
    return points if points - size <= count else size


@pytest.mark.parametrize("points", [2, 3, 10, 999, 3170, 8770, 12_500, 100_001])
def test_at_the_released_ratio_all_points_are_one_batch(points):
    assert released_batch(points, 0.5) == points
    assert interests.number_of_interests(points, 0.5) == math.ceil(points / 2)


def test_interests_of_a_row_are_distinct_sorted_and_without_zeros():
    given = torch.tensor([[3, 3, 0, 5], [9, 2, 2, 1], [0, 0, 0, 0], [4, 0, 0, 4]])
    assert interests.distinct(given).tolist() == [[3, 5, 0], [1, 2, 9], [0, 0, 0], [4, 0, 0]]
    random = torch.randint(6, (50, 8), generator=torch.Generator().manual_seed(0))
    for row, got in zip(random.tolist(), interests.distinct(random).tolist(), strict=True):
        assert [number for number in got if number] == sorted(set(row) - {0})


def test_text_and_image_of_all_items_are_clustered_together():
    made = network(without_image=[4])
    assert made.centers.shape == (1 + math.ceil(17 / 2), 12) and not made.centers[0].any()
    assert (made.interest_of[:, 0] == 0).all() and made.interest_of[1, 4] == 0
    mask = torch.ones(2, ITEMS + 1, dtype=torch.bool)
    mask[:, 0], mask[1, 4] = False, False
    assert (made.interest_of[mask] > 0).all()
    adapted = torch.stack(made._adapted())
    for modality, item in mask.nonzero().tolist():  # each belongs to the nearest center
        distance = (made.centers[1:] - adapted[modality, item]).square().sum(1)
        assert distance[made.interest_of[modality, item] - 1] <= distance.min() + 1e-4


# ------------------------------------------------------------------------------------------------------- transformer
def test_the_layers_are_torchs_transformer():
    torch.manual_seed(1)
    made = InterestTransformer(config(**{**SMALL, "n_layers": 2})).eval()
    theirs = nn.Transformer(12, 2, 2, 2, 16, 0.0, "gelu", batch_first=True, layer_norm_eps=1e-12).eval()
    names = {
        "encoder.": "encoder.layers.",
        "decoder.": "decoder.layers.",
        "encoder_norm": "encoder.norm",
        "decoder_norm": "decoder.norm",
    }
    weights = {}
    for name, value in made.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        weights[names[start] + name.removeprefix(start)] = value
    theirs.load_state_dict(weights)
    seen, items = torch.randn(4, 5, 12), torch.randn(4, 6, 12)
    no_seen = torch.arange(5) >= torch.tensor([5, 2, 3, 1])[:, None]
    no_item = torch.arange(6) >= LENGTHS[:, None]
    state, memory = made(seen, no_seen, items, LENGTHS)
    expected = theirs(
        seen, items, src_key_padding_mask=no_seen, tgt_key_padding_mask=no_item, memory_key_padding_mask=no_seen
    )[torch.arange(4), LENGTHS - 1]
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    inside = theirs.encoder(seen, src_key_padding_mask=no_seen)
    torch.testing.assert_close(memory[~no_seen], inside[~no_seen], rtol=1e-4, atol=1e-5)


def test_linear_layers_start_small_and_in_projections_as_torchs():
    torch.manual_seed(0)
    layer = InterestTransformer(config()).requires_grad_(False).encoder[0]
    assert layer.linear1.weight.std() == pytest.approx(0.02, rel=0.05) and not layer.linear1.bias.any()
    bound = math.sqrt(6 / (300 + 900))
    assert layer.self_attn.in_proj_weight.abs().max() == pytest.approx(bound, rel=0.01)
    assert layer.self_attn.out_proj.weight.std() == pytest.approx(0.02, rel=0.05)


# ----------------------------------------------------------------------------------------------------------- network
@pytest.mark.parametrize(("own", "count"), [(True, 3_035_313), (False, 3_035_313 - 1_315_800)])
def test_parameters_of_the_published_size(own, count):
    vectors = {name: torch.zeros(4386, 512) for name in ("text", "image")}
    present = {name: torch.arange(4386) > 0 for name in vectors}
    made = MISSRecNetwork(config(use_item_embedding=own), vectors, present)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


def test_order_changes_the_decoder_and_not_the_set_of_interests(monkeypatch):
    made = network().eval()
    table = made.item_table()
    swapped = HISTORIES[:1, [2, 1, 0, 4, 3, 5]]
    read = []
    plain = made.transformer.forward
    monkeypatch.setattr(made.transformer, "forward", lambda *given: read.append(given[0]) or plain(*given))
    one, other = (made.states(rows, LENGTHS[:1], table) for rows in (HISTORIES[:1], swapped))
    assert torch.equal(*read) and torch.equal(one[1], other[1])
    assert not torch.allclose(one[0], other[0], atol=1e-3)


def test_a_row_is_the_same_alone_and_among_longer_ones():
    made = network().eval()
    together = made.scores(HISTORIES, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = made.scores(HISTORIES[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
def test_fused_scores_by_hand(own):
    made = network(use_item_embedding=own).eval()
    user = F.normalize(torch.randn(3, 12), dim=1)
    table = made.item_table()
    text, image = (made.adaptors[name](getattr(made, f"vectors_{name}")) for name in ("text", "image"))
    cosine = [F.cosine_similarity(user[:, None], vectors[None, 1:], dim=2) for vectors in (text, image)]
    for factor in (0.0, 2.5, 1e4):
        with torch.no_grad():
            made.fusion_factor.fill_(factor)
        weight = torch.softmax(factor * torch.stack(cosine), 0)
        expected = (weight * torch.stack(cosine)).sum(0)
        if factor == 0.0:
            torch.testing.assert_close(expected, (cosine[0] + cosine[1]) / 2)
        if factor == 1e4:
            torch.testing.assert_close(expected, torch.maximum(*cosine), rtol=1e-3, atol=1e-3)
        if own:
            third = F.cosine_similarity(user[:, None], made.item_embedding[None, 1:], dim=2)
            expected = (third + 2 * expected) / 3
        torch.testing.assert_close(made.fused(user, table)[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_fusion_by_item_and_by_mean():
    user = F.normalize(torch.randn(3, 12), dim=1)
    by_item, mean = network(score_fusion="item"), network(score_fusion="mean")
    assert by_item.fusion_factor.shape == (ITEMS + 1,) and mean.fusion_factor is None
    table = mean.item_table()
    candidates = torch.stack([user @ unit.T for unit in table.candidates]).mean(0)
    torch.testing.assert_close(mean.fused(user, table), (user @ table.own.T + 2 * candidates) / 3)
    three = network(("text", "image", "sound"))
    with torch.no_grad():
        three.fusion_factor.zero_()
    table = three.item_table()
    candidates = torch.stack([user @ unit.T for unit in table.candidates]).mean(0)
    torch.testing.assert_close(three.fused(user, table), (user @ table.own.T + 3 * candidates) / 4)


def test_one_modality_is_added_to_the_item_embedding():
    made = network(("text",)).eval()
    table = made.item_table()
    summed = made.adaptors["text"](made.vectors_text) + made.item_embedding
    torch.testing.assert_close(table.inputs[1:], summed[1:])
    user, _ = made.states(HISTORIES, LENGTHS, table)
    expected = F.cosine_similarity(user[:, None], summed[None, 1:], dim=2)
    torch.testing.assert_close(made.scores(HISTORIES, LENGTHS)[:, 1:], expected, rtol=1e-4, atol=1e-5)
    assert made.fusion_factor is None


def test_an_item_without_an_image_is_ranked_by_its_text():
    made = network(without_image=[4], use_item_embedding=False).eval()
    table = made.item_table()
    text = made.adaptors["text"](made.vectors_text)
    user = F.normalize(torch.randn(3, 12), dim=1)
    torch.testing.assert_close(made.fused(user, table)[:, 4], F.cosine_similarity(user, text[4][None]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table.inputs[4], text[4])
    assert not torch.allclose(table.inputs[3], text[3])


def test_an_item_without_any_vector_is_read_and_ranked_by_its_embedding():
    torch.manual_seed(0)
    present = {name: torch.tensor([False, True, True, False]) for name in ("text", "image")}
    vectors = {name: torch.randn(4, 5) * mask[:, None] for name, mask in present.items()}
    made = MISSRecNetwork(config(**SMALL), vectors, present).eval()
    made.discover_interests(torch.Generator().manual_seed(0))
    scores = made.requires_grad_(False).scores(torch.tensor([[3]]), torch.tensor([1]))  # no interest at all
    assert torch.isfinite(scores[0, 1:]).all() and scores[0, 0] == -torch.inf
    table = made.item_table()
    user, size = made.states(torch.tensor([[3]]), torch.tensor([1]), table)
    assert scores[0, 3].item() == pytest.approx(float(user[0] @ table.own[3]) / 3, abs=1e-6) and size.item() == 0


# -------------------------------------------------------------------------------------------------------------- loss
def test_the_loss_is_the_mean_cross_entropy_and_the_penalty():
    made = network(interest_weight=0.5)
    by_hand = []
    for row, length in enumerate(LENGTHS.tolist()):
        alone, own = HISTORIES[row : row + 1, :length], LENGTHS[row : row + 1]
        scores = made.scores(alone, own) / 0.07
        table = made.item_table()
        names = made.interest_of[:, alone[0]].unique()
        tokens = made.centers[names[names > 0]][None]
        memory = made.transformer.encoder_norm(made.transformer.encoder[0](tokens))
        penalty = memory.mean(1).square().mean()
        torch.testing.assert_close(made.states(alone, own, table)[1][0], penalty, rtol=1e-4, atol=1e-6)
        by_hand.append(F.cross_entropy(scores, TARGETS[row : row + 1]) + 0.5 * penalty)
    loss = made.loss(HISTORIES, LENGTHS, TARGETS)
    expected = torch.stack(by_hand).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = [parameter for parameter in made.parameters() if parameter.requires_grad]
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):  # buckets of like length give the gradient of single rows
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_centers_get_no_gradient_and_adaptors_do():
    made = network()
    made.loss(HISTORIES, LENGTHS, TARGETS).backward()
    assert not made.centers.requires_grad and "centers" in made.state_dict()
    assert all(adaptor.weight.grad.abs().max() > 0 for adaptor in made.adaptors.values())
    assert made.fusion_factor.grad.abs() > 0


def test_the_shares_of_processes_add_up():
    made = network()

    def total(shares):
        made.zero_grad()
        values = [made.loss(HISTORIES, LENGTHS, TARGETS, share) for share in shares]
        torch.stack(values).sum().backward()
        return sum(value.item() for value in values), torch.cat([p.grad.flatten() for p in made.parameters()])

    (one, whole), (five, parts) = total([(0, 1)]), total([(n, 5) for n in range(5)])  # the last has no row
    assert one == pytest.approx(five, rel=1e-5)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- inside RecBole
NAME = "Tiny"
QUICK = {
    "epochs": 3, "train_batch_size": 64, "eval_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "hidden_size": 16, "n_heads": 2, "inner_size": 32, "seed": 2026, "state": "ERROR",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture
def run(data, tmp_path):
    def train(name="run", prepare=None, **settings):
        folder = tmp_path / name
        given = {**QUICK, "checkpoint_dir": str(folder), **settings}
        with experiment.working_directory(folder):
            return experiment.train(experiment.configure("MISSRec", NAME, data, given), prepare=prepare)

    return train


def same_weights(one, other):
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(value, theirs) for (_, value), theirs in pairs)


@pytest.mark.pipeline
def test_run_recbole_by_name(data, tmp_path, monkeypatch):
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    result = run_recbole(model="MISSRec", dataset=NAME, config_dict={**QUICK, "epochs": 1, "data_path": str(data)})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1


@pytest.mark.pipeline
def test_rows_are_recboles(data, tmp_path):
    """Training, validation and test rows of prefixes, against RecBole's own data set."""
    from recbole.data import create_dataset

    given = {**QUICK, "checkpoint_dir": str(tmp_path)}
    ours = create_dataset(experiment.configure("MISSRec", NAME, data, given)).build()
    shared = {**QUICK_OF_OTHERS["SASRec"], "MAX_ITEM_LIST_LENGTH": 8}
    theirs = create_dataset(experiment.configure("SASRec", NAME, data, shared)).build()

    def rows(part):
        feat = part.inter_feat
        lists = [tuple(row[:length].tolist()) for row, length in zip(feat["item_id_list"], feat["item_length"], strict=True)]
        return sorted(zip(feat["user_id"].tolist(), lists, feat["item_id"].tolist(), strict=True))

    for mine, other in zip(ours, theirs, strict=True):
        assert rows(mine) == rows(other) and len(mine) == len(other) > 30
        assert mine.inter_feat["item_id_list"].shape[1] == 8
    assert ours[0].item_counter == theirs[0].item_counter


@pytest.mark.pipeline
def test_it_learns_and_predicts_what_it_ranks(run):
    trained = run()
    losses = trained.trainer.train_loss_dict
    assert losses[2] < losses[0]
    for interaction, _, _, _ in trained.test_data:
        full = trained.model.full_sort_predict(interaction)
        assert full.shape == (len(interaction), trained.model.n_items)
        picked = full[torch.arange(len(full)), interaction["item_id"]]
        assert torch.equal(trained.model.predict(interaction), picked)
    for exclude in (False, True):
        ranks = experiment.target_ranks(trained, trained.test_data, exclude_history=exclude)
        assert (ranks == ranks_by_hand(trained, exclude)).all()
    assert trained.test() == pytest.approx(
        metrics_from_ranks(experiment.target_ranks(trained, trained.test_data, exclude_history=False)), abs=1e-6
    )
    # The checkpoint has the interests of its epoch: loaded elsewhere, it validates as logged.
    _, model, _, _, valid, _ = checkpoint_io.load_data_and_model(trained.trainer.saved_model_file)
    trained.trainer.model = model
    assert trained.trainer.evaluate(valid, load_best_model=False) == pytest.approx(trained.valid, abs=1e-9)


def ranks_by_hand(trained, exclude):
    rows = trained.test_data._dataset.inter_feat
    scores = trained.model.full_sort_predict(rows)
    ranks = {}
    for row in range(len(rows)):
        own, target = scores[row].clone(), int(rows["item_id"][row])
        if exclude:
            own[rows["item_id_list"][row]] = -torch.inf
        ranks[int(rows["user_id"][row])] = int((own >= own[target]).sum())
    return [ranks[user] for user in sorted(ranks)]


@pytest.mark.pipeline
def test_the_seed_decides_and_a_killed_training_goes_on(run, tmp_path):
    whole, again, other = run("a", checkpoint_file=str(tmp_path / "a.pth")), run("b"), run("c", seed=7)
    assert again.test() == whole.test() and again.valid == whole.valid and same_weights(whole, again)
    assert not torch.equal(other.model.network.position, whole.model.network.position)

    class KilledError(Exception):
        """Stands for kill -9."""

    def kill_in_the_third_epoch(model):
        plain, batches = model.batch_loss, []

        def loss(*given):
            batches.append(1)
            if len(batches) == 2 * first_epoch + 2:
                raise KilledError
            return plain(*given)

        model.batch_loss = loss

    first_epoch = math.ceil(prefixes(whole) / 64)  # batches
    with pytest.raises(KilledError):
        run("d", kill_in_the_third_epoch, checkpoint_file=str(tmp_path / "d.pth"))
    resumed = run("d", checkpoint_file=str(tmp_path / "d.pth"))
    assert same_weights(whole, resumed) and resumed.valid == whole.valid
    assert resumed.trainer.train_loss_dict == whole.trainer.train_loss_dict


def prefixes(trained):
    return sum(len(history) - 1 for history in trained.valid_data._dataset.histories)


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"modalities": ["text", "sound"]}, r"modalities is \['text', 'sound'\].*sound.*text, image"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"interest_ratio": 0.0}, r"interest_ratio is 0\.0"),
        ({"score_fusion": "contextual"}, r"score_fusion is 'contextual'"),
    ],
)
def test_bad_settings_are_refused(run, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(**settings)


@pytest.mark.pipeline
def test_without_item_embeddings_or_with_one_modality(run):
    for settings in (
        {"use_item_embedding": False},
        {"modalities": ["image"]},
        {"modalities": ["auto"]},
        {"n_layers": 2, "score_fusion": "item"},
    ):
        trained = run(epochs=1, **settings)
        assert np.isfinite(list(trained.test().values())).all()
