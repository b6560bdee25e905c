"""Put sections into one HTML page that loads nothing from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from recbole_qbert.experiments.report.html import Html, tag
from recbole_qbert.experiments.report.plots import Plot

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Section:
    """Part of the page; ``anchor`` is its id, ``short`` its name in the menu."""

    anchor: str
    short: str
    title: str
    content: Html


def document(title: str, subtitle: object, sections: Sequence[Section], foot: object, style: str = "") -> str:
    """Fill the template ``page.html``; styles, scripts and pictures are inside the page.

    Args:
        title: of the page.
        subtitle: under it.
        sections: in order.
        foot: the last line.
        style: CSS rules besides those of ``page.css``.
    """
    css, script, template = ((_HERE / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself then refuses whatever is not in this file: other addresses, and scripts that data brought along.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True).from_string(template)
    return page.render(
        title=title, subtitle=subtitle, sections=sections, foot=foot, policy=policy, css=css, style=style, script=script
    )


def gallery(plots: Sequence[Plot], *beside: Html) -> Html:
    """Show plots with their captions, each in the colours of the page, and other elements beside them."""
    figures = []
    for plot in plots:
        light, dark = ("data:image/png;base64," + base64.b64encode(png).decode() for png in (plot.light, plot.dark))
        picture = tag(
            "picture",
            tag("source", media="(prefers-color-scheme: dark)", srcset=dark),
            tag("img", src=light, alt=plot.caption),
        )
        figures.append(tag("figure", picture, tag("figcaption", plot.caption), class_="broad" if plot.wide else None))
    return tag("div", *figures, *beside, class_="plots") if figures else Html("")
