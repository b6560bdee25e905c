"""benchmarks/readme_tables.py: documents hold the tables that the benchmarks' files give, and --check says where not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import recbole_qbert  # noqa: F401  sets up RecBole
from benchmarks import facts, ranking, readme_tables, training
from recbole_qbert.experiments.suites import cost

Row = dict[str, Any]


def trained(model: str, epochs: list[float], scores: list[float], memory: float) -> Row:
    """A row as benchmarks/training.py writes it."""
    return {
        "model": model, "epochs": len(epochs), "seconds_an_epoch": sorted(epochs)[len(epochs) // 2],
        "seconds_of_epochs": epochs, "seconds_of_turns": [x + 1 for x in epochs], "valid_of_epochs": scores,
        "valid_ndcg@10": max(scores),
        "device": "cpu", "peak_rss_mb": memory, "peak_gpu_mb": None,
    }  # fmt: skip


TRAINED = [
    {"model": training.IDENTIFIERS, "seconds": 61.04, "peak_rss_mb": 800.2, "peak_gpu_mb": None},
    trained("QBERT4Rec both", [2.0, 4.0, 1.0], [0.01, 0.06, 0.07], 600.0),
    trained("SASRec", [20.0, 36.0, 9.0], [0.02, 0.05, 0.04], 1200.0),
    trained("GRU4Rec", [3.0, 4.0, 1.5], [0.01, 0.02, 0.09], 900.0),
]
SETTINGS = {"dataset": "Toys", "threads": 1, "width": 8}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a file of training times."""
    facts.write(tmp_path / "results" / "training.json", SETTINGS, TRAINED, training.compare(TRAINED[1:]))
    return tmp_path / "results"


def document(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "README.md"
    path.write_text("\n".join(["# title", *lines, "the end", ""]), encoding="utf-8")
    return path


def run(path: Path, results: Path, *options: str) -> int:
    return readme_tables.main([str(path), "--results", str(results), *options])


def test_training_is_compared_with_ours_by_the_files_own_ratios(results: Path) -> None:
    lines = readme_tables.table("training", results)
    assert lines[0] == (
        "| model | seconds an epoch | QBERT4Rec both is faster by | best validation NDCG@10 | "
        "QBERT4Rec both is there sooner by | peak memory MB |"
    )
    assert lines[2:5] == [
        "| QBERT4Rec both | 2.00 |  | 0.0700 in 3 epochs |  | 600 |",
        "| SASRec | 20.0 | 9.00 x | 0.0500 in 3 epochs | 7.25 x | 1,200 |",  # 10, 9, 9 in the turns; 58 / 8 seconds
        "| GRU4Rec | 3.00 | 1.50 x | 0.0900 in 3 epochs |  | 900 |",
    ]
    assert lines[6] == "semantic IDs (stages 1 and 2): 61.0 seconds, once, 800 MB."
    assert lines[-1].startswith("Measured on ") and "1 of " in lines[-1] and "dataset Toys; width 8" in lines[-1]


def test_a_document_is_written_once_and_then_holds(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = document(tmp_path, "<!-- table: training -->", "old", "<!-- end -->", "between", "<!-- table: training -->")
    path.write_text(path.read_text().replace("the end", "<!-- end -->\nthe end"))
    before = path.read_bytes()
    assert run(path, results, "--check") == 1
    said = capsys.readouterr()
    assert "README.md:2: table 'training' is not what its file gives" in said.out and "-old" in said.out
    assert "2 tables differ" in said.err
    assert path.read_bytes() == before
    assert run(path, results) == 0
    lines = path.read_text().split("\n")
    assert "old" not in lines and lines[0] == "# title" and lines[-3:] == ["<!-- end -->", "the end", ""]
    assert lines.count("| SASRec | 20.0 | 9.00 x | 0.0500 in 3 epochs | 7.25 x | 1,200 |") == 2 and "between" in lines
    written = path.read_bytes()
    assert run(path, results, "--check") == 0
    assert run(path, results) == 0 and path.read_bytes() == written


def test_a_figure_changed_by_hand_is_found(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = document(tmp_path, "<!-- table: training -->", "<!-- end -->")
    run(path, results)
    path.write_text(path.read_text().replace("20.0", "40.0"))
    capsys.readouterr()
    assert run(path, results, "--check") == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] in "+-" and line[1] == "|"] == [
        "-| SASRec | 40.0 | 9.00 x | 0.0500 in 3 epochs | 7.25 x | 1,200 |",
        "+| SASRec | 20.0 | 9.00 x | 0.0500 in 3 epochs | 7.25 x | 1,200 |",
    ]


def test_rows_are_chosen_and_files_named(results: Path) -> None:
    (results / "training.json").rename(results / "toys.json")
    lines = readme_tables.table("training file=toys model=QBERT4Rec_both|GRU4Rec", results)
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| QBERT4Rec both", "| GRU4Rec"]
    with pytest.raises(ValueError, match=r"toys\.json.*model=SASREC"):
        readme_tables.table("training file=toys model=SASREC", results)


def test_ranking_as_its_benchmark_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ranking.json"
    options = "--items 40 60 --users 1 2 --codes 4 --tables flat --rounds 1 --k 3 --width 4 --ways chunked merged dense"
    monkeypatch.setattr("sys.argv", ["ranking.py", *options.split(), "--json", str(path)])
    ranking.main()
    report = json.loads(path.read_text())
    lines = readme_tables.table("ranking users=2", tmp_path)
    assert lines[0] == "| items | way | ms a user | times as fast as dense | catalog MB |"
    assert [line.split(" | ")[:2] for line in lines[2:8]] == [
        [f"| {items}", way] for items in (40, 60) for way in ("chunked", "merged", "dense")
    ]
    quotient = report["ratios"]["dense/merged, items 60, users 2, codes 4, tables flat"]
    assert lines[6].split(" | ")[3] == readme_tables.number(quotient)
    assert "In all rows users: 2, codes: 4, tables: flat." in lines
    assert readme_tables.table("ranking", tmp_path)[0].startswith("| items | users | way |")


def test_model_cost_as_its_benchmark_writes_it(tmp_path: Path) -> None:
    sizes = cost.Sizes(30, width=8, inner=8, max_length=5)
    rows, ratios = cost.measure(sizes, ["QBERT4Rec", "SASRec"], batches=[1, 2], rounds=1)
    facts.write(tmp_path / "model_cost.json", {"width": 8}, [*rows, *cost.published()], ratios)
    lines = readme_tables.table("model_cost", tmp_path)
    assert lines[0].endswith("MFLOPs, scoring | MFLOPs, training | ms a user, batch 1 | ms a user, batch 2 |")
    assert len({line.count("|") for line in lines[:7]}) == 1
    ours = [cell.strip() for cell in lines[2].split("|")]
    assert ours[1:4] == ["QBERT4Rec", "30", "2 x 8"] and ours[5] == "8"
    assert ours[6] == readme_tables.number(rows[0]["flops_score"] / 1e6)
    assert ours[9] == readme_tables.number(rows[2]["ms_a_user"])
    assert "3.71 |  | 185 (50 x parameters) |  | 2.66 (batch not given, RTX 4090) |" in lines[4]
    assert readme_tables.COST_NOTE in lines


def test_preparation_takes_medians_of_the_rounds(tmp_path: Path) -> None:
    speeds = {"convert": [100.0, 90.0, 95.0], "pandas": [20.0, 19.0, 30.0]}
    rows = [
        {"version": version, "round": turn, "mb_per_second": speed, "cpu_seconds": 3.0, "peak_rss_mb": 250.0, "seconds": 1.0}
        for version, found in speeds.items()
        for turn, speed in enumerate(found)
    ]
    facts.write(tmp_path / "preparation.json", {"cores": 2}, rows, {"throughput": 4.8, "processor_time": 2.0, "memory": 11})
    lines = readme_tables.table("preparation", tmp_path)
    assert lines[2:5] == [
        "| convert | 95.0 | 3.00 | 250 |",
        "| pandas | 20.0 | 3.00 | 250 |",
        "| convert is better by | 4.80 x | 2.00 x | 11.0 x |",
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["no table"], "no line <!-- table: … --> in"),
        (["```", "<!-- table: training -->", "```"], "no line <!-- table: … --> in"),
        (["<!-- table: training -->", "text"], "README.md:2: table 'training' has no line <!-- end --> after it"),
        (["<!-- end -->"], "README.md:2: <!-- end --> without"),
        (["<!-- table: trainign -->", "<!-- end -->"], "README.md:2: table 'trainign': 'trainign' is none of training"),
        (["<!-- table: trainign -->", "<!-- end -->"], "did you mean 'training'?"),
        (["<!-- table: ranking -->", "<!-- end -->"], "ranking.json is missing; write it with: python bench"),
        (["<!-- table: ranking file=training -->", "<!-- end -->"], "is not what benchmarks/ranking.py writes (KeyError:"),
        (["<!-- table: training file=broken -->", "<!-- end -->"], "is not what benchmarks/training.py writes (JSONDecode"),
        (["<!-- table: training model=SASRec -->", "<!-- end -->"], "compares with QBERT4Rec, of which it has no row"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(
    lines: list[str], said: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (results / "broken.json").write_text("{")
    path = document(tmp_path, *lines)
    before = path.read_bytes()
    assert run(path, results) == 2
    assert said in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_missing_document_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "no.md", tmp_path) == 2
    assert "no.md is missing" in capsys.readouterr().err


def test_numbers_have_three_digits() -> None:
    found = [readme_tables.number(value) for value in (12345.6, 100, 99.94, 12.34, 1.239, 0.1239, 0.00012)]
    assert found == ["12,346", "100", "99.9", "12.3", "1.24", "0.124", "0.00012"]


def test_training_tells_its_turns_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """What one model waits for others is not its time, and validation is not its training."""
    clock = iter([10.0, 12.0, 15.0, 100.0, 104.0, 105.0])  # start, trained, turn over; again
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("sys.stdin", iter_lines := _Lines(["go\n", "go\n"]))
    turns = training.Turns()
    turns.wait()
    turns.trained()
    turns.validated(0.3)
    turns.wait()
    turns.trained()
    turns.validated(0.5)
    turns.end()
    turns.end()
    assert turns.training == [2.0, 4.0] and turns.total == [5.0, 5.0] and turns.scores == [0.3, 0.5]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [{"epoch": 0}, {"epoch": 1, "seconds": 2.0, "valid": 0.3}]
    assert not iter_lines.left
    monkeypatch.setattr("sys.stdin", _Lines(["stop\n"]))
    with pytest.raises(training.EnoughError):
        turns.wait()
    with pytest.raises(SystemExit, match="has ended"):
        turns.wait()


class _Lines:
    def __init__(self, left: list[str]) -> None:
        self.left = left

    def readline(self) -> str:
        return self.left.pop(0) if self.left else ""


def test_suites_of_several_data_sets_stand_side_by_side(tmp_path: Path) -> None:
    def line(name: str, ndcg: float | None, sd: float | None = None, published: float | None = None) -> Row:
        spread = {metric: {"mean": ndcg, "sd": sd} for metric in ("hit@10", "ndcg@10")}
        figures = {} if ndcg is None else {"plain": {}, "history_excluded": spread}
        return {"name": name, "figures": figures, "published": {"ndcg@10": published} if published else {}}

    first = [line("SASRec", 0.1, published=0.07), line("FDSA", None), line("ours", 0.2, 0.01)]
    second = [line("Pop", 0.01), line("SASRec", 0.3, 0.02), line("ours", 0.25, 0.01) | {"other_features": "of before"}]
    names_of_the_paper = {"TIGER": {"ndcg@10": 0.095}, "VQ-Rec": {"ndcg@10": 0.089}}
    second.append(line("VQRec", 0.2))
    for name, lines, copied in (("A", first, names_of_the_paper), ("B", second, {})):
        content = {"dataset": f"Amazon_{name}", "rows": lines, "copied": copied}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert readme_tables.table("quality file=A|B", tmp_path) == [
        "| model | A HR@10 | NDCG@10 | *paper* | B HR@10 | NDCG@10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| Pop |  |  |  | .0100 | .0100 |",
        "| SASRec | .1000 | .1000 | *.0700* | **.3000** (.0200) | **.3000** (.0200) |",
        "| ours | **.2000** (.0100) | **.2000** (.0100) |  | .2500 (.0100) † | .2500 (.0100) † |",
        "| VQRec |  |  | *.0890* | .2000 | .2000 |",
        "| TIGER |  |  | *.0950* |  |  |",
    ]
    with pytest.raises(FileNotFoundError, match=r"C\.json"):
        readme_tables.table("quality file=A|C", tmp_path)
    (tmp_path / "C.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"C\.json.*'rows'"):
        readme_tables.table("quality file=C", tmp_path)
