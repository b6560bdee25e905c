"""Draw plots as PNG, one for light and one for dark pages, in colours that colour-blind eyes can tell apart.

Colours after Okabe and Ito, "Color Universal Design" (2008); series also differ in their markers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_qbert.experiments.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvPX"
DASHES = ("-", "--", ":", "-.")
NARROW, WIDE = (6.0, 3.6), (9.0, 4.2)  # inches; a narrow one stands beside another on a wide screen
RESOLUTION = 144  # dots an inch
COLOURS = 128


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page."""

    surface: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#d0d7de", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6e7781"))
DARK = Theme("#161b22", "#e6edf3", "#3d444d", ("#5aa9e6", "#ff8a4c", "#2dc79a", "#e3a0cb", "#f0b429", "#8fd3f4", "#9aa4ae"))


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        name: of the PNG file, without its ending.
        caption: what it shows and how to read it.
        light: PNG.
        dark: PNG.
        wide: fills the width of a page; others stand side by side.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes
    wide: bool


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: it is not; says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a report's plots take matplotlib: pip install 'recbole-qbert[report]'") from error


def draw(name: str, caption: str, paint: Callable[[Figure, Theme], None], size: tuple[float, float] = NARROW) -> Plot:
    """Paint a figure for light and for dark pages.

    Args:
        name: of the PNG file.
        caption: what it shows.
        paint: draws into a figure with a theme.
        size: inches.
    """
    light, dark = (_png(paint, theme, size) for theme in (LIGHT, DARK))
    return Plot(name, caption, light, dark, size[0] > NARROW[0])


def _png(paint: Callable[[Figure, Theme], None], theme: Theme, size: tuple[float, float]) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window system, nothing global

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.4,
        "lines.markersize": 5,
        "text.parse_math": False,  # names of rows are data
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, facecolor=theme.surface, layout="constrained")
        paint(figure, theme)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=RESOLUTION, metadata={"Software": None})
    return _with_palette(stream)


def _with_palette(stream: io.BytesIO) -> bytes:
    """Reduce a picture to 128 colours: a quarter of the bytes, and no difference to the eye."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(stream).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def look(theme: Theme, number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a series, as arguments of ``Axes.plot``."""
    round_ = number // len(theme.series)
    return {
        "color": theme.series[number % len(theme.series)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[round_ % len(DASHES)],
    }


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        axes.figure.legend(loc="outside lower center", ncols=min(entries, 4))


@dataclass(frozen=True)
class Curve:
    """Validation of one run: ``x`` epochs or seconds, ``y`` the metric, ``stage`` which of the run's stages each is of."""

    x: Sequence[float]
    y: Sequence[float]
    stage: Sequence[int]


def learning_curves(name: str, caption: str, curves: Mapping[str, Sequence[Curve]], x_label: str, y_label: str) -> Plot:
    """Draw one line per run: runs of one model alike, earlier stages pale, the best epoch of the last stage marked.

    Args:
        name: of the PNG file.
        caption: what it shows.
        curves: model -> its runs.
        x_label: of the axis.
        y_label: of the axis.
    """

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for number, (row, runs) in enumerate(curves.items()):
            style = look(theme, number)
            for place, run in enumerate(runs):
                x, y, stage = np.array(run.x, float), np.array(run.y, float), np.array(run.stage)
                last = stage == stage.max(initial=0)
                axes.plot(x[~last], y[~last], color=style["color"], linestyle=style["linestyle"], alpha=0.35)
                axes.plot(x[last], y[last], color=style["color"], linestyle=style["linestyle"], alpha=0.8, linewidth=1.1)
                best = np.flatnonzero(last)[np.argmax(y[last])]
                axes.plot(x[best], y[best], label=None if place else row, **{**style, "linestyle": "none"})
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None), xlim=(0, None))
        axes.locator_params("x", integer=True)
        _legend(axes, len(curves))

    return draw(name, caption, paint)


def sweep(
    name: str, caption: str, values: Sequence[float | str], lines: Mapping[str, Sequence[Spread]], x_label: str, y_label: str
) -> Plot:
    """Draw a metric over the values of a setting, with error bars.

    Args:
        name: of the PNG file.
        caption: what it shows.
        values: of the setting.
        lines: evaluation -> a spread per value.
        x_label: of the axis.
        y_label: of the axis.
    """

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        numeric = all(isinstance(value, float) for value in values)
        places = [float(value) for value in values] if numeric else [float(place) for place in range(len(values))]
        for number, (line, spreads) in enumerate(lines.items()):
            axes.errorbar(
                places,
                [spread.mean for spread in spreads],
                yerr=[spread.sd or 0.0 for spread in spreads],
                label=line,
                capsize=3,
                **look(theme, number),
            )
        axes.set_xticks(places, [f"{value:g}" if isinstance(value, float) else value for value in values])
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(y=0.15)
        _legend(axes, len(lines))

    return draw(name, caption, paint)


def seeds(name: str, caption: str, rows: Mapping[str, Mapping[str, Sequence[float]]], x_label: str) -> Plot:
    """Draw a dot per seed and a stroke at the mean.

    Args:
        name: of the PNG file.
        caption: what it shows.
        rows: model -> evaluation -> values.
        x_label: of the axis.
    """
    settings = list(dict.fromkeys(setting for row in rows.values() for setting in row))

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for number, setting in enumerate(settings):
            style = {**look(theme, number), "linestyle": "none"}
            labelled = False
            for place, row in enumerate(rows.values()):
                values = row.get(setting, ())
                if not values:
                    continue
                height = place + (number - (len(settings) - 1) / 2) * 0.28
                axes.plot(values, [height] * len(values), alpha=0.75, label=None if labelled else setting, **style)
                axes.plot([float(np.mean(values))] * 2, [height - 0.14, height + 0.14], color=theme.ink, linewidth=1.4)
                labelled = True
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(xlabel=x_label, ylim=(len(rows) - 0.5, -0.5))
        axes.grid(False, axis="y")
        _legend(axes, len(settings))

    return draw(name, caption, paint, (WIDE[0], 1.3 + 0.42 * len(rows)))


def depth(name: str, caption: str, rows: Mapping[str, Sequence[Sequence[float]]]) -> Plot:
    """Draw the share of items at each fusion depth.

    Args:
        name: of the PNG file.
        caption: what it shows.
        rows: model -> one list of shares per seed.
    """

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        width = 0.8 / len(rows)
        layers = max(len(shares) for runs in rows.values() for shares in runs)
        for number, (row, runs) in enumerate(rows.items()):
            shares = 100 * np.array([[*run, *[0.0] * (layers - len(run))] for run in runs])
            places = np.arange(1, layers + 1) + (number - (len(rows) - 1) / 2) * width
            deviation = shares.std(0, ddof=1) if len(shares) > 1 else None
            look: dict[str, Any] = {"color": theme.series[number % len(theme.series)], "ecolor": theme.ink, "capsize": 3}
            bars = axes.bar(places, shares.mean(0), width * 0.92, yerr=deviation, label=row, **look)
            if len(rows) <= 2:
                axes.bar_label(bars, [_percent(value) for value in shares.mean(0)], padding=2, fontsize=9)
        axes.set_xticks(range(1, layers + 1))
        axes.set(xlabel="layers of fusion that an item went through", ylabel="share of items (%)", ylim=(0, 105))
        axes.grid(False, axis="x")
        _legend(axes, len(rows))

    return draw(name, caption, paint)


def planes(name: str, caption: str, rows: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Draw Figure 6: one panel per model, points of an item joined.

    Args:
        name: of the PNG file.
        caption: what it shows.
        rows: model -> what ``suites.embedding.measure`` returns.
    """

    def paint(figure: Figure, theme: Theme) -> None:
        from matplotlib.collections import LineCollection

        panels = figure.subplots(1, len(rows), squeeze=False)[0]
        kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row["points"]))
        for axes, (row, known) in zip(panels, rows.items(), strict=True):
            points = {kind: _places(places) for kind, places in known["points"].items()}
            if "fused" in points:
                strokes = [
                    pair for kind in points if kind != "fused" for pair in np.stack([points["fused"], points[kind]], 1)
                ]
                axes.add_collection(
                    LineCollection([pair for pair in strokes if np.isfinite(pair).all()], colors=theme.faint, linewidths=0.7)
                )
            for number, (kind, places) in enumerate(reversed(points.items())):  # the fused ones first, and so always blue
                axes.plot(
                    *places.T, **{**look(theme, number), "linestyle": "none", "markersize": 3, "alpha": 0.85}, label=kind
                )
            axes.set(title=row, xlabel=known["axes"][0], ylabel=known["axes"][1])
            axes.set_aspect("equal", adjustable="datalim")
            axes.grid(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds))

    return draw(name, caption, paint, (max(NARROW[0], 4.6 * len(rows)), 4.8))


def _places(points: Sequence[Sequence[float] | None]) -> np.ndarray:
    """``[n, 2]``, NaN where an item has no such vector."""
    return np.array([point or (np.nan, np.nan) for point in points], dtype=float)


def _percent(value: float) -> str:
    return "< 1 %" if 0 < value < 0.5 else f"{value:.0f} %"
