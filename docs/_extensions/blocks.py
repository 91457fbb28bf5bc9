"""The Python blocks of a Markdown page, run one after the other as a reader would type them.

The site shows what they print and draw, and the tests run them with tiny settings. Fences marked `python` are
run; those marked `py` are only shown: code of other libraries, say.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TINY = "PPL_VAE_DOCS_TINY"
"""The environment variable that makes the site with tiny settings: seconds instead of minutes."""

SHORTER = [
    (r'load_data\("digits"', r'load_data("digits", max_rows=48'),
    (r"\blabels=100\b", "labels=20"),
    (r"\bmax_epochs=[\d_]+", "max_epochs=2"),
    (r"\bmax_iterations=[\d_]+", "max_iterations=3"),
    (r"\bnum_samples=[\d_]+", "num_samples=50"),
    (r"\bnum_steps=(?!1\b)[\d_]+", "num_steps=10"),
    (r"\"num_samples\": [\d_]+", '"num_samples": 50'),
    (r"\"max_steps\": [\d_]+", '"max_steps": 30'),
    (r"\bhidden=\([\d, ]+\)", "hidden=(16,)"),
    (r"\blatent_dim=(?!2\b)\d+", "latent_dim=3"),
    (r"\blongest=120\b", "longest=84"),
    (r"\bcount=400\b", "count=16"),
    (r"UNet\(\([\d, ]+\)\)", "UNet((8, 8))"),
]
"""What is written, as a pattern, and what is run in its place where settings are tiny.

With fewer than 100 samples `evaluate` does not look for better proposals, which would take longer than all
the rest.
"""


@dataclass
class Output:
    """What a block has printed and drawn, in that order."""

    text: str = ""
    pictures: list[bytes] = field(default_factory=list)


def python_blocks(text: str) -> list[str]:
    """The blocks of a page that are run."""
    return FENCE.findall(text)


def shortened(code: str) -> str:
    """The same code with tiny settings."""
    for pattern, replacement in SHORTER:
        code = re.sub(pattern, replacement, code)
    return code


class Reader:
    """Somebody who types the blocks of one page, in a folder of their own.

    Args:
        tiny: Whether settings are made tiny.
    """

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def type(self, code: str) -> Output:
        """Runs a block; the value of its last line is shown, as in a notebook."""
        from matplotlib.figure import Figure

        code = shortened(code) if self.tiny else code
        printed, drawn = io.StringIO(), Output()
        with (
            contextlib.chdir(self._folder.name),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("default")
            warnings.simplefilter("error", DeprecationWarning)  # no page shows what will go
            value = self._run(code)
            if isinstance(value, Figure):
                file = io.BytesIO()
                value.savefig(file, format="png", dpi=110)
                drawn.pictures.append(file.getvalue())
            elif value is not None:
                print(str(value) if hasattr(value, "_repr_html_") else repr(value))
        for warning in warned:
            print(f"{warning.category.__name__}: {warning.message}", file=printed)
        drawn.text = printed.getvalue().replace(self._folder.name, "").rstrip()
        return drawn

    def _run(self, code: str) -> Any:
        tree = ast.parse(code)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            exec(compile(tree, "<page>", "exec"), self.names)
            return None
        tree.body.pop()
        exec(compile(tree, "<page>", "exec"), self.names)
        return eval(compile(ast.Expression(last.value), "<page>", "eval"), self.names)


def fresh() -> None:
    """Makes the next page independent of those before it: random numbers and Pyro's global parameters."""
    import pyro

    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def run_page(code: list[str], tiny: bool, show: Callable[[int, Output], None]) -> None:
    """Runs all blocks of a page.

    Args:
        code: The blocks.
        tiny: Whether settings are made tiny.
        show: Called with the number of each block and what it gave.

    Raises:
        RuntimeError: A block failed; the message has its code.
    """
    fresh()
    with Reader(tiny) as reader:
        for number, block in enumerate(code):
            try:
                output = reader.type(block)
            except Exception as error:
                raise RuntimeError(
                    f"{type(error).__name__}: {error}, in the block\n{block}"
                ) from error
            show(number, output)


def tiny_settings() -> bool:
    """Whether the environment asks for tiny settings."""
    return os.environ.get(TINY, "") not in ("", "0")


def read(page: Path) -> list[str]:
    """The blocks of a file."""
    return python_blocks(page.read_text(encoding="utf-8"))
