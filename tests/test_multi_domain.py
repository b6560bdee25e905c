"""Several data sets as one: the union's files, balanced epochs, and domains that do not compete with each other."""

import numpy as np
import pytest
import torch

from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.multi_domain import balanced_order, write_union
from recbole_qbert.models.qbert4rec import domains_of
from recbole_qbert.sequence.candidates import CandidateSampler
from recbole_qbert.sequence.model import SemanticSequenceModel
from tests.helpers import sequence_config
from tests.helpers_recbole import write_dataset


@pytest.fixture
def two(tmp_path):
    write_dataset(tmp_path, "A", users=20, items=15, seed=1)
    write_dataset(tmp_path, "B", users=30, items=25, seed=2)
    return tmp_path


def test_a_union_holds_every_interaction_and_feature_under_its_data_sets_name(two, tmp_path):
    folder = write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    lines = (folder / "A+B.inter").read_text().splitlines()
    expected = ["user_id:token\titem_id:token\ttimestamp:float"]
    for name in "AB":
        for line in (two / name / f"{name}.inter").read_text().splitlines()[1:]:
            user, item, time = line.split("\t")
            expected.append(f"{name}/{user}\t{name}/{item}\t{time}")
    assert lines == expected
    names = list(features.read_item_list(folder / "A+B.items.txt"))
    for modality in features.available(two / "A", "A"):
        united = features.load(folder, "A+B", names, [modality])
        parts = [features.load(two / name, name, [n[2:] for n in names if n[0] == name], [modality]) for name in "AB"]
        assert np.array_equal(united.vectors[modality], np.concatenate([part.vectors[modality] for part in parts]))
        assert np.array_equal(united.present[modality], np.concatenate([part.present[modality] for part in parts]))


def test_a_union_is_kept_until_a_part_changes(two, tmp_path):
    folder = write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    stamp = (folder / "A+B.inter").stat().st_mtime_ns
    write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    assert (folder / "A+B.inter").stat().st_mtime_ns == stamp
    with open(two / "B" / "B.inter", "a") as handle:
        handle.write("u0\ti0\t99\n")
    write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    assert (folder / "A+B.inter").read_text().endswith("B/u0\tB/i0\t99\n")


def test_a_union_keeps_nothing_of_an_earlier_one_that_had_more(two, tmp_path):
    """As the refusal of unlike features advises: without the files the built-in encoders serve."""
    folder = write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    assert features.available(folder, "A+B")
    for name in "AB":
        for path in (two / name).glob(f"{name}.*"):
            if path.suffix != ".inter":
                path.unlink()
    for _ in range(2):
        write_union(["A", "B"], two, tmp_path / "unions", "A+B")
        assert {path.name for path in folder.iterdir()} == {"A+B.inter", "A+B.union.manifest.json"}
        (folder / "A+B.text.npy").touch()  # as an earlier version left it beside a manifest of now


def test_features_that_do_not_fit_together_are_refused(two, tmp_path):
    matrix = np.load(two / "B" / "B.text.npy")
    np.save(two / "B" / "B.text.npy", np.concatenate([matrix, matrix], 1))
    with pytest.raises(ValueError, match=r"text.*A\.text\.npy.*B\.text\.npy"):
        write_union(["A", "B"], two, tmp_path / "unions", "A+B")
    (two / "B" / "B.text.npy").unlink()
    with pytest.raises(ValueError, match=r"A: .*B: "):
        write_union(["A", "B"], two, tmp_path / "unions", "A+B")


def test_bad_unions_are_refused(two, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"C\.inter"):
        write_union(["A", "C"], two, tmp_path / "unions", "A+C")
    with pytest.raises(ValueError, match="A, A"):
        write_union(["A", "A"], two, tmp_path / "unions", "A+A")
    (two / "B" / "B.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    with pytest.raises(ValueError, match=r"B\.inter:1:.*timestamp"):
        write_union(["A", "B"], two, tmp_path / "unions", "A+B")


def test_a_balanced_epoch_has_as_many_rows_of_every_domain():
    domains = torch.tensor([0] * 90 + [1] * 10)
    rows = balanced_order(domains, torch.Generator().manual_seed(0))
    counts = torch.bincount(rows, minlength=100)
    assert counts[:90].sum() == counts[90:].sum() == 50
    assert counts[:90].max() == 1
    assert set(counts[90:].tolist()) == {5}
    again = balanced_order(domains, torch.Generator().manual_seed(0))
    assert torch.equal(rows, again)


def test_tokens_name_their_domain():
    assert domains_of(["B/x", "A/y/z"], ["A", "B"]).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"C/x.*A, B"):
        domains_of(["A/x", "C/x"], ["A", "B"])


@pytest.mark.parametrize("loss", ["item", "code", "sampled"])
@pytest.mark.parametrize("view", ["causal", "masked"])
def test_two_domains_together_score_and_learn_as_each_alone(view, loss):
    """Softmax within the domain: the joint loss is the mean of the parts, weighted by their supervised positions."""
    torch.manual_seed(0)
    codes = torch.randint(5, (11, 3))
    codes[0] = -1
    config = sequence_config(views=(view,), loss=loss, repeat_penalty="none" if loss == "code" else "learned")
    domains = torch.tensor([0, *[0] * 6, *[1] * 4])
    both = SemanticSequenceModel(config, codes, 5, domains).eval()
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    alone = []
    for rows in (range(1, 7), range(7, 11)):
        kept = [0, *rows]
        model = SemanticSequenceModel(config, codes[kept], 5).eval()
        state = both.state_dict()
        state = {name: state[name][kept] if name in ("item_embedding", "codes") else state[name] for name in state}
        model.load_state_dict(state)
        alone.append(model)
    first, second = torch.tensor([[1, 2, 3, 1], [4, 5, 6, 0]]), torch.tensor([[7, 8, 9, 10]])
    lengths = torch.tensor([4, 3, 4])
    together = torch.cat([first, second])
    scores = both.scores(together, lengths)
    torch.testing.assert_close(scores[:2, 1:7], alone[0].scores(first, lengths[:2])[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[2:, 7:], alone[1].scores(second - 6, lengths[2:])[:, 1:], rtol=1e-5, atol=1e-5)
    assert torch.isneginf(scores[:2, 7:]).all() and torch.isneginf(scores[2:, :7]).all()
    tail = {"tail": 0.3}
    # A sample of all: a domain's items are candidates for its own positions alone.
    samplers = [CandidateSampler(rows, n, n) for rows, n in ((together, 11), (first, 7), (second - 6, 5))]
    joint = both.loss(together, lengths, view, tail, sampler=samplers[0])
    parts = [
        alone[0].loss(first, lengths[:2], view, tail, sampler=samplers[1]),
        alone[1].loss(second - 6, lengths[2:], view, tail, sampler=samplers[2]),
    ]
    count = [5, 3] if view == "causal" else [2, 1]
    torch.testing.assert_close(joint, (count[0] * parts[0] + count[1] * parts[1]) / sum(count), rtol=1e-5, atol=1e-5)


def test_a_union_is_written_as_its_parts_are(tmp_path):
    form = AtomicFormat(",", ";", "latin-1", "reader", "book", "when")
    for name, column in (("A", "name:token_seq"), ("B", "tags:token_seq")):
        (tmp_path / name).mkdir()
        rows = f'when:float,book:token,reader:token\r\n1,"é,1",u\r\n\r\n2,{name.lower()},u\r\n'
        (tmp_path / name / f"{name}.inter").write_bytes(rows.encode("latin-1"))
        (tmp_path / name / f"{name}.item").write_bytes(f'{column},book:token\n"x, y",é\n'.encode("latin-1"))
    folder = write_union(["A", "B"], tmp_path, tmp_path / "unions", "A+B", form)
    rows = [["A/u", "A/é,1", "1"], ["A/u", "A/a", "2"], ["B/u", "B/é,1", "1"], ["B/u", "B/b", "2"]]
    assert [cells for _, cells in form.rows(folder / "A+B.inter", form.fields)] == rows
    items = [["A/é", "x, y", ""], ["B/é", "", "x, y"]]
    assert [cells for _, cells in form.rows(folder / "A+B.item", ["book", "name", "tags"])] == items
    assert form.header(folder / "A+B.item").type_of("tags") == "token_seq"
