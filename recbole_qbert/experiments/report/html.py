"""Build markup that data cannot break: whatever is not ``Html`` is escaped."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup as Html
from markupsafe import escape

__all__ = ["Html", "join", "tag"]

_VOID = frozenset(("img", "input", "link", "meta", "source"))  # elements without an end tag


def tag(name: str, *children: object, **attributes: Any) -> Html:
    """Build one element.

    Args:
        name: of the element.
        children: ``Html`` as it is, everything else as escaped text.
        attributes: escaped; ``class_`` for class, ``data_x`` for data-x; ``True`` for one without a value, ``False`` and
            ``None`` for one that is left out.
    """
    written = ""
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            written += f" {key}" if value is True else f' {key}="{escape(value)}"'
    opened = f"<{name}{written}>"
    return Html(opened if name in _VOID else f"{opened}{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Put pieces one behind the other."""
    return Html("").join(children)  # type: ignore[arg-type]  # it escapes objects of any type
