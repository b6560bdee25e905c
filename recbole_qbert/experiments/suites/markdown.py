"""Comparisons as Markdown; no times and no paths in it, so that the same cells give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from recbole_qbert.experiments.statistics import Paired
from recbole_qbert.experiments.suites.comparison import Comparison, ResultRow
from recbole_qbert.utils.formatting import format_properties, format_share

TITLES = {"plain": "As RecBole evaluates", "history_excluded": "Items of the history left out, for every model"}


def markdown(comparison: Comparison, said: Sequence[tuple[str, bool]], depth: bool) -> list[str]:
    """Lines of both settings' tables and of what is ``said`` of them (``remarks``); ``depth``: also of stage 1's layers."""
    lines: list[str] = []
    for setting, title in TITLES.items():
        lines += [f"## {title}", "", *_figures(comparison, setting), ""]
    if depth:
        lines += ["## Layers of stage 1 that items use", "", *_depth(comparison.lines), ""]
    return [*lines, *(f"- **{text}**" if grave else f"- {text}" for text, grave in said)]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def _figures(comparison: Comparison, setting: str) -> list[str]:
    metrics, tested = comparison.metrics, [f"{comparison.against} - row, NDCG@10 [95 %]", "p"] if comparison.against else []
    rows = [["", "seeds", *(name.replace("hit", "HR").replace("ndcg", "NDCG") for name in metrics), *tested]]
    known = [line.figures[setting] for line in comparison.lines if line.figures]
    best = {metric: max((figures[metric].mean for figures in known), default=0.0) for metric in metrics}

    def copied(name: str, figures: Mapping[str, float]) -> list[str]:
        shown = [f"*{format_share(figures[metric])}*" if metric in figures else "" for metric in metrics]
        return [f"*{name} (copied)*", "", *shown, *[""] * len(tested)]

    for line in comparison.lines:
        if line.figures:
            spreads = [line.figures[setting][metric] for metric in metrics]
            shown = [
                format_share(s.mean) if s.sd is None else f"{format_share(s.mean)} ({format_share(s.sd)})" for s in spreads
            ]
            shown = [f"**{x}**" if s.mean == best[m] else x for m, s, x in zip(metrics, spreads, shown, strict=True)]
            paired = _paired(line.tests[setting]) if setting in line.tests else [""] * len(tested)
            rows.append([line.name, f"{len(line.seeds)}/{line.asked}", *shown, *paired])
        if line.published and setting == "plain":
            rows.append(copied(line.row, line.published))
    if setting == "plain":
        rows += [copied(name, figures) for name, figures in comparison.copied.items()]
    return table(rows)


def _paired(paired: Paired) -> list[str]:
    p = "< .001" if paired.p < 1e-3 else f"{paired.p:.3f}".replace("0.", ".", 1)
    return [
        f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]",
        p if paired.significant else f"{p} *n.s.*",
    ]


def _depth(lines: Sequence[ResultRow]) -> list[str]:
    known = {line.name: line.depth for line in lines if line.depth is not None}
    width = max(map(len, known.values()), default=0)
    rows = [["", *map(str, range(1, width + 1)), "mean"]]
    for name, depth in known.items():
        mean = sum(layers * part for layers, part in enumerate(depth, 1))
        rows.append([name, *(f"{part:.1%}" for part in depth), *[""] * (width - len(depth)), f"{mean:.2f}"])
    return table(rows)


def footnotes(comparison: Comparison) -> list[tuple[str, bool]]:
    """What a reader must know of the figures, and what is missing: text, and whether it is grave."""
    notes = ["Mean (standard deviation) over seeds; all items ranked, ties against the model."]
    known = [line for line in comparison.lines if line.figures]
    if comparison.given:
        notes.append(of_every_row(comparison.given))
    notes += [f"{line.row} keeps its own {format_properties(line.kept)}." for line in comparison.lines if line.kept]
    notes += [f"{line.row} knows no {', '.join(line.unknown)}." for line in comparison.lines if line.unknown]
    notes += [
        f"{line.row}: with the seeds {_list(line.capped)} all epochs were run that the property epochs allows."
        for line in comparison.lines
        if line.capped
    ]
    notes += [
        f"{line.row}: no prior with the seeds {_list(line.without_prior)}, whose cells are of another version."
        for line in comparison.lines
        if line.without_prior
    ]
    if comparison.sources:
        notes.append(f"Pretrained on {', '.join(comparison.sources)}; one vocabulary over these and {comparison.dataset}.")
    if comparison.against:
        notes.append(
            f"{comparison.against} - row: NDCG@10 of the same users; above 0 {comparison.against} is ahead. [95 %] and p "
            "(two-sided, not corrected for the number of rows): bootstrap over users and over the seeds of both; a row with "
            "one seed adds no spread of seeds. n.s.: not significant at .05."
        )
    if comparison.copied or any(line.published for line in comparison.lines):
        notes.append("Copied: printed in the paper, not run here; of other features and another machine.")
    notes += _revisions(known)
    notes += _tuned(known)
    notes += _validated(known)
    if before := [line for line in known if line.earlier]:
        tested = f"; tests are against the {comparison.against} of then" if any(line.tests for line in before) else ""
        notes.append(f"Of an earlier table, which had more seeds{tested}: {_names(before)}.")
        if other := [line for line in before if not line.as_asked]:
            notes.append(f"Of these, maybe with other settings than are asked for now: {_names(other)}.")
    graves = []
    for what in ("items", "users"):
        if len({getattr(line, what) for line in known}) > 1:
            each = ", ".join(f"{line.name} {getattr(line, what)}" for line in known)
            graves.append(f"Not the same {what} for all rows, which are not comparable: {each}.")
    for line in comparison.lines:
        notes += [f"{line.name}: {line.note}"] if line.note else []
        notes += [f"{line.name}: not possible on this data set: {line.impossible}"] if line.impossible else []
        graves += [f"{line.name}, seed {seed}: failed: {reason}" for seed, reason in line.failed.items()]
        if not (line.figures or line.impossible or line.failed):
            notes.append(f"{line.name}: not run yet.")
    return [*((text, True) for text in graves), *((text, False) for text in notes)]


def of_every_row(given: Mapping[str, object]) -> str:
    """Which properties the command line gave."""
    return f"Given for every row: {format_properties(given)}."


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _names(lines: Iterable[ResultRow]) -> str:
    return ", ".join(line.name for line in lines)


def _tuned(lines: Sequence[ResultRow]) -> list[str]:
    """How many trials the command ``tune`` had for which rows."""
    rows: dict[str, list[ResultRow]] = {}
    for line in lines:
        if line.tuned:
            rows.setdefault(line.tuned, []).append(line)
    if not rows:
        return ["Tuned by the command tune: none."]
    return [f"Tuned by the command tune, {how}: {_names(some)}." for how, some in rows.items()]


def _validated(lines: Sequence[ResultRow]) -> list[str]:
    """By which evaluation epochs and priors were chosen."""
    rows = {way: [line for line in lines if line.validated == way] for way in TITLES}
    how = {
        "history_excluded": "with the history left out",
        "plain": "as the model ranks, for it can learn that users do not repeat items",
    }
    each = "; ".join(f"{text}: {_names(rows[way])}" for way, text in how.items() if rows[way])
    return [f"Epochs, trials and priors were chosen on validation, {each}."] if each else []


def _revisions(lines: Sequence[ResultRow]) -> list[str]:
    """With which code the cells were run: a cell's folder does not tell, and results that are there are not run again."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        for revision in line.revisions:
            rows.setdefault(revision, []).append(line.name)
    if len(rows) < 2:
        return [f"Revision of the code: {revision}." for revision in rows]
    each = "; ".join(f"{revision} ({', '.join(names)})" for revision, names in rows.items())
    return [f"Revisions of the code, not the same for all cells: {each}."]
