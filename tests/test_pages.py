"""What the README and docs/ say is true: their Python blocks run, and their numbers are somewhere measured."""

from __future__ import annotations

import re
from pathlib import Path

import blocks
import pytest
import yaml
from blocks import SHORTER, Output, run_page

import ppl_vae

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted(DOCS.glob("*.md"))
        if page.read_text().startswith("---\nrun: true\n---\n")
    ),
]
FENCED = re.compile(r"^```(\w*)[^\n]*\n.*?^```$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow(
    only=(
        "docs/classification_accuracy.md",
        "docs/which_number.md",
        "docs/autoencoders.md",
        "docs/codes.md",
        "docs/collapse.md",
        "docs/colorization.md",
        "docs/start.md",
        "docs/swap_a_guide.md",
    )
)
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    shown: list[Output] = []
    code = blocks.read(page)
    run_page(code, tiny=True, show=lambda _, output: shown.append(output))
    assert len(shown) == len(code) > 0
    assert any(output.text for output in shown)


def test_the_pages_that_teach_are_run() -> None:
    taught = ["start", "own_pair", "swap_a_guide", "which_number", "em_to_vae", "coming_from"]
    taught += ["conditional", "semi_supervised", "collapse"]
    assert {f"docs/{page}.md" for page in taught} | {"README.md"} <= set(map(name, PAGES))


def test_every_block_of_the_readme_is_run() -> None:
    readme = (ROOT / "README.md").read_text()
    kinds = [match[1] for match in FENCED.finditer(readme)]
    assert set(kinds) == {"sh", "text", "python"}
    assert kinds.count("python") == len(blocks.python_blocks(readme)) >= 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import ppl_vae; ppl_vae.fit_all", "AttributeError"),
        ("import warnings; warnings.warn('old', DeprecationWarning)", "DeprecationWarning: old"),
    ],
)
def test_a_block_that_fails_is_named(code: str, told: str) -> None:
    with pytest.raises(RuntimeError, match=told) as error:
        run_page(["x = 1", code], tiny=False, show=lambda *_: None)
    assert code in str(error.value)


def test_a_block_is_shown_as_in_a_notebook() -> None:
    shown: list[str] = []
    code = ["x = 3", "print('a')\nx", "import warnings\nwarnings.warn('careful')"]
    run_page(code, tiny=False, show=lambda _, output: shown.append(output.text))
    assert shown == ["", "a\n3", "UserWarning: careful"]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in SHORTER])
def test_every_tiny_setting_is_used(pattern: str) -> None:
    assert any(re.search(pattern, code) for page in PAGES for code in blocks.read(page))


# -- what the pages say ----------------------------------------------------------------------------------


def test_the_readme_and_ci_run_the_same_tests() -> None:
    command = "pip install '.[test]' && pytest -n auto --dist loadfile"
    assert f"\n{command} " in (ROOT / "README.md").read_text()
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_numbers_on_speed_were_measured() -> None:
    sources = [
        ROOT / "analyses/benchmarks/README.md",
        *(DOCS / f"{n}.md" for n in ("em", "capture", "truth")),
    ]
    measured = set(re.findall(r"\d+\.\d+", "".join(source.read_text() for source in sources)))
    said = set(re.findall(r"\d+\.\d+", (DOCS / "speed.md").read_text()))
    assert len(said) > 20
    assert said <= measured


def test_what_is_said_of_the_cost_of_live_kls_was_measured() -> None:
    measured = (ROOT / "analyses/benchmarks/README.md").read_text().partition("of each epoch\n")[2]
    page = (DOCS / "collapse.md").read_text()
    section = page.partition("## As it happens")[2].partition("## ")[0]
    said = set(re.findall(r"(\d+\.\d+) %", section))
    shares = re.findall(r"(\d+\.\d+)%", measured)
    assert len(said) == 8
    assert said <= set(shares)
    assert max(map(float, shares)) < 2


def test_every_script_is_in_the_gallery() -> None:
    gallery = (DOCS / "gallery.md").read_text()
    scripts = [s for s in (ROOT / "analyses").glob("*.py") if "__main__" in s.read_text()]
    assert len(scripts) > 5
    for script in scripts:
        assert f"python analyses/{script.name}" in gallery


def test_pictures_in_the_repository_are_few_and_small_and_can_be_made_again() -> None:
    pictures = sorted((DOCS / "images").iterdir())
    assert len(pictures) <= 26
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        # The command stands under the same heading.
        sections = [
            part
            for page in pages
            for part in re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)
        ]
        shown = [part for part in sections if f"images/{picture.name})" in part]
        assert shown, f"no page shows {picture.name}"
        assert any(re.search(r"^(python|ppl-vae) \S+", part, re.MULTILINE) for part in shown), (
            picture.name
        )


def test_links_between_files_lead_somewhere() -> None:
    """Sphinx looks at those of the site; this also sees the README, as a reader of the repository does."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        text = FENCED.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {
        "cff-version",
        "message",
        "title",
        "authors",
    } <= citation.keys()  # what its schema asks for
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == ppl_vae.__version__
    assert f"version = {{{ppl_vae.__version__}}}" in (DOCS / "cite.md").read_text()
    assert citation["license"] == "Apache-2.0"
