"""New items borrow the vectors of their nearest neighbours; old items stay exactly as they were."""

import numpy as np
import pytest
import torch

from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.serving import cold_start
from tests.helpers import sequence_config


def described(vectors, present=None):
    items = tuple(f"i{row}" for row in range(len(next(iter(vectors.values())))))
    shaped = {name: np.asarray(matrix, dtype=np.float32)[:, None, :] for name, matrix in vectors.items()}
    there = {name: np.ones(matrix.shape[:2], dtype=bool) for name, matrix in shaped.items()} | (present or {})
    return ItemFeatures(items, shaped, there, {})


def test_the_nearest_are_found_and_weighted_by_similarity():
    old = described({"text": [[1, 0], [0, 1], [-1, 0], [0, -1]]})
    new = described({"text": [[0.9, 0.1], [0, -5]]})
    found = cold_start.nearest_neighbors(new, old, count=2, temperature=0.1)
    assert found.nearest.tolist() == [["i0", "i1"], ["i3", "i0"]]
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-6)
    assert (found.weights[:, 0] > found.weights[:, 1]).all()
    assert cold_start.nearest_neighbors(new, old, count=50).nearest.shape == (2, 4)


def test_a_modality_that_one_item_lacks_does_not_count():
    missing = {"image": np.array([[True], [True], [False]])}
    old = described({"text": [[1, 0], [0, 1], [1, 0.1]], "image": [[1, 0], [0, 1], [0, 0]]}, missing)
    new = described({"text": [[1, 0]], "image": [[0, 0]]}, {"image": np.array([[False]])})
    assert cold_start.nearest_neighbors(new, old, count=3).nearest[0, 2] == "i1"


def test_items_without_features_have_no_neighbours(tmp_path):
    """Not the first ones of the list, which would look like an answer."""
    old = described({"text": [[1, 0], [0, 1]]})
    new = described({"text": [[0, 0], [1, 0]]}, {"text": np.array([[False], [True]])})
    found = cold_start.nearest_neighbors(new, old)
    assert found.items == ("i1",) and found.nearest.tolist() == [["i0", "i1"]]
    none = cold_start.nearest_neighbors(described({"text": [[0, 0]]}, {"text": np.array([[False]])}), old)
    none.save(tmp_path / "none.neighbours")
    assert cold_start.load(tmp_path / "none.neighbours").items == none.items == ()


def test_neighbours_of_two_additions_are_joined():
    old = described({"text": [[1, 0], [0, 1], [-1, 0]]})
    new = described({"text": [[1, 0.1], [0, 1]]})
    many, few = cold_start.nearest_neighbors(new, old, count=3), cold_start.nearest_neighbors(new, old, count=1)
    for first, second in ((many, few), (few, many)):
        both = first.followed_by(second)
        assert both.items == first.items + second.items and both.nearest.shape == both.weights.shape == (4, 3)
        np.testing.assert_allclose(both.weights.sum(1), 1, rtol=1e-6)
        assert both.nearest[:, 0].tolist() == [*first.nearest[:, 0], *second.nearest[:, 0]]
    none = cold_start.nearest_neighbors(described({"text": [[0, 0]]}, {"text": np.array([[False]])}), old)
    assert none.followed_by(many).nearest.tolist() == many.followed_by(none).nearest.tolist() == many.nearest.tolist()


def test_neighbours_survive_the_file_and_bad_files_are_named(tmp_path):
    random = np.random.default_rng(0)
    old, new = described({"text": random.normal(size=(9, 4))}), described({"text": random.normal(size=(3, 4))})
    found = cold_start.nearest_neighbors(new, old, count=4)
    path = cold_start.neighbors_path(tmp_path / "more.sid")
    found.save(path)
    back = cold_start.load(path)
    assert back.items == found.items and back.nearest.tolist() == found.nearest.tolist()
    np.testing.assert_allclose(back.weights, found.weights, rtol=1e-5)
    path.write_text(path.read_text().replace("\t", " ", 3))
    with pytest.raises(ValueError, match=r"more\.neighbours:1"):
        cold_start.load(path)
    path.write_text(cold_start.HEADER + "\nx\ti0 i1\t0.5\n")
    with pytest.raises(ValueError, match=r"more\.neighbours:2"):
        cold_start.load(path)


@pytest.mark.parametrize("use_item_embedding", [True, False])
def test_a_new_item_stands_where_its_neighbours_stand_and_old_scores_stay(use_item_embedding):
    torch.manual_seed(0)
    codes = torch.randint(5, (11, 3))
    codes[0] = -1
    model = SemanticSequenceModel(sequence_config(use_item_embedding=use_item_embedding), codes[:9], 5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    nearest, weights = torch.tensor([[3, 3], [2, 5]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    larger = model.with_items(codes, nearest, weights)
    table, before = larger.item_table(), model.item_table()
    torch.testing.assert_close(table[:9], before)
    torch.testing.assert_close(table[9], before[3], rtol=1e-4, atol=1e-6)
    direction = 0.25 * before[2] + 0.75 * before[5]
    length = 0.25 * before[2].norm() + 0.75 * before[5].norm()
    torch.testing.assert_close(table[10], direction / direction.norm() * length, rtol=1e-4, atol=1e-6)
    sequences, lengths = torch.tensor([[1, 4, 7]]), torch.tensor([3])
    old, new = model.scores(sequences, lengths)[0, 1:], larger.scores(sequences, lengths)[0, 1:9]
    torch.testing.assert_close((old - old[0]), (new - new[0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="larger catalog"):
        model.with_items(torch.zeros(11, 3, dtype=torch.int64))
