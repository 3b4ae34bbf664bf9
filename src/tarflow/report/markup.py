"""HTML and SVG from one function that escapes whatever is not markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"img", "link", "meta"})  # elements of HTML that have no end


class Markup(str):
    """Text that is HTML or SVG already. `element` escapes every other text."""


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """One element; children and values of attributes are escaped, but for children that are `Markup`.

    Names of attributes are written with underscores for hyphens, and with one at the end where Python reserves the
    word; an attribute that is None is left out.

    >>> element("p", "1 < 2 ", element("b", "really"), class_="note", aria_label=None)
    '<p class="note">1 &lt; 2 <b>really</b></p>'
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(text)}"')
    if name in VOID:
        assert not children, f"<{name}> has no contents"
        return Markup(f"<{' '.join(words)}>")
    return Markup(f"<{' '.join(words)}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Parts in a row, each escaped unless it is `Markup`."""
    return Markup(separator.join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str, *, style: str | None = None) -> Markup:
    """A table whose first column names the rows, in a frame that scrolls where the screen is narrow.

    `style` "numbers" keeps what stands in a cell on one line.
    """
    heads = [element("th", text, scope="col") for text in head]
    body = []
    for row in rows:
        first, *rest = row
        body.append(element("tr", element("th", first, scope="row"), *(element("td", text) for text in rest)))
    parts = [element("caption", caption)]
    if heads:
        parts.append(element("thead", element("tr", *heads)))
    # tabindex: whoever has no mouse must be able to scroll it too
    content = element("table", *parts, element("tbody", *body), class_=style)
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)
