"""Sections of the page besides the results, one function each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.experiments.report import figures
from recbole_qbert.experiments.report import id_explorer as explore
from recbole_qbert.experiments.report.catalog import Catalog
from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.report.html_tables import NOTHING, facts, line, mean_of, spread, table
from recbole_qbert.experiments.report.page import gallery
from recbole_qbert.experiments.report.plots import Plot
from recbole_qbert.experiments.report.suite_reader import FinishedTrial, Suite
from recbole_qbert.experiments.statistics import Spread
from recbole_qbert.experiments.suites.suite_spec import COOCCURRENCE
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.utils.formatting import format_share


def cost(suite: Suite) -> Html:
    """Make the table of cost: mean over seeds."""
    rows = []
    for row, trials in suite.by_row():
        results = [trial.result for trial in trials]
        seconds = [result["seconds"] for result in results]
        epochs = [len(result["curve"]) for result in results]
        each = [spent["training"] / count for spent, count in zip(seconds, epochs, strict=True) if count]
        shown = [
            results[0]["model"],
            len(results),
            mean_of(result["parameters"] for result in results),
            mean_of(epochs),
            mean_of(spent["training"] for spent in seconds),
            mean_of(each, 2),
            mean_of((spent["test"] for spent in seconds), 1),
            mean_of(result["peak_memory_mb"] for result in results),
        ]
        rows.append(line(row, shown))
    if not rows:
        return Html("")
    head = ("row", "model", "seeds", "parameters", "epochs", "training (s)", "an epoch (s)", "test (s)", "peak memory (MB)")
    caption = "Mean ± standard deviation over seeds. Epochs and seconds are of all stages; memory is of the whole process."
    return table(caption, head, rows)


def health(suite: Suite) -> Html:
    """Make the table of tokenizer health; models with the same figures share a row."""
    groups = figures.same_together(
        {row: [one for trial in trials if (one := _code_sets(trial))] for row, trials in suite.by_row()}
    )
    rows = [
        line(name, [tag("b", code_set[0]["code_set"]), *_health(code_set)])
        for name, of_trials in groups.items()
        for code_set in zip(*of_trials, strict=True)
    ]
    if not rows:
        return Html("")
    head = (
        "row", "code set", "items", "distinct IDs", "share their ID", "moved", "variance explained (%)",
        "neighbors kept", "codes in use (%)", "perplexity",
    )  # fmt: skip
    caption = (
        "Before and after reallocation, which gives every item an ID of its own; means over seeds. Variance explained: by "
        "the levels so far. Neighbors kept: share of the ten nearest items that are nearest by the codes, too. Codes in use "
        "and perplexity (how many codes, used evenly, would say as much) are level by level."
    )
    return table(caption, head, rows)


def _health(several: Iterable[Mapping[str, Any]]) -> list[str]:
    figures_of = list(several)

    def level_by_level(key: str, factor: int) -> str:
        return " ".join(
            f"{factor * sum(values) / len(values):.0f}" for values in zip(*(one[key] for one in figures_of), strict=True)
        )

    def mean(key: str, digits: int = 0) -> str:
        return mean_of((one.get(key) for one in figures_of), digits)

    def percent(key: str) -> str:
        return f"{sum(one[key] for one in figures_of) / len(figures_of):.1%}"

    return [
        mean("items"),
        f"{mean('unique_before')} → {mean('unique')}",
        f"{percent('collision_rate_before')} → {percent('collision_rate')}",
        mean("moved"),
        level_by_level("explained_per_level", 100) if all("explained_per_level" in one for one in figures_of) else "",
        mean("neighbors_kept", 3),
        level_by_level("usage_per_level", 100),
        level_by_level("perplexity_per_level", 1),
    ]


def depth(suite: Suite, plots: list[Plot]) -> Html:
    """Show Figure 7 and its numbers."""
    depths = {
        row: [figures.depth_of(trial) for trial in trials if figures.depth_of(trial)] for row, trials in suite.by_row()
    }
    lines = [
        line(row, [_median(runs), mean_of((sum(d * s for d, s in enumerate(run, 1)) for run in runs), 2), len(runs)])
        for row, runs in figures.same_together(depths).items()
    ]
    caption = "Layers of fusion that an item goes through. The paper: most between one and three, median two."
    if not lines:
        return Html("")
    tests = {row: [test for trial in trials if (test := figures.depth_test_of(trial))] for row, trials in suite.by_row()}
    tested = [
        line(
            row,
            [f"{sum(bool(test[key]) for test in of_row)} of {len(of_row)}" for key in ("beats_permuted", "beats_common")],
        )
        for row, of_row in figures.same_together(tests).items()
    ]
    meaning = (
        "Seeds with which depth per item has a lower loss of held-out items than the same depths dealt out at random, and "
        "than one depth for all. Without the first, the distribution above says nothing about the items."
    )
    verdict = table(meaning, ("row", "better than chance", "better than one depth"), tested) if tested else Html("")
    return gallery(plots, table(caption, ("row", "median", "mean", "seeds"), lines), verdict)


def _median(several: list[list[float]]) -> int:
    reached = 0.0
    shares = [sum(column) / len(several) for column in zip(*several, strict=True)]
    for layers, part in enumerate(shares, 1):
        reached += part
        if reached >= 0.5:
            return layers
    return len(shares)


def embeddings(suite: Suite, plots: list[Plot]) -> Html:
    """Show Figure 6 and its distances."""
    measured = {row: values for row, values in suite.embedding.items() if "distances" in values}
    if not measured:
        return Html("")
    pairs = list(dict.fromkeys(pair for values in measured.values() for pair in values["distances"]))
    rows = []
    for row, values in measured.items():
        cells: list[object] = [values["seeds"]]
        for pair in pairs:
            distance = values["distances"].get(pair)
            cells += [NOTHING, NOTHING] if distance is None else [
                spread(Spread(distance["mean"], distance["sd"])), format_share(distance["other_items"])
            ]  # fmt: skip
        rows.append(line(row, cells))
    head = ["row", "seeds", *(title for pair in pairs for title in (pair, "of different items"))]
    caption = (
        "Squared distance of an item's own vectors, scaled to length 1 (0: the same direction, 2: nothing in common), and "
        "of vectors of different items. The paper prints an average MSE of 0.6351 for dynamic and 0.6603 for fixed depth, "
        "but not its formula: not to be compared with these."
    )
    return join(gallery(plots), table(caption, head, rows))


def explorer(suite: Suite, data_path: Path | None) -> tuple[Html, str, list[str]]:
    """Make the semantic-ID explorer of one trial: the first seed of the reference, or of another model with IDs.

    Returns:
        ``(markup, style, what is missing or left out)``; the markup is empty where no trial keeps IDs.
    """
    chosen = _trial_with_ids(suite)
    if chosen is None:
        return Html(""), "", ["semantic-ID explorer: no finished trial keeps a .sid file"] if suite.about["trials"] else []
    trial, path = chosen
    try:
        ids = semantic_ids.load(path)
    except ValueError as error:
        return Html(""), "", [f"semantic-ID explorer: {error}"]
    names = [code_set["code_set"] for code_set in _code_sets(trial)]
    form = AtomicFormat.from_config({**suite.spec.get("shared", {}), **suite.about.get("overrides", {})})
    catalog = Catalog.read(data_path, suite.dataset, ids.items, form)
    made = explore.explorer(ids, names, catalog)
    intro = tag(
        "p",
        "Items whose IDs begin alike, code by code: how many they are, words that their titles share, pictures where there "
        f"are any. IDs of row {trial.row}, seed {trial.seed}; every seed makes its own. Open a code to see its items.",
    )
    return join(intro, made.markup), made.style, [*catalog.missing, *made.notes]


def _trial_with_ids(suite: Suite) -> tuple[FinishedTrial, Path] | None:
    for trial in sorted(suite.trials, key=lambda trial: trial.row != suite.spec["reference"].removesuffix(COOCCURRENCE)):
        path = trial.folder / str(trial.result.get("sid"))
        if path.is_file():
            return trial, path
    return None


def environment(suite: Suite) -> Html:
    """List machine, versions, revision and command, and the revisions and machines of the trials."""
    about = suite.about
    made_by = Counter(
        (str(trial.result.get("revision")), _machine(trial.result.get("machine") or {})) for trial in suite.trials
    )
    values = {
        "command": tag("code", about["command"]) if about.get("command") else NOTHING,
        "table made with revision": about.get("revision"),
        "table made on": _machine(about.get("machine") or {}),
        "versions": about.get("versions") or {},
        **{
            f"{count} trial{'s' * (count > 1)} by revision": f"{revision}, on {machine}"
            for (revision, machine), count in made_by.items()
        },
        "seeds": ", ".join(map(str, dict.fromkeys(trial.seed for trial in suite.trials))),
        "settings of every row": (suite.spec.get("shared") or {}) | about.get("overrides", {}),
    }
    return facts(values)


def _machine(machine: Mapping[str, Any]) -> str:
    """Describe the machine by what stays the same from run to run, without the load."""
    if not machine:
        return NOTHING
    processor, cores, memory, system = (machine.get(key) for key in ("processor", "cores", "memory_gb", "system"))
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{processor}, {cores} cores, {memory} GB{gpu}, {system}"


def _code_sets(trial: FinishedTrial) -> list[Mapping[str, Any]]:
    return ((trial.result.get("identifiers") or {}).get("semantic_ids") or {}).get("code_sets") or []
