"""Texts in secret scripts, and the table of how well they are read: what is done is kept; the picture."""

from __future__ import annotations

import csv
import importlib
import re
import unicodedata
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.text
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from scripts import ROOT, rows

COLUMNS = ("letters", "method", "keys", "read right, %", "solved", "less that of the true key")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    return importlib.import_module("decipherment")


def table(printed: str) -> list[list[str]]:
    return [[row[column] for column in COLUMNS] for row in rows(printed)]


def test_a_table_that_was_stopped_goes_on_with_the_keys_that_are_missing(
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = importlib.import_module("secret_methods")
    tried: list[tuple[str, int, int]] = []

    def read(name: str, secret: Any) -> Any:
        tried.append((name, secret.x.numel(), secret.seed))
        if len(tried) == 4:
            raise KeyboardInterrupt
        first = name == "guide" and secret.seed < 1000  # which finds a wrong key
        return secret.model_of(secret.key.roll(1) if first else secret.key)

    def ways(self: Any) -> dict[str, Any]:
        guide: dict[str, Any] = {"made_of": f"{self.max_steps} steps", "trains_guide": True}
        return {
            "EM": methods.Way(partial(read, "EM"), f"{self.restarts} starts"),
            "guide, one start": methods.Way(partial(read, "guide"), kept_as="guide", **guide),
            "guide": methods.Way(partial(read, "guide"), starts=self.guide_restarts, **guide),
        }

    monkeypatch.setattr(methods.Methods, "ways", ways)
    # To draw a language takes a second.
    languages = script.Language
    monkeypatch.setattr(languages, "invented", cache(languages.invented))
    monkeypatch.chdir(tmp_path)
    few: dict[str, Any] = {"num_keys": 3, "guide_lengths": (100,), "guide_keys": 2}
    main = partial(script.main, lengths=(50, 100), guide_restarts=2, **few)
    with pytest.raises(KeyboardInterrupt):
        main()
    assert not Path("decipherment.png").exists()
    capsys.readouterr()
    main()
    of_em = [("EM", length, seed) for length in (50, 100) for seed in range(3)]
    of_guide = [("guide", 100, seed) for seed in (0, 1, 1000, 1001)]
    assert tried == [*of_em[:4], *of_em[3:], *of_guide]
    printed = capsys.readouterr()
    *whole, one, best = table(printed.out)
    # All is read under the true key, which the second start has.
    assert whole == [
        ["50", "EM", "3", "100 ± 0", "3 of 3", "0.000 ± 0.000"],
        ["100", "EM", "3", "100 ± 0", "3 of 3", "0.000 ± 0.000"],
    ]
    assert one[:3] == ["100", "guide, one start", "2"]
    assert one[-2] == "0 of 2"
    assert best == ["100", "guide", "2", "100 ± 0", "2 of 2", "0.000 ± 0.000"]
    assert "guide, key 1, start 1: 7 of 7 after" in printed.err  # of those that were missing
    assert imread("decipherment.png").std() > 0.05  # not an empty canvas
    with pytest.raises(FileExistsError, match=r"decipherment\.png is there already"):
        main()
    again = partial(main, overwrite=True)
    again()
    assert len(tried) == 11
    assert table(capsys.readouterr().out) == table(printed.out)
    # Fewer keys are the first ones; each method is found again for its own settings alone.
    again(guide_keys=1, max_steps=799, rows=("EM",))
    assert len(tried) == 11
    again(guide_keys=1, guide_restarts=1, max_steps=799)
    assert tried[11:] == [("guide", 100, 0)]
    again(guide_keys=1, guide_restarts=3)
    assert tried[12:] == [("guide", 100, 2000)]
    again(rows=("EM",), restarts=19, lengths=(50,), num_keys=1)
    assert tried[13:] == [("EM", 50, 0)]
    again(rows=("EM",), seed=1, lengths=(50,), num_keys=1)  # of another invented language
    assert tried[14:] == [("EM", 50, 1)]
    with Path("decipherment", "scores.csv").open(newline="") as opened:
        kept = [*csv.DictReader(opened)]
    assert len(kept) == 14
    for line in kept:
        right = line["method"] == "EM" or int(line["start"]) > 0
        assert (float(line["read"]) == float(line["key"]) == 1.0) == right
        assert (line["log_p"] == line["true_log_p"]) == right


def test_a_method_depends_on_its_own_settings(script: Any) -> None:
    methods = importlib.import_module("secret_methods").Methods

    def changed(**settings: int) -> set[str]:
        default = {"restarts": 20, "guide_restarts": 5, "max_steps": 800, "hidden": 32}
        before, after = methods(**default).ways(), methods(**default | settings).ways()
        return {name for name in before if before[name].made_of != after[name].made_of}

    guides = {name for name, way in methods(1, 1, 1, 1).ways().items() if way.trains_guide}
    assert len(guides) == 4
    assert changed(guide_restarts=4) == set()  # those that are known are the first ones
    assert changed(restarts=19) == {"EM", "back-translation after EM"}
    assert changed(max_steps=801) == changed(hidden=31) == guides


def test_languages_are_told_apart(script: Any, tmp_path: Path) -> None:
    texts = importlib.import_module("secret_texts")
    (tmp_path / "plain").write_text("der fuchs springt über den hund\n" * 20, encoding="utf-8")
    (tmp_path / "other").write_text("der hund springt über den fuchs\n" * 20, encoding="utf-8")

    def of_file(*names: str) -> str:
        plain, secret = (tmp_path / names[0], tmp_path / names[1] if names[1:] else None)
        digest: str = texts.Language.of_file(plain, secret).digest
        return digest

    assert of_file("plain") == of_file("plain")
    every = [
        of_file("plain"),
        of_file("other"),
        of_file("plain", "other"),
        of_file("plain", "plain"),
    ]
    drawn = texts.Language(([0.5, 0.5], [[0.5, 0.5], [0.1, 0.9]]), torch.ones(2, 25), None, 0.6)
    again = replace(drawn, bigrams=([0.5, 0.5], [[0.5, 0.5], [0.1, 0.9]]), plain=torch.ones(2, 25))
    assert again.digest == drawn.digest
    every += [drawn.digest, replace(drawn, plain=torch.zeros(2, 25)).digest]
    every += [replace(drawn, bigrams=([0.5, 0.5], [[0.5, 0.5], [0.9, 0.1]])).digest]
    assert len({*every}) == 7
    # Not by how a file spells its letters: a ü may be one character, or a u and two dots.
    apart = unicodedata.normalize("NFD", (tmp_path / "plain").read_text(encoding="utf-8"))
    (tmp_path / "apart").write_text(apart.upper(), encoding="utf-8")
    assert of_file("apart") == of_file("plain")


@pytest.mark.parametrize(
    ("text", "letters"),
    [("", 0), ("123 456\n\n7\n", 0), ("one line, however long" * 9, 0), ("abc, d!\n" * 12, 35)],
    ids=["empty", "no letters", "no second half", "35 letters"],
)
def test_files_that_are_too_short_are_told(
    text: str, letters: int, script: Any, tmp_path: Path
) -> None:
    """A line has its letters, a space between words, and one before the next line: 6 x 5 + 5 are 35."""
    plain, output = tmp_path / "plain.txt", tmp_path / "a.png"
    plain.write_text(text, encoding="utf-8")
    main = partial(script.main, plain, runs=tmp_path / "runs", output=output)
    if letters:
        told = "--lengths has 50, and the secret texts are pieces of 35 letters: give a"
    else:
        told = f"{plain} has 0 letters in the first half of its lines, and at least 25 are needed"
    with pytest.raises(ValueError, match=re.escape(told)):
        main(lengths=(25, 50))
    assert {*tmp_path.iterdir()} == {plain}


def test_secret_files_that_are_too_short_are_told(script: Any, tmp_path: Path) -> None:
    texts = importlib.import_module("secret_texts")
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    plain.write_text("der fuchs springt\n" * 20, encoding="utf-8")
    for text, letters in (("", 0), ("12\n", 0), ("ein hund", 8), ("x" * 29, 29)):
        secret.write_text(text, encoding="utf-8")
        told = f"--lengths has 30, and the secret texts are pieces of {letters} letters"
        with pytest.raises(ValueError, match=told):
            script.main(plain, secret, lengths=(30,), output=tmp_path / "a.png")
        with pytest.raises(ValueError, match=told):
            texts.Secret.of(texts.Language.of_file(plain, secret), 30, seed=0)
    secret.write_text("x" * 30, encoding="utf-8")  # of which there is one piece
    found = texts.Secret.of(texts.Language.of_file(plain, secret), 30, seed=0)
    assert found.plain.tolist() == [[texts.ALPHABET.index("x")] * 25]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lengths": (100, 24)}, "--lengths has 24, and a text has at least 25 letters"),
    ({"lengths": ()}, "--lengths is empty: give at least one, or leave the option out"),
    ({"lengths": (100, 200, 100)}, "--lengths has 100 twice: give each once"),
    ({"guide_lengths": (400, 400)}, "--guide_lengths has 400 twice: give each once"),
    ({"rows": ()}, "--rows is empty: give at least one, or leave the option out"),
    ({"rows": ("EM", "EM")}, "--rows has EM twice: give each once"),
    ({"rows": ("Em",)}, "--rows: no line is called 'Em': expected some of ['by frequency', "),
    (
        {"rows": ("guide",), "lengths": (100,)},
        "--rows has ['guide'], which are tried at --guide_lengths, and --lengths has none of these",
    ),
    ({"secret": Path("secret.txt")}, "--secret is read by the bigrams of its language: give a"),
    *(
        ({name: 0}, f"--{name} must be at least 1, got 0")
        for name in ("num_keys", "restarts", "guide_keys", "guide_restarts", "max_steps", "hidden")
    ),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_wrong_options_are_told(
    given: dict[str, Any],
    told: str,
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is printed or made."""
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        script.main(**given, output=tmp_path / "a.png", runs=tmp_path / "runs")
    assert capsys.readouterr().out == ""
    assert not [*tmp_path.iterdir()]


def test_texts_that_are_not_utf_8_are_told(script: Any, tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.txt", tmp_path / "latin-1.txt"
    plain.write_text("der fuchs springt\n" * 20, encoding="utf-8")
    other.write_text("der fuchs\nspringt über\n" * 20, encoding="latin-1")
    for given in ((other,), (plain, other)):
        told = f"{other}, line 2 is not UTF-8 (it has a byte 0xfc): save the text as UTF-8"
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            script.main(*given, lengths=(100,), output=tmp_path / "a.png", runs=tmp_path / "runs")
    assert {*tmp_path.iterdir()} == {plain, other}


def test_the_picture_shows_means_and_names_that_do_not_overlap(script: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, found = (100, 400, 1600), {}
    for i, name in enumerate(script.COLORS):
        for length in lengths[1:] if "guide" in name else lengths:
            shares = (0.9 * (i > 5) + 0.1 * torch.rand(4, generator=generator)).tolist()
            found[name, length] = [script.Score(share, 0.5, -2.0, -2.0, 1.0) for share in shares]
    figure = script.picture(found, 27)
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    (axes,) = figure.axes
    for name, color in script.COLORS.items():
        (line,) = (
            each for each in axes.lines if each.get_color() == color and each.get_ls() == "-"
        )
        shares = [
            100 * sum(one.read for one in found[name, length]) / 4
            for length in lengths
            if (name, length) in found
        ]
        assert line.get_ydata() == pytest.approx(shares)
        assert line.get_xdata()[-1] == pytest.approx(1600, rel=0.1)
    names = [each for each in axes.texts if isinstance(each, matplotlib.text.Annotation)]
    assert {each.get_text() for each in names} == {*script.COLORS, "chance, 1 of 27"}
    boxes = sorted(
        (matplotlib.text.Text.get_window_extent(each) for each in names), key=lambda box: box.y0
    )
    for below, above in pairwise(boxes):
        assert below.y1 <= above.y0
    whole = figure.bbox
    for box in boxes:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
