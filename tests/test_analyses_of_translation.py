"""The script about translation runs with tiny settings, and its tables make sense."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import ROOT, mean, rows, run

from ppl_vae import load_run


def back_translation(folder: Path) -> None:
    tiny = ("--size=40", "--vocabulary=270", "--test_rows=8", "--difficulty=0")
    small = ("--sizes.width=8", "--sizes.heads=2", "--sizes.layers=1", "--sizes.batch_size=20")
    short = (
        "--sizes.language_epochs=1",
        "--sizes.denoising_epochs=1",
        "--sizes.epochs=1",
        "--sizes.pair_epochs=1",
    )
    options = (*tiny, *small, *short, "--pairs=[0,10]", "--num_samples=3", "--bound_rows=4")
    options = (*options, "--draws=true", "--bounds=[1,3]")
    printed = run("back_translation.py", "translating", *options, cwd=folder)
    first, second = printed.split("| learned from | draws")
    table = {row["learned from"]: row for row in rows(first)}
    pairs = ("10 pairs and sentences", "10 pairs alone")
    assert [*table] == [
        *("nothing: copies", "nothing: identical words", "10 pairs: word by word"),
        *("language model of x", "the grammar itself", "denoising alone", "sentences"),
        *("sentences, by draws", *pairs),
    ]
    # With difficulty 0 both languages are the same.
    for column in ("BLEU into x", "chrF into z"):
        assert table["nothing: copies"][column] == "100.0"
    for name in ("denoising alone", "sentences", *pairs):
        row = table[name]
        elbo = -mean(row["rate"]) - mean(row["distortion"])
        assert mean(row["ELBO"]) == pytest.approx(elbo, abs=0.002)
        assert mean(row["ELBO"]) <= mean(row["log p(x)"])
        assert 0 <= mean(row["BLEU into x"]) <= 100
    # The bounds are far below the truth after one epoch.
    truth = mean(table["the grammar itself"]["log p(x)"])
    assert mean(table["language model of x"]["log p(x)"]) < truth < 0
    assert mean(table["sentences"]["log p(x)"]) < truth
    # What the other table says of as many draws is the same.
    lines = rows(f"| learned from | draws{second}")
    bounds = {(row["learned from"], row["draws"]): row for row in lines}
    language = mean(table["language model of x"]["log p(x)"])
    assert len(bounds) == 10
    for name in ("denoising alone", "sentences", "sentences, by draws", *pairs):
        one, three = bounds[name, "1"], bounds[name, "3"]
        assert mean(three["log p(x)"]) == mean(table[name]["log p(x)"])
        less = mean(three["log p(x)"]) - language
        assert mean(three["less that of the language model"]) == pytest.approx(less, abs=0.002)
        assert one["ESS"] == "1.0"
        assert 1 <= mean(three["ESS"]) <= 3
        for row in (one, three):
            assert mean(row["of its own sentences, from"]) <= mean(row["to"])
    assert "BLEU: nrefs:1" in printed
    again = run("back_translation.py", "translating", *options, cwd=folder)
    assert again == printed  # all of it was kept
    # What was trained can translate files.
    (run_folder,) = (folder / "translations").glob("pairs=10-alone,seed=0,*/config.yaml")
    words = load_run(run_folder.parent).vocabulary
    assert words is not None
    assert words.sentences(words.rows(["a dog"])) == ["a dog"]
    kept = {path.name for path in (folder / "translations").glob("*.json")}
    assert len(kept) == 5 + 20
    # Other texts are no reason to take the same numbers.
    other = (*options, "--pairs=[0]", "--difficulty=1", "--num_samples=2")
    other = (*other, "--draws=false", "--bounds=[]")
    another = run("back_translation.py", "translating", *other, cwd=folder)
    assert len({*(folder / "translations").glob("*.json")}) == 5 + 20 + 2
    row = {row["learned from"]: row for row in rows(another)}["sentences"]
    assert row["log p(x)"] != table["sentences"]["log p(x)"]


def test_keys_of_few_sentences_have_the_numbers_of_their_sums(tmp_path: Path) -> None:
    options = ("--sentences=6", "--rows=200", "--max_epochs=2", "--num_seeds=2")
    printed = run("back_translation.py", "finite", *options, cwd=tmp_path)
    table = {row["what"]: row for row in rows(printed)}
    entropy = -float(printed.split("-H(x) = ")[1].strip().rstrip("."))
    right, other = table["the right key"], table["another key"]
    assert mean(right["correct"]) == 100.0
    assert mean(right["log p(x)"]) == mean(right["ELBO"]) == pytest.approx(-entropy, abs=0.001)
    assert mean(right["loss with beta = 0.5"]) == pytest.approx(entropy / 2, abs=0.001)
    assert mean(other["log p(x)"]) < mean(right["log p(x)"])
    for key in (right, other):
        assert mean(key["loss of back-translation"]) == 0.0
    assert mean(right["KL(q, p)"]) == mean(other["KL(q, p)"]) == 0.0
    assert mean(right["rate"]) == pytest.approx(entropy, abs=0.001)
    for row in rows(printed)[2:]:
        assert mean(row["ELBO"]) <= mean(row["log p(x)"]) <= -entropy + 0.001
        assert mean(row["loss of back-translation"]) > 0


def test_words_one_by_one_are_those_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """IBM Model 1 on the corpus of Knight's tutorial, whose dictionary EM finds."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    baselines = importlib.import_module("translation_baselines")
    german, english = ["das haus", "das buch", "ein buch"], ["the house", "the book", "a book"]
    translate = baselines.word_by_word(german, english, iterations=20)
    assert translate(["ein haus", "das buch neu", ""]) == ["a house", "the book neu", ""]
    keeps = baselines.identical_words(["in a park", "taxi"])
    assert keeps(["ein taxi in berlin"]) == ["taxi in"]


def test_no_more_pairs_than_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is told before anything is printed or made."""
    told = "--pairs has 41, and there are 40 sentences of each language: lower it, or raise --size"
    printed = io.StringIO()
    options = ("--size=40", "--pairs=[0,41,10]")
    with pytest.raises(ValueError, match=re.escape(told)):
        run("back_translation.py", "translating", *options, cwd=tmp_path, printed=printed)
    assert printed.getvalue() == ""
    assert not [*tmp_path.iterdir()]
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = importlib.import_module("back_translation")
    with pytest.raises(ValueError, match="--pairs has -1, which is no number of pairs"):
        script.translating(pairs=(0, -1), size=40)


CHECKS: dict[str, Callable[[Path], None]] = {"back_translation.py": back_translation}


@pytest.mark.parametrize("script", CHECKS)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)
