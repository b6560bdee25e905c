"""The report's tables: results, cost, tokenizer health, distances of embeddings, and where all of it was run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.statistics import Spread
from recbole_qbert.utils.formatting import format_share

NOTHING = "\N{EN DASH}"


def table(caption: object, head: Sequence[object], rows: Iterable[Html], *more: Iterable[Html]) -> Html:
    """A table that scrolls by itself where a page is narrow; ``more`` are further groups of rows."""
    groups = [tag("tbody", *group) for group in map(list, (rows, *more)) if group]
    first, *others = head
    titles = [tag("th", first, scope="col"), *(tag("th", title, scope="col") for title in others)]
    scrolling = tag("div", tag("table", tag("thead", tag("tr", *titles)), *groups), class_="wide", tabindex="0")
    return tag("figure", tag("figcaption", caption), scrolling, class_="table")


def line(name: object, cells: Iterable[object], class_: str | None = None) -> Html:
    """One row of a table."""
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells), class_=class_)


def spread(known: Spread | None, best: bool = False) -> Html:
    """``.1013 ± .0013``."""
    if known is None:
        return Html(NOTHING)
    mean = tag("b", format_share(known.mean)) if best else format_share(known.mean)
    return join(mean, "" if known.sd is None else tag("small", f" ± {format_share(known.sd)}"))


def number(value: float | None, digits: int = 0) -> str:
    """``1,585`` or ``0.421``; a dash for nothing."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def mean_of(values: Iterable[float | None], digits: int = 0) -> str:
    """Mean of what is there, with the standard deviation where there are several."""
    there = [value for value in values if value is not None]
    known = Spread.of(there) if there else None
    if known is None:
        return NOTHING
    deviation = number(known.sd, digits) if known.sd else "0"
    return number(known.mean, digits) + (f" ± {deviation}" if float(deviation.replace(",", "")) else "")


def facts(known: Mapping[str, Any]) -> Html:
    """A list of names and values; nested mappings in one line each."""
    entries = []
    for name, value in known.items():
        shown = (
            ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
            if isinstance(value, Mapping)
            else value
        )
        entries += [tag("dt", name), tag("dd", NOTHING if shown in (None, "") else shown)]
    return tag("dl", *entries)


def notes(lines: Sequence[object]) -> Html:
    """Lines under a table; nothing for none."""
    return tag("ul", *(tag("li", text) for text in lines), class_="notes") if lines else Html("")


def copied_name(name: str) -> Html:
    """Name of a row that was not run."""
    return join(name, " ", tag("span", "copied from the paper", class_="mark"))
