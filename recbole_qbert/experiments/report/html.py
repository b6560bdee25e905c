"""Markup that cannot be broken by data: whatever is not ``Html`` is escaped."""

from __future__ import annotations

import html
from typing import Any

_VOID = frozenset(("img", "input", "link", "meta", "source"))  # have no end


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: Any) -> Html:
    """One element.

    Args:
        name: of the element.
        children: ``Html`` as it is, everything else as escaped text.
        attributes: escaped; ``class_`` for class, ``data_x`` for data-x; ``True`` for one without a value, ``False`` and
            ``None`` for one that is left out.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    opened = f"<{name}{''.join(written)}>"
    return Html(opened if name in _VOID else f"{opened}{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Pieces one behind the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children))
