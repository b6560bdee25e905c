"""The page: sections in order, styles, scripts and pictures inside, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.report.plots import Plot

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Section:
    """A part of the page; ``anchor`` is its place in the page's address, ``short`` its name in the menu."""

    anchor: str
    short: str
    title: str
    content: Html


def document(title: str, subtitle: object, sections: Sequence[Section], foot: object, style: str = "") -> Html:
    """The whole file.

    Args:
        title: of the page.
        subtitle: under it.
        sections: in order.
        foot: the last line.
        style: CSS rules besides those of ``page.css``.
    """
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself then refuses whatever is not in this file: other addresses, and scripts that data brought along.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>{(_HERE / 'page.css').read_text(encoding='utf-8')}{style}</style>"),
    )
    menu = [tag("a", section.short, href=f"#{section.anchor}") for section in sections]
    parts = [tag("section", tag("h2", section.title), section.content, id=section.anchor) for section in sections]
    body = join(
        tag("header", tag("h1", title), tag("p", subtitle, class_="quiet")),
        tag("nav", tag("div", *menu)),
        tag("main", *parts),
        tag("footer", tag("p", foot)),
        Html(f"<script>{script}</script>"),
    )
    return join(Html('<!doctype html>\n<html lang="en">'), tag("head", head), tag("body", body), Html("</html>\n"))


def gallery(plots: Sequence[Plot], *beside: Html) -> Html:
    """Plots with their captions, each in the colours of the page, and what stands beside them."""
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
