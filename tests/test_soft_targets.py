"""Teachers: their mean softmax position by position, the loss with it, and trainings that use it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.recbole_integration import experiment
from recbole_qbert.sequence import losses, soft_targets
from recbole_qbert.sequence.model import SemanticSequenceModel
from tests.helpers import sequence_config
from tests.helpers_recbole import QUICK, write_dataset

ITEMS = 30


def network(seed: int) -> SemanticSequenceModel:
    torch.manual_seed(seed)
    codes = torch.randint(4, (ITEMS, 2))
    codes[0] = -1
    torch.manual_seed(0)
    codes = torch.cat([torch.full((1, 2), -1), torch.randint(4, (ITEMS - 1, 2))])
    torch.manual_seed(seed)
    model = SemanticSequenceModel(sequence_config(views=("causal", "masked")), codes, 4).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


HISTORIES = [[3, 5, 3, 9], [7], [2, 8], [4, 4, 6, 1, 2, 10]]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    sequences = torch.zeros(len(HISTORIES), 7, dtype=torch.int64)
    for row, history in enumerate(HISTORIES):
        sequences[row, : len(history)] = torch.tensor(history)
    return sequences, torch.tensor([len(history) for history in HISTORIES])


@pytest.mark.parametrize("rows_at_once", [1, 2, 128])
def test_soft_targets_are_the_mean_softmax_of_the_teachers_position_by_position(rows_at_once):
    teachers = [network(1), network(2)]
    soft = soft_targets.of_ensemble(teachers, *rows(), weight=2.0, rows_at_once=rows_at_once)
    for row, history in enumerate(HISTORIES):
        for position in range(len(history) - 1):
            prefix = torch.tensor([history[: position + 1]])
            expected = sum(
                F.softmax(
                    teacher.states(prefix, torch.tensor([position + 1]), "causal")[0] @ teacher.item_table().T
                    - teacher.penalty * torch.tensor([float(n in history[: position + 1]) for n in range(ITEMS)])
                    + torch.tensor([-torch.inf] + [0.0] * (ITEMS - 1)),
                    0,
                )
                for teacher in teachers
            ) / len(teachers)
            items, shares = soft.at(soft.start[row : row + 1] + position)
            found = torch.zeros(ITEMS).index_add_(0, items[0], shares[0])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_only_the_largest_shares_are_kept_and_sum_to_one(monkeypatch):
    monkeypatch.setattr(soft_targets, "TOP", 5)
    soft = soft_targets.of_ensemble([network(1)], *rows(), weight=1.0)
    assert soft.items.shape == (9, 5) and torch.allclose(soft.shares.sum(1), torch.ones(9))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_several_targets_and_its_gradients_equal_plain_autograd(seed, monkeypatch):
    monkeypatch.setattr(losses, "MAX_ROWS_CPU", 4)
    torch.manual_seed(seed)
    hidden = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    items = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    seen = (torch.rand(9, 7) < 0.4).nonzero(as_tuple=True)
    valid = torch.arange(7) > 0
    target = torch.randint(1, 7, (9, 4))  # some twice
    shares = torch.rand(9, 4, dtype=torch.float64)
    shares /= shares.sum(1, keepdim=True)
    mine = losses.item_softmax_loss(hidden, items, target, penalty, seen, valid, shares)
    marks = torch.zeros(9, 7, dtype=torch.float64)
    marks[seen] = 1.0
    log_p = (hidden @ items.T - penalty * marks).masked_fill(~valid, -torch.inf).log_softmax(1)
    true = -(shares * log_p.gather(1, target)).sum(1).mean()
    torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(mine, [hidden, items, penalty]), torch.autograd.grad(true, [hidden, items, penalty]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_model_learns_true_items_and_soft_targets_in_their_proportion():
    student, weight = network(3).train(False), 3.0
    sequences, lengths = rows()
    soft = soft_targets.of_ensemble([network(1)], sequences, lengths, weight)
    loss = student.loss(sequences, lengths, "causal", {}, soft=soft.rows(torch.arange(4)))
    plain = student.loss(sequences, lengths, "causal", {})
    total, count = 0.0, 0
    for row, history in enumerate(HISTORIES):
        for position in range(len(history) - 1):
            prefix, length = torch.tensor([history[: position + 1]]), torch.tensor([position + 1])
            logits = student.states(prefix, length, "causal")[0] @ student.item_table().T
            logits = logits - student.penalty * student._history_marks(prefix, length)[0]
            log_p = logits[1:].log_softmax(0)
            items, shares = soft.at(soft.start[row : row + 1] + position)
            total -= (shares[0] * log_p[items[0] - 1]).sum().item()
            count += 1
    assert float(loss) == pytest.approx((float(plain) + weight * total / count) / (1 + weight), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- trainings
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), "Tiny")


def train(data, folder, **settings):
    base = {**QUICK["QBERT4Rec"], "semantic_ids": "none", "checkpoint_dir": str(folder), "teachers": 2}
    config = experiment.configure("QBERT4Rec", "Tiny", data, base | settings)
    with experiment.working_directory(folder):
        return experiment.train(config)


@pytest.mark.pipeline
def test_teachers_are_trained_once_and_a_killed_training_goes_on(data, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole = train(data, tmp_path / "whole", checkpoint_file=str(tmp_path / "whole" / "f.pth"))
    names = {path.name for path in (tmp_path / "whole").glob("f.*")}
    assert {"f.pth", "f.teacher1.pth", "f.teacher2.pth"} <= names
    alone = train(data, tmp_path / "whole", checkpoint_file=str(tmp_path / "whole" / "alone.pth"), teachers=0)
    assert not torch.equal(whole.model.network.item_embedding, alone.model.network.item_embedding)

    folder = tmp_path / "killed"
    folder.mkdir()
    kind = type(whole.trainer)
    epoch, calls = kind._train_epoch, []

    def killed(self, *args, **kwargs):
        calls.append(self.saved_model_file)
        if len(calls) == 7:  # in the second teacher
            raise KeyboardInterrupt
        return epoch(self, *args, **kwargs)

    monkeypatch.setattr(kind, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(data, folder, checkpoint_file=str(folder / "f.pth"))
    first = calls.count(str(folder / "f.teacher1.pth"))
    again = train(data, folder, checkpoint_file=str(folder / "f.pth"))
    assert calls.count(str(folder / "f.teacher1.pth")) == first  # done before, and not trained again
    assert torch.equal(again.model.network.item_embedding, whole.model.network.item_embedding)
    assert again.test() == whole.test()


@pytest.mark.pipeline
@pytest.mark.parametrize("settings", [{"views": ["masked"]}, {"loss": "code", "repeat_penalty": "none"}, {"teachers": -1}])
def test_teachers_that_cannot_be_learned_from_are_refused(data, tmp_path, settings):
    with pytest.raises(ValueError, match="teachers"):
        train(data, tmp_path, **{"semantic_ids": "fused", **settings})
