"""Markdown tables of the benchmarks' JSON files, put into the documents that show them.

    python benchmarks/readme_tables.py            # rewrite the tables of README.md and docs/*.md
    python benchmarks/readme_tables.py --check    # change nothing; exit code 1 where a document is not what the files give

A table stands between two lines of a document, and all between them is rewritten:

    <!-- table: ranking codes=4 tables=flat -->
    <!-- end -->

First comes the kind: training, steps, ranking, preparation or model_cost. `file=NAME` takes docs/results/NAME.json instead
of that of the kind's name; every other `key=value` keeps the rows with that value only, `key=a|b` those with one of several;
spaces in values are written as `_`. `quality file=NAME|NAME` puts the table.json files of suites, a data set each, side by
side. Figures come from nowhere else: wrong ones are mended by running the benchmark again.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from recbole_qbert.experiments.suites import suite_spec
from recbole_qbert.utils.formatting import format_share
from recbole_qbert.utils.io import atomic_write
from recbole_qbert.utils.spelling import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
FIRST = "QBERT4Rec both"  # of our rows of training times, what the others are compared with if it is there
QUALITY = "quality"
Row = dict[str, Any]

COST_NOTE = (
    "Operations of one user with a full history: a multiplication and an addition are two, attention is counted, "
    "element-wise work is not; in training RecBole's models read every prefix as a row of its own. Milliseconds: the ten "
    "best items of the catalog. As published: copied from the paper, whose FLOPs do not count attention."
)

_OPEN = re.compile(r"<!--\s*table:\s*(.*?)\s*-->")
_CLOSE = re.compile(r"<!--\s*end\s*-->")
_FENCE = re.compile(r"\s*(```|~~~)")


@dataclass(frozen=True)
class Marker:
    """Where a table stands in a document.

    Attributes:
        text: what is asked for, as written: ``ranking codes=4``.
        first: number of the line after the opening one, from 0.
        last: number of the closing line, from 0.
    """

    text: str
    first: int
    last: int


def markers(lines: Sequence[str], name: str) -> list[Marker]:
    """Tables of a document; lines in fenced code do not count.

    Raises:
        ValueError: an opening line without a closing one, or the reverse; names document and line.
    """
    found: list[Marker] = []
    opened: tuple[str, int] | None = None
    fenced = False
    for number, line in enumerate(lines):
        if opened is None and _FENCE.match(line):
            fenced = not fenced
        if fenced:
            continue
        if start := _OPEN.fullmatch(line.strip()):
            if opened:
                break
            opened = start[1], number
        elif _CLOSE.fullmatch(line.strip()):
            if not opened:
                raise ValueError(f"{name}:{number + 1}: <!-- end --> without <!-- table: … --> before it")
            found.append(Marker(opened[0], opened[1] + 1, number))
            opened = None
    if opened:
        raise ValueError(f"{name}:{opened[1] + 1}: table {opened[0]!r} has no line <!-- end --> after it")
    return found


def table(text: str, results: Path) -> list[str]:
    """Lines of the table that a marker asks for.

    Args:
        text: ``<kind> [file=NAME] [key=value …]``.
        results: folder of the JSON files.

    Raises:
        FileNotFoundError: the JSON file is missing.
        ValueError: unknown kind, no such rows, or a file of another benchmark.
    """
    kind, *options = text.split() or [""]
    if kind not in (kinds := (*TABLES, QUALITY)):
        raise ValueError(f"table {text!r}: {kind!r} is none of {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    asked = dict(option.partition("=")[::2] for option in options)
    paths = [results / f"{name}.json" for name in asked.pop("file", kind).split("|")]
    for path in paths:
        if not path.exists():
            command = (
                "run_recbole_qbert.py benchmark --suite …" if kind == QUALITY else f"benchmarks/{kind}.py … --json {path}"
            )
            raise FileNotFoundError(f"table {text!r}: {path} is missing; write it with: python {command}")
    try:
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if kind == QUALITY:
            return quality(reports)
        (report,) = reports
        rows = [row for row in report["rows"] if all(_fits(row, key, value) for key, value in asked.items())]
        if not rows:
            raise ValueError(f"table {text!r}: {path} has no row with {' '.join(options) or 'anything in it'}")
        return [*TABLES[kind](rows, report), "", caption(rows, report)]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        files, author = ", ".join(map(str, paths)), "a suite" if kind == QUALITY else f"benchmarks/{kind}.py"
        raise ValueError(f"table {text!r}: {files} is not what {author} writes ({type(error).__name__}: {error})") from error


def _fits(row: Row, key: str, value: str) -> bool:
    return str(row.get(key)).replace(" ", "_") in value.split("|")


# ---------------------------------------------------------------------------------------------------- the kinds
def training(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A line a model; how many times faster the first of ours is."""
    ours = [row["model"] for row in rows if row["model"].startswith("QBERT4Rec")]
    if not ours:
        raise ValueError("a table of training compares with QBERT4Rec, of which it has no row")
    first = FIRST if FIRST in ours else ours[0]
    trained = [row for row in rows if "seconds_an_epoch" in row]
    on_gpu = any(row["peak_gpu_mb"] for row in trained)

    def times(row: Row, key: str) -> str:
        quotient = report["ratios"].get(f"{key}: {row['model']}/{first}")
        return "" if quotient is None else f"{number(quotient)} x"

    def line(row: Row) -> list[str]:
        cells = [row["model"], number(row["seconds_an_epoch"]), times(row, "seconds_an_epoch")]
        cells += [
            f"{row['valid_ndcg@10']:.4f} in {row['epochs']} epoch{'s' * (row['epochs'] != 1)}",
            times(row, "seconds_to_the_same"),
        ]
        return [*cells, number(row["peak_rss_mb"]), *([number(row["peak_gpu_mb"])] if on_gpu else [])]

    head = ["model", "seconds an epoch", f"{first} is faster by"]
    head += ["best validation NDCG@10", f"{first} is there sooner by"]
    made = [row for row in rows if "seconds_an_epoch" not in row]
    notes = [f"{row['model']}: {number(row['seconds'])} seconds, once, {number(row['peak_rss_mb'])} MB." for row in made]
    lines = aligned([*head, "peak memory MB", *(["GPU memory MB"] if on_gpu else [])], [line(row) for row in trained])
    return [*lines, *(["", *notes] if notes else [])]


def ranking(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A line a question and way; what is the same in all lines is left out of them."""
    keys = ["items", "users", "codes", "tables"]
    different = [key for key in keys if len({row[key] for row in rows}) > 1 or key == "items"]

    def line(row: Row) -> list[str]:
        name = f"dense/{row['way']}, " + ", ".join(f"{key} {row[key]}" for key in keys)
        quotient = 1.0 if row["way"] == "dense" else report["ratios"].get(name)
        at = [f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in different]
        times = "" if quotient is None else number(quotient)
        return [*at, row["way"], number(row["ms_per_user"]), times, number(row["catalogue_mb"])]

    fixed = ", ".join(f"{key}: {rows[0][key]}" for key in keys if key not in different)
    lines = aligned([*different, "way", "ms a user", "times as fast as dense", "catalog MB"], [line(row) for row in rows])
    return [*lines, *(["", f"In all rows {fixed}."] if fixed else [])]


def steps(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A line a configuration and way."""

    def line(row: Row) -> list[str]:
        faster = report["ratios"][f"{row['model']}: torch / {row['way']}"]
        return [
            f"{row['model']}, {row['way']}",
            number(row["ms_a_step"]),
            "" if row["way"] == "torch" else f"{number(faster)} x",
        ]

    return aligned(["configuration, way", "ms of CPU a step", "times as fast as torch's"], [line(row) for row in rows])


def preparation(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A line a version, medians of the rounds, and their quotients."""
    columns = {"MB/s": "mb_per_second", "processor seconds": "cpu_seconds", "peak memory MB": "peak_rss_mb"}
    lines = []
    for version in dict.fromkeys(row["version"] for row in rows):
        own = [row for row in rows if row["version"] == version]
        lines.append([version, *(number(statistics.median(row[key] for row in own)) for key in columns.values())])
    ratios = report["ratios"]
    better = [f"{number(ratios[key])} x" for key in ("throughput", "processor_time", "memory")]
    return aligned(["version", *columns], [*lines, ["convert is better by", *better]])


def model_cost(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A line a model and catalog; latency in one column a batch size."""
    del report
    batches = sorted({row["batch"] for row in rows if "batch" in row})
    if not batches:
        raise ValueError("a table of model_cost has only rows copied from the paper; keep some that were measured")

    def millions(row: Row, key: str) -> str:
        return number(row[key] / 1e6) if row.get(key) is not None else ""

    lines = []
    for key in dict.fromkeys(_of_model(row) for row in rows):
        own = {row.get("batch"): row for row in rows if _of_model(row) == key}
        row = next(iter(own.values()))
        flops = "flops_as_the_paper" if row.get("copied") else "flops_score"
        grows = "" if row.get("copied") else f"{row['parameters_an_item']}"
        latency = [number(own[batch]["ms_a_user"]) if batch in own else "" for batch in batches]
        if row.get("copied"):
            latency = [f"{number(row['ms_a_user'])} (batch not given, {row['device']})", *[""] * (len(batches) - 1)]
        size = f"{row['layers']} x {row['width']}"
        cells = [row["model"], f"{row['items']:,}", size, f"{row['parameters'] / 1e6:.2f}", grows]
        marked = f"{number(row[flops] / 1e6)}{' (50 x parameters)' if row.get('copied') else ''}"
        lines.append([*cells, marked, millions(row, "flops_training_user"), *latency])
    head = ["model", "items", "layers x width", "parameters (M)", "more an item"]
    head += ["MFLOPs, scoring", "MFLOPs, training"]
    head += [f"ms a user, batch {batch}" for batch in batches]
    return [*aligned(head, lines), "", COST_NOTE]


def _of_model(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("model", "items", "layers", "width", "max_length"))


TABLES: dict[str, Callable[[Sequence[Row], Mapping[str, Any]], list[str]]] = {
    "training": training,
    "steps": steps,
    "ranking": ranking,
    "preparation": preparation,
    "model_cost": model_cost,
}


def quality(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Make a row per model: HR@10 and NDCG@10 on each data set, history left out for all; the NDCG@10 that the paper prints.

    A dagger marks figures of other item features than the data set has now.
    """
    head, columns = ["model"], []
    for report in reports:
        rows = {row["name"]: row for row in report["rows"]}
        figures = {
            name: row["figures"]["history_excluded"] | {"outdated": bool(row.get("other_features"))}
            for name, row in rows.items()
            if row["figures"]
        }
        paper = {name: row["published"] for name, row in rows.items() if row["published"]}
        paper |= {suite_spec.current_name(name): printed for name, printed in report["copied"].items()}
        head.append(f"{report['dataset'].removeprefix('Amazon_')} HR@10")
        columns.append({name: of_row["hit@10"] | {"outdated": of_row["outdated"]} for name, of_row in figures.items()})
        head.append("NDCG@10")
        columns.append({name: of_row["ndcg@10"] | {"outdated": of_row["outdated"]} for name, of_row in figures.items()})
        if paper:
            head.append("*paper*")
            columns.append({name: {"paper": printed["ndcg@10"]} for name, printed in paper.items()})
    best = [max((spread["mean"] for spread in column.values() if "mean" in spread), default=None) for column in columns]

    def cell(spread: Mapping[str, float] | None, highest: float | None) -> str:
        if spread is None:
            return ""
        if "paper" in spread:
            return f"*{format_share(spread['paper'])}*"
        text = f"**{format_share(spread['mean'])}**" if spread["mean"] == highest else format_share(spread["mean"])
        text = f"{text} ({format_share(spread['sd'])})" if spread["sd"] is not None else text
        return text + " \N{DAGGER}" * bool(spread["outdated"])

    names: list[str] = []  # in the order of the suite, of which each file may lack some; then those of the paper alone
    for report in reports:
        place = 0
        for name in (row["name"] for row in report["rows"]):
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    shown = dict.fromkeys(name for column in columns for name in column)
    names = [name for name in names if name in shown] + [name for name in shown if name not in names]
    cells = [[name, *(cell(column.get(name), top) for column, top in zip(columns, best, strict=True))] for name in names]
    return aligned(head, cells)


# ----------------------------------------------------------------------------------------------------- writing
def caption(rows: Sequence[Row], report: Mapping[str, Any]) -> str:
    """On what and with what it was measured."""
    machine, settings = report["machine"], report["settings"]
    on_gpu = any(str(row.get("device")).startswith("cuda") for row in rows)
    threads = settings.get("threads", settings.get("cores", machine["torch_threads"]))
    parts = [machine["gpu"] if on_gpu else f"{machine['processor']}, {threads} of {machine['cores']} cores"]
    parts += [f"torch {report['versions']['torch']}"]
    parts += [f"{key} {settings[key]}" for key in ("dataset", "width", "layers", "max_length", "rounds") if key in settings]
    return f"Measured on {'; '.join(parts)}."


def number(value: float) -> str:
    """About three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.{1 if abs(value) >= 10 else 2}f}"
    return f"{value:.3g}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; what follows the first column stands to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in ([*head], rule, *rows)]


def rewritten(path: Path, results: Path) -> Iterator[tuple[Marker, list[str], list[str]]]:
    """Each table of a document: marker, lines as they are, lines as they should be."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    lines = path.read_text(encoding="utf-8").split("\n")
    for marker in markers(lines, str(path)):
        try:
            yield marker, lines[marker.first : marker.last], table(marker.text, results)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{path}:{marker.first}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check; returns the exit code: 1 where a table is not as it should be, 2 where it cannot be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*", help="default: README.md and docs/*.md")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON files")
    parser.add_argument("--check", action="store_true", help="change nothing; say what differs")
    args = parser.parse_args(arguments)
    documents = args.documents or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    try:
        found = {path: list(rewritten(path, args.results)) for path in documents}
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    empty = [str(path) for path, tables in found.items() if not tables and (args.documents or not any(found.values()))]
    if empty:
        print(f"no line <!-- table: … --> in {', '.join(empty)}", file=sys.stderr)
        return 2
    wrong = 0
    for path, tables in found.items():
        lines = path.read_text(encoding="utf-8").split("\n")
        for marker, old, new in reversed(tables):
            if old == new:
                continue
            wrong += 1
            if args.check:
                print(f"{path}:{marker.first}: table {marker.text!r} is not what its file gives:")
                print("\n".join(difflib.unified_diff(old, new, "in the document", "from the file", lineterm="", n=0)))
            lines[marker.first : marker.last] = new
        if not args.check and any(old != new for _, old, new in tables):
            with atomic_write(path) as temporary:
                temporary.write_text("\n".join(lines), encoding="utf-8")
            print(f"{path}: written")
    if args.check and wrong:
        print(f"{wrong} tables differ; python benchmarks/readme_tables.py rewrites them", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
