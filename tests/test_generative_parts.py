"""Vocabulary, examples, joined lists, code sets and digits of the generative models, by hand."""

import numpy as np
import pytest
import torch

from recbole_qbert.generative.examples import ExampleBatch, Examples, Histories, Task, draws
from recbole_qbert.generative.fusion import FusedRanker
from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.t5 import T5, T5Sizes
from recbole_qbert.generative.vocabulary import Vocabulary
from recbole_qbert.models.mql4grec import TASKS
from recbole_qbert.quantization import code_sets
from recbole_qbert.quantization.collision_resolution import append_digit
from recbole_qbert.quantization.semantic_ids import SemanticIDs

TEXT = np.array([[0, 1], [2, 0], [1, 1], [2, 1], [0, 0]])  # items 1 to 5
IMAGE = np.array([[1, 0], [-1, -1], [0, 0], [0, 1], [1, 1]])  # item 2 has no picture


def vocabulary(**more):
    return Vocabulary.of([("text", TEXT, (3, 2)), ("image", IMAGE, (2, 2))], **more)


def examples(tasks, histories, longest=3, **more):
    users = np.arange(len(histories)) + 11
    return Examples(tasks, vocabulary(**more), Histories.of(list(map(np.array, histories)), users), longest, 2, seed=4)


# ----------------------------------------------------------------------------------------------------------- tokens
def test_no_two_levels_share_a_token_and_items_come_back():
    tokens = vocabulary(users=7, prompts=6, unused=100)
    text, image = tokens.languages
    assert (tokens.first_user, tokens.first_prompt, tokens.size) == (2, 9, 2 + 7 + 6 + 5 + 4 + 100)
    assert text.ids.tolist() == [[-1, -1], [15, 19], [17, 18], [16, 19], [17, 19], [15, 18]]
    assert image.ids[1:3].tolist() == [[21, 22], [-1, -1]]
    assert text.has(torch.arange(6)).tolist() == [False, True, True, True, True, True]
    assert image.has(torch.tensor([[2, 3]])).tolist() == [[False, True]]
    levels = [set(language.ids[:, level].tolist()) - {-1} for language in tokens.languages for level in (0, 1)]
    assert len(set().union(*levels)) == sum(map(len, levels))
    assert tokens.user_tokens(torch.tensor([0, 7, 13])).tolist() == [2, 2, 8]
    assert tokens.prompt(1, 2).tolist() == [11, 12]
    with pytest.raises(ValueError, match="text"):
        Vocabulary.of([("text", TEXT, (2, 2))])


# --------------------------------------------------------------------------------------------------------- examples
def test_every_position_is_an_example_and_the_newest_items_are_read():
    made = examples([TASKS["seqrec"]], [[1, 2, 3, 4, 5], [4], [5, 1]], users=7)
    assert len(made) == 5 and made.counts() == {"seqrec": 5}
    ids = made.vocabulary.languages[0].ids
    batch = made[torch.arange(5)]
    expected = [([1], 2, 11), ([1, 2], 3, 11), ([1, 2, 3], 4, 11), ([2, 3, 4], 5, 11), ([5], 1, 13)]
    for source, target, (read, written, user) in zip(batch.source, batch.target, expected, strict=True):
        assert source[source >= 0].tolist() == [2 + user % 7, *ids[read].flatten().tolist(), 1]
        assert target.tolist() == [*ids[written].tolist(), 1]
    assert made.of_users(torch.tensor([13])).target.tolist() == batch.target[4:].tolist()
    assert batch.tokens == 15 and batch.share(1, 2).target.tolist() == batch.target[[1, 3]].tolist()


def test_tasks_of_both_languages():
    """Prompts, items without a picture, and numbers in any order."""
    made = examples(list(TASKS.values()), [[1, 2, 3, 4]], prompts=6)
    assert made.counts() == {"seqrec": 3, "seqimage": 2, "item2image": 4, "image2item": 4, "fusionseqrec": 3}
    text, image = (language.ids for language in made.vocabulary.languages)
    first = made.vocabulary.first_prompt
    batch = made[torch.tensor([9, 4, 5, 0])]
    rows = [row[row >= 0].tolist() for row in batch.source]
    assert rows[0] == [first + 2, first + 3, *image[1].tolist(), 1] and batch.target[0].tolist() == [*text[1].tolist(), 1]
    assert rows[1] == [*image[[1, 3]].flatten().tolist(), 1] and batch.target[1].tolist() == [*image[4].tolist(), 1]
    assert rows[2] == [first, first + 1, *text[1].tolist(), 1] and batch.target[2].tolist() == [*image[1].tolist(), 1]
    assert rows[3] == [*text[1].tolist(), 1] and batch.target[3].tolist() == [*text[2].tolist(), 1]
    fusion = made[torch.tensor([13])]  # the target is item 2, which can be written in text only
    assert fusion.target.tolist() == [[*text[2].tolist(), 1]]
    assert fusion.source[0][fusion.source[0] >= 0].tolist() == [first + 4, first + 5, *image[1].tolist(), 1]


def test_directions_depend_on_seed_epoch_and_number_only():
    numbers = torch.arange(4000)
    one = draws(3, 1, numbers, 2)
    assert torch.equal(draws(3, 1, numbers.flip(0), 2), one.flip(0))
    for other in (draws(3, 2, numbers, 2), draws(4, 1, numbers, 2)):
        assert 0.45 < (other == one).float().mean() < 0.55
    assert 0.45 < one.float().mean() < 0.55 and set(draws(3, 1, numbers, 5).tolist()) == set(range(5))
    made = examples([TASKS["fusionseqrec"]], [[1, 3, 4, 5, 1, 3, 4, 5] * 20], prompts=6)
    before = made[torch.arange(len(made))].target
    made.epoch = 1
    assert not torch.equal(made[torch.arange(len(made))].target, before)
    made.epoch = 0
    assert torch.equal(made[torch.arange(len(made))].target, before)


def test_a_batch_moves_whole():
    batch = ExampleBatch(torch.ones(2, 3).long(), torch.ones(2, 2).long()).to(torch.device("cpu"))
    assert batch.source.shape == (2, 3) and batch.tokens == 4


# ------------------------------------------------------------------------------------------------------ joined lists
def fused_ranker(seed=0, way="cutoff", length=4):
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    text = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)
    image = text[random.permutation(20)]
    image[3] = -1
    tokens = Vocabulary.of([("text", text, (4, 5)), ("image", image, (4, 5))])
    network = T5(T5Sizes(tokens.size, 16, 24, 4, 2, 1, 1, 0.1)).eval()
    first, second = (ItemRanker(network, language.ids, way, beams=length) for language in tokens.languages)
    made = Examples([Task("t", (0,), (0,))], tokens, Histories.of([np.array([1, 2])], np.array([1])), 6)
    items = torch.from_numpy(random.integers(1, 21, (9, 4)))
    sources = [PackedTokens.of(made.source(language, items)) for language in (0, 1)]
    return FusedRanker(first, second, 1.0, length), sources, items


def test_lists_are_joined_by_hand():
    """Text x -1, y -2; image y -1.5, z -0.5: y is (-2 - 1.5) / 2 + 1 = -0.75, so z, y, x."""
    ranker = fused_ranker()[0]
    x, y, z = 7, 8, 9
    text = torch.tensor([[-1.0, -2.0]]), torch.tensor([[x, y]])
    image = torch.tensor([[-0.5, -1.5]]), torch.tensor([[z, y]])
    values, items = ranker.join(text, image)
    order = [int(items[0, place]) for place in values[0].argsort(descending=True) if items[0, place] >= 0]
    assert order == [z, y, x] and values[0][items[0] == y].tolist() == [-0.75]
    missing = torch.tensor([[-0.5, -torch.inf]]), torch.tensor([[z, -1]])
    values, items = ranker.join((text[0], torch.tensor([[x, -1]])), missing)
    assert sorted(items[0].tolist()) == [-1, -1, x, z]  # places without an item are none in common


@pytest.mark.parametrize("seed", range(3))
def test_joined_ranks_are_those_of_the_joined_scores(seed):
    """Within the lists, and behind them where too few items are in them; with items left out, too."""
    ranker, sources, history = fused_ranker(seed)
    with torch.no_grad():
        scores = ranker.scores(*sources)
        assert (scores[:, 0] == -torch.inf).all() and (scores[:, 1:] > -torch.inf).all()
        listed = (scores > -50).sum(1)
        assert ((listed >= 4) & (listed <= 8)).all()
        for exclude in (None, history):
            shown = scores.clone() if exclude is None else scores.scatter(1, history, -torch.inf)
            for target in torch.arange(1, 21).split(1):
                target = target.expand(len(scores))
                own = shown.gather(1, target[:, None])
                expected = torch.where(own[:, 0] > -torch.inf, (shown >= own).sum(1), 21)
                ranks = ranker.rank(*sources, target, 6, exclude)
                assert torch.equal(ranks, expected.clamp(max=7))


def test_exact_lists_are_the_same_and_beams_only_hold_real_items():
    ranker, sources, _ = fused_ranker(1)
    exact, beam = fused_ranker(1, "exact")[0], fused_ranker(1, "beam")[0]
    with torch.no_grad():
        assert torch.allclose(exact.scores(*sources), ranker.scores(*sources), atol=1e-5)
        assert (beam.scores(*sources)[:, 1:] > -torch.inf).all()


# ----------------------------------------------------------------------------------------------------- codes of items
def test_digits_count_the_items_of_an_id_in_the_order_of_their_tokens():
    codes = np.array([[1, 2], [1, 2], [3, 0], [1, 2]], dtype=np.int16)
    numbered = append_digit(codes, ["c", "a", "b", "b2"])
    assert numbered.tolist() == [[1, 2, 2], [1, 2, 0], [3, 0, 0], [1, 2, 1]] and numbered.dtype == np.int16
    shuffled = append_digit(codes[[3, 0, 2, 1]], ["b2", "c", "b", "a"])
    assert shuffled.tolist() == numbered[[3, 0, 2, 1]].tolist()
    assert append_digit(np.empty((0, 2), np.int16), []).shape == (0, 3)


def test_ids_are_split_into_code_sets_by_their_letters():
    ids = SemanticIDs(("x", "y"), np.array([[1, 2, 3, 4], [5, 6, -1, -1]], np.int16), ("a", "b", "A", "B"), 9)
    text, image = code_sets.split(ids, ["y", "x"], "a test")
    assert (text.name, text.codes.tolist(), text.sizes) == ("text", [[5, 6], [1, 2]], (9, 9))
    assert (image.name, image.codes.tolist()) == ("image", [[-1, -1], [3, 4]])
    third = SemanticIDs(("x",), np.array([[1, 2]], np.int16), ("a", "aa"), 3)
    assert [one.name for one in code_sets.split(third, ["x"], "a test")] == ["text", "code set 3"]
    broken = SemanticIDs(("x",), np.array([[1, -1]], np.int16), ("a", "b"), 3)
    with pytest.raises(ValueError, match="item x"):
        code_sets.split(broken, ["x"], "a test")


def test_shared_codes_are_counted_and_digits_left_to_items_that_have_codes():
    code_set = code_sets.CodeSet("image", np.array([[1, 1], [-1, -1], [1, 1], [0, 1]]), (2, 2))
    assert code_set.shared() == 2
    numbered = code_set.with_digit(["p", "q", "o", "r"])
    assert numbered.codes.tolist() == [[1, 1, 1], [-1, -1, -1], [1, 1, 0], [0, 1, 0]] and numbered.sizes == (2, 2, 2)
    assert numbered.shared() == 0
