"""Elements of the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.statistics import Spread
from recbole_qbert.utils.formatting import format_share

NOTHING = "\N{EN DASH}"


def table(caption: object, head: Sequence[object], rows: Iterable[Html], *more: Iterable[Html]) -> Html:
    """Make a table that scrolls by itself on a narrow page.

    Args:
        caption: above the table.
        head: titles of columns.
        rows: made by ``line``.
        more: further groups of rows.
    """
    groups = [tag("tbody", *group) for group in map(list, (rows, *more)) if group]
    first, *others = head
    titles = [tag("th", first, scope="col"), *(tag("th", title, scope="col") for title in others)]
    scrolling = tag("div", tag("table", tag("thead", tag("tr", *titles)), *groups), class_="wide", tabindex="0")
    return tag("figure", tag("figcaption", caption), scrolling, class_="table")


def line(name: object, cells: Iterable[object], class_: str | None = None) -> Html:
    """Make one row of a table.

    Args:
        name: its head.
        cells: the other cells.
        class_: of the row.
    """
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells), class_=class_)


def spread(value: Spread | None, best: bool = False) -> Html:
    """Write ``.1013 ± .0013``, the mean in bold if it is the best."""
    if value is None:
        return Html(NOTHING)
    mean = tag("b", format_share(value.mean)) if best else format_share(value.mean)
    return join(mean, "" if value.sd is None else tag("small", f" ± {format_share(value.sd)}"))


def number(value: float | None, digits: int = 0) -> str:
    """Write ``1,585`` or ``0.421``; a dash for ``None``."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def mean_of(values: Iterable[float | None], digits: int = 0) -> str:
    """Write the mean of the values that are not ``None``, with the standard deviation if there are several."""
    present = [value for value in values if value is not None]
    if not present:
        return NOTHING
    over_seeds = Spread.of(present)
    deviation = number(over_seeds.sd, digits) if over_seeds.sd else "0"
    return number(over_seeds.mean, digits) + (f" ± {deviation}" if float(deviation.replace(",", "")) else "")


def facts(values: Mapping[str, Any]) -> Html:
    """Make a list of names and values; nested mappings are one line each."""
    entries = []
    for name, value in values.items():
        shown = (
            ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
            if isinstance(value, Mapping)
            else value
        )
        entries += [tag("dt", name), tag("dd", NOTHING if shown in (None, "") else shown)]
    return tag("dl", *entries)


def notes(lines: Sequence[object]) -> Html:
    """Make a list of lines under a table; nothing for none."""
    return tag("ul", *(tag("li", text) for text in lines), class_="notes") if lines else Html("")


def copied_name(name: str) -> Html:
    """Write the name of a row that is copied from the paper."""
    return join(name, " ", tag("span", "copied from the paper", class_="mark"))
