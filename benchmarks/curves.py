"""Pictures of how costs grow, from the files that the other benchmarks wrote: log-log, with the exponent of each curve.

    python benchmarks/curves.py --folder docs/results --output docs/results/growth.png

The left panel shows processor seconds against items (an epoch of 1M interactions of `catalog_growth.py`, stages 1 and 2 of
`identifiers.py`), the middle one milliseconds a user against items (`ranking.py`, one user), the right one processor seconds
of loading against interactions (`loading.py`). What has no file is left out. The exponent is the slope of a line through the
points: 0 does not grow, 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from recbole_qbert.experiments.report import plots
from recbole_qbert.utils.io import atomic_write

Row = dict[str, Any]
Points = list[tuple[float, float]]


def main(arguments: list[str] | None = None) -> None:
    """Draw the panels and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"), help="of catalog_growth.json and the others")
    parser.add_argument("--output", type=Path, default=Path("docs/results/growth.png"))
    args = parser.parse_args(arguments)

    def rows(name: str) -> list[Row]:
        path = args.folder / f"{name}.json"
        return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []

    by_items = curves(rows("catalog_growth"), "items", "epoch_seconds", "loss", "an epoch, loss: ")
    by_items |= {"stages 1 and 2": points(rows("identifiers"), "items", "cpu_seconds")}
    one_user = [row for row in rows("ranking_dense") if row["users"] == 1]
    panels = [
        ("items", "processor seconds", by_items),
        ("items", "milliseconds a user", curves(one_user, "items", "ms_per_user", "way")),
        ("interactions", "processor seconds of loading", curves(rows("loading"), "interactions", "cpu_seconds", "way")),
    ]
    panels = [(x, y, {name: curve for name, curve in shown.items() if curve}) for x, y, shown in panels]
    if not (drawn := [panel for panel in panels if panel[2]]):
        parser.error(f"{args.folder} has no catalog_growth.json, identifiers.json, ranking_dense.json or loading.json")
    write(args.output, drawn)


def curves(rows: Sequence[Row], x: str, y: str, name: str, prefix: str = "") -> dict[str, Points]:
    """Group rows into curves by the value of ``name``."""
    keys = dict.fromkeys(row[name] for row in rows)
    return {prefix + key: points((row for row in rows if row[name] == key), x, y) for key in keys}


def points(rows: Iterable[Row], x: str, y: str) -> Points:
    """List the points of a curve, by ascending ``x``."""
    return sorted((float(row[x]), float(row[y])) for row in rows)


def exponent(curve: Points) -> float:
    """Return the slope of a straight line through two points or more, in logarithms of both.

    >>> round(exponent([(1, 1), (10, 100), (100, 10_000)]), 3)
    2.0
    """
    x, y = np.log([place for place, _ in curve]), np.log([value for _, value in curve])
    return float(np.polyfit(x, y, 1)[0])


def write(path: Path, panels: Sequence[tuple[str, str, dict[str, Points]]]) -> None:
    """Draw panels side by side, each ``(x label, y label, curves)``, and write them as PNG."""

    def paint(figure: Any, theme: plots.Theme) -> None:
        for axes, (x, y, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for number, (name, curve) in enumerate(shown.items()):
                label = f"{name} ({exponent(curve):.2f})" if len(curve) > 1 else name
                axes.plot(*zip(*curve, strict=True), label=label, **plots.look(theme, number))
            axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
            for axis in (axes.xaxis, axes.yaxis):  # reports' plots take text as it is, so no powers of ten as formulas
                axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
                axis.set_minor_formatter(lambda *_: "")
            axes.legend(title="(exponent)")

    picture = plots.draw(path.stem, "how costs grow", paint, (4.2 * len(panels), 3.8)).light
    with atomic_write(path) as temporary:
        temporary.write_bytes(picture)


if __name__ == "__main__":
    main()
