"""Runs the Python blocks of pages that say `run: true` in their head, and shows what they print and draw."""

from __future__ import annotations

import hashlib
import re
from html import escape
from pathlib import Path
from typing import Any

from blocks import Output, run_page, tiny_settings
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def run_blocks(app: Sphinx, doctree: nodes.document) -> None:
    """Adds the outputs below the blocks of a page."""
    page = app.env.current_document.docname
    if not app.env.metadata[page].get("run"):
        return
    if app.config.pages_to_run and page not in app.config.pages_to_run:
        return
    found = [n for n in doctree.findall(nodes.literal_block) if n.get("language") == "python"]
    pictures = Path(app.outdir) / "_images"
    pictures.mkdir(parents=True, exist_ok=True)
    up = "../" * page.count("/")

    def show(number: int, output: Output) -> None:
        block = found[number]
        shown: list[nodes.Node] = []
        if output.text:
            classes = ["output", "columns"] if has_columns(output.text) else ["output"]
            shown.append(
                nodes.literal_block(output.text, output.text, language="text", classes=classes)
            )
        for picture in output.pictures:
            name = (
                f"{page.replace('/', '-')}-{number}-{hashlib.sha256(picture).hexdigest()[:8]}.png"
            )
            (pictures / name).write_bytes(picture)
            alt = escape(f"The picture that the block above draws: {_last_line(block)}")
            html = f'<img class="drawn" src="{up}_images/{name}" alt="{alt}">'
            shown.append(nodes.raw("", html, format="html"))
        place = block.parent.index(block) + 1
        block.parent[place:place] = shown

    if tiny_settings():
        told = "Built with tiny settings, to test the page: what is printed and drawn here means nothing."
        title = next(doctree.findall(nodes.title))
        title.parent.insert(1, nodes.warning("", nodes.paragraph(told, told)))
    try:
        run_page([block.astext() for block in found], tiny_settings(), show)
    except RuntimeError as error:
        raise ExtensionError(f"{page}: {error}") from error


def has_columns(text: str) -> bool:
    """Whether most lines of a text have three columns or more, which a line break would mix up."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 2 * sum(len(re.findall(r" {2,}", line)) >= 2 for line in lines) > len(lines)


def _last_line(block: nodes.Node) -> str:
    return str(block.astext()).strip().splitlines()[-1].strip()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # All of them, unless some are named: `sphinx -D pages_to_run=start,collapse`.
    app.add_config_value("pages_to_run", [], "env", (list,))
    # Ahead of what collects pictures and titles of a page.
    app.connect("doctree-read", run_blocks, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
