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
    content = suite.table
    if "rows" in content:
        return comparison(suite)
    if "statistics" in content:
        return _statistics(suite, content)
    return _costs(content) if "costs" in content else Html("")


def _statistics(suite: Suite, content: Mapping[str, Any]) -> Html:
    """Make the paper's Table 1."""
    counts = content["statistics"]
    copied = [
        line(copied_name(row), [format_count(other[name]) if name in other else NOTHING for name in counts], "copied")
        for row, other in content["copied"].items()
    ]
    rows = [line(suite.dataset, map(format_count, counts.values()))]
    return table("Data as the models read them.", ("data set", *counts), rows, copied)


def _costs(content: Mapping[str, Any]) -> Html:
    """Make the paper's Table 6."""
    rows = [
        line(
            cost["model"],
            [
                number(cost["parameters"]), _millions(cost["flops_score"]), _millions(cost["flops_training_user"]),
                cost["batch"], number(cost["ms_a_user"], 3),
            ],
        )
        for cost in content["costs"]
    ]  # fmt: skip
    copied = [
        line(
            copied_name(name),
            [number(cost["parameters"]), _millions(cost["flops"]), NOTHING, 1, number(cost["ms"], 2)],
            "copied",
        )
        for name, cost in content["copied"].items()
    ]
    head = ("model", "parameters", "operations a user, scoring", "operations a user, training", "users a batch", "ms a user")
    caption = "Scoring the whole catalog for a history of the full length; the paper's operations are 50 x parameters."
    return table(caption, head, rows, copied)


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f} M"
