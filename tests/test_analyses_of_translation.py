"""The script about translation runs with tiny settings, and its tables make sense."""

from __future__ import annotations

import importlib
import io
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, mean, rows, run

from ppl_vae import load_run
from ppl_vae.data import Disguise


def back_translation(folder: Path) -> None:
    tiny = ("--size=40", "--vocabulary=270", "--test_rows=8", "--difficulty=0")
    small = ("--sizes.width=8", "--sizes.heads=2", "--sizes.layers=1", "--sizes.batch_size=20")
    short = (
        "--sizes.language_epochs=1",
        "--sizes.denoising_epochs=1",
        "--sizes.epochs=1",
        "--sizes.pair_epochs=1",
    )
    options: tuple[str, ...] = (
        *tiny,
        *small,
        *short,
        "--pairs=[0,10]",
        "--num_samples=3",
        "--bound_rows=4",
    )
    options = (*options, "--draws=true", "--bounds=[1,3]")
    printed = run("back_translation.py", "translating", *options, cwd=folder)
    first, rest = printed.split("| trained on | log p(x)")
    second, third = rest.split("| trained on | draws")
    table = {row["trained on"]: row for row in rows(first)}
    nats = {row["trained on"]: row for row in rows(f"| trained on | log p(x){second}")}
    pairs = ("10 pairs and sentences", "10 pairs alone")
    assert [*table] == [
        *("nothing: copies", "nothing: identical words", "10 pairs: word by word"),
        *("denoising alone", "sentences", "sentences, by draws", *pairs),
    ]
    exact = ("language model of x, exactly", "the grammar itself, exactly")
    assert [*nats] == [*exact, "denoising alone", "sentences", "sentences, by draws", *pairs]
    # With difficulty 0 both languages are the same.
    for column in ("BLEU to English", "chrF from English"):
        assert table["nothing: copies"][column] == "100.0"
    for name in ("denoising alone", "sentences", *pairs):
        row = nats[name]
        elbo = -mean(row["rate"]) - mean(row["distortion"])
        assert mean(row["ELBO"]) == pytest.approx(elbo, abs=0.002)
        assert mean(row["ELBO"]) <= mean(row["log p(x)"])
        assert mean(row["rate"]) < mean(row["-log p(z)"]) + 0.2  # the entropy is no less than 0
        assert 0 <= mean(table[name]["BLEU to English"]) <= 100
    # The bounds are far below the truth after one epoch.
    language, truth = (mean(nats[name]["log p(x)"]) for name in exact)
    assert language < truth < 0
    assert mean(nats["sentences"]["log p(x)"]) < truth
    # What the other table says of as many draws is the same.
    lines = rows(f"| trained on | draws{third}")
    bounds = {(row["trained on"], row["draws"]): row for row in lines}
    assert len(bounds) == 10
    for name in ("denoising alone", "sentences", "sentences, by draws", *pairs):
        one, three = bounds[name, "1"], bounds[name, "3"]
        assert mean(three["log p(x)"]) == mean(nats[name]["log p(x)"])
        less = mean(three["log p(x)"]) - language
        assert mean(three["difference from the language model"]) == pytest.approx(less, abs=0.002)
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
    other: tuple[str, ...] = (*options, "--pairs=[0]", "--difficulty=1", "--num_samples=2")
    other = (*other, "--draws=false", "--bounds=[]")
    another = run("back_translation.py", "translating", *other, cwd=folder)
    assert len({*(folder / "translations").glob("*.json")}) == 5 + 20 + 2
    _, other_nats = another.split("| trained on | log p(x)")
    lines = rows(f"| trained on | log p(x){other_nats}")
    row = {row["trained on"]: row for row in lines}["sentences"]
    assert row["log p(x)"] != nats["sentences"]["log p(x)"]


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


WRONG = {
    "translating": {
        "--pairs=[0,41,10]": "--pairs has 41, and there are 40 sentences of each language: lower it, or",
        "--pairs=[0,-1]": "--pairs has -1, and each must be at least 0",
        "--pairs=[20,0,20]": "--pairs has 20 twice: give each once",
        "--seeds=[]": "--seeds is empty: give at least one, or leave the option out",
        "--seeds=[3,3]": "--seeds has 3 twice: give each once",
        "--bounds=[1,0]": "--bounds has 0, and each must be at least 1",
        "--bounds=[1,1]": "--bounds has 1 twice: give each once",
        "--more_epochs=-1": "--more_epochs must be at least 0, got -1",
        "--test_rows=0": "--test_rows must be at least 1, got 0",
        "--test_rows=-3": "--test_rows must be at least 1, got -3",  # which would leave out the last 3
        "--size=0 --pairs=[0]": "--size must be at least 1, got 0",
        "--vocabulary=259": "--vocabulary must be at least 260, got 259",
        "--difficulty=1.5": "--difficulty must be from 0 to 1, got 1.5",
        "--num_samples=0": "--num_samples must be at least 1, got 0",
        "--bound_rows=-1": "--bound_rows must be at least 1, got -1",
        "--beams=0": "--beams must be at least 1, got 0",
        "--sizes.batch_size=0": "--sizes.batch_size must be at least 1, got 0",
        "--sizes.language_epochs=0": "--sizes.language_epochs must be at least 1, got 0",
        "--sizes.denoising_epochs=0": "--sizes.denoising_epochs must be at least 1, got 0",
        "--sizes.epochs=0": "--sizes.epochs must be at least 1, got 0",
        "--sizes.pair_epochs=-1": "--sizes.pair_epochs must be at least 1, got -1",
        "--sizes.learning_rate=0": "--sizes.learning_rate must be above 0, got 0",
        "--sizes.width=7": "--sizes.width must be even and a multiple of heads = 4, got 7",
        "--sizes.layers=0": "--sizes.layers must be at least 1, got 0",
        "--sizes.dropout=1": "--sizes.dropout must be at least 0 and below 1, got 1",
    },
    "finite": {
        "--sentences=0": "--sentences must be at least 1, got 0",
        "--rows=0": "--rows must be at least 1, got 0",
        "--max_epochs=0": "--max_epochs must be at least 1, got 0",
        "--num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
}


@pytest.mark.parametrize(
    ("command", "typed", "told"),
    [(command, *each) for command, cases in WRONG.items() for each in cases.items()],
)
def test_wrong_options_are_told(command: str, typed: str, told: str, tmp_path: Path) -> None:
    """Before anything is printed or made."""
    few = ("--size=40", "--pairs=[0,10]") if command == "translating" else ()
    printed = io.StringIO()
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        run("back_translation.py", command, *few, *typed.split(), cwd=tmp_path, printed=printed)
    assert printed.getvalue() == ""
    assert not [*tmp_path.iterdir()]


ENGLISH = [
    *("house", "trees", "river", "cloud", "bridge", "garden"),
    *("window", "kitchen", "mountain", "engine", "yellow", "pocket"),
]
GERMAN = [
    *("Haus", "Baum", "Fluss", "Wolke", "Brücke", "Garten"),
    *("Fenster", "Küche", "Gebirge", "Motor", "gelb", "Tasche"),
]
HELD_OUT = {"val": ("squirrel", "Eichhörnchen"), "test": ("umbrella", "Schirm")}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A folder as that of Multi30k, of 12 pairs, with a word that is in one line alone, twice."""
    for i, (ending, start) in enumerate((("en", "the"), ("de", "das"))):
        lines = {"train": [f"{start} {each} {each}" for each in (ENGLISH, GERMAN)[i]]}
        lines |= {name: [f"{start} {each[i]} {each[i]}", start] for name, each in HELD_OUT.items()}
        for name, texts in lines.items():
            content = "".join(f"{text}\n" for text in texts)
            (tmp_path / f"{name}.{ending}").write_text(content, encoding="utf-8")
    return tmp_path


@pytest.fixture
def texts_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    found: Callable[..., Any] = importlib.import_module("translation_texts").Texts.of
    return found


def test_no_sentence_of_a_folder_is_seen_in_both_languages(
    captions: Path, texts_of: Callable[..., Any]
) -> None:
    texts = texts_of(str(captions), size=5)
    assert texts.x == [f"the {each} {each}" for each in ENGLISH[:5]]
    assert texts.z == [f"das {each} {each}" for each in GERMAN[5:10]]
    assert texts.pairs == (texts.x, [f"das {each} {each}" for each in GERMAN[:5]])
    assert texts.validation == (
        ["the squirrel squirrel", "the"],
        ["das Eichhörnchen Eichhörnchen", "das"],
    )
    assert texts.test == (["the umbrella umbrella", "the"], ["das Schirm Schirm", "das"])
    assert texts_of(str(captions), size=5, test_rows=1).test == (
        texts.test[0][:1],
        texts.test[1][:1],
    )
    # The end is a number of its own.
    pieces = {each: len(texts.words.rows([each])[0]) - 1 for each in (*ENGLISH, *GERMAN)}
    held_out = [len(texts.words.rows([word])[0]) - 1 for pair in HELD_OUT.values() for word in pair]
    seen = [*ENGLISH[:5], *GERMAN[5:10]]
    assert {pieces.pop(each) for each in seen} == {1}
    assert min(*pieces.values(), *held_out) > 1
    # As long as the longest of those that are trained on, and of validation: longer ones are cut.
    longest = max(
        len(texts.words.rows([each])[0]) for each in (*texts.pairs[1], *texts.validation[1])
    )
    assert texts.length == longest
    rows = texts.rows(["the tree", "umbrella " * 40])
    assert rows.shape == (2, longest)
    assert texts.words.sentences(rows)[0] == "the tree"


def test_a_disguise_is_that_of_the_other_lines(
    captions: Path, texts_of: Callable[..., Any]
) -> None:
    for file in captions.glob("*.de"):
        file.unlink()
    data = f"disguised:{captions}"
    texts = texts_of(data, size=5, difficulty=0.5, seed=3)
    disguise = Disguise(difficulty=0.5, seed=3)
    english = [f"the {each} {each}" for each in ENGLISH]
    assert texts.x == english[:5]
    assert texts.z == disguise(english[5:10])
    assert texts.z != english[5:10]
    assert texts.pairs == (english[:5], disguise(english[:5]))
    held_out = ["the umbrella umbrella", "the"]
    assert texts.test == (held_out, disguise(held_out))
    assert texts_of(data, size=5, difficulty=0.0).test == (held_out, held_out)
    fused = texts_of(data, size=5, difficulty=0.5, seed=3, plurals=True).pairs[1]
    assert fused == Disguise(0.5, 3, plurals=True)(english[:5])
    assert fused[1].count("ï") == 2  # the trees trees
    # Other texts, other keys of what is kept.
    every = [texts, texts_of(data, size=5, difficulty=0.5, seed=4), texts_of(data, size=6)]
    assert len({each.digest for each in every}) == 3


def test_too_few_lines_are_told(captions: Path, texts_of: Callable[..., Any]) -> None:
    assert len(texts_of(str(captions), size=6).z) == 6
    for data in (str(captions), f"disguised:{captions}"):
        told = f"{data} has 12 pairs of sentences, and 2 x 7 are asked for: lower --size"
        with pytest.raises(ValueError, match=re.escape(told)):
            texts_of(data, size=7)


CHECKS: dict[str, Callable[[Path], None]] = {"back_translation.py": back_translation}


@pytest.mark.parametrize("script", CHECKS)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)


def test_both_spellings_of_a_letter_are_the_same_text(
    captions: Path, texts_of: Callable[..., Any]
) -> None:
    """What is trained on, and the references that translations are compared with."""
    texts = texts_of(str(captions), size=5)
    for file in captions.iterdir():
        composed = file.read_text(encoding="utf-8")
        file.write_text(unicodedata.normalize("NFD", composed), encoding="utf-8")
    again = texts_of(str(captions), size=5)
    assert again.digest == texts.digest
    assert again.test == texts.test
    assert again.validation[1][0] == "das Eichh\u00f6rnchen Eichh\u00f6rnchen"


def test_a_misspelled_prefix_is_told(captions: Path, texts_of: Callable[..., Any]) -> None:
    """It would be trained on the folder's own second language."""
    told = f"--data is 'invented', a folder, or disguised:FOLDER, got 'disguise:{captions}'"
    with pytest.raises(ValueError, match=re.escape(told)):
        texts_of(f"disguise:{captions}", size=6)
