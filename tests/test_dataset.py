"""recbole_qbert.recbole_integration.dataset: RecBole's own figures, settings that are refused, files of one's own kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data import create_dataset

from recbole_qbert.recbole_integration import experiment
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from tests.helpers_recbole import QUICK, write_dataset

NAME = "Tiny"
OWN_NAMES = {"USER_ID_FIELD": "reader", "ITEM_ID_FIELD": "book", "TIME_FIELD": "when"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), NAME)


def configure(data: Path, model: str = "QBERT4Rec", **settings: Any) -> Any:
    return experiment.configure(model, NAME, data, {**QUICK.get(model, {}), **settings})


def parts_of(data: Path, model: str, **settings: Any) -> list[Any]:
    """The whole data set after the split, and its three parts."""
    whole = create_dataset(configure(data, model, **settings))
    parts = whole.split() if isinstance(whole, HistoryDataset) else whole.build()
    return [whole, *parts]


def rewrite(
    data: Path, target: Path, head: str, edit: Any = lambda rows: rows, encoding: str = "utf-8", tab: str = "\t"
) -> Path:
    """Write the data set's interactions with another header, other rows, separator and encoding."""
    rows = [line.split("\t") for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]]
    (target / NAME).mkdir(parents=True)
    text = "\n".join([head, *(tab.join(row) for row in edit(rows))]) + "\n"
    (target / NAME / f"{NAME}.inter").write_bytes(text.encode(encoding))
    return target


HEAD = "user_id:token\titem_id:token\ttimestamp:float"


# ----------------------------------------------------------------------------------------------- a share of the users
def test_a_share_of_the_users_is_trained_on_and_all_are_tested(data: Path) -> None:
    _, all_train, all_valid, all_test = parts_of(data, "QBERT4Rec")
    learned = {}
    for share in (0.05, 0.3, 1.0):
        whole, train, valid, test = parts_of(data, "QBERT4Rec", train_users=share)
        learned[share] = set(train.inter_feat["user_id"].tolist())
        assert len(whole.histories) == round(share * 60)
        for part, expected in ((valid, all_valid), (test, all_test)):
            for field in expected.inter_feat:
                assert torch.equal(part.inter_feat[field], expected.inter_feat[field])
    assert learned[0.05] < learned[0.3] < learned[1.0] == set(all_train.inter_feat["user_id"].tolist())
    other = parts_of(data, "QBERT4Rec", train_users=0.3, seed=1)[1]
    assert set(other.inter_feat["user_id"].tolist()) != learned[0.3]


# ------------------------------------------------------------------------------------------------- RecBole's figures
FIGURES = {
    "inter_num": lambda d: d.inter_num,
    "user_num": lambda d: d.user_num,
    "item_num": lambda d: d.item_num,
    "avg_actions_of_users": lambda d: float(d.avg_actions_of_users),
    "avg_actions_of_items": lambda d: float(d.avg_actions_of_items),
    "sparsity": lambda d: d.sparsity,
    "user_counter": lambda d: Counter({int(k): v for k, v in d.user_counter.items()}),
    "item_counter": lambda d: Counter({int(k): v for k, v in d.item_counter.items()}),
    "inter_matrix": lambda d: d.inter_matrix("csr").toarray().tolist(),
    "inter_matrix of times": lambda d: d.inter_matrix("coo", "timestamp").toarray().tolist(),
    "history_item_matrix": lambda d: histories(d.history_item_matrix("timestamp")),
    "history_user_matrix": lambda d: histories(d.history_user_matrix("timestamp")),
    "longest histories": lambda d: d.history_item_matrix(max_history_len=2)[2].tolist(),
    "token2id": lambda d: d.token2id("item_id", ["i3", "i7"]).tolist(),
    "id2token": lambda d: d.id2token("user_id", [1, 2]).tolist(),
    "item features": lambda d: d.get_item_feature()["item_id"].tolist(),
    "user features": lambda d: d.get_user_feature()["user_id"].tolist(),
    "fields": lambda d: (d.fields(), d.float_like_fields, d.token_like_fields, d.seq_fields, d.non_seq_fields),
    "str": lambda d: str(d),
}  # fmt: skip


def histories(matrices: Any) -> list[list[tuple[int, float]]]:
    """Items, or users, and values of each row; RecBole shuffles them."""
    ids, values, lengths = matrices
    rows = zip(ids, values, lengths, strict=True)
    return [sorted(zip(i[:n].tolist(), v[:n].tolist(), strict=True)) for i, v, n in rows]


@pytest.mark.parametrize("length", [8, 3, 1])
def test_every_figure_is_that_of_recboles_sequential_dataset(data: Path, length: int) -> None:
    """SASRec's data set on the same file: the whole and its three parts; users with 2 and 3 interactions included."""
    ours = parts_of(data, "QBERT4Rec", MAX_ITEM_LIST_LENGTH=length)
    theirs = parts_of(data, "SASRec", MAX_ITEM_LIST_LENGTH=length)
    assert ours[1].inter_num > len(ours[1])  # a row is a user's history
    for part, other in zip(ours, theirs, strict=True):
        for name, figure in FIGURES.items():
            assert figure(part) == figure(other), name


def test_a_part_with_other_rows_tells_of_these(data: Path) -> None:
    _, train, valid, _ = parts_of(data, "QBERT4Rec")
    assert train.copy(valid.inter_feat).inter_num == len(valid)
    assert torch.equal(valid.inter_feat["item_id"], train.copy(valid.inter_feat)[np.arange(len(valid))]["item_id"])


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("model", ["QBERT4Rec", "CooccurrenceKNN"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"benchmark_filename": ["train", "valid", "test"]}, r"benchmark_filename.*Tiny\.inter"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO"}}, r"eval_args\.split.*RS.*LS"),
        ({"eval_args": {"split": {"TS": [8, 1, 1]}, "order": "TO"}}, r"eval_args.*TS.*LS"),
        ({"eval_args": {"split": {"LS": "valid_only"}, "order": "TO"}}, r"eval_args\.split.*valid_only.*valid_and_test"),
        ({"eval_args": {"split": {"LS": "test_only"}, "order": "TO"}}, r"eval_args\.split.*test_only.*valid_and_test"),
        ({"eval_args": {"split": {"LS": "valid_and_test"}, "order": "RO"}}, r"eval_args\.order.*'RO'.*TO"),
        ({"transform": "mask_itemseq"}, "transform.*'mask_itemseq'.*mask_ratio"),
        ({"transform": "user_defined"}, "transform.*'user_defined'"),
        ({"load_col": {"inter": ["user_id", "item_id"]}}, r"load_col.*timestamp.*user_id, item_id"),
        ({"load_col": None, "unload_col": {"inter": ["item_id"]}}, r"unload_col.*item_id"),
        ({"field_separator": "::"}, "field_separator.*'::'"),
        ({"encoding": "utf-99"}, "encoding.*'utf-99'.*latin-1"),
    ],
)
def test_settings_that_ask_for_other_rows_are_refused(data: Path, model: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        create_dataset(configure(data, model, **settings)).build()


@pytest.mark.parametrize("load", [{"inter": "*"}, {"inter": ["user_id", "item_id", "timestamp"]}])
def test_histories_that_were_cut_before_are_refused(data: Path, tmp_path: Path, load: dict[str, Any]) -> None:
    head = f"{HEAD}\titem_id_list:token_seq"
    target = rewrite(data, tmp_path, head, lambda rows: [[*row, "i1 i2"] for row in rows])
    with pytest.raises(ValueError, match=r"Tiny\.inter:1: .*item_id_list"):
        create_dataset(configure(target, load_col=load))


@pytest.mark.parametrize("lengths", [[3], [2, 2], [1], [3, 3, 2]])
def test_users_that_are_all_too_short_are_refused(data: Path, tmp_path: Path, lengths: list[int]) -> None:
    rows = [[f"u{user}", f"i{step}", str(step)] for user, length in enumerate(lengths) for step in range(length)]
    target = rewrite(data, tmp_path, HEAD, lambda _: rows)
    with pytest.raises(ValueError, match=rf"Tiny: no user has the 4 interactions.*{len(lengths)} users"):
        create_dataset(configure(target)).build()


def test_a_row_that_recbole_would_misread_is_refused_before_it_reads(data: Path, tmp_path: Path) -> None:
    target = rewrite(data, tmp_path, HEAD, lambda rows: [*rows[:4], [*rows[4][:2], "soon"], *rows[5:]])
    with pytest.raises(ValueError, match=r"Tiny\.inter:6: timestamp is 'soon'"):
        create_dataset(configure(target))


# ------------------------------------------------------------------------------------------------------- other files
@pytest.mark.parametrize(
    ("settings", "head", "edit", "encoding", "tab"),
    [
        (OWN_NAMES, "reader:token\tbook:token\twhen:float", None, "utf-8", "\t"),
        ({"field_separator": ","}, HEAD.replace("\t", ","), None, "utf-8", ","),
        ({}, HEAD, None, "utf-8-sig", "\t"),
        ({"encoding": "utf-16"}, HEAD, None, "utf-16", "\t"),
        ({"encoding": "latin-1"}, HEAD, lambda rows: [["é" + user, *rest] for user, *rest in rows], "latin-1", "\t"),
        ({"encoding": "cp1252"}, HEAD, lambda rows: [["€" + user, *rest] for user, *rest in rows], "cp1252", "\t"),
        ({}, HEAD + "\r", lambda rows: [[], *([*row[:2], row[2] + "\r"] for row in rows), []], "utf-8", "\t"),
        ({}, HEAD, lambda rows: [["000" + user[1:], "1e" + item[1:], time] for user, item, time in rows], "utf-8", "\t"),
    ],
)
def test_files_of_every_kind_give_the_same_histories(
    data: Path, tmp_path: Path, settings: dict[str, Any], head: str, edit: Any, encoding: str, tab: str
) -> None:
    """The default columns follow the fields' names; RecBole reads the rest by its own properties."""
    target = rewrite(data, tmp_path, head, edit or (lambda rows: rows), encoding, tab)
    usual, other = parts_of(data, "QBERT4Rec")[1], parts_of(target, "QBERT4Rec", **settings)[1]
    pairs = zip(usual.histories, other.histories, strict=True)
    assert all(one.tolist() == two.tolist() for one, two in pairs)
    catalog = other.catalog()
    assert catalog.items[0] == (
        "1e" + usual.item_tokens()[0][1:] if edit and "1e" in catalog.items[0] else usual.item_tokens()[0]
    )
    assert catalog.form.item_field == settings.get("ITEM_ID_FIELD", "item_id")
    columns = other.config["load_col"]["inter"]
    assert columns == list(catalog.form.fields)


def test_columns_of_a_property_file_follow_the_names_of_the_fields(data: Path, tmp_path: Path) -> None:
    target = rewrite(data, tmp_path, "reader:token\tbook:token\twhen:float")
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": "*"}
    config = configure(target, load_col=load, **OWN_NAMES)
    assert (
        config["load_col"] == {"inter": ["reader", "book", "when"], "item": "*"} == config.external_config_dict["load_col"]
    )
    baseline = configure(target, "SASRec", **OWN_NAMES)
    assert len(create_dataset(baseline).build()[0]) == parts_of(target, "QBERT4Rec", **OWN_NAMES)[1].inter_num
