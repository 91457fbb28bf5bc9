"""docs/em.md quotes the code as it is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_quoted_lines_are_in_the_files_named() -> None:
    text = (ROOT / "docs" / "em.md").read_text()
    names = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    sources = [(ROOT / name).read_text() for name in names]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        assert any(block in source for source in sources), f"not in the code any more:\n{block}"
