"""What a notebook shows: HTML without colors of its own, so that it suits light and dark pages."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})


def html_table(rows: Sequence[Sequence[str]], header: bool = False) -> str:
    """An HTML table with a bold first column, and a bold first row if it is a header; empty without rows.

    All texts are escaped: names of sites and files are the user's.

    Example:
        >>> html_table([["a < b", "1"]])
        '<table><tr><th style="text-align:left">a &lt; b</th><td style="text-align:left">1</td></tr></table>'
    """
    if not rows:
        return ""
    shown = []
    for i, row in enumerate(rows):
        kinds = ["th" if j == 0 or (header and i == 0) else "td" for j in range(len(row))]
        cells = zip(kinds, row, strict=True)
        shown.append(
            "<tr>"
            + "".join(
                f'<{kind} style="text-align:left">{html.escape(cell)}</{kind}>'
                for kind, cell in cells
            )
            + "</tr>"
        )
    return f"<table>{''.join(shown)}</table>"


def html_texts(texts: Iterable[str]) -> str:
    """A paragraph for each text, escaped."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)
