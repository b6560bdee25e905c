"""VQRec: item vectors, losses and reassignment against re-computations by hand; the model inside RecBole."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.baselines import code_reassignment
from recbole_qbert.baselines.vqrec import VQRecNetwork
from recbole_qbert.config.baseline_schema import VQRecConfig
from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from recbole_qbert.sequence.scoring import rank_of
from recbole_qbert.utils.metrics import metrics_from_ranks
from tests.helpers_recbole import write_dataset

PUBLISHED = read_properties(property_file("model/VQRec.yaml"))
SMALL = {"hidden_size": 12, "n_heads": 2, "inner_size": 16, "max_length": 6}
OFF = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
ITEMS, GROUPS, SIZE = 9, 3, 4


def config(**changes):
    fields = VQRecConfig.__dataclass_fields__
    values = {name: PUBLISHED[name] for name in fields if name in PUBLISHED}
    return VQRecConfig(**{**values, "max_length": PUBLISHED["MAX_ITEM_LIST_LENGTH"], **changes})


def item_codes():
    random = torch.Generator().manual_seed(4)
    codes = torch.randint(SIZE, (ITEMS + 1, GROUPS), generator=random)
    codes[0], codes[8], codes[9] = -1, codes[7], -1  # padding, twins, an item without codes
    return codes


def network(**changes):
    torch.manual_seed(0)
    made = VQRecNetwork(config(**{**SMALL, **OFF, **changes}), item_codes(), SIZE)
    with torch.no_grad():  # no two alike, so that errors show
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


HISTORIES = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 1, 9, 0, 0, 0], [2, 8, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3, 2, 1])


# --------------------------------------------------------------------------------------------------------- network
@pytest.mark.parametrize(("reassign", "count"), [("none", 3_515_912), ("learned", 3_515_912 + 32 * 256**2)])
def test_parameters_of_the_published_size(reassign, count):
    """The release's 5,629,480 have 32 x 257 x 257 for the reassignment, the empty slots included."""
    made = VQRecNetwork(config(reassign=reassign), torch.full((4, 32), -1), 256)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


def test_an_items_vector_is_the_mean_of_its_code_embeddings():
    made = network()
    table = made.item_table()
    rows = made.code_embedding.view(GROUPS, SIZE + 1, 12)
    for item in range(1, ITEMS + 1):
        by_hand = sum(rows[group, 1 + int(code)] for group, code in enumerate(made.codes[item])) / GROUPS
        assert torch.allclose(table[item], by_hand, atol=1e-6)
    assert torch.allclose(table[9], rows[:, 0].mean(0), atol=1e-6)  # the empty slots


def test_items_of_equal_codes_tie_against_each_other():
    scores = network().eval().scores(HISTORIES, LENGTHS)
    assert torch.equal(scores[:, 7], scores[:, 8]) and (scores[:, 0] == -torch.inf).all()
    ranks = [rank_of(scores, torch.full((4,), item)) for item in (7, 8)]
    assert torch.equal(*ranks) and (ranks[0] >= 2).all()


def test_the_encoder_is_recboles_transformer():
    """The layers of RecBole's SASRec with the same weights, on padded rows."""
    from recbole.model.layers import TransformerEncoder

    made = network().eval()
    theirs = TransformerEncoder(2, 2, 12, 16, 0.0, 0.0, "gelu", 1e-12).eval()
    with torch.no_grad():
        for block, layer in zip(made.encoder.blocks, theirs.layer, strict=True):
            attention, feed = layer.multi_head_attention, layer.feed_forward
            for part, weight, bias in zip(
                (attention.query, attention.key, attention.value),
                block.qkv.weight.chunk(3),
                block.qkv.bias.chunk(3),
                strict=True,
            ):
                part.weight.copy_(weight), part.bias.copy_(bias)
            for part, own in (
                (attention.dense, block.mix), (feed.dense_1, block.grow), (feed.dense_2, block.shrink),
                (attention.LayerNorm, block.norm_attention), (feed.LayerNorm, block.norm_feed),
            ):  # fmt: skip
                part.load_state_dict(own.state_dict())
        table = made.item_table()
        hidden = made.encoder.norm(table[HISTORIES] + made.encoder.position)
        mask = torch.full((6, 6), -10000.0).triu(1)[None, None].expand(4, 1, -1, -1)
        expected = theirs(hidden, mask)[-1][torch.arange(4), LENGTHS - 1]
        torch.testing.assert_close(made.states(HISTORIES, LENGTHS, table), expected, rtol=1e-5, atol=1e-5)


def test_temperature_changes_no_rank_and_zero_means_dot_products():
    scores = [network(temperature=value).eval().scores(HISTORIES, LENGTHS) for value in (0.07, 1.0)]
    assert torch.equal(scores[0].argsort(dim=1, stable=True), scores[1].argsort(dim=1, stable=True))
    assert scores[0][:, 1:].abs().max() <= 1 + 1e-6
    plain = network(temperature=0.0).eval()
    table = plain.item_table()
    product = plain.states(HISTORIES, LENGTHS, table) @ table.T
    assert torch.allclose(plain.scores(HISTORIES, LENGTHS)[:, 1:], product[:, 1:], atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- losses
def prefix_losses(made, rows, lengths):
    """Cross-entropy of every prefix row by itself, with autograd's own softmax."""
    losses = []
    for row, length in zip(rows, lengths.tolist(), strict=True):
        for end in range(1, length):
            scores = made.scores(row[None, :end], torch.tensor([end])) / made.config.temperature
            losses.append(F.cross_entropy(scores, row[end][None]))
    return torch.stack(losses)


def test_whole_rows_have_the_loss_of_their_prefixes():
    made = network()
    rows = torch.cat([HISTORIES, torch.tensor([[3], [0], [0], [0]])], 1)  # one item more than the positions, as in training
    lengths = LENGTHS + torch.tensor([1, 0, 0, 0])
    by_hand = prefix_losses(made, rows, lengths)
    assert len(by_hand) == 6 + 2 + 1
    loss = made.loss(rows, lengths)
    assert loss.item() == pytest.approx(by_hand.mean().item(), abs=1e-5)
    grads = [torch.autograd.grad(value, made.code_embedding, retain_graph=True)[0] for value in (loss, by_hand.mean())]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["loss", "contrastive_loss"])
def test_the_shares_of_processes_add_up(kind):
    made = network()

    def total(shares):
        made.zero_grad()
        values = [getattr(made, kind)(HISTORIES, LENGTHS, torch.Generator().manual_seed(2), share) for share in shares]
        torch.stack(values).sum().backward()
        return sum(value.item() for value in values), made.code_embedding.grad.clone()

    (one, whole), (three, parts) = total([(0, 1)]), total([(0, 3), (1, 3), (2, 3)])
    assert one == pytest.approx(three, rel=1e-5)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_contrastive_loss_of_three_rows_two_of_one_target(ratio, monkeypatch):
    made = network(fake_ratio=ratio)
    rows, lengths = torch.tensor([[1, 4], [2, 4], [3, 5]]), torch.tensor([2, 2, 2])
    drawn = []
    plain = made._made_negatives
    monkeypatch.setattr(made, "_made_negatives", lambda *given: drawn.append(plain(*given)) or drawn[-1])
    loss = made.contrastive_loss(rows, lengths, torch.Generator().manual_seed(1))
    table, target = made.item_table(), [4, 4, 5]
    fakes = torch.stack([made.code_embedding[flat].mean(0) for flat in drawn[0]])
    table, fakes = table.detach(), fakes.detach()
    state = F.normalize(made.states(rows[:, :1], torch.ones(3, dtype=torch.int64), table), dim=1).detach()
    by_hand = 0.0
    for i in range(3):
        score = [float(state[i] @ F.normalize(table[j], dim=0)) / 0.07 for j in target]
        fake = float(state[i] @ F.normalize(fakes[i], dim=0)) / 0.07
        others = [score[j] for j in range(3) if j == i or target[j] != target[i]]
        by_hand -= score[i] - math.log(sum(map(math.exp, [*others, fake])))
        assert ratio == 1.0 or fake == pytest.approx(score[i], abs=1e-4)  # nothing replaced: the fake is the positive
    assert loss.item() == pytest.approx(by_hand / 3, abs=1e-4)


def test_a_made_negative_replaces_codes_within_their_group():
    made = network(fake_ratio=1.0)
    target = torch.full((4000,), 3)
    made_codes = made._made_negatives(target, torch.Generator().manual_seed(0)) - (SIZE + 1) * torch.arange(GROUPS) - 1
    assert made_codes.min() == 0 and made_codes.max() == SIZE - 1
    different = (made_codes != made.codes[3]).float().mean(0)
    assert torch.allclose(different, torch.full((GROUPS,), 1 - 1 / SIZE), atol=0.03)
    assert torch.equal(network(fake_ratio=0.0)._made_negatives(target, None), made.flat_codes[target])


def test_prefixes_of_the_contrastive_loss_are_drawn_from_all_positions(monkeypatch):
    made = network()
    seen = set()
    plain = made.states
    monkeypatch.setattr(made, "states", lambda rows, ends, table: seen.update(ends.tolist()) or plain(rows, ends, table))
    for seed in range(60):
        made.contrastive_loss(HISTORIES[:1], LENGTHS[:1], torch.Generator().manual_seed(seed))
    assert seen == {1, 2, 3, 4, 5}


# ------------------------------------------------------------------------------------------------------ reassignment
def test_sinkhorn_is_doubly_stochastic_in_the_end():
    logits = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    off = []
    for turns in (1, 3, 30):
        matrix = code_reassignment.sinkhorn(logits, turns)
        assert torch.allclose(matrix.sum(1), torch.ones(2, 6), atol=1e-6)
        off.append(float((matrix.sum(2) - 1).abs().max()))
    assert off[0] > off[1] > off[2] and off[2] < 1e-4


def test_a_large_weight_on_a_permutation_gives_that_permutation():
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    weights = torch.zeros(3, 7, 7).scatter_(2, order[:, :, None], 50.0)
    soft = code_reassignment.gumbel_sinkhorn(weights, 3, 0.7, torch.Generator().manual_seed(0))
    assert torch.equal(code_reassignment.nearest_permutation(soft), order)
    assert torch.equal(code_reassignment.nearest_permutation(weights), order)
    hard = code_reassignment.straight_through(soft)
    assert torch.allclose(hard, torch.zeros(3, 7, 7).scatter_(2, order[:, :, None], 1.0), atol=1e-6)


def test_the_reassignment_has_a_gradient_where_the_releases_rounding_up_has_none():
    made = network(reassign="learned")
    made.loss(HISTORIES, LENGTHS, torch.Generator().manual_seed(1)).backward()
    assert made.reassignment.grad.abs().max() > 0
    weights = made.reassignment.detach().requires_grad_()
    soft = code_reassignment.gumbel_sinkhorn(weights, 3, 0.7, torch.Generator().manual_seed(1)).softmax(2)
    rounded = torch.where(soft == soft.amax(2, keepdim=True), soft, torch.zeros_like(soft)).ceil()  # the released form
    (rounded @ torch.randn(GROUPS, SIZE, 12)).sum().backward()
    assert weights.grad.abs().max() == 0


def test_a_permutation_of_embeddings_and_its_inverse_on_codes_change_no_score():
    made, order = network(reassign="random").eval(), torch.stack([torch.randperm(SIZE) for _ in range(GROUPS)])
    before = made.scores(HISTORIES, LENGTHS)
    made.reassign(order)
    assert made.reassigned and not torch.allclose(made.scores(HISTORIES, LENGTHS), before)
    codes = item_codes()
    real = codes[:, 0] >= 0
    codes[real] = order.argsort(1)[torch.arange(GROUPS), codes[real]]
    moved = VQRecNetwork(made.config, codes, SIZE).eval()
    moved.load_state_dict(made.state_dict() | {"codes": moved.codes})
    assert torch.allclose(moved.scores(HISTORIES, LENGTHS), before, atol=1e-6)


def test_applying_the_learned_order_keeps_the_scores_of_evaluation():
    made = network(reassign="learned").eval()
    before = made.scores(HISTORIES, LENGTHS)
    made.reassign(code_reassignment.nearest_permutation(made.reassignment))
    assert torch.allclose(made.scores(HISTORIES, LENGTHS), before, atol=1e-6)


def test_weights_of_other_codes_are_refused():
    made = network()
    with pytest.raises(ValueError, match="other item codes"):
        VQRecNetwork(made.config, item_codes().roll(1, 1), SIZE).load_state_dict(made.state_dict())


# ---------------------------------------------------------------------------------------------------- inside RecBole
NAME = "Tiny"
QUICK = {
    "epochs": 3, "train_batch_size": 16, "eval_batch_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "hidden_size": 16, "n_heads": 2, "inner_size": 32, "seed": 2026, "state": "ERROR",
    "opq_groups": 4, "opq_codes": 8, "opq_rounds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture
def run(data, tmp_path):
    def train(name="run", prepare=None, **settings):
        folder = tmp_path / name
        given = {**QUICK, "checkpoint_dir": str(folder), "semantic_id_dir": str(tmp_path / "codes"), **settings}
        with experiment.working_directory(folder):
            return experiment.train(experiment.configure("VQRec", NAME, data, given), prepare=prepare)

    return train


def same_weights(one, other):
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(value, theirs) for (_, value), theirs in pairs)


@pytest.mark.pipeline
def test_run_recbole_by_name(data, tmp_path, monkeypatch):
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    result = run_recbole(model="VQRec", dataset=NAME, config_dict={**QUICK, "epochs": 1, "data_path": str(data)})
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert (tmp_path / "saved" / "semantic_ids" / NAME / f"{NAME}.opq.codes.npy").exists()


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
        by_hand = ranks_by_hand(trained, exclude)
        assert (ranks == by_hand).all()
    assert trained.test() == pytest.approx(
        metrics_from_ranks(experiment.target_ranks(trained, trained.test_data, exclude_history=False)), abs=1e-6
    )
    figures = trained.model.identifier_figures["product_codes"]
    assert figures["distinct"] > 10 and figures["without_vector"] == 0
    # Everything moves from scratch, and a reloaded checkpoint ranks as the run did.
    again = checkpoint_io.load_data_and_model(trained.trainer.saved_model_file)[1]
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.model.state_dict().values(), strict=True)
    )


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
@pytest.mark.parametrize("pretrained", [False, True])
def test_the_seed_decides_and_a_killed_training_goes_on(run, tmp_path, pretrained):
    given = {}
    if pretrained:  # killed after the first epoch of code embeddings alone
        first = run("pretrain", train_stage="pretrain", epochs=1)
        given = {"pretrained": first.trainer.saved_model_file, "reassign": "learned", "reassign_epochs": 1}
    whole, again, other = run("a", checkpoint_file=str(tmp_path / "a.pth"), **given), run("b", **given), run("c", seed=7)
    assert again.test() == whole.test() and again.valid == whole.valid and same_weights(whole, again)
    assert not torch.equal(other.model.network.code_embedding, whole.model.network.code_embedding)

    class KilledError(Exception):
        """Stands for kill -9."""

    def kill_in_the_third_epoch(model):
        plain, epochs = model.start_epoch, []

        def start(epoch):
            epochs.append(epoch)
            if len(epochs) == 3:
                raise KilledError
            plain(epoch)

        model.start_epoch = start

    with pytest.raises(KilledError):
        run("d", kill_in_the_third_epoch, checkpoint_file=str(tmp_path / "d.pth"), **given)
    resumed = run("d", checkpoint_file=str(tmp_path / "d.pth"), **given)
    assert same_weights(whole, resumed) and resumed.valid == whole.valid
    assert resumed.trainer.train_loss_dict == whole.trainer.train_loss_dict


@pytest.mark.pipeline
def test_pretraining_then_reassignment_then_code_embeddings_alone(run, tmp_path):
    before = run("pretrain", train_stage="pretrain", epochs=1)
    path = before.trainer.saved_model_file
    start = before.model.network.state_dict()
    states = {}

    def watch(model):
        plain = model.start_epoch

        def kept(epoch):
            states[epoch] = {name: value.clone() for name, value in model.network.state_dict().items()}
            plain(epoch)

        model.start_epoch = kept

    given = {"pretrained": path, "reassign": "learned", "reassign_epochs": 2, "epochs": 4, "learning_rate": 0.01}
    file = tmp_path / "tuned.pth"
    tuned = run("finetune", watch, **given, checkpoint_file=str(file))
    for name, value in start.items():  # the checkpoint is where it starts
        assert name == "reassigned" or torch.equal(states[0][name], value), name
    changed = [{n for n in states[e] if not torch.equal(states[e][n], states[e + 1][n])} for e in range(3)]
    assert changed[0] == {"reassignment"} == changed[1]
    assert changed[2] == {"code_embedding", "encoder.norm.weight", "encoder.norm.bias", "reassigned"}
    # The best epoch's checkpoint tells by itself whether the order was applied.
    loaded = checkpoint_io.load_data_and_model(tuned.trainer.saved_model_file)[1].eval()
    rows = tuned.test_data._dataset.inter_feat
    assert torch.equal(loaded.full_sort_predict(rows), tuned.model.full_sort_predict(rows))
    one = run("finetune", **{**given, "reassign": "random", "epochs": 1})
    assert bool(one.model.network.reassigned)


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"reassign": "learned"}, r"reassign is 'learned', but pretrained names no checkpoint"),
        ({"opq_groups": 5}, r"opq_groups is 5"),
        ({"opq_codes": 256}, r"opq_codes is 256"),
        ({"modalities": ["sound"]}, r"modalities is \['sound'\].*sound"),
        ({"fake_ratio": 1.5}, r"fake_ratio is 1\.5"),
        ({"n_heads": 3}, "hidden_size 16 is not a multiple of n_heads 3"),
    ],
)
def test_bad_settings_are_refused(run, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(**settings)


@pytest.mark.pipeline
def test_a_checkpoint_of_another_size_is_refused(run):
    path = run("first", epochs=1).trainer.saved_model_file
    with pytest.raises(ValueError, match=r"does not fit.*hidden_size"):
        run("second", pretrained=path, hidden_size=8)
    with pytest.raises(FileNotFoundError, match="pretrained"):
        run("second", pretrained=str(path) + "x")


@pytest.mark.pipeline
def test_a_data_set_without_features_gets_built_in_ones_of_its_text(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", "Bare")
    items = (folder / "Bare" / "Bare.items.txt").read_text().split()
    for file in [
        *(folder / "Bare").glob("*.npy"),
        *(folder / "Bare").glob("Bare.items*"),
        folder / "Bare/Bare.features.json",
    ]:
        file.unlink(missing_ok=True)
    rows = "".join(f"{item}\tword{n % 7} thing{n % 5} own{n}\n" for n, item in enumerate(items))
    (folder / "Bare" / "Bare.item").write_text("item_id:token\ttitle:token_seq\n" + rows)
    given = {**QUICK, "epochs": 1, "builtin_width": 8, "checkpoint_dir": str(tmp_path / "out")}
    codes = tmp_path / "out" / "semantic_ids" / "Bare" / "Bare.opq.codes.npy"
    stamps = []
    for _ in range(2):  # what the first run wrote is not taken for features by the second
        with experiment.working_directory(tmp_path):
            run = experiment.train(experiment.configure("VQRec", "Bare", folder, given))
        stamps.append(codes.stat().st_mtime_ns)
    assert stamps[0] == stamps[1]
    assert run.model.identifier_figures["product_codes"]["without_vector"] == 0
