"""The site is built without warnings, works offline, and is looked at in a browser."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser, browser as browser, faults, in_browser, served

import ppl_vae

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("sphinx", "furo", "myst_parser", "latex2mathml")
MISSING = [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]
SECTION = re.compile(r"\n(?:Args|Attributes|Raises|Returns|Yields|Example):\n")
# These are looked at below; test_pages.py runs the blocks of all pages.
ALONE = ("-D", "pages_to_run=start,collapse,conditional,semi_supervised")
# As `python -m sphinx`, without the search for garbage, which takes a seventh of the time.
BUILD = (
    "import gc, sys; from sphinx.cmd.build import main; gc.disable(); sys.exit(main(sys.argv[1:]))"
)
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with tiny settings."""
    if MISSING:
        pytest.skip(f"{', '.join(MISSING)} not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [
            sys.executable,
            "-c",
            BUILD,
            "-W",
            "--keep-going",
            "-q",
            "-E",
            *ALONE,
            "docs",
            str(folder),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PPL_VAE_DOCS_TINY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.parts: list[str] = []
        self.feed(file.read_text())
        self.text = "".join(self.parts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.loads.append(found.get("src") or "")
        if tag == "link" and found.get("rel") not in (
            "canonical",
            "next",
            "prev",
            "index",
            "search",
        ):
            self.loads.append(found.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for file in pages:
        for address in filter(None, Page(file).loads):
            assert not re.match(r"(\w+:)?//", address), f"{file.name} loads {address}"
            assert (file.parent / address.partition("?")[0]).exists(), (
                f"{file.name} lacks {address}"
            )
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style.name


def words(text: str) -> str:
    """The letters and digits of a text, and the signs of formulas; not what Markdown has its own signs for."""
    text = (
        text.replace("“", '"')
        .replace("”", '"')
        .replace("’", "'")
        .replace("–", "--")
        .replace("…", "...")
    )
    return re.sub(r"[^\w()\[\]|/=~+<>]|_", "", text)


def docstrings() -> Iterator[tuple[str, str]]:
    """The first paragraphs of public docstrings, by name; they hold the formulas."""
    for room in (
        ppl_vae,
        ppl_vae.models,
        ppl_vae.guides,
        ppl_vae.plots,
        ppl_vae.data,
        ppl_vae.rate_distortion,
    ):
        for public in room.__all__:
            value = getattr(room, public)
            if callable(value):
                yield f"{room.__name__}.{public}", SECTION.split(inspect.getdoc(value) or "")[0]


def test_every_docstring_arrives_whole(site: Path) -> None:
    """Nothing of a formula is taken for markup: p(x | z), sum_k w_k, x * y, <, _."""
    reference = words(
        "".join(Page(file).text for file in sorted((site / "reference").glob("*.html")))
    )
    found = list(docstrings())
    assert len(found) > 60
    for public, text in found:
        for paragraph in text.split("\n\n"):
            if not paragraph.lstrip().startswith((">>>", "|")):  # examples and tables
                prose = re.sub(r"^ *\d+\. ", "", paragraph, flags=re.MULTILINE)
                assert words(prose) in reference, f"{public}: {paragraph}"


def test_formulas_are_set(site: Path) -> None:
    assert "<math" in (site / "start.html").read_text()
    estimate = (site / "reference" / "functions.html").read_text()
    assert re.search(r"z<sub>k</sub> ~ q\(z \| x\)", estimate)
    labels = (site / "semi_supervised.html").read_text()
    assert "<mi>y</mi><mo>&#x0223C;</mo>" in labels  # a relation, with space around it
    assert "<mi>&#x0007E;" not in labels


def test_a_sign_is_no_list_and_two_hyphens_are_no_dash(site: Path) -> None:
    """What begins with a minus keeps it, an option its hyphens, an index in braces stands low."""
    pages = {
        name: (site / "reference" / f"{name}.html").read_text() for name in ("results", "models")
    }
    assert re.search(r"<strong>distortion</strong> – - E<sub>q</sub> log p", pages["results"])
    assert "x<sub>i-1</sub>" in pages["models"]
    assert "x_{i-1}" not in Page(site / "reference" / "models.html").text
    for file in sorted(site.rglob("*.html")):
        assert not re.search(r"–\w", Page(file).text), f"{file.name}: an option needs backticks"


def test_calls_in_tables_have_places_for_breaks(site: Path) -> None:
    text = (site / "coming_from.html").read_text()
    assert "objective=<wbr>ImportanceWeightedELBO(<wbr>num_particles=<wbr>k)" in text


def test_signatures_can_be_read(site: Path) -> None:
    """Each argument of a long one has a line of its own."""
    for file in sorted((site / "reference").glob("*.html")):
        for head in re.findall(
            r'<dt class="sig[^"]*"[^>]*>(.*?)</dt>', file.read_text(), re.DOTALL
        ):
            text = re.sub(r"<[^>]+>", "", head)
            assert "factory" not in text, text
            assert len(text) < 110 or "<dd>" in head, text


def test_printed_tables_scroll_and_sentences_wrap(site: Path) -> None:
    collapse = (site / "collapse.html").read_text()
    (table,) = re.findall(
        r'<div class="([^"]*)"><div class="highlight"><pre><span></span>slope ', collapse
    )
    assert "columns" in table
    start = (site / "start.html").read_text()
    assert "columns" not in "".join(re.findall(r'class="(output[^"]*)"', start))


def test_pages_show_what_their_blocks_print_and_draw(site: Path) -> None:
    start = (site / "start.html").read_text()
    assert "48 training, 48 validation and 48 test rows" in start
    assert start.count('<img class="drawn"') == 4
    assert "Built with tiny settings" in start


def test_what_is_public_is_in_the_reference(site: Path) -> None:
    ids = set()
    for file in (site / "reference").glob("*.html"):
        ids |= set(re.findall(r'id="(ppl_vae[\w.]+)"', file.read_text()))
    for room in (
        ppl_vae,
        ppl_vae.models,
        ppl_vae.guides,
        ppl_vae.plots,
        ppl_vae.data,
        ppl_vae.tasks,
        ppl_vae.rate_distortion,
    ):
        for public in room.__all__:
            value = getattr(room, public)
            if not callable(value):
                continue
            names = {f"{room.__name__}.{public}", f"ppl_vae.{public}"}
            assert names & ids, f"{room.__name__}.{public} is missing"
    likelihoods = ast.parse((ROOT / "ppl_vae" / "likelihoods.py").read_text()).body
    classes = {node.name for node in likelihoods if isinstance(node, ast.ClassDef)}
    assert {f"ppl_vae.likelihoods.{c}" for c in classes if not c.startswith("_")} <= ids


# -- in a browser ----------------------------------------------------------------------------------------


@in_browser
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        pytest.param(1280, False, id="1280-light"),
        pytest.param(400, True, id="400-dark"),
        pytest.param(1280, True, id="1280-dark", marks=pytest.mark.slow),
        pytest.param(400, False, id="400-light", marks=pytest.mark.slow),
    ],
)
def test_pages_in_a_browser(site: Path, browser: Browser, width: int, dark: bool) -> None:
    pages = [
        *("index.html", "start.html", "gallery.html", "guides.html", "reference/functions.html"),
        *("conditional.html", "semi_supervised.html", "collapse.html"),
    ]
    with served(site) as address:
        for page in pages:
            assert faults(browser, f"{address}/{page}", width, dark) == [], page
            if page == "gallery.html":
                drawn = (ROOT / "docs" / "gallery.md").read_text().count("\n![")
                shown = browser.value("document.querySelectorAll('article img').length")
                assert shown == drawn >= 3


@in_browser
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<script>console.error('broken')</script>", "broken"),
        ("<script>nothing.there()</script>", "nothing is not defined"),
        ("<img src='absent.png'>", "absent.png"),
        ("<div style='width: 2000px'>wide</div>", "> 400"),
        ("<script src='http://127.0.0.2:9/x.js'></script>", "http://127.0.0.2:9/x.js"),
        (
            "<div class='formula' style='display: flex; justify-content: center; overflow-x: auto'>"
            "<math style='flex: none; width: 600px'><mi>begins</mi></math></div>",
            "begins",
        ),
        ("<p>plain</p>", ""),
    ],
    ids=["console", "exception", "picture", "wide", "elsewhere", "formula", "plain"],
)
def test_a_planted_fault_is_found(browser: Browser, tmp_path: Path, body: str, told: str) -> None:
    head = "<!doctype html><meta name='viewport' content='width=device-width'><link rel='icon' href='data:,'>"
    (tmp_path / "page.html").write_text(head + body)
    with served(tmp_path) as address:
        found = faults(browser, f"{address}/page.html", 400, False)
    assert bool(found) == bool(told)
    assert told in " ".join(found)
