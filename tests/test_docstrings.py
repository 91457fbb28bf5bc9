"""Docstrings are in one dialect: Google's sections, single backticks, summaries in the third person."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    path
    for folder in ("ppl_vae", "models", "guides", "analyses", "tests", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(above.is_symlink() for above in path.parents)
]
SECTIONS = {"Args", "Attributes", "Example", "Raises", "Returns", "Yields"}
LIKE_SECTIONS = re.compile(
    r"^ *(arg|arguments?|param|parameters?|returns?|raises?|yields?|attributes?|examples?|notes?|see also|"
    r"references?|warnings?|warns|todo)s?:$",
    re.IGNORECASE | re.MULTILINE,
)
IMPERATIVE = re.compile(
    "(Add|Apply|Build|Check|Collect|Combine|Compute|Convert|Copy|Count|Create|Delete|Draw|Ensure|Estimate|"
    "Evaluate|Find|Fit|Format|Generate|Get|Give|Handle|Initialize|Keep|List|Load|Make|Merge|Move|Parse|Plot|Print|"
    "Put|Raise|Read|Remove|Replace|Restore|Return|Run|Save|Select|Set|Show|Split|Start|Store|Take|Test|Train|Turn|"
    "Update|Use|Validate|Write|Yield)"
)


def problems(docstring: str) -> list[str]:
    """What is not in the dialect."""
    found = []
    first = docstring.split()[0].rstrip(",:") if docstring.split() else ""
    if IMPERATIVE.fullmatch(first):
        found.append(f"the summary says '{first}': describe in the third person")
    if first in ("Returns", "Yields"):
        found.append(f"the summary says '{first}': name what it is, as 'The mean over rows.'")
    if not re.search(r"[.:?!]$", docstring.strip().split("\n\n")[0]):
        found.append("the summary is no sentence")
    if re.search(r'"\n *"', docstring):
        found.append("quotes of two strings amid the text")
    if "``" in docstring.replace("```", ""):
        found.append("double backticks")
    if re.search(r":\w+:`|^ *:(param|returns?|raises)\b", docstring, re.MULTILINE):
        found.append("markup of Sphinx")
    for match in LIKE_SECTIONS.finditer(docstring):
        if match[0].strip(" :") not in SECTIONS:
            found.append(f"a section '{match[0].strip()}'")
    return found


FOLDERS = sorted({file.parent for file in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_are_in_one_dialect(folder: Path) -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    told = []
    for file in (file for file in FILES if file.parent == folder):
        for node in ast.walk(ast.parse(file.read_text())):
            docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
            if docstring is not None and problems(docstring):
                name = getattr(node, "name", "the module")
                told.append(f"{file.relative_to(ROOT)}, {name}: {problems(docstring)}")
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("docstring", "told"),
    [
        ("Compute the mean.", "third person"),
        ("Returns the mean.", "name what it is"),
        ("The mean", "no sentence"),
        ("The mean of ``x``.", "double backticks"),
        ('The mean of "\n    "x.', "quotes of two strings"),
        ("The mean of :class:`X`.", "Sphinx"),
        ("The mean.\n\n    :param x: Rows.", "Sphinx"),
        ("The mean.\n\nParameters:\n    x: Rows.", "section 'Parameters:'"),
        ("The mean.\n\nargs:\n    x: Rows.", "section 'args:'"),
    ],
)
def test_another_dialect_is_found(docstring: str, told: str) -> None:
    assert told in "; ".join(problems(docstring))


def test_the_dialect_itself_is_accepted() -> None:
    assert not problems("The mean of `x`.\n\nArgs:\n    x: Rows.\n\nReturns:\n    A number.")
