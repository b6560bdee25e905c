"""Main table of a suite, by its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_qbert.experiments.report.comparison_section import comparison
from recbole_qbert.experiments.report.html import Html
from recbole_qbert.experiments.report.html_tables import NOTHING, copied_name, line, number, table
from recbole_qbert.experiments.report.suite_reader import Suite
from recbole_qbert.utils.formatting import format_count


def own_table(suite: Suite) -> Html:
    """Make the main table; empty where ``table.json`` is missing, and for figure 6, whose numbers are beside its plot."""
    known = suite.table
    if "rows" in known:
        return comparison(suite)
    if "statistics" in known:
        return _statistics(suite, known)
    return _costs(known) if "costs" in known else Html("")


def _statistics(suite: Suite, known: Mapping[str, Any]) -> Html:
    """Make the paper's Table 1."""
    found = known["statistics"]
    copied = [
        line(copied_name(row), [format_count(other[name]) if name in other else NOTHING for name in found], "copied")
        for row, other in known["copied"].items()
    ]
    rows = [line(suite.dataset, map(format_count, found.values()))]
    return table("Data as the models read them.", ("data set", *found), rows, copied)


def _costs(known: Mapping[str, Any]) -> Html:
    """Make the paper's Table 6."""
    rows = [
        line(
            cost["model"],
            [
                number(cost["parameters"]), _millions(cost["flops_score"]), _millions(cost["flops_training_user"]),
                cost["batch"], number(cost["ms_a_user"], 3),
            ],
        )
        for cost in known["costs"]
    ]  # fmt: skip
    copied = [
        line(
            copied_name(name),
            [number(cost["parameters"]), _millions(cost["flops"]), NOTHING, 1, number(cost["ms"], 2)],
            "copied",
        )
        for name, cost in known["copied"].items()
    ]
    head = ("model", "parameters", "operations a user, scoring", "operations a user, training", "users a batch", "ms a user")
    caption = "Scoring the whole catalog for a history of the full length; the paper's operations are 50 x parameters."
    return table(caption, head, rows, copied)


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f} M"
