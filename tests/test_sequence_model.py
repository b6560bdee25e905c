"""recbole_qbert.sequence.model and encoder: both views, their losses and scores, against plain re-computations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.sequence import model as sequence_model
from recbole_qbert.sequence.model import PENALTY_START, SemanticSequenceModel
from recbole_qbert.sequence.scoring import code_scores
from tests.helpers import sequence_config

ITEMS, LEVELS, SIZE = 15, 4, 5
TAIL = {"tail": 0.1}  # hides exactly the last item of rows up to 14 items: nothing is random
VIEWS = ("causal", "masked")


def make(*, codes: torch.Tensor | None = None, seed: int = 0, **changes) -> SemanticSequenceModel:
    """A model whose weights are large enough for every part of it to matter, in evaluation mode."""
    torch.manual_seed(seed)
    if codes is None:
        codes = torch.randint(SIZE, (ITEMS, LEVELS))
        codes[3, 2:] = -1  # an item without the second modality
        codes[7, :2] = -1  # and one without the first
    codes[0] = -1
    model = SemanticSequenceModel(sequence_config(**changes), codes, SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if model.repeat_penalty is not None:
            model.repeat_penalty.fill_(0.1)
    return model


def batch(lengths, width=None, seed=1, repeats=True):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    width = int(lengths.max()) if width is None else width
    if repeats:
        items = torch.randint(1, ITEMS, (len(lengths), width), generator=generator)
    else:
        items = 1 + torch.rand(len(lengths), ITEMS - 1, generator=generator).argsort(1)[:, :width]
    return items.masked_fill(torch.arange(width) >= lengths[:, None], 0), lengths


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------- item vectors


@pytest.mark.parametrize("use_item_embedding", [True, False])
def test_an_items_vector_is_the_sum_of_its_codes_and_its_row(use_item_embedding):
    model = make(use_item_embedding=use_item_embedding)
    table = model.item_table()
    for item, code in enumerate(model.codes.tolist()):
        vector = sum((model.codebook[k, c] for k, c in enumerate(code) if c >= 0), torch.zeros(16))
        close(table[item], vector + model.item_embedding[item] if use_item_embedding else vector)


def test_codes_an_item_lacks_do_not_touch_it():
    model = make(use_item_embedding=False)
    before = model.item_table()
    with torch.no_grad():
        model.codebook[2:] += 1.0  # the levels of the modality that item 3 lacks
    changed = (model.item_table() != before).any(1)
    assert not changed[3]
    assert not changed[0]
    assert changed[[1, 2, 7]].all()


@pytest.mark.parametrize("use_item_embedding", [True, False])
def test_factorised_scores_equal_the_product_with_the_composed_table(use_item_embedding):
    model = make(use_item_embedding=use_item_embedding)
    state = torch.randn(6, 16)
    tables = torch.einsum("pd,kmd->pkm", state, model.codebook)
    factorised = code_scores(tables, model.codes) + (state @ model.item_embedding.T if use_item_embedding else 0)
    close(factorised, state @ model.item_table().T)
    close(factorised, state @ model.item_table().T)


# -------------------------------------------------------------------------------- views


@pytest.mark.parametrize("views", [("causal",), ("masked",), VIEWS])
@pytest.mark.parametrize("loss", ["item", "code"])
def test_a_batch_scores_each_row_as_if_alone(views, loss):
    penalty = "learned" if loss == "item" else "none"
    model = make(views=views, loss=loss, repeat_penalty=penalty)
    sequences, lengths = batch([1, 2, 5, 12, 20, 3])
    together = model.scores(sequences, lengths)
    assert together.shape == (6, ITEMS)
    for row, length in enumerate(lengths.tolist()):
        close(together[row], model.scores(sequences[row : row + 1, :length], lengths[row : row + 1])[0])


@pytest.mark.parametrize("loss", ["item", "code"])
def test_what_stands_behind_a_row_never_matters(loss):
    model = make(loss=loss, repeat_penalty="learned" if loss == "item" else "exclude")
    sequences, lengths = batch([1, 4, 2, 9], width=14)
    garbage = torch.where(torch.arange(14) < lengths[:, None], sequences, torch.randint(1, ITEMS, (4, 14)))
    assert not torch.equal(garbage, sequences)
    close(model.scores(garbage, lengths), model.scores(sequences, lengths))
    close(model.scores(sequences[:, :9], lengths), model.scores(sequences, lengths))
    for view in VIEWS:
        close(model.loss(garbage, lengths, view, TAIL), model.loss(sequences, lengths, view, TAIL))


def test_causal_positions_equal_each_prefix_alone():
    model = make()
    sequences, lengths = batch([9, 6])
    table = model.item_table()
    together = model.encoder(table[sequences], lengths, causal=True)
    for row, length in enumerate(lengths.tolist()):
        for end in range(1, length + 1):
            alone = model.states(sequences[row : row + 1, :end], torch.tensor([end]), "causal")
            close(together[row, end - 1], alone[0])


def test_only_the_masked_view_looks_ahead():
    model = make()
    sequences, lengths = batch([8])
    changed = sequences.clone()
    changed[0, 6] = sequences[0, 6] % (ITEMS - 1) + 1
    table = model.item_table()
    causal, both = (
        [model.encoder(table[rows], lengths, causal=causal) for rows in (sequences, changed)] for causal in (True, False)
    )
    close(causal[0][:, :6], causal[1][:, :6])
    assert (causal[0][:, 6:] - causal[1][:, 6:]).abs().amax(2).min() > 1e-4
    assert (both[0] - both[1]).abs().amax(2).min() > 1e-4


@pytest.mark.parametrize("view", VIEWS)
def test_order_matters(view):
    model = make()
    sequences, lengths = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]), torch.tensor([4, 4])
    states = model.states(sequences, lengths, view)
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_the_longest_history_allowed_works_in_both_views():
    model = make(max_length=20)
    sequences, lengths = batch([20, 1])
    assert torch.isfinite(model.scores(sequences, lengths)[:, 1:]).all()
    training, full = batch([21, 2])  # a training row holds one item more: the last target
    for view in VIEWS:
        assert torch.isfinite(model.loss(training, full, view, TAIL))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"hidden_size 10.*n_heads 3"):
        sequence_config(hidden_size=10, n_heads=3)


# -------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", ["item", "code"])
@pytest.mark.parametrize("rows", [True, False])
def test_causal_loss_is_the_mean_over_all_prefixes(loss, rows):
    """Brute force by another way: score every prefix alone, as at inference. Histories repeat items."""
    penalty = "learned" if loss == "item" else "none"
    model = make(views=("causal",), loss=loss, repeat_penalty=penalty, use_item_embedding=rows)
    sequences, lengths = batch([7, 2, 1, 12, 5, 4])
    wanted = []
    for row, length in enumerate(lengths.tolist()):
        for end in range(1, length):
            prefix, target = sequences[row : row + 1, :end], int(sequences[row, end])
            score = model.scores(prefix, torch.tensor([end]))[0, target]
            if loss == "code":  # scores are relative to a uniform guess at each level that the item has
                score = score - float((model.codes[target] >= 0).sum()) * torch.tensor(float(SIZE)).log()
            wanted.append(-score)
    close(model.loss(sequences, lengths, "causal", {}), torch.stack(wanted).mean())


@pytest.mark.parametrize("lengths", [[7, 2, 1, 12, 5, 4], [2], [9, 9]])
def test_masked_loss_of_a_hidden_last_item_is_its_score_at_inference(lengths):
    model = make(views=("masked",))
    sequences, lengths = batch(lengths)
    wanted = [
        -model.scores(sequences[row : row + 1, : length - 1], torch.tensor([length - 1]))[0, sequences[row, length - 1]]
        for row, length in enumerate(lengths.tolist())
        if length > 1
    ]
    close(model.loss(sequences, lengths, "masked", TAIL), torch.stack(wanted).mean())


def test_masked_loss_by_hand_with_hidden_items_in_the_middle(monkeypatch):
    """Hidden items are replaced in the input and carry no penalty; visible ones carry it once."""
    model = make(views=("masked",))
    sequences, lengths = torch.tensor([[4, 5, 4, 6, 5, 0], [2, 2, 3, 1, 2, 9]]), torch.tensor([5, 6])
    where = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0]]).bool()
    monkeypatch.setattr(sequence_model.masking, "draw", lambda *_: where)
    table = model.item_table()
    vectors = table[sequences].clone()
    vectors[where] = model.mask_vector
    states = model.encoder(vectors, lengths, causal=False)
    terms = []
    for row, visible in enumerate([{4, 5}, {2, 3, 1, 9}]):
        for position in where[row].nonzero()[:, 0].tolist():
            logits = states[row, position] @ table.T
            logits = logits - model.penalty * torch.tensor([float(item in visible) for item in range(ITEMS)])
            logits[0] = -torch.inf
            terms.append(F.cross_entropy(logits, sequences[row, position]))
    close(model.loss(sequences, lengths, "masked", {"random": 0.3}), torch.stack(terms).mean())


@pytest.mark.parametrize("loss", ["item", "code"])
@pytest.mark.parametrize("view", VIEWS)
def test_grouping_by_length_changes_neither_loss_nor_gradient(view, loss, monkeypatch):
    model = make(loss=loss, repeat_penalty="learned" if loss == "item" else "none")
    sequences, lengths = batch([3, 14, 1, 2, 5, 9, 4, 8, 0, 14])

    def gradients():
        model.zero_grad()
        value = model.loss(sequences, lengths, view, TAIL)
        value.backward()
        return {
            "loss": value.detach(),
            **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        }

    grouped = gradients()
    monkeypatch.setattr(sequence_model, "rows_by_length", lambda lengths: iter([(lengths > 1).nonzero()[:, 0]]))
    plain = gradients()
    assert grouped.keys() == plain.keys()
    for name, value in plain.items():
        close(grouped[name], value)


def test_more_processes_than_rows_share_a_batch():
    model = make()
    sequences, lengths = batch([9, 2, 1])
    whole = model.loss(sequences, lengths, VIEWS, TAIL)
    close(sum(model.loss(sequences, lengths, VIEWS, TAIL, share=(process, 5)) for process in range(5)), whole)


def test_groups_hold_every_row_of_two_or_more_items_once_and_only_like_lengths():
    lengths = torch.arange(61).repeat(2)[torch.randperm(122, generator=torch.Generator().manual_seed(0))]
    groups = [lengths[rows].sort().values.tolist() for rows in sequence_model.rows_by_length(lengths)]
    bounds = [(2, 8), (9, 16), (17, 32), (33, 60)]
    assert groups == [[n for n in range(low, high + 1) for _ in "ab"] for low, high in bounds]
    rows = torch.cat(list(sequence_model.rows_by_length(lengths)))
    assert len(rows.unique()) == len(rows)


def test_both_views_together_are_the_sum_of_each():
    model = make()
    sequences, lengths = batch([9, 2, 5, 12, 1, 8])
    together = model.loss(sequences, lengths, VIEWS, TAIL)
    close(together, sum(model.loss(sequences, lengths, view, TAIL) for view in VIEWS))
    gradients = torch.autograd.grad(together, list(model.parameters()), allow_unused=True)
    alone = torch.autograd.grad(
        sum(model.loss(sequences, lengths, view, TAIL) for view in VIEWS), list(model.parameters()), allow_unused=True
    )
    for one, other in zip(gradients, alone, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_rows_that_teach_nothing_give_a_zero_loss_with_a_gradient(view):
    model = make()
    sequences, lengths = batch([1, 0, 1], width=3)
    loss = model.loss(sequences, lengths, view, TAIL)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("loss", ["item", "code"])
def test_every_weight_learns(loss):
    model = make(loss=loss, repeat_penalty="learned" if loss == "item" else "none")
    sequences, lengths = batch([12, 6, 9])
    sum(model.loss(sequences, lengths, view, {"random": 0.3}) for view in VIEWS).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_masked_view_draws_from_the_global_seed():
    model = make()
    sequences, lengths = batch([12, 8, 9])
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.loss(sequences, lengths, "masked", {"random": 0.3}).item())
    assert found[0] == found[1] != found[2]


# -------------------------------------------------------------------------------- scores


def test_item_scores_are_the_mean_log_softmax_of_the_views_with_the_penalty_once_an_item():
    model = make()
    sequences, lengths = torch.tensor([[5, 5, 5, 2], [1, 9, 0, 0]]), torch.tensor([4, 2])
    wanted = 0.0
    for view in VIEWS:
        logits = model.states(sequences, lengths, view) @ model.item_table().T
        for row, items in enumerate([{5, 2}, {1, 9}]):
            for item in items:
                logits[row, item] -= 2.5  # 0.1 x PENALTY_SCALE
        wanted = wanted + logits[:, 1:].log_softmax(1) / 2
    assert model.penalty.item() == pytest.approx(2.5)
    scores = model.scores(sequences, lengths)
    close(scores[:, 1:], wanted)
    assert (scores[:, 0] == -torch.inf).all()


@pytest.mark.parametrize("views", [("causal",), VIEWS])
def test_code_scores_are_summed_log_softmaxes_relative_to_a_uniform_guess(views):
    model = make(loss="code", repeat_penalty="none", views=views)
    sequences, lengths = batch([4, 7])
    scores = model.scores(sequences, lengths)
    wanted = torch.zeros(2, ITEMS)
    for view in views:
        state = model.states(sequences, lengths, view)
        for level in range(LEVELS):
            chance = (state @ model.codebook[level].T).softmax(1)
            for item in range(1, ITEMS):
                code = int(model.codes[item, level])
                if code >= 0:
                    wanted[:, item] += (chance[:, code] * SIZE).log() / len(views)
    close(scores[:, 1:], wanted[:, 1:])
    assert (scores[:, 0] == -torch.inf).all()


@pytest.mark.parametrize("loss", ["item", "code"])
def test_exclude_rules_out_the_history_and_leaves_the_rest(loss):
    free, strict = (make(loss=loss, repeat_penalty=rule) for rule in ("none", "exclude"))
    sequences, lengths = torch.tensor([[5, 5, 2, 9], [1, 9, 3, 4]]), torch.tensor([3, 4])
    gone = torch.zeros(2, ITEMS, dtype=torch.bool)
    gone[0, [0, 2, 5]] = gone[1, [0, 1, 3, 4, 9]] = True
    close(strict.scores(sequences, lengths), free.scores(sequences, lengths).masked_fill(gone, -torch.inf))


def test_no_histories_and_empty_ones():
    model = make()
    nothing = torch.zeros(0, 5, dtype=torch.long)
    assert model.states(nothing, nothing[:, 0], "causal").shape == (0, model.config.hidden_size)
    with pytest.raises(ValueError, match="history"):
        model.states(torch.ones(2, 5, dtype=torch.long), torch.tensor([2, 0]), "masked")


def test_weights_of_other_codes_are_refused():
    codes = make().codes.clone().long()
    other = make(codes=codes.roll(1, 1))
    with pytest.raises(ValueError, match="semantic_id_file"):
        make(codes=codes).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"\(12, 4\).*\(15, 4\)"):
        make().load_state_dict(make(codes=codes[:12]).state_dict())


def test_weights_survive_a_round_trip():
    model, other = make(seed=0), make(seed=1)
    sequences, lengths = batch([4, 7])
    assert not torch.allclose(model.scores(sequences, lengths), other.scores(sequences, lengths))
    fresh = SemanticSequenceModel(model.config, model.codes, SIZE).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.scores(sequences, lengths), fresh.scores(sequences, lengths))


# -------------------------------------------------------------------------------- learning


@pytest.mark.pipeline
@pytest.mark.parametrize("use_item_embedding", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_it_learns_a_chain_where_the_next_item_is_certain(view, use_item_embedding):
    """Item i is always followed by i + 1 around a ring of 12."""
    codes = torch.tensor([[-1, -1]] + [[item // 4, item % 4] for item in range(12)])
    torch.manual_seed(0)
    config = sequence_config(
        views=(view,),
        use_item_embedding=use_item_embedding,
        hidden_size=32,
        n_layers=1,
        hidden_dropout_prob=0.0,
        attn_dropout_prob=0.0,
    )
    model = SemanticSequenceModel(config, codes, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    width = torch.arange(8)
    for _ in range(300):
        sequences = 1 + (torch.randint(12, (32, 1)) + width) % 12
        loss = model.loss(sequences, torch.randint(2, 9, (32,)), view, {"random": 0.3, "tail": 0.1})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    start = torch.arange(12)[:, None]
    for length in (2, 5, 8):
        history = 1 + (start + width[:length]) % 12
        best = model.scores(history, torch.full((12,), length)).argmax(1)
        assert torch.equal(best, 1 + (start[:, 0] + length) % 12)


def test_the_learned_penalty_rises_where_nobody_repeats_an_item():
    torch.manual_seed(0)
    model = SemanticSequenceModel(sequence_config(views=("causal",)), torch.full((ITEMS, 1), -1), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(60):
        optimizer.zero_grad()
        model.loss(*batch([10] * 16, seed=step, repeats=False), "causal", {}).backward()
        optimizer.step()
    assert model.penalty.item() > PENALTY_START + 0.5


def test_only_the_score_views_rank_and_auto_is_the_causal_one():
    torch.manual_seed(0)
    both = make(views=VIEWS)
    sequences, lengths = batch([3, 5, 7], seed=1)
    one = {view: make(views=VIEWS, score_views=(view,)) for view in VIEWS}
    for model in one.values():
        model.load_state_dict(both.state_dict())
    mean = sum(model.scores(sequences, lengths) for model in one.values()) / 2
    torch.testing.assert_close(both.scores(sequences, lengths), mean)
    assert sequence_config(views=VIEWS, score_views="auto").ranking_views == ("causal",)
    assert sequence_config(views=("masked",), score_views=["auto"]).ranking_views == ("masked",)


@pytest.mark.parametrize("views", ["masked", ["causal", "causal"], [], ["auto", "causal"]])
def test_score_views_must_be_trained_views(views):
    with pytest.raises(ValueError, match="score_views"):
        sequence_config(views=("causal",), score_views=views)
