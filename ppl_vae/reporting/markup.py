"""HTML as text. What is not `Markup` is escaped: names, options and messages are the user's or a stranger's."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

from ppl_vae.runtime import printable


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def markup(part: object) -> Markup:
    """A part of a page as HTML.

    Example:
        >>> print(markup("<b>&"), markup(Markup("<b>so</b>")))
        &lt;b&gt;&amp; <b>so</b>
    """
    return part if isinstance(part, Markup) else Markup(html.escape(printable(str(part), "\n\t")))


def joined(parts: Iterable[object]) -> Markup:
    """Several parts, one after the other."""
    return Markup("".join(map(markup, parts)))


def element(tag: str, *parts: object, **attributes: object) -> Markup:
    """An element with parts inside.

    Args:
        tag: Its name.
        parts: What is in it.
        attributes: Its attributes. In their names an underscore at the end is left out, others are hyphens.

    Example:
        >>> print(element("p", "a < b, ", element("b", "so"), class_="x"))
        <p class="x">a &lt; b, <b>so</b></p>
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    told = "".join(f' {name}="{markup(value)}"' for name, value in named.items())
    return Markup(f"<{tag}{told}>{joined(parts)}</{tag}>")


def prose(text: object) -> Markup:
    """A text in which words between backticks are code.

    Example:
        >>> print(prose("type `a < b`"))
        type <code>a &lt; b</code>
    """
    if isinstance(text, Markup):
        return text
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner
        return markup(text)
    return joined(element("code", part) if i % 2 else part for i, part in enumerate(parts))


def paragraph(*parts: object, kind: str = "") -> Markup:
    """A paragraph of prose; `kind` is its class."""
    return element("p", *map(prose, parts), **({"class_": kind} if kind else {}))


def listed(items: Iterable[object]) -> Markup:
    """A list of items; empty if there are none."""
    found = [element("li", prose(item)) for item in items]
    return element("ul", *found) if found else Markup("")


def to_type(command: str) -> Markup:
    """A line to type: one click selects all of it."""
    return element("pre", element("code", command), class_="type", tabindex=0)


def folded(title: str, *parts: object) -> Markup:
    """What is seen when its title is clicked."""
    return element("details", element("summary", title), *parts)


def section(title: str, *parts: object) -> Markup:
    """A part of the page with a heading; empty if there is nothing in it."""
    inside = joined(parts)
    return element("section", element("h2", title), inside) if inside else Markup("")


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    label: str,
    words: Collection[int] = (),
) -> Markup:
    """A table that scrolls in a box of its own if it is too wide; the first cell of each row is its name.

    Args:
        head: The names of the columns.
        rows: The cells.
        label: What the table is of, for readers who do not see it.
        words: The places of columns that hold words, and no numbers.
    """
    kinds = [{"class_": "words"} if i in words else {} for i in range(len(head))]
    named = zip(head, kinds, strict=True)
    above = element("tr", *(element("th", name, scope="col", **kind) for name, kind in named))
    below = []
    for first, *cells in rows:
        told = (element("td", cell, **kind) for cell, kind in zip(cells, kinds[1:], strict=True))
        below.append(element("tr", element("th", first, scope="row"), *told))
    whole = element("table", element("thead", above), element("tbody", *below))
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label)


def explained(rows: Iterable[tuple[object, object, object]], label: str) -> Markup:
    """A table of quantities, each with its value and a sentence; on a narrow page the sentence stands below."""
    below = [
        element(
            "tr",
            element("th", name, scope="row", role="rowheader"),
            element("td", value, role="cell", class_="value"),
            element("td", sentence, role="cell", class_="sentence"),
            role="row",
        )
        for name, value, sentence in rows
    ]
    body = element("tbody", *below, role="rowgroup")
    return element("table", body, class_="explained", role="table", aria_label=label)
