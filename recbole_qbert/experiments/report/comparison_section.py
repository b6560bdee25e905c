"""Section of the comparison, both evaluations: means, spread and tests; what is copied, what failed or is impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_qbert.experiments.report.figures import metric_name
from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.report.html_tables import NOTHING, line, notes, spread, table
from recbole_qbert.experiments.report.suite_reader import SETTINGS, Suite
from recbole_qbert.experiments.statistics import Spread
from recbole_qbert.utils.formatting import format_share

_EXPLAINED = {
    "history_excluded": "Items of a user's history are ranked last, for every model: the fairer setting.",
    "plain": "Items of the history stay in the ranking; a model that has learned not to repeat has an advantage.",
}


def comparison(suite: Suite) -> Html:
    """Make the tables of both evaluations, with legend and footnotes; empty without a ``table.json`` of a comparison."""
    if not suite.rows:
        return Html("")
    tables = [_table(suite, setting) for setting in SETTINGS]
    best = tag("p", "In colour: the best of the rows that were run.", class_="quiet")
    texts = [
        tag("span", text, class_="warn") if warning else join(text) for text, warning in suite.table.get("footnotes", ())
    ]
    return join(*tables, best, notes(texts))


def _table(suite: Suite, setting: str) -> Html:
    content = suite.table
    metrics, reference = list(content["metrics"]), content.get("reference") or ""
    best = {
        metric: max(
            (figures[metric]["mean"] for each in content["rows"] if (figures := each["figures"].get(setting))), default=0.0
        )
        for metric in metrics
    }
    head = ["row", *map(metric_name, metrics), "seeds"]
    if reference:
        head += [f"{reference} - row, NDCG@10", "p"]
    rows = []
    for each in content["rows"]:
        rows.append(_line(each, setting, metrics, best, reference))
        if each["published"] and setting == "plain":  # as the paper evaluates, as far as it says
            rows.append(_copied(each["spec"], each["published"], metrics, bool(reference)))
    copied = content.get("copied", {}) if setting == "plain" else {}
    others = [_copied(name, figures, metrics, bool(reference)) for name, figures in copied.items()]
    caption = join(tag("b", SETTINGS[setting][:1].upper() + SETTINGS[setting][1:]), f". {_EXPLAINED[setting]}")
    return table(caption, head, rows, others)


def _line(each: Mapping[str, Any], setting: str, metrics: list[str], best: Mapping[str, float], reference: str) -> Html:
    columns = len(metrics) + 1 + (2 if reference else 0)
    marks = [
        word
        for word, applies in (
            ("tuned", each["tuned"]),
            ("earlier", each.get("earlier")),
            ("other features", each.get("other_features")),
        )
        if applies
    ]
    name = join(each["name"], *(part for word in marks for part in (" ", tag("span", word, class_="mark"))))
    figures = each["figures"].get(setting)
    if not figures:
        reason = tag("td", _no_result(each), colspan=columns, class_="words")
        return tag("tr", tag("th", name, scope="row"), reason, class_="none")
    seeds = len(each["seeds"])
    cells: list[object] = [spread(Spread(**figures[m]), best=figures[m]["mean"] == best[m]) for m in metrics]
    cells.append(str(seeds) if seeds == each["planned"] else tag("span", f"{seeds} of {each['planned']}", class_="warn"))
    if reference:
        cells += _test(each["tests"].get(setting), each["name"] == reference)
    return line(name, cells, "reference" if each["name"] == reference else None)


def _test(test: Mapping[str, Any] | None, itself: bool) -> list[object]:
    if test is None:
        return ["" if itself else NOTHING] * 2
    difference, low, high = (f"{test[key]:+.4f}".replace("0.", ".", 1) for key in ("difference", "low", "high"))
    p = "< .001" if test["p"] < 0.001 else f"{test['p']:.3f}".replace("0.", ".", 1)
    mark = "" if test["significant"] else tag("span", "n.s.", class_="mark")
    return [join(difference, " ", tag("small", f"[{low}, {high}]")), join(mark, " ", p)]


def _no_result(each: Mapping[str, Any]) -> str:
    """Say why a row has no result; details are in the footnotes."""
    return "not possible on this data set" if each["impossible"] else "failed" if each["failed"] else "not run yet"


def _copied(name: str, figures: Mapping[str, float], metrics: list[str], tested: bool) -> Html:
    cells = [format_share(figures[metric]) if metric in figures else NOTHING for metric in metrics]
    mark = tag("td", tag("span", "copied from the paper", class_="mark"), colspan=3 if tested else 1, class_="words")
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells), mark, class_="copied")
