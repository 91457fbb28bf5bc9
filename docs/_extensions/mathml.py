"""Formulas become MathML when the site is built, which browsers show offline and without scripts."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator


def formula(tex: str, display: str) -> str:
    """MathML; the names of functions keep their distance from what follows, as TeX would have it."""
    spaced = re.sub(r"\\(log|exp|max|min)(?=\s)", r"\\\1\\,", tex)
    # It takes relations such as \sim for letters, which stand without space around them.
    return re.sub(r"<mi>(&#x0007E;|;)</mi>", _operator, str(convert(spaced, display=display)))


def _operator(letter: re.Match[str]) -> str:
    return "<mo>;</mo>" if letter[1] == ";" else "<mo>&#x0223C;</mo>"


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def display(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula in a line of its own."""
    number = f"({get_node_equation_number(translator, node)})" if node["number"] else ""
    shown = formula(node.astext(), "block")
    translator.body.append(f'<div class="formula">{shown}<span>{number}</span></div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
