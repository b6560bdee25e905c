"""Write comparisons as Markdown, without times and paths, so that the same trials give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recbole_qbert.experiments.statistics import Paired
from recbole_qbert.experiments.suites.comparison import Comparison, ResultRow
from recbole_qbert.utils.formatting import format_properties, format_share

TITLES = {"plain": "As RecBole evaluates", "history_excluded": "Items of the history left out, for every model"}
OTHER_FEATURES = " \N{DAGGER}"  # behind the name of a row


def markdown(comparison: Comparison, notes: Sequence[tuple[str, bool]], depth: bool) -> list[str]:
    """Write the tables of both evaluations and their footnotes.

    Args:
        comparison: the tables' content.
        notes: ``footnotes`` of it: text, and whether it is a warning.
        depth: add a table of stage 1's layers.

    Returns:
        Lines of Markdown.
    """
    lines: list[str] = []
    for evaluation, title in TITLES.items():
        lines += [f"## {title}", "", *_results(comparison, evaluation), ""]
    if depth:
        lines += ["## Layers of stage 1 that items use", "", *_depth(comparison.rows), ""]
        lines += depth_tests({row.name: row.depth_tests for row in comparison.rows if row.depth_tests})
    return [*lines, *(f"- **{text}**" if warning else f"- {text}" for text, warning in notes)]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def footnotes(comparison: Comparison) -> list[tuple[str, bool]]:
    """Write what a reader must know of the figures, and what is missing.

    Returns:
        Texts, and whether each is a warning; warnings first.
    """
    rows, reference = comparison.rows, comparison.reference
    finished = [row for row in rows if row.figures]
    notes = ["Mean (standard deviation) over seeds; all items ranked, ties against the model."]
    if comparison.overrides:
        notes.append(of_every_row(comparison.overrides))
    notes += [
        f"{OTHER_FEATURES.strip()} {names}: made with the features {how}, not run again yet."
        for how, names in _grouped(finished, lambda row: [row.other_features]).items()
    ]
    notes += [f"{row.spec} keeps its own {format_properties(row.own_settings)}." for row in rows if row.own_settings]
    notes += [f"{row.spec} knows no {', '.join(row.unknown)}." for row in rows if row.unknown]
    notes += [
        f"{row.spec}: with the seeds {_list(row.capped)} all epochs were run that the property epochs allows."
        for row in rows
        if row.capped
    ]
    notes += [
        f"{row.spec}: no prior with the seeds {_list(row.without_prior)}, whose trials are of another version."
        for row in rows
        if row.without_prior
    ]
    if comparison.sources:
        notes.append(f"Pretrained on {', '.join(comparison.sources)}; one vocabulary over these and {comparison.dataset}.")
    if reference:
        notes.append(
            f"{reference} - row: NDCG@10 of the same users; above 0 {reference} is ahead. [95 %] and p "
            "(two-sided, not corrected for the number of rows): bootstrap over users and over the seeds of both; a row with "
            "one seed adds no spread of seeds. n.s.: not significant at .05."
        )
    if comparison.copied or any(row.published for row in rows):
        notes.append("Copied: printed in the paper, not run here; of other features and another machine.")
    notes += _revisions(finished)
    tuned = _grouped(finished, lambda row: [row.tuned])
    notes += [f"Tuned by the command tune, {how}: {names}." for how, names in tuned.items()]
    notes += [] if tuned else ["Tuned by the command tune: none."]
    notes += _validated(finished)
    if earlier := [row for row in finished if row.earlier]:
        tested = f"; tests are against the {reference} of then" if any(row.tests for row in earlier) else ""
        notes.append(f"Of an earlier table, which had more seeds{tested}: {_names(earlier)}.")
        if other := [row for row in earlier if not row.same_settings]:
            notes.append(f"Of these, maybe with other settings than are asked for now: {_names(other)}.")
    warnings = []
    for what in ("items", "users"):
        if len({getattr(row, what) for row in finished}) > 1:
            each = ", ".join(f"{row.name} {getattr(row, what)}" for row in finished)
            warnings.append(f"Not the same {what} for all rows, which are not comparable: {each}.")
    for row in rows:
        notes += [f"{row.name}: {row.note}"] if row.note else []
        notes += [f"{row.name}: not possible on this data set: {row.impossible}"] if row.impossible else []
        warnings += [f"{row.name}, seed {seed}: failed: {reason}" for seed, reason in row.failed.items()]
        if not (row.figures or row.impossible or row.failed):
            notes.append(f"{row.name}: not run yet.")
    return [*((text, True) for text in warnings), *((text, False) for text in notes)]


def of_every_row(overrides: Mapping[str, object]) -> str:
    """Say which properties the command line gave."""
    return f"Given for every row: {format_properties(overrides)}."


def _results(comparison: Comparison, evaluation: str) -> list[str]:
    metrics, reference = comparison.metrics, comparison.reference
    tested = [f"{reference} - row, NDCG@10 [95 %]", "p"] if reference else []
    table_rows = [["", "seeds", *(name.replace("hit", "HR").replace("ndcg", "NDCG") for name in metrics), *tested]]
    all_figures = [row.figures[evaluation] for row in comparison.rows if row.figures]
    best = {metric: max((figures[metric].mean for figures in all_figures), default=0.0) for metric in metrics}

    def copied(name: str, figures: Mapping[str, float]) -> list[str]:
        shown = [f"*{format_share(figures[metric])}*" if metric in figures else "" for metric in metrics]
        return [f"*{name} (copied)*", "", *shown, *[""] * len(tested)]

    for row in comparison.rows:
        if row.figures:
            spreads = [row.figures[evaluation][metric] for metric in metrics]
            shown = [
                format_share(s.mean) if s.sd is None else f"{format_share(s.mean)} ({format_share(s.sd)})" for s in spreads
            ]
            shown = [f"**{x}**" if s.mean == best[m] else x for m, s, x in zip(metrics, spreads, shown, strict=True)]
            test = _paired(row.tests[evaluation]) if evaluation in row.tests else [""] * len(tested)
            name = row.name + OTHER_FEATURES * bool(row.other_features)
            table_rows.append([name, f"{len(row.seeds)}/{row.planned}", *shown, *test])
        if row.published and evaluation == "plain":
            table_rows.append(copied(row.spec, row.published))
    if evaluation == "plain":
        table_rows += [copied(name, figures) for name, figures in comparison.copied.items()]
    return table(table_rows)


def _paired(test: Paired) -> list[str]:
    p = "< .001" if test.p < 1e-3 else f"{test.p:.3f}".replace("0.", ".", 1)
    return [
        f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]",
        p if test.significant else f"{p} *n.s.*",
    ]


def _depth(rows: Sequence[ResultRow]) -> list[str]:
    depths = {row.name: row.depth for row in rows if row.depth is not None}
    width = max(map(len, depths.values()), default=0)
    table_rows = [["", *map(str, range(1, width + 1)), "mean"]]
    for name, depth in depths.items():
        mean = sum(layers * share for layers, share in enumerate(depth, 1))
        table_rows.append([name, *(f"{share:.1%}" for share in depth), *[""] * (width - len(depth)), f"{mean:.2f}"])
    return table(table_rows)


def depth_tests(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Write the permutation tests of learned depth, mean over seeds, and say where depth per item means nothing.

    Args:
        rows: model -> ``injection.depth.DepthTest`` of each seed, as a mapping.

    Returns:
        Lines of Markdown; none without a test.
    """
    if not rows:
        return []
    head = [
        "loss of held-out items",
        "learned depth",
        "the same, dealt out at random",
        "best common depth",
        "oracle",
        "seeds",
    ]
    table_rows, lines = [head], []
    for name, tests in rows.items():
        of_seeds = [(test["learned"], test["permuted"], test["fixed"][test["common"] - 1], test["oracle"]) for test in tests]
        learned, permuted, common, oracle = (sum(column) / len(tests) for column in zip(*of_seeds, strict=True))
        spread = sum(test["permuted_sd"] for test in tests) / len(tests)
        chance = f"{permuted:.4f} ({spread:.4f})"
        table_rows.append([name, f"{learned:.4f}", chance, f"{common:.4f}", f"{oracle:.4f}", str(len(tests))])
        better, best = (sum(bool(test[key]) for test in tests) for key in ("beats_permuted", "beats_common"))
        if better < len(tests) or best < len(tests):
            lines.append(
                f"- **{name}: depth per item is better than chance with {better} of {len(tests)} seeds, and than one depth "
                f"for all with {best}: where it is not, the distribution of depth says nothing about the items.**"
            )
    return ["## Whether the depth of an item means anything", "", *table(table_rows), "", *lines, *([""] if lines else [])]


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _names(rows: Iterable[ResultRow]) -> str:
    return ", ".join(row.name for row in rows)


def _grouped(rows: Sequence[ResultRow], values: Callable[[ResultRow], Iterable[str]]) -> dict[str, str]:
    """Map each value, in the order of the rows, to the names of the rows that have it; empty values are left out."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        for value in filter(None, values(row)):
            groups.setdefault(value, []).append(row)
    return {value: _names(group) for value, group in groups.items()}


def _validated(rows: Sequence[ResultRow]) -> list[str]:
    """Say which evaluation chose epochs and priors."""
    groups = _grouped(rows, lambda row: [row.validated])
    how = {
        "history_excluded": "with the history left out",
        "plain": "as the model ranks, for it can learn that users do not repeat items",
    }
    each = "; ".join(f"{text}: {groups[name]}" for name, text in how.items() if name in groups)
    return [f"Epochs, trials and priors were chosen on validation, {each}."] if each else []


def _revisions(rows: Sequence[ResultRow]) -> list[str]:
    """Say with which code the trials were run; a trial's key does not tell, and finished trials are not run again."""
    groups = _grouped(rows, lambda row: row.revisions)
    if len(groups) < 2:
        return [f"Revision of the code: {revision}." for revision in groups]
    each = "; ".join(f"{revision} ({names})" for revision, names in groups.items())
    return [f"Revisions of the code, not the same for all trials: {each}."]
