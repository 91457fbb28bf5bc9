"""Long calls in tables may be broken after a bracket or an equals sign, and names stay whole."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def allow_breaks(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Called by Sphinx for each page: marks where a browser may break inline code."""
    if "body" in context:
        context["body"] = re.sub(
            r'(?<=<span class="pre">)[^<]+(?=</span>)',
            lambda code: re.sub(r"([(=])(?=[^)(=])", r"\1<wbr>", code[0]),
            context["body"],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("html-page-context", allow_breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
