"""Item tokens, their rows and RecBole's item ids."""

import numpy as np
import torch

from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.utils.io import digest

VOCABULARY = ItemVocabulary(("ball", "bat", "glove"))


def test_tokens_and_rows_are_inverse_of_each_other():
    rows = VOCABULARY.rows(["glove", "ball", "net"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [2, 0, -1]
    assert [VOCABULARY.tokens[row] for row in rows if row >= 0] == ["glove", "ball"]
    assert VOCABULARY.rows([]).dtype == np.int64
    assert len(VOCABULARY) == 3


def test_recbole_counts_from_one_and_pads_with_zero():
    rows = VOCABULARY.rows(["ball", "net"])
    assert VOCABULARY.to_recbole(rows).tolist() == [1, 0]
    assert VOCABULARY.from_recbole(VOCABULARY.to_recbole(rows)).tolist() == rows.tolist()
    ids = torch.tensor([[1, 3], [2, 0]])
    assert torch.equal(VOCABULARY.from_recbole(ids), torch.tensor([[0, 2], [1, -1]]))
    assert VOCABULARY.from_recbole(3) == 2


def test_the_digest_is_of_the_tokens_in_their_order():
    assert VOCABULARY.digest == digest(["ball", "bat", "glove"])  # what checkpoints hold
    assert VOCABULARY.digest != ItemVocabulary(("bat", "ball", "glove")).digest
