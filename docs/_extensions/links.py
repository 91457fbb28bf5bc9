"""Pages that are files of the repository outside of docs/, and links to such files.

A page that consists of the line `<!-- CONTRIBUTING.md -->` has the text of that file. A link to a file that is
such a page leads there; one to a file that is no page (a script) becomes its name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

WHOLE = re.compile(r"\s*<!-- ([\w/.-]+\.md) -->\s*")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def pages_elsewhere(docs: Path) -> dict[Path, str]:
    """The files outside of docs/ that are pages, with the name of the page."""
    found = {}
    for page in sorted(docs.rglob("*.md")):
        whole = WHOLE.fullmatch(page.read_text(encoding="utf-8"))
        if whole:
            found[(docs.parent / whole[1]).resolve()] = page.relative_to(docs).as_posix()
    return found


def with_links(text: str, file: Path, page: str, docs: Path, elsewhere: dict[Path, str]) -> str:
    """The text of a file with links that are right on its page.

    Args:
        text: Markdown.
        file: Where it stands; links are relative to its folder.
        page: The page that shows it, relative to docs/.
        docs: The folder of the documentation.
        elsewhere: What `pages_elsewhere` found.
    """

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (file.parent / target).resolve()
        if path.is_dir() and (path / "README.md") in elsewhere:
            path = path / "README.md"
        name = elsewhere.get(path)
        if name is None and docs in path.parents:
            name = path.relative_to(docs).as_posix()
        if name is None:
            return (
                words
                if words.startswith("`")
                else f"{words} (`{os.path.relpath(path, docs.parent)}`)"
            )
        here = Path(page).parent.as_posix()
        return f"[{words}]({os.path.relpath(name, here)}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Called by Sphinx with the text of each page."""
    docs = Path(app.srcdir).resolve()
    page = f"{name}.md"
    whole = WHOLE.fullmatch(source[0])
    file = docs.parent / whole[1] if whole else docs / page
    text = file.read_text(encoding="utf-8") if whole else source[0]
    source[0] = with_links(text, file, page, docs, pages_elsewhere(docs))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
