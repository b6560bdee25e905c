"""Learning curves as inline SVG: no picture file, no script, and the colors of the page."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_qbert.experiments.report.html import Html, tag

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 34  # room for labels, pixels


def curve_svg(points: Sequence[tuple[float, float]], x_label: str, y_label: str, best: int | None = None) -> Html:
    """Draw one curve.

    Args:
        points: x and y, x ascending; at least one.
        x_label: under the horizontal axis.
        y_label: what the curve shows, for readers of text.
        best: number of the point to mark.
    """
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0)
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    marks = []
    for part in (0.0, 0.5, 1.0):
        value = low + room + part * (high - low - 2 * room)
        height = place(xs[0], value)[1]
        marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{height:.1f}", y2=f"{height:.1f}", class_="grid"))
        marks.append(tag("text", f"{value:.3g}", x=LEFT - 8, y=f"{height + 4:.1f}", text_anchor="end"))
    for x in sorted({xs[0], xs[-1]}):
        marks.append(tag("text", f"{x:g}", x=f"{place(x, low)[0]:.1f}", y=HEIGHT - BOTTOM + 18, text_anchor="middle"))
    marks.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    marks.append(tag("polyline", points=line))
    if best is not None:
        x, y = place(*points[best])
        marks.append(tag("circle", tag("title", f"{y_label} {points[best][1]:.4f}"), cx=f"{x:.1f}", cy=f"{y:.1f}", r=4))
    return tag("svg", *marks, class_="curve", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=y_label)
