"""Patches for numpy 2, pandas 3, scipy 1.13 and later, and environments without ray: each against its problem."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recbole.data.dataset.dataset as recbole_dataset
from recbole.config import Config
from recbole.data import create_dataset

import recbole_qbert  # noqa: F401  applies the patches
from recbole_qbert.recbole_integration import newer_libraries
from recbole_qbert.recbole_integration.patches import quick_start

USERS, ITEMS = 12, 9


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A data set whose items lack a category here and a price there."""
    folder = tmp_path / "gaps"
    folder.mkdir()
    rows = [f"u{user}\ti{(user + step) % ITEMS}\t{step}" for user in range(USERS) for step in range(5)]
    (folder / "gaps.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    items = [
        f"i{n}\t{'' if n % 3 else f'c{n % 2} all'}\t{'' if n == 4 else n}\t{'' if n == 5 else 'b'}" for n in range(ITEMS)
    ]
    header = "item_id:token\tcategories:token_seq\tprice:float\tbrand:token\n"
    (folder / "gaps.item").write_text(header + "\n".join(items) + "\n")
    return {
        "data_path": str(tmp_path), "epochs": 1, "show_progress": False, "state": "ERROR", "train_neg_sample_args": None,
        "MAX_ITEM_LIST_LENGTH": 5, "metrics": ["Hit"], "topk": [2], "valid_metric": "Hit@2", "train_batch_size": 16,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "categories", "price", "brand"]},
    }  # fmt: skip


def test_missing_cells_are_filled_as_recbole_means_to(settings: dict[str, Any]) -> None:
    dataset = create_dataset(Config(model="SASRec", dataset="gaps", config_dict=settings))
    items = dataset.item_feat.set_index("item_id")
    ids = dataset.field2token_id["item_id"]
    lengths = {token: len(items.loc[ids[token], "categories"]) for token in (f"i{n}" for n in range(ITEMS))}
    assert lengths == {f"i{n}": 0 if n % 3 else 2 for n in range(ITEMS)}
    prices = [n for n in range(ITEMS) if n != 4]
    assert items.loc[ids["i4"], "price"] == pytest.approx(np.mean(prices))
    assert items.loc[ids["i5"], "brand"] == 0
    assert not items[["price", "brand"]].isna().any(axis=None)
    assert dataset.field2seqlen["categories"] == 2


def test_the_length_of_a_column_is_that_of_its_cells() -> None:
    column = pd.Series([[1], [1, 2], []])
    assert newer_libraries._length(column).tolist() == [1, 2, 0] and newer_libraries._length([1, 2]) == 2
    assert recbole_dataset.len is newer_libraries._length  # type: ignore[attr-defined]


def test_names_that_numpy_has_stay_as_they_are_and_others_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: vars(np).get(name) for name in ("bool", "long")}
    monkeypatch.delattr(np, "float", raising=False)
    Config.compatibility_settings(None)
    assert np.float is np.float64  # type: ignore[attr-defined]
    assert all(value is None or vars(np)[name] is value for name, value in before.items())


def test_a_graph_model_of_recbole_trains(settings: dict[str, Any]) -> None:
    settings |= {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    result = quick_start.run_recbole(model="LightGCN", dataset="gaps", config_dict=settings, saved=False)
    assert 0 <= result["test_result"]["hit@2"] <= 1


@pytest.mark.process
def test_recboles_quick_start_is_imported_without_ray() -> None:
    code = (
        "import importlib.abc, sys\n"
        "class NoRay(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'ray':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, NoRay())\n"
        "import recbole_qbert\n"
        "from recbole.quick_start import objective_function, run_recbole\n"
        "assert not {name for name in sys.modules if name.split('.')[0] == 'ray'}\n"
        "import recbole.quick_start.quick_start as module\n"
        "module.tune.report(score=1)  # as in a trial of hyperopt\n"
        "import types\n"
        "sys.modules['ray'], sys.modules['ray.tune'] = types.ModuleType('ray'), types.ModuleType('ray.tune')\n"
        "sys.modules['ray.tune'].report = lambda **metrics: print('reported', metrics)  # as in a worker of ray\n"
        "module.tune.report(score=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "reported {'score': 2}"


@pytest.mark.parametrize("separator", ["\t", ",", "::"])
def test_tables_are_those_of_the_slow_parser_with_exact_numbers(tmp_path: Path, separator: str) -> None:
    numbers = ["0.1", "1e-7", "123456789.123456789", "2.2250738585072014e-308", "1400457600", ""]
    texts = ['"q""r"', " padded ", "001", "NA", "ü", f'"a{separator}b"' if len(separator) == 1 else "a"]
    lines = [separator.join(cells) for cells in [("item:token", "price:float"), *zip(texts, numbers, strict=True)]]
    path = tmp_path / "table"
    path.write_text("\n".join(lines) + "\n\n", encoding="latin-1")
    options: dict[str, Any] = {
        "delimiter": separator, "usecols": ["item:token", "price:float"], "encoding": "latin-1", "engine": "python",
        "dtype": {"item:token": str, "price:float": np.float64},
    }  # fmt: skip
    mine = recbole_dataset.pd.read_csv(path, **options)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(mine, pd.read_csv(path, **options), rtol=1e-14)
    if len(separator) == 1:
        assert mine["price:float"].tolist()[:-1] == [float(number) for number in numbers[:-1]]


@pytest.mark.parametrize("cells", [("a\0b", "1"), ("a", "1_000"), ("a", "1e400")])
def test_what_the_quick_parser_would_misread_or_refuse_is_read_as_before(tmp_path: Path, cells: tuple[str, str]) -> None:
    path = tmp_path / "table"
    path.write_text("user:token\tprice:float\n" + "\t".join(cells) + "\n")
    types = {"user:token": str, "price:float": np.float64}
    options: dict[str, Any] = {"delimiter": "\t", "dtype": types, "engine": "python"}
    mine = recbole_dataset.pd.read_csv(path, **options)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(mine, pd.read_csv(path, **options))
    assert mine["user:token"].tolist() == [cells[0]]
