"""The report: known numbers in, exact cells out; what is missing is named; titles are data; nothing comes from outside."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recbole_qbert import cli
from recbole_qbert.experiments import report
from recbole_qbert.experiments.report import catalog, figures, id_explorer, id_tree, plots
from recbole_qbert.experiments.report.suite_reader import read
from recbole_qbert.experiments.statistics import Paired, Spread
from recbole_qbert.experiments.suites import embedding, markdown
from recbole_qbert.experiments.suites.comparison import Comparison, ResultRow
from recbole_qbert.experiments.suites.suite_spec import ModelSpec, Suite
from recbole_qbert.quantization.semantic_ids import SemanticIDs, load
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline

EVIL = "<script>alert('x')</script>"
METRICS = ("hit@10", "ndcg@10")


# ---------------------------------------------------------------------------------------------------------------- tree
def ids_of(codes: np.ndarray, prefixes: str = "ab", items: list[str] | None = None) -> SemanticIDs:
    names = tuple(items or (f"i{row}" for row in range(len(codes))))
    return SemanticIDs(names, np.asarray(codes, dtype=np.int16), tuple(prefixes), int(np.max(codes)) + 1)


def unique_codes(count: int, levels: int, size: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).choice(size**levels, count, replace=False)
    return np.stack(np.unravel_index(drawn, (size,) * levels), 1)


def prefixes_by_hand(ids: SemanticIDs) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in range(len(ids.items)):
        tokens = ids.tokens(row)
        found.update("".join(tokens[:length]) for length in range(1, len(tokens) + 1))
    return found


def branches(listing: id_tree.Listing) -> list[id_tree.Listing]:
    return [listing, *(inner for each in listing.inner for inner in branches(each))]


@pytest.mark.parametrize("room", [10_000, 120, 40, 3])
def test_counts_of_a_tree_are_those_counted_by_hand(room: int) -> None:
    ids = ids_of(unique_codes(300, 4, 5), "abcd")
    by_hand = prefixes_by_hand(ids)
    listing = id_tree.choose(id_tree.root(id_tree.code_sets(ids)[0]), room)
    for part in branches(listing):
        assert part.branch.count == by_hand.get(part.branch.prefix, 300)
        beneath = sum(inner.branch.count for inner in part.inner) + len(part.places) + part.left_out
        assert beneath == part.branch.count
    listed = list(listing.listed())
    assert len(set(listed)) == len(listed)
    if room >= 300:
        assert sorted(listed) == list(range(300))
    else:
        assert len(listed) <= 2 * room + 5 * id_tree.LEAST and sum(part.left_out for part in branches(listing)) == 300 - len(
            listed
        )
    if room >= 5:
        assert {inner.branch.prefix for inner in listing.inner} == {prefix for prefix in by_hand if prefix.count("<") == 1}


def test_levels_at_which_all_agree_are_one_branch_and_single_items_need_none() -> None:
    ids = ids_of(np.array([[0, 1, 1], [0, 1, 2], [1, 0, 0]]), "abc")
    listing = id_tree.choose(id_tree.root(id_tree.code_sets(ids)[0]), 10)
    first, second = listing.inner
    assert (first.branch.prefix, first.branch.count, len(first.places)) == ("<a_0>", 2, 2)
    assert [first.branch.of.rest(place, first.branch.level) for place in first.places] == ["<b_1><c_1>", "<b_1><c_2>"]
    assert (second.branch.prefix, second.places) == ("<a_1>", (2,))


def test_each_code_set_has_a_tree_of_the_items_that_have_it() -> None:
    codes = np.array([[0, 1, 2, 0], [0, 0, -1, -1], [1, 1, 2, 1]])
    fused, image = id_tree.code_sets(ids_of(codes, "abAB"))
    assert (fused.prefixes, fused.rows.tolist()) == (("a", "b"), [1, 0, 2])
    assert (image.prefixes, image.rows.tolist()) == (("A", "B"), [0, 2])


# ------------------------------------------------------------------------------------------------------- a whole report
class Page(HTMLParser):
    """What a browser would see: tables as lists of rows, branches of the explorer, addresses, scripts, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.branches: dict[str, int] = {}
        self.items: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.words: dict[str, str] = {"": ""}
        self.stack: list[str] = []
        self.section = ""
        self.feed(text)

    def handle_starttag(self, name: str, attributes: Any) -> None:
        known = dict(attributes)
        assert not any(key.startswith("on") for key in known)
        self.addresses += [known[key] for key in ("src", "srcset", "href", "action", "data") if key in known]
        if name == "section":
            self.section = known["id"]
            self.words[self.section] = ""
        elif name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.tables[-1][-1].append("")
        elif name == "script":
            self.scripts += 1
        elif name == "li":
            self.items.append("")
        if "data-prefix" in known:
            self.branches[known["data-prefix"]] = int(known["data-count"])
        self.stack.append(name)

    def handle_endtag(self, name: str) -> None:
        while self.stack and self.stack.pop() != name:
            pass

    def handle_data(self, text: str) -> None:
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += text
        if "li" in self.stack:
            self.items[-1] += text
        if "style" not in self.stack and "script" not in self.stack:
            self.words[self.section] += text


def figures_of(hit: float, ndcg: float, sd: float | None = 0.0012) -> dict[str, dict[str, Spread]]:
    """The setting with the history left out, and the other, a tenth lower."""
    both = {"history_excluded": 1.0, "plain": 0.9}
    return {
        setting: {"hit@10": Spread(hit * factor, sd), "ndcg@10": Spread(ndcg * factor, sd)}
        for setting, factor in both.items()
    }


LINES = (
    ResultRow("default", "default", "QBERT4Rec", seeds=(1, 2), planned=2, figures=figures_of(0.16, 0.1), items=6, users=9,
         published={"ndcg@10": 0.1077}),
    ResultRow("SASRec", "SASRec", "SASRec", tuned="9 trials on Tiny", seeds=(1,), planned=2, items=6, users=9,
         figures=figures_of(0.15, 0.0985, None),
         tests={s: Paired(0.0015, -0.001, 0.004, 0.27, False) for s in ("plain", "history_excluded")},
         failed={2: f"ValueError: {EVIL}"}, note=f"RecBole's own {EVIL}"),
    ResultRow("Pop", "Pop", "Pop", seeds=(1, 2), planned=2, figures=figures_of(0.02, 0.01), items=6, users=9,
         tests={s: Paired(0.09, 0.08, 0.1, 0.00005, True) for s in ("plain", "history_excluded")}),
    ResultRow("FDSA", "FDSA", "FDSA", impossible="no column categories"),
    ResultRow("S3Rec", "S3Rec", "S3Rec", planned=2, failed={1: "out of memory", 2: "out of memory"}),
    ResultRow("late", "late", "SASRec", planned=2),
)  # fmt: skip
CURVE = [
    {"stage": "pretrain", "epoch": 0, "seconds": 2.0, "valid_score": 0.01, "train_loss": 3.0},
    {"stage": "finetune", "epoch": 0, "seconds": 3.0, "valid_score": None, "train_loss": 2.0},
    {"stage": "finetune", "epoch": 1, "seconds": 4.0, "valid_score": 0.05, "train_loss": 1.0},
]
CODES = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 2, 0, 1], [3, 0, 1, 1], [3, 1, -1, -1], [5, 5, 2, 2]])
HEALTH = {
    "levels": ["a", "b"], "codes_per_level": 8, "items": 6, "unique_before": 4, "unique": 6, "collision_rate_before": 0.5,
    "collision_rate": 0.0, "moved": 2, "usage_per_level": [0.375, 0.5], "perplexity_per_level": [2.75, 3.5],
    "explained_per_level": [0.3, 0.58], "neighbors_kept": 0.4211, "reseeded_codes": 3,
}  # fmt: skip


def write_cell(output: Path, row: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A finished cell; its entry in ``suite.json``."""
    path = f"cells/D/{row}-0/seed-{seed}"
    identifiers = {
        "injection": {"depth": [0.25, 0.75, 0.0]},
        "semantic_ids": {"code_sets": [{"code_set": "fused", **HEALTH}]},
    }
    result = {
        "model": row, "seed": seed, "parameters": 1234, "peak_memory_mb": 500, "curve": CURVE, "sources": [],
        "seconds": {"data": 1.0, "model": 1.0, "training": 9.0, "test": 0.5}, "machine": {"processor": "P", "cores": 2},
        "revision": "abc", "identifiers": identifiers if row == "default" else None,
        "test": {s: {"hit@10": 0.1 * seed, "ndcg@10": 0.05 * seed} for s in ("plain", "history_excluded")}, **changes,
    }  # fmt: skip
    (output / path).mkdir(parents=True)
    (output / path / "cell.json").write_text(json.dumps(result))
    return {"model": row, "seed": seed, "path": path}


def write_suite(output: Path, suite: Suite, table: Any, cells: list[dict[str, Any]]) -> Path:
    folder = output / "suites" / suite.name / "D"
    folder.mkdir(parents=True)
    about = {
        "suite": asdict(suite), "overrides": {"MAX_ITEM_LIST_LENGTH": 7}, "dataset": "D", "data_path": str(output / "data"),
        "trials": cells,
        "impossible": {"FDSA": "no column categories"}, "command": f"run {EVIL}", "versions": {"torch": "2"},
        "revision": "abc", "machine": {"processor": "P", "cores": 2, "load_1_min": 0.5},
    }  # fmt: skip
    (folder / "suite.json").write_text(json.dumps(about))
    (folder / "table.json").write_text(json.dumps(table))
    return folder


def comparison(lines: tuple[ResultRow, ...], against: str = "default") -> Any:
    copied = {"TIGER": {"hit@10": 0.1221, "ndcg@10": 0.095}}
    made = Comparison("table2", "Overall", "Table 2", "D", METRICS, against, (), lines, copied)
    return asdict(made) | {"footnotes": markdown.footnotes(made)}


@pytest.fixture(autouse=True)
def _small_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "RESOLUTION", 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite with everything: failed, impossible and unfinished rows, IDs, titles, one picture, a broken one."""
    made = "work/semantic_ids/D/D.sid"
    cells = [write_cell(tmp_path, "default", seed, sid=made) for seed in (1, 2)] + [write_cell(tmp_path, "SASRec", 1)]
    cells += [{"model": row, "seed": 2, "path": f"cells/D/{row}-0/seed-2"} for row in ("SASRec", "S3Rec", "late")]
    for row in ("SASRec", "S3Rec"):
        failed = tmp_path / f"cells/D/{row}-0/seed-2/failed.json"
        failed.parent.mkdir(parents=True)
        failed.write_text(json.dumps({"reason": f"broke {EVIL}", "log": []}))
    ids_of(CODES, "abAB").save(tmp_path / "cells/D/default-0/seed-1" / made)
    data = tmp_path / "data" / "D"
    data.mkdir(parents=True)
    titles = [EVIL, "green glue & tape", "strong glue stick", "http://example.org/ lamp", "", "“quoted” onload=x"]
    rows = "".join(f"i{number}\t{title}\n" for number, title in enumerate(titles))
    (data / "D.item").write_text(f"item_id:token\ttitle:token_seq\n{rows}", encoding="utf-8")
    for item in ("i1", "i3"):
        (data / "images" / item).mkdir(parents=True)
    Image.new("RGB", (200, 100), "red").save(data / "images/i1/0.jpg")
    (data / "images/i3/0.jpg").write_bytes(b"no picture")
    suite = Suite("table2", "Overall", "quality", "Table 2", METRICS, (1, 2), "default", {"MAX_ITEM_LIST_LENGTH": 20},
                  tuple(ModelSpec(line.spec, line.model) for line in LINES))  # fmt: skip
    return write_suite(tmp_path, suite, comparison(LINES), cells)


def page_of(folder: Path, **arguments: Any) -> Page:
    return Page(report.write(folder, **arguments).read_text(encoding="utf-8"))


def test_tables_say_what_the_comparison_says(folder: Path) -> None:
    fair, plain = page_of(folder).tables[:2]
    assert fair == [
        ["row", "HR@10", "NDCG@10", "seeds", "default - row, NDCG@10", "p"],
        ["default", ".1600 ± .0012", ".1000 ± .0012", "2", "", ""],
        ["SASRec tuned", ".1500", ".0985", "1 of 2", "+.0015 [-.0010, +.0040]", "n.s. .270"],
        ["Pop", ".0200 ± .0012", ".0100 ± .0012", "2", "+.0900 [+.0800, +.1000]", " < .001"],
        ["FDSA", "not possible on this data set"],
        ["S3Rec", "failed"],
        ["late", "not run yet"],
    ]
    assert plain[1:3] == [
        ["default", ".1440 ± .0012", ".0900 ± .0012", "2", "", ""],
        ["default", "\N{EN DASH}", ".1077", "copied from the paper"],
    ]
    assert plain[-1] == ["TIGER", ".1221", ".0950", "copied from the paper"]
    assert "copied" not in str(fair)


def test_the_best_of_the_rows_that_were_run_is_marked(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    assert re.findall(r"<td><b>(\.\d+)</b>", text) == [".1600", ".1000", ".1440", ".0900"]


def test_cost_health_and_depth_are_those_of_the_cells(folder: Path) -> None:
    depth, health, cost = page_of(folder).tables[2:5]
    assert depth[1] == ["default", "2", "1.75", "2"]
    assert health[1] == ["default", "fused", "6", "4 → 6", "50.0% → 0.0%", "2", "30 58", "0.421", "38 50", "3 4"]
    assert cost[1:] == [
        ["default", "default", "2", "1,234", "3", "9", "3.00", "0.5", "500"],
        ["SASRec", "SASRec", "1", "1,234", "3", "9", "3.00", "0.5", "500"],
    ]


def test_the_settings_are_those_that_were_run(folder: Path) -> None:
    words = page_of(folder).words["environment"]
    assert "MAX_ITEM_LIST_LENGTH 7" in words and "MAX_ITEM_LIST_LENGTH 20" not in words


def test_a_line_of_an_earlier_table_is_marked(folder: Path) -> None:
    earlier = tuple(replace(line, earlier=True, same_settings=False) if line.name == "Pop" else line for line in LINES)
    (folder / "table.json").write_text(json.dumps(comparison(earlier)))
    page = page_of(folder)
    assert [row[0] for row in page.tables[0][1:4]] == ["default", "SASRec tuned", "Pop earlier"]
    assert "maybe with other settings than are asked for now: Pop." in page.words["results"]


def test_text_is_data(folder: Path) -> None:
    page = page_of(folder)
    assert page.scripts == 1
    for section in ("results", "ids", "environment", "missing"):
        assert EVIL in page.words[section], section


def test_nothing_comes_from_outside(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "http" not in text.replace("http-equiv", "").replace("http://example.org/", "")  # but for a title
    assert all(address.startswith("data:") for address in re.findall(r"url\(([^)]*)", text)) and "@import" not in text
    assert "default-src &#39;none&#39;; img-src data:" in text


def test_what_is_missing_is_named(folder: Path) -> None:
    page = page_of(folder)
    words = page.words["missing"]
    for line in (
        f"SASRec, seed 2: failed: broke {EVIL} (log: cells/D/SASRec-0/seed-2/log.txt)",
        "late, seed 2: not run yet",
        "FDSA: not possible on this data set: no column categories",
        "explorer, A B codes: items without them: 1",
        "pictures that could not be read: 1",
    ):
        assert line in words
    assert "3 of 6 trials finished" in page.words[""]


def test_a_report_of_almost_nothing_says_so(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "default", 1, curve=[], identifiers=None)
    suite = Suite(
        "figure3", "Layers", "quality", metrics=METRICS, sweep="n_layers", models=(ModelSpec("n_layers=1", "QBERT4Rec"),)
    )
    folder = write_suite(tmp_path, suite, {}, [cell])
    (folder / "table.json").unlink()
    page = page_of(folder)
    for part in ("results: table.json is missing", "figure over n_layers", "learning curves", "tokenizer health", "fusion"):
        assert part in page.words["missing"]
    assert "semantic-ID explorer: no finished trial keeps a .sid file" in page.words["missing"]
    assert not {"results", "sweep", "curves", "tokenizer", "ids"} & set(page.words)
    assert not list(folder.glob("*.png"))


def test_counts_of_the_explorer_are_those_counted_by_hand(folder: Path) -> None:
    page = page_of(folder)
    ids = load(next(folder.parents[2].glob("cells/**/D.sid")))
    for prefixes, columns in (("ab", slice(0, 2)), ("AB", slice(2, 4))):
        rows = (ids.codes[:, columns] >= 0).all(1)
        by_hand = prefixes_by_hand(ids_of(ids.codes[rows][:, columns], prefixes))
        shown = {prefix: count for prefix, count in page.branches.items() if prefix[1] == prefixes[0]}
        assert {prefix for prefix in shown if prefix.count("<") == 1} == {p for p in by_hand if p.count("<") == 1}
        assert shown == {prefix: by_hand[prefix] for prefix in shown}
    listed = Counter(token for line in page.items for token in re.findall(r"i\d", line))
    assert listed == {"i4": 1} | {f"i{number}": 2 for number in (0, 1, 2, 3, 5)}  # i4 has no codes of the second set


def test_items_of_a_code_are_described_by_the_words_they_share() -> None:
    titles = ["super glue for wood", "Glue with cap for toys", "glue stick", "glue", *["lamp for desks"] * 3, *["chair"] * 9]
    ids = ids_of(np.array([[0, 0], [0, 1], [0, 2], [3, 0], *([1, n] for n in range(3)), *([2, n] for n in range(9))]))
    known = catalog.Catalog({item: title for item, title in zip(ids.items, titles, strict=True)}, {}, ())
    markup = id_explorer.explorer(ids, ["fused"], known).markup
    # Of a code with one item its title; 'chair' is not rare enough to tell anything.
    assert re.findall(r'class="words">([^<]*)<', markup) == ["glue", "desks, lamp", "", "glue"]


def test_a_large_catalog_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_explorer, "MOST_ITEMS", 60)
    ids = ids_of(unique_codes(400, 3, 9), "abc")
    made = id_explorer.explorer(ids, ["fused"], catalog.Catalog({}, {}, ()))
    listed = made.markup.count("<li>")
    assert 40 <= listed <= 120
    left_out = sum(int(number.replace(",", "")) for number in re.findall(r"and ([\d,]+) more items", made.markup))
    assert left_out == 400 - listed
    assert made.notes == (f"explorer, fused codes: {listed} of 400 items are listed; every count is of all items",)
    counts = {prefix: int(count) for prefix, count in re.findall(r'data-prefix="([^"]*)" data-count="(\d+)"', made.markup)}
    by_hand = prefixes_by_hand(ids)
    assert counts and all(by_hand[prefix.replace("&lt;", "<").replace("&gt;", ">")] == n for prefix, n in counts.items())


def test_a_picture_is_held_once_however_often_it_is_shown(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 1
    assert text.count('class="pic p0"') == 4  # the item and its code, in two trees


def test_room_for_pictures_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MOST_PICTURES", 0)
    assert "pictures not shown, to keep this file small: 2" in page_of(folder).words["missing"]


def test_titles_and_pictures_are_taken_from_where_one_says(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder, data_path=tmp_path / "elsewhere")
    assert "titles and pictures: the data folder has no D" in page.words["missing"]
    assert "glue" not in page.words["ids"]


# --------------------------------------------------------------------------------------------------------------- plots
def test_plots_lie_beside_the_page_and_are_the_same_again(folder: Path) -> None:
    text = report.write(folder).read_bytes()
    names = {path.name for path in folder.glob("*.png")}
    assert names == {"seeds.png", "curves_epochs.png", "curves_seconds.png", "fusion_depth.png"}
    for name in names:
        with Image.open(folder / name) as image:
            assert image.width > 200 and len(image.convert("RGB").getcolors(100_000) or [0] * 10) > 5
    assert report.write(folder).read_bytes() == text
    assert not list(folder.glob(".*"))


def test_curves_go_on_from_stage_to_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "learning_curves", lambda *arguments: drawn.append(arguments))
    figures.curves(read(folder))
    (_, _, by_epoch, _, _), (_, _, by_time, _, _) = drawn
    assert list(by_epoch) == ["default", "SASRec"] and len(by_epoch["default"]) == 2
    assert by_epoch["SASRec"] == [plots.Curve((1.0, 3.0), (0.01, 0.05), (0, 1))]
    assert by_time["SASRec"] == [plots.Curve((2.0, 9.0), (0.01, 0.05), (0, 1))]


def test_a_sweep_is_drawn_over_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"dropout={value}" for value in (0.1, 0.2)]
    lines = tuple(ResultRow(name, name, "QBERT4Rec", seeds=(1,), planned=1, figures=figures_of(0.1, 0.05)) for name in names)
    suite = Suite(
        "figure4",
        "Dropout",
        "quality",
        metrics=METRICS,
        sweep="dropout",
        models=tuple(ModelSpec(n, "QBERT4Rec") for n in names),
    )
    folder = write_suite(tmp_path, suite, comparison(lines, ""), [write_cell(tmp_path, name, 1) for name in names])
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "sweep", lambda *arguments: drawn.append(arguments))
    figures.sweep(read(folder))
    name, _, values, spreads, label, _ = drawn[1]
    assert (name, values, label) == ("sweep_ndcg_10", [0.1, 0.2], "dropout")
    assert [spread.mean for spread in spreads["history left out"]] == [0.05, 0.05]
    monkeypatch.undo()
    report.write(folder)
    assert {"sweep_hit_10.png", "sweep_ndcg_10.png"} < {path.name for path in folder.glob("*.png")}


def test_models_of_a_value_and_a_line_are_drawn_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that one of the lines lacks is left out."""
    of = {"1 %, kNN": 0.1, "1 %, network": 0.2, "5 %, kNN": 0.3, "5 %, network": 0.4, "9 %, kNN": 0.5}
    rows = tuple(
        ResultRow(name, name, "QBERT4Rec", seeds=(1,), planned=1, figures=figures_of(0.0, figure))
        for name, figure in of.items()
    )
    suite = Suite(
        "few", "Few", "quality", metrics=METRICS, lines="users", models=tuple(ModelSpec(name, "QBERT4Rec") for name in of)
    )
    folder = write_suite(tmp_path, suite, comparison(rows, ""), [write_cell(tmp_path, name, 1) for name in of])
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "sweep", lambda *arguments: drawn.append(arguments))
    figures.lines(read(folder))
    (_, _, values, spreads, label, _), *others = drawn
    assert (values, label, others) == (["1 %", "5 %"], "users", [])
    assert {line: [spread.mean for spread in both] for line, both in spreads.items()} == {
        "kNN": [0.1, 0.3],
        "network": [0.2, 0.4],
    }
    monkeypatch.undo()
    report.write(folder)
    assert (folder / "lines.png").exists()


def test_without_matplotlib_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'recbole-qbert[report]'")):
        report.write(folder)


def test_a_folder_that_is_no_suite_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"suites/table2/D: name one"):
        report.write(folder.parents[2])


@pytest.mark.parametrize(
    ("kind", "table", "row"),
    [
        ("statistics", {"statistics": {"users": 2928, "items": 1585, "sparsity": 0.9969, "length": 7.25},
                        "copied": {"Instruments": {"users": 24962}}}, ["D", "2,928", "1,585", "99.69%", "7.25"]),
        ("cost", {"costs": [{"model": "SASRec", "parameters": 160000, "flops_score": 2.5e6, "flops_training_user": 1e9,
                             "batch": 256, "ms_a_user": 0.1234}], "copied": {}},
         ["SASRec", "160,000", "2.5 M", "1,000.0 M", "256", "0.123"]),
    ],
)  # fmt: skip
def test_other_kinds_have_their_tables(tmp_path: Path, kind: str, table: Any, row: list[str]) -> None:
    page = page_of(write_suite(tmp_path, Suite("t", "T", kind), table, []))
    assert page.tables[0][1] == row
    assert "explorer" not in page.words["missing"] and "curves" not in page.words["missing"]


# ------------------------------------------------------------------------------------------------------------ figure 6
def test_distances_of_vectors_that_are_known() -> None:
    text = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    image = np.array([[1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    assert embedding.distances({"text": text, "image": image}) == {
        "text - image": {"mean": 2.0, "other_items": 2.0, "items": 2}  # 0 and 4; at right angles to the other's
    }
    assert embedding.distances({"a": image, "b": image})["a - b"] == pytest.approx(
        {"mean": 0, "other_items": 2 - 2 / 3, "items": 3}
    )


def test_a_plane_keeps_the_distances_of_vectors_that_lie_in_one() -> None:
    angles = np.random.default_rng(0).uniform(0, 6.28, (2, 20))
    flat = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], 2)
    flat[1, 3] = np.nan
    made = embedding.plane({"text": flat[0], "fused": flat[1]})
    points = {kind: np.array([point or [np.nan] * 2 for point in places]) for kind, places in made["points"].items()}
    assert made["points"]["fused"][3] is None
    gaps = np.linalg.norm(points["text"] - points["fused"], axis=1)
    assert np.allclose(gaps, np.linalg.norm(flat[0] - flat[1], axis=1), atol=1e-3, equal_nan=True)
    assert len(embedding.plane({"text": flat[0]}, "tsne", shown=7)["points"]["text"]) == 7
    with pytest.raises(ValueError, match=r"umap.*pca, tsne"):
        embedding.plane({"text": flat[0]}, "umap")


def test_figure_6_from_cells_to_the_page(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "D")
    small = [f"--{key}={json.dumps(v)}" for key, v in QUICK["QBERT4Rec"].items() if key not in ("show_progress", "state")]
    cells = []
    for seed in (1, 2):
        features = {"features": {"folder": str(data / "D")}}
        cells.append(write_cell(tmp_path, "dynamic", seed, identifiers=features, sid="work/D/D.sid"))
        cell = tmp_path / cells[-1]["path"]
        (cell / "config.json").write_text(json.dumps({"dataset": "D"}))
        base = ["--dataset=D", "--data_path", str(data), "--output", str(cell / "work"), f"--seed={seed}"]
        assert cli.main(["quantize", *base, *small, "--semantic_ids=fused"]) == 0
    cells.append(write_cell(tmp_path, "none", 1))
    (tmp_path / cells[-1]["path"] / "config.json").write_text(json.dumps({"dataset": "D"}))
    suite = Suite(
        "figure6", "Vectors", "embedding", metrics=METRICS, models=(ModelSpec("dynamic", "Q"), ModelSpec("none", "Q"))
    )
    folder = write_suite(tmp_path, suite, {"rows": {}}, cells)
    rows = {"dynamic": [tmp_path / cell["path"] for cell in cells[:2]], "none": [tmp_path / cells[2]["path"]]}
    measured = embedding.measure(rows)
    found = embedding.of_cell(rows["dynamic"][0])
    assert list(found) == ["text", "image", "fused"]
    real = np.isfinite(found["text"]).all(1)
    assert np.allclose(np.linalg.norm(found["text"][real], axis=1), 1, atol=1e-5)
    means = [embedding.distances(embedding.of_cell(cell))["text - fused"]["mean"] for cell in rows["dynamic"]]
    distance = measured["dynamic"]["distances"]["text - fused"]
    assert distance["mean"] == pytest.approx(np.mean(means)) and distance["sd"] == pytest.approx(np.std(means, ddof=1))
    assert "no semantic IDs" in measured["none"]["reason"]
    embedding.write(folder, rows)
    page = page_of(folder, data_path=data)
    assert json.loads((folder / embedding.FILE).read_text()) == measured
    assert f"{distance['mean']:.4f}".replace("0.", ".", 1) in str(page.tables[0])
    assert "item vectors of none: none-0/seed-1 keeps no D.quantizer.safetensors" in page.words["missing"]
    assert (folder / "embeddings.png").exists()
    assert embedding.table(measured).splitlines()[2].startswith("| dynamic |")
