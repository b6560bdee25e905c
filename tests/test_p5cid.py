"""P5CID: IDs of training co-occurrence, sentences and draws by hand, weights to start from."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.config.sentences import CollaborativeConfig
from recbole_qbert.data import cooccurrence
from recbole_qbert.generative.examples import Histories
from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.sentence_examples import Drawing, SentenceExamples
from recbole_qbert.generative.sentence_t5 import SentenceT5, start_from
from recbole_qbert.generative.sentences import SentenceWriter, word_numbers
from recbole_qbert.generative.t5 import T5Sizes, shift
from recbole_qbert.generative.t5_weights import load_backbone
from recbole_qbert.generative.vocabulary import Language, Vocabulary, with_end
from recbole_qbert.generative.words import PretrainedWords, WordList
from recbole_qbert.pipeline import collaborative_ids
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization.spectral_ids import spectral_ids
from recbole_qbert.recbole_integration import checkpoint_io, experiment
from tests.helpers_generative import NAME, T5_SIZES, configure, train, write_t5
from tests.helpers_recbole import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("weights") / "t5")


# --------------------------------------------------------------------------------------------------------------- IDs
def histories_of_blocks(blocks, users=60, seed=0):
    """Users who stay in one block of items."""
    random = np.random.default_rng(seed)
    return [random.choice(blocks[user % len(blocks)], 4, replace=False) for user in range(users)]


def ids_of(histories, items, clusters=3, leaf=6, levels=8):
    return spectral_ids(cooccurrence.counts(histories, items), clusters, leaf, levels)


def test_both_orders_of_a_pair_are_counted():
    count = cooccurrence.counts([np.array([1, 2, 3]), np.array([2, 1])], 4).toarray()
    assert count[1, 2] == count[2, 1] == 2 and count[1, 3] == 1 and not count[0].any()


def test_blocks_are_clusters_and_large_ones_are_divided_again():
    blocks = np.split(np.arange(15), [5, 10])
    made = ids_of(histories_of_blocks(blocks), 15)
    assert made.ids.shape == (15, 2) and made.clusters == made.leaves == 3 and made.largest == 5
    for block in blocks:
        assert len(set(made.ids[block, 0])) == 1 and made.ids[block, 1].tolist() == [3, 4, 5, 6, 7]
    finer = ids_of(histories_of_blocks(blocks), 15, leaf=4)
    assert finer.clusters > 3 and finer.ids.shape[1] == 3
    assert len(np.unique(finer.ids, axis=0)) == 15
    flat = ids_of(histories_of_blocks(blocks), 15, leaf=4, levels=1)
    assert flat.clusters == 3 and flat.largest == 5


def test_other_item_numbers_only_change_the_names_of_clusters():
    blocks = np.split(np.arange(15), [5, 10])
    histories, shuffled = histories_of_blocks(blocks), np.random.default_rng(1).permutation(15)
    one, other = ids_of(histories, 15), ids_of([shuffled[history] for history in histories], 15)
    same = one.ids[:, 0][:, None] == one.ids[:, 0]
    moved = other.ids[shuffled, 0]
    assert (same == (moved[:, None] == moved)).all()


def test_an_item_that_occurs_with_no_other_has_a_token_of_its_own():
    histories = [*histories_of_blocks([np.arange(1, 5), np.arange(5, 9)]), np.array([9])]
    made = ids_of(histories, 12, clusters=2)
    alone = made.ids[[0, 9, 10, 11]]
    assert made.alone == 4 and (alone[:, 1:] == -1).all() and len(set(alone[:, 0])) == 4
    assert set(alone[:, 0]).isdisjoint(made.ids[1:9].ravel()) and made.tokens == made.ids.max() + 1
    lonely = ids_of([np.array([0]), np.array([1])], 2, clusters=2)
    assert lonely.ids.tolist() == [[0], [1]] and lonely.clusters == 0


def test_items_without_an_edge_are_cut_into_runs():
    """A cluster whose members have lost their edges to other clusters still ends in leaves."""
    star = [np.array([0, item]) for item in range(1, 30)]
    made = ids_of(star, 30, clusters=2, leaf=4)
    assert made.largest <= 4 and len(np.unique(made.ids, axis=0)) == 30


def test_ids_are_made_of_the_training_part_once(tmp_path):
    histories = histories_of_blocks([np.arange(8), np.arange(8, 16)])
    catalog = Catalog("X", tmp_path, tuple(f"i{item}" for item in range(16)), histories)
    config = CollaborativeConfig(clusters=2, leaf=4, levels=8)
    ids, figures = collaborative_ids.load_or_build(catalog, config, tmp_path)
    written = (tmp_path / "X.cid.npy").stat().st_mtime_ns
    again, _ = collaborative_ids.load_or_build(catalog, config, tmp_path)
    assert (ids == again).all() and (tmp_path / "X.cid.npy").stat().st_mtime_ns == written
    assert figures["tokens"] == ids.max() + 1 and sum(figures["items_by_length"].values()) == 16
    collaborative_ids.load_or_build(catalog, CollaborativeConfig(clusters=2, leaf=5, levels=8), tmp_path)
    assert (tmp_path / "X.cid.npy").stat().st_mtime_ns != written


@pytest.mark.pipeline
def test_held_out_interactions_do_not_reach_the_ids(data, tmp_path):
    """Other items of validation and test, from the same catalog: same IDs."""
    other = tmp_path / "other"
    write_dataset(other, NAME)
    file = other / NAME / f"{NAME}.inter"
    lines = file.read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    last = [number for number, row in enumerate(rows) if number + 1 == len(rows) or rows[number + 1][0] != row[0]]
    held = [place for end in last for place in (end - 1, end) if place > 3 and int(rows[end][2]) >= 4]
    items = [rows[place][1] for place in held]
    for place, item in zip(held, np.roll(items, 7), strict=True):
        rows[place][1] = item
    file.write_text("\n".join([lines[0], *("\t".join(row) for row in rows)]) + "\n")
    paths = []
    for folder in (data, other):
        with experiment.working_directory(tmp_path / folder.name):
            config = configure(folder, tmp_path / folder.name, "P5CID")
            made = experiment.create_dataset(config)
            made.build()
        tokens = np.array(made.item_tokens())
        paths.append(dict(zip(tokens.tolist(), made.path_ids.tolist(), strict=True)))
    assert items != np.roll(items, 7).tolist()
    assert paths[0] == paths[1]


# --------------------------------------------------------------------------------------------------------- sentences
def test_words_from_scratch_are_cut_at_digits_and_starts_are_marked():
    words = WordList()
    user, number, again = words.pieces("user_12"), words.pieces("12"), words.pieces("user_21")
    assert len(user) == 3 and len(number) == 2 and again == [user[0], user[2], user[1]]
    assert number[0] != user[1] and number[1] == user[2]  # a digit at a word's start is another piece
    starts = words.starts()
    assert starts[user].tolist() == [True, False, False] and starts[number].tolist() == [True, False]
    assert not starts[:2].any() and words.size == len(starts) == 6


def test_pretrained_words_are_the_pieces_of_the_whole_sentence(t5):
    backbone = load_backbone(str(t5))
    words = PretrainedWords(backbone.tokenizer, 60, "t5")
    sentence = "user_12 has item_7 , item_31 , 12"
    pieces = [token for word in sentence.split() for token in words.pieces(word)]
    assert pieces == backbone.tokenizer.encode(sentence, add_special_tokens=False).ids
    named = [backbone.tokenizer.id_to_token(token) for token in pieces]
    assert words.starts()[pieces].tolist() == [name.startswith("▁") for name in named]
    with pytest.raises(ValueError, match="10 rows"):
        PretrainedWords(backbone.tokenizer, 10, "t5")


def test_numbers_of_words_by_hand():
    """Two rows: `user_ 17 items a b` with pieces inside words, and a row of one word; the end mark has 0."""
    tokens = torch.tensor([5, 6, 7, 8, 9, 9, 1, 5, 1])
    starts = torch.tensor([True, False, False, True, True, False, False, True, False])
    numbers = word_numbers(tokens, torch.tensor([7, 2]), starts)
    assert numbers.tolist() == [1, 1, 1, 2, 3, 3, 0, 1, 0]


TEMPLATES = ("{user} has {history} .", "After {history} what does {user} buy ?", "For {user} : {history}")


def made_writer(ids):
    words = WordList()
    writer = SentenceWriter.of(words, TEMPLATES, [f"user_{number}" for number in range(30)], (",",))
    return words, SentenceWriter(writer.templates, writer.users, writer.separators, ids)


def test_sentences_by_hand():
    ids = torch.tensor([[-1, -1, -1], [101, 102, -1], [103, -1, -1], [101, 104, 105]])
    words, writer = made_writer(ids)
    items, users, none = torch.tensor([[0, 0, 2], [1, 3, 0]]), torch.tensor([4, 21]), torch.zeros(2).long()
    one, two = (row[row >= 0].tolist() for row in writer.write(0, items, users, none))
    has, dot, comma = (words.pieces(word) for word in ("has", ".", ","))
    assert one == [*words.pieces("user_4"), *has, 103, *dot, 1]
    assert two == [*words.pieces("user_21"), *has, 101, 102, *comma, 101, 104, 105, *dot, 1]
    after = writer.write(1, items, users, none)[1]
    end = itertools.chain(*(words.pieces(word) for word in "what does user_21 buy ?".split()))
    assert after[after >= 0].tolist() == [*words.pieces("After"), 101, 102, *comma, 101, 104, 105, *end, 1]


HISTORIES = [[1, 2, 3, 4, 5, 6], [3], [2, 5], [6, 5, 4, 3, 2, 1, 6, 5, 4]]


def sentence_examples(rule, count=1, templates=range(3), longest=4):
    ids = torch.cat([torch.full((1, 2), -1), torch.stack([torch.arange(101, 107), torch.tensor([7, -1] * 3)], 1)])
    writer = made_writer(ids)[1]
    vocabulary = Vocabulary(200, 0, 0, 0, (Language("items", ids),))
    histories = Histories.of(list(map(np.array, HISTORIES)), np.array([11, 12, 13, 14]))
    return SentenceExamples(vocabulary, histories, longest, writer, Drawing(rule, count, templates), 0, seed=3)


def read(example):
    """Return the items of a source, and the item of its target."""
    return [token - 100 for token in example.source[0].tolist() if token > 100], int(example.target[0, 0]) - 100


def every(examples):
    return [read(examples[torch.tensor([number])]) for number in range(len(examples))]


def test_every_position_is_a_target_once_in_each_sentence_that_is_asked_for():
    expected = [(history[max(0, end - 4) : end], history[end]) for history in HISTORIES for end in range(1, len(history))]
    examples = sentence_examples("every", count=3)
    assert len(examples) == 3 * len(expected) and every(examples) == expected * 3
    numbers = torch.arange(len(examples))
    template = examples._template(numbers).view(3, -1)
    assert (template.sort(0).values == torch.arange(3)[:, None]).all()  # three draws: each sentence once
    first = [int((template[0] == number).sum()) for number in range(3)]
    examples.epoch = 1
    assert min(first) > 0 and not torch.equal(examples._template(numbers).view(3, -1), template)
    batch = examples[torch.tensor([20, 0, 5])]
    alone = [examples[torch.tensor([number])] for number in (20, 0, 5)]
    for row, one in enumerate(alone):
        assert batch.source[row][batch.source[row] >= 0].tolist() == one.source[0][one.source[0] >= 0].tolist()
        assert batch.target[row].tolist() == one.target[0].tolist()
    assert len(examples.of_users(torch.tensor([13, 14])).source) == 1 + 8


def test_targets_are_the_id_and_its_end():
    target = sentence_examples("every")[torch.arange(3)].target
    assert target.tolist() == [[102, 1, -1], [103, 7, 1], [104, 1, -1]]
    assert with_end(torch.tensor([[5, 6], [5, -1], [-1, -1]])).tolist() == [[5, 6, 1], [5, 1, -1], [-1, -1, -1]]


def test_a_random_target_is_any_position_of_its_history():
    examples = sentence_examples("random", count=200)
    drawn = every(examples)
    assert len(drawn) == 200 * (5 + 1 + 8)
    of_first = [pair for number, pair in enumerate(drawn) if number % 14 < 5]
    counts = {
        end: sum(pair == (HISTORIES[0][max(0, end - 4) : end], HISTORIES[0][end]) for pair in of_first)
        for end in range(1, 6)
    }
    assert sum(counts.values()) == len(of_first) and min(counts.values()) > 150


# ----------------------------------------------------------------------------------------------------------- network
def sentence_network(vocab=40, whole_words=8, seed=0):
    torch.manual_seed(seed)
    starts = torch.arange(vocab) % 3 == 0
    return SentenceT5(T5Sizes(vocab, 16, 24, 4, 2, 2, 1, 0.0), starts, whole_words).eval()


def test_word_vectors_are_added_in_the_encoder_and_no_table_is_t5():
    network, plain = sentence_network(), sentence_network(whole_words=0)
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if key != "words"})
    source = PackedTokens.of(torch.tensor([[3, 4, 6, 1, -1], [9, 10, 12, 12, 1]]))
    with torch.no_grad():
        vectors = network.source_vectors(source) - plain.source_vectors(source)
        expected = network.words[[1, 1, 2, 0, 1, 1, 2, 3, 0]]
        assert torch.allclose(vectors, expected, atol=1e-6)
        network.words.zero_()
        assert torch.equal(network.encode(source).states, plain.encode(source).states)


PREFIXES = [[5], [5, 6], [5, 6, 7], [8, 9], [8, 10], [11], [12, 5], [12, 5, 6]]


@pytest.mark.parametrize("way", ["exact", "cutoff", "beam"])
def test_ids_that_begin_others_are_ranked_as_all_items_scored_one_by_one(way):
    """Probabilities over the catalog sum to less than 1, because end marks are scored."""
    ids = torch.tensor([[-1] * 3, *([*row, *[-1] * (3 - len(row))] for row in PREFIXES)])
    network, ended = sentence_network(), with_end(ids)
    ranker = ItemRanker(network, ended, way, beams=20)
    source = PackedTokens.of(torch.tensor([[3, 4, 1, -1], [9, 10, 12, 1], [20, 1, -1, -1]]))
    with torch.no_grad():
        encoded, by_hand = network.encode(source), []
        for row in ended[1:]:
            target = row[row >= 0].expand(3, -1)
            log = network.logits(network.decode(shift(target), encoded)).log_softmax(2)
            by_hand.append(source.unsorted(log.gather(2, target[:, :, None]).sum((1, 2))))
        scores = torch.stack(by_hand, 1)
        assert torch.allclose(ranker.scores(source)[:, 1:], scores, atol=1e-5)
        assert (scores.exp().sum(1) < 1).all()
        for item in range(1, 9):
            ranks = ranker.rank(source, torch.full((3,), item), 9)
            assert ranks.tolist() == (scores >= scores[:, item - 1, None]).sum(1).tolist()


def test_a_backbone_is_copied_and_new_tokens_keep_rows_of_their_own(t5):
    backbone = load_backbone(str(t5))
    for new_rows, spread in (("unit", 1.0), ("table", None)):
        torch.manual_seed(0)
        network = SentenceT5(T5Sizes(100, 20, 36, 6, 4, 2, 2, 0.0), torch.zeros(100).bool(), 8)
        with torch.no_grad():
            backbone.weights["shared.weight"].normal_(std=3.0)
        start_from(network, backbone, new_rows)
        assert torch.equal(network.embedding[:60], backbone.weights["shared.weight"])
        new = network.embedding[60:].detach()
        assert new.std().item() == pytest.approx(spread or network.embedding[:60].std().item(), rel=0.1)
        likeness = F.normalize(new, dim=1) @ F.normalize(new, dim=1).T
        assert likeness[~torch.eye(40, dtype=torch.bool)].mean().abs() < 0.1


def test_backbones_that_cannot_be_are_refused(t5, tmp_path):
    write_t5(tmp_path / "bert")
    file = tmp_path / "bert" / "config.json"
    file.write_text(file.read_text().replace('"model_type": "t5"', '"model_type": "bert"'))
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        load_backbone(str(tmp_path / "bert"))
    write_t5(tmp_path / "mute", tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_backbone(str(tmp_path / "mute"))


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", None, r"backbone is .*no config\.json; name a folder"),
        ("config.json", json.dumps(dict.fromkeys(T5Sizes.__dataclass_fields__, 4) | {"d_ff": "wide"}), "d_ff is 'wide'"),
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer .*save the tokenizer again"),
        ("model.safetensors", "abc", r"model\.safetensors is damaged .*name a folder"),
    ],
)
def test_damaged_backbones_are_refused_by_file_and_way_out(tmp_path, file, content, named):
    write_t5(tmp_path / "t5")
    path = tmp_path / "t5" / file
    assert path.exists()
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        load_backbone(str(tmp_path / "t5"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one model, which lies in the cache; nothing is fetched."""
    import huggingface_hub.constants

    folder = tmp_path / "hub" / "models--some--tiny-t5"
    write_t5(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "some/tiny-t5", folder / "snapshots" / "abc"


def test_a_name_on_the_hub_is_the_same_as_its_folder(hub):
    name, folder = hub
    by_name, by_folder = load_backbone(name), load_backbone(str(folder))
    assert by_name.digest != "" and set(by_folder.weights) <= set(by_name.weights)
    for key, value in by_folder.weights.items():
        assert torch.equal(value, by_name.weights[key]), key
    words = "user_12 , 7"
    assert by_name.tokenizer.encode(words).ids == by_folder.tokenizer.encode(words).ids
    with pytest.raises(FileNotFoundError, match="no-such/model"):
        load_backbone("no-such/model")


# ------------------------------------------------------------------------------------------------------------- model
@pytest.mark.pipeline
def test_the_loss_is_the_mean_of_the_sequences_means(data, tmp_path):
    model = train(data, tmp_path, "P5CID", epochs=1).model.eval()
    batch = model.examples[torch.arange(0, 30)]
    lengths = (batch.target >= 0).sum(1)
    assert len(lengths.unique()) > 1
    total = 0.0
    with torch.no_grad():
        for source, target in zip(batch.source, batch.target, strict=True):
            target = target[target >= 0][None]
            encoded = model.network.encode(PackedTokens.of(source[source >= 0][None]))
            logits = model.network.logits(model.network.decode(shift(target), encoded))
            total += F.cross_entropy(logits[0], target[0]).item()
        assert model.batch_loss(batch).item() == pytest.approx(total / 30, abs=1e-5)


@pytest.mark.pipeline
def test_it_starts_from_a_backbone_and_says_so(data, t5, tmp_path):
    scratch = train(data, tmp_path / "scratch", "P5CID", epochs=1)
    assert scratch.model.identifier_figures["backbone"] == "from scratch"
    run = train(data, tmp_path / "t5", "P5CID", epochs=1, backbone=str(t5), score_end="always")
    assert str(t5) in run.model.identifier_figures["backbone"]
    assert run.model.network.sizes.d_model == T5_SIZES["d_model"] and run.model.settings.d_model == 16
    assert len(run.model.network.embedding) == 60 + run.model.identifier_figures["collaborative_ids"]["tokens"]
    assert run.model.fingerprint() != scratch.model.fingerprint()
    for interaction, _, _, _ in run.test_data:
        full = run.model.full_sort_predict(interaction)
        own = full[torch.arange(len(full)), interaction["item_id"]]
        assert torch.allclose(run.model.predict(interaction), own, atol=1e-5) and (full[:, 1:] > -torch.inf).all()
    with experiment.working_directory(tmp_path):
        config, model, _, _, _, test_data = checkpoint_io.load_data_and_model(run.trainer.saved_model_file)
        again = type(run.trainer)(config, model).evaluate(test_data, load_best_model=False)
    assert {key: float(value) for key, value in again.items()} == run.test()


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"backbone": "no/such/folder/here"}, FileNotFoundError, "no/such/folder/here"),
        ({"cid_clusters": 9}, ValueError, "cid_leaf is 6"),
        ({"test_prompt": 11}, ValueError, "test_prompt is 11"),
        ({"target_draw": "some"}, ValueError, "target_draw"),
        ({"score_end": "never"}, ValueError, "score_end"),
    ],
)
def test_settings_that_cannot_be_are_refused(data, tmp_path, settings, error, complaint):
    with pytest.raises(error, match=complaint):
        train(data, tmp_path, "P5CID", **settings)


@pytest.mark.pipeline
def test_a_missing_backbone_is_refused_before_ids_are_made(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="backbone"):
        train(data, tmp_path, "P5CID", backbone=str(tmp_path / "no-such-folder"), semantic_id_dir=str(tmp_path / "ids"))
    assert not (tmp_path / "ids").exists()
