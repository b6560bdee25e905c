"""VIP5: pictures as tokens, adapters and frozen weights, item numbers, draws, and the loss, by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from recbole.utils import init_seed
from torch.nn import functional as F

from recbole_qbert.data.item_numbers import item_numbers
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.sentence_t5 import SentenceT5
from recbole_qbert.generative.sentences import word_numbers
from recbole_qbert.generative.t5 import T5Sizes, shift
from recbole_qbert.generative.visual_t5 import AdaptedLinear, Pictures, VisualT5
from recbole_qbert.generative.words import WordList
from recbole_qbert.models.vip5 import VIP5
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from tests.helpers_generative import NAME, configure, train, write_t5
from tests.helpers_recbole import write_dataset
from tests.test_p5cid import HISTORIES, every, sentence_examples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("weights") / "t5")


V = 40


def network(pictures=True, seed=0, present=None, sizes=None, reduction=4):
    torch.manual_seed(seed)
    sizes = sizes or T5Sizes(V, 16, 24, 4, 2, 2, 1, 0.0)
    made = Pictures(torch.randn(5, 7), torch.ones(5).bool() if present is None else present, 2) if pictures else None
    return VisualT5(sizes, torch.arange(sizes.vocab_size) % 3 == 0, 12, made, reduction).eval()


def picture(item):
    return [V + 2 * item, V + 2 * item + 1]


# ----------------------------------------------------------------------------------------------------------- network
def test_pictures_stand_in_order_where_their_tokens_are():
    """Rows of different numbers of items; a gradient reaches the pictures that are read, and no other."""
    model = network()
    rows = [[3, 4, *picture(2), 5, *picture(0), 1], [6, *picture(2), 1], [7, 1]]
    source = PackedTokens.of(torch.tensor([row + [-1] * (8 - len(row)) for row in rows]))
    model.vectors.requires_grad_()
    vectors = model.token_vectors(source.tokens)
    made = model.visual(model.vectors, model.present)
    packed = [token for row in (rows[2], rows[1], rows[0]) for token in row]
    for place, token in enumerate(packed):
        expected = model.embedding[token] if token < V else made[(token - V) // 2, (token - V) % 2]
        assert torch.allclose(vectors[place], expected, atol=1e-6)
    vectors.sum().backward()
    assert model.vectors.grad.abs().sum(1).gt(0).tolist() == [True, False, True, False, False]


def test_items_without_a_picture_share_learned_tokens():
    model = network(present=torch.tensor([True, False, True, False, True]))
    vectors = model.token_vectors(torch.tensor([*picture(1), *picture(3)]))
    assert torch.equal(vectors[:2], model.visual.missing) and torch.equal(vectors[2:], model.visual.missing)


def test_each_picture_token_is_a_word_of_its_own():
    """`17 v v , 1234 v v` has the words 1 2 3 4 4 5 5 6 7 where the comma and 1234 have two pieces."""
    model = network()
    model.starts = torch.tensor([False, False, True, True, False, True, False, *[False] * (V - 7)])
    tokens = torch.tensor([2, *picture(0), 3, 4, 5, 6, *picture(1), 1])
    numbers = word_numbers(tokens, torch.tensor([len(tokens)]), model.starts_word(tokens))
    assert numbers.tolist() == [1, 2, 3, 4, 4, 5, 5, 6, 7, 0]


def test_without_adapters_and_pictures_it_is_t5_with_its_tables():
    model, plain = network(), SentenceT5(T5Sizes(V, 16, 24, 4, 2, 2, 1, 0.0), torch.arange(V) % 3 == 0, 12).eval()
    source = PackedTokens.of(torch.tensor([[3, 4, 5, 1, -1], [6, *picture(1), 7, 1]]))
    names = plain.state_dict().keys()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AdaptedLinear):
                module.up.weight.zero_(), module.up.bias.zero_()
        model.visual.norm.weight.zero_()
        placeholder = source.tokens >= V
        tokens = source.tokens.masked_fill(placeholder, 0)
        numbers = word_numbers(source.tokens, source.rows.lengths, model.starts_word(source.tokens))
        expected = F.embedding(tokens, model.embedding).masked_fill(placeholder[:, None], 0.0)
        expected = expected + model.words[numbers] + model.categories[placeholder.long()]
        assert torch.allclose(model.source_vectors(source), expected, atol=1e-6)
        plain.source_vectors = lambda _: expected
        assert torch.allclose(model.encode(source).states, plain.encode(source).states, atol=1e-5)
        inputs = torch.tensor([[0, 5, 6], [0, 7, 8]])
        ours, theirs = (one.decode(inputs, one.encode(source)) for one in (model, plain))
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_adapter_by_hand():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 8, bias=False)
    adapted, values = AdaptedLinear(linear, 4), torch.randn(3, 6)
    output = values @ linear.weight.T
    inner = output @ adapted.down.weight.T + adapted.down.bias
    expected = output + (inner * torch.sigmoid(inner)) @ adapted.up.weight.T + adapted.up.bias
    assert torch.allclose(adapted(values), expected, atol=1e-6)
    assert adapted.weight is linear.weight and adapted.down.out_features == 2


def test_parameters_are_those_of_the_published_sizes():
    """2.79 million learn of t5-small: 30 adapters, the layers of the pictures, and the norms."""
    with torch.device("meta"):
        made = Pictures(torch.empty(3, 512), torch.ones(3).bool(), 2)
        model = VisualT5(T5Sizes(100, 512, 2048, 64, 8, 6, 6, 0.1), torch.zeros(100).bool(), 1024, made, 8)
        model.freeze_backbone(False)
    adapters = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    per_adapter = [sum(p.numel() for layer in (one.down, one.up) for p in layer.parameters()) for one in adapters]
    assert per_adapter == [66_112] * 30
    assert sum(p.numel() for name, p in model.visual.named_parameters() if name != "missing") == 788_992
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learned == 30 * 66_112 + 788_992 + 32 * 512 + 2 * 512  # the last: tokens of a missing picture, which are ours


def test_frozen_weights_stay_as_they_are_and_out_of_the_state():
    model = network()
    model.freeze_backbone(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    source = PackedTokens.of(torch.tensor([[3, *picture(2), 5, 1], [6, 7, 8, 1, -1]]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    target = torch.tensor([[5, 6], [7, 8]])
    F.cross_entropy(
        model.logits(model.decode(shift(target), model.encode(source))).flatten(0, 1), target.flatten()
    ).backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    learned = {name for name, value in model.named_parameters() if value.requires_grad}
    assert moved == learned
    assert all("norm" in name or ".down." in name or ".up." in name or "visual" in name for name in learned)
    state = model.state_dict()
    assert set(state) == learned | {"words", "categories"}
    other = network(seed=1)
    other.freeze_backbone(False)
    frozen = other.embedding.detach().clone()
    other.load_state_dict(state)
    assert torch.equal(other.embedding, frozen) and torch.equal(other.visual.grow.weight, model.visual.grow.weight)
    model.freeze_backbone(True)
    assert model.words.requires_grad and model.categories.requires_grad


# ------------------------------------------------------------------------------------------------------------ numbers
def test_numbers_are_a_permutation_that_no_held_out_item_changes():
    items, histories = tuple("dacb"), [np.array([2, 0]), np.array([0, 3])]
    random = item_numbers(items, histories, "random", 5)
    assert sorted(random.tolist()) == [1, 2, 3, 4]
    assert item_numbers(items, [], "random", 5).tolist() == random.tolist()
    shuffled = item_numbers(tuple("abcd"), histories, "random", 5)  # the numbering of RecBole does not matter
    assert dict(zip("abcd", shuffled.tolist(), strict=True)) == dict(zip(items, random.tolist(), strict=True))
    assert len({tuple(item_numbers(items, [], "random", seed)) for seed in range(20)}) > 5
    training = item_numbers(items, histories, "training", 5)
    assert dict(zip(items, training.tolist(), strict=True)) == {"c": 1, "d": 2, "b": 3, "a": 4}


def test_draws_are_of_the_last_three_targets_from_one_of_the_first_three_items():
    examples = sentence_examples("last", count=300, longest=20)
    drawn = every(examples)
    assert len(examples) == 3 * 300  # a history of one item has no target
    by_user = [Counter((tuple(read), target) for read, target in drawn[user::3]) for user in range(3)]
    assert by_user[1] == {((2,), 5): 300}
    for counts, history in ((by_user[0], HISTORIES[0]), (by_user[2], HISTORIES[3])):
        last = range(len(history) - 3, len(history))
        windows = [(start, end) for end in last for start in range(min(3, end - 1))]
        expected = {(tuple(history[start:end]), history[end]) for start, end in windows}
        assert set(counts) == expected
        targets = Counter(target for _, target in counts.elements())
        assert all(70 < targets[history[end]] < 130 for end in last)
    short = sentence_examples("last", longest=20)
    short.histories.length[0] = 3  # five interactions: one target behind two items
    assert every(short)[0] == ([1, 2], 3)


# -------------------------------------------------------------------------------------------------------------- model
@pytest.mark.pipeline
def test_numbers_are_written_with_their_pictures_behind(data, tmp_path):
    run = train(data, tmp_path, "VIP5", epochs=1)
    model, dataset = run.model, run.valid_data._dataset
    ids, written = model.vocabulary.languages[0].ids, model.examples.writer.items
    lengths = (ids[1:] >= 0).sum(1)
    assert set(lengths.tolist()) == {1, 2} and sorted(dataset.item_numbers.tolist()) == list(range(1, 41))
    assert ((lengths == 2) == torch.from_numpy(dataset.item_numbers > 9)).all()
    size = model.vocabulary.size
    assert written[5][written[5] >= 0].tolist() == [*ids[5][ids[5] >= 0].tolist(), size + 8, size + 9]
    assert model.ranked_ids(0).shape[1] == 3  # "1" is the beginning of "12": the end mark counts
    assert (~dataset.has_picture).sum() == 1 and model.identifier_figures["pictures"] == {"width": 10, "items": 39}
    without = train(data, tmp_path / "skip", "VIP5", epochs=1, missing_image="skip")
    row = without.model.examples.writer.items[1 + int(np.flatnonzero(~dataset.has_picture)[0])]
    assert (row[-2:] == -1).all()
    none = train(data, tmp_path / "none", "VIP5", epochs=1, visual_tokens=0)
    assert none.model.network.visual is None and torch.isfinite(none.model.batch_loss(none.model.examples[torch.arange(3)]))


@pytest.mark.pipeline
def test_the_loss_is_divided_by_the_length_twice(data, tmp_path):
    model = train(data, tmp_path, "VIP5", epochs=1).model.eval()
    batch, total = model.examples[torch.arange(24)], 0.0
    lengths = (batch.target >= 0).sum(1)
    assert len(lengths.unique()) > 1
    with torch.no_grad():
        for source, target in zip(batch.source, batch.target, strict=True):
            target = target[target >= 0][None]
            encoded = model.network.encode(PackedTokens.of(source[source >= 0][None]))
            logits = model.network.logits(model.network.decode(shift(target), encoded))
            total += F.cross_entropy(logits[0], target[0]).item() / target.shape[1]
        assert model.batch_loss(batch).item() == pytest.approx(total / 24, abs=1e-5)


@pytest.mark.pipeline
def test_from_a_backbone_adapters_learn_and_a_checkpoint_needs_it_again(data, t5, tmp_path):
    run = train(data, tmp_path, "VIP5", epochs=1, backbone=str(t5))
    weights = run.model.network
    init_seed(2026, True)
    fresh = VIP5(configure(data, tmp_path, "VIP5", backbone=str(t5)), run.valid_data._dataset)
    start = dict(fresh.network.named_parameters())
    for name, value in weights.named_parameters():
        assert value.requires_grad or torch.equal(value, start[name]), name
    path = run.trainer.saved_model_file
    saved = checkpoint_io.load_checkpoint(path)["state_dict"]
    assert "network.embedding" not in saved and any(".down." in name for name in saved)
    with experiment.working_directory(tmp_path):
        config, model, _, _, _, test_data = checkpoint_io.load_data_and_model(path)
        again = type(run.trainer)(config, model).evaluate(test_data, load_best_model=False)
    assert {key: float(value) for key, value in again.items()} == run.test()
    scratch = train(data, tmp_path / "scratch", "VIP5", epochs=1)
    assert all(value.requires_grad for value in scratch.model.network.parameters())
    with pytest.raises(ValueError, match="backbone"):
        scratch.model.load_other_parameter(checkpoint_io.load_checkpoint(path)["other_parameter"])


@pytest.mark.pipeline
def test_a_data_set_without_pictures_names_the_way_out(data, tmp_path):
    with pytest.raises(ValueError, match=r"image_features is 'photo'.*visual_tokens"):
        train(data, tmp_path, "VIP5", image_features="photo")


def test_numbers_as_words_begin_each_other():
    words = WordList()
    one, twelve = words.pieces("1"), words.pieces("12")
    assert twelve[:1] == one and len(twelve) == 2
