"""`ppl-vae translate` with a pair that knows three words: what it prints and writes, and what it refuses."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import xarray
from forked import Forked
from torch import Tensor

from ppl_vae import diagnose, evaluate, load_run, save_run
from ppl_vae.cli import main, translate as module
from ppl_vae.cli.common import stored_evaluation
from ppl_vae.cli.output import as_line, show_lines
from ppl_vae.cli.text_source import read_test_rows
from ppl_vae.data import Vocabulary
from ppl_vae.guides import MeanField, NoLatent, Translator
from ppl_vae.models import VAE, LanguageModel, LatentTranslation
from ppl_vae.networks import MLP, EncoderDecoder
from ppl_vae.runs import describe_rows, read_rows
from ppl_vae.tasks import Translations, sample, translate

ENGLISH = {"dog": "Hund", "cat": "Katze", "cow": "Kuh"}
SENTENCES = [" ".join(words) for n in (1, 2) for words in itertools.product(ENGLISH, repeat=n)]
LENGTH, LATENT_LENGTH = 3, 4

WORDS = Vocabulary.learn([*ENGLISH, *ENGLISH.values()] * 2, size=400)
NETWORK = EncoderDecoder(width=16, layers=1, heads=2, dropout=0.0)

TEXT = "dog cat\n\ncow\n \t\ncat dog\ndog\n"
GERMAN = "Hund Katze\n\nKuh\n\nKatze Hund\nHund\n"

Said = Callable[..., tuple[str, str]]


def in_german(text: str) -> str:
    return " ".join(ENGLISH.get(word, word) for word in text.split(" "))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each word is a piece, and the pair has seen all sentences of one and of two words."""
    x, z = WORDS.rows(SENTENCES), WORDS.rows([*map(in_german, SENTENCES)])
    assert x.shape == z.shape == (12, 3)
    torch.manual_seed(0)
    model = LatentTranslation((LENGTH,), len(WORDS), NETWORK, LATENT_LENGTH)
    guide = Translator(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(160):
        loss = -(guide.encode(x).log_prob(z) + model.decode(z).log_prob(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_run(folder, model, guide, vocabulary=WORDS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the current folder, beside a text."""
    monkeypatch.chdir(tmp_path)
    Path("en.txt").write_text(TEXT)
    return Path(shutil.copytree(trained, "run"))


@pytest.fixture
def said(run: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs the command: standard output and standard error."""

    def of(*arguments: str, code: int = 0, with_run: bool = True) -> tuple[str, str]:
        capsys.readouterr()
        given = ["translate", *arguments, *(("--run", "run") if with_run else ())]
        found = main(given)
        told = capsys.readouterr()
        assert found == code, told.err
        assert "Traceback" not in told.err
        return told.out, told.err

    return of


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Gives standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def densities(lines: list[list[str]], run: Path, back: bool = False) -> Tensor:
    """log p of sentences `(source, translation)` by the pair itself."""
    found = load_run(run)
    model, guide = cast(LatentTranslation, found.model), cast(Translator, found.guide)
    source, target = (WORDS.rows([line[i] for line in lines]) for i in (0, 1))
    with torch.no_grad():
        p = model.decode(source) if back else guide.encode(source)
        return p.log_prob(torch.nn.functional.pad(target, (0, p.length - target.shape[1])))


# -- what is found ---------------------------------------------------------------------------------------


def test_each_line_is_translated(said: Said) -> None:
    """Without a word in it, a line stays empty."""
    assert said("en.txt", "--quiet") == (GERMAN, "")


def test_the_search_keeps_at_least_as_many_beginnings_as_translations(said: Said) -> None:
    few, _ = said("en.txt", "--num", "7", "--beams", "2")
    assert few == said("en.txt", "--num", "7", "--beams", "7")[0]
    told = " ".join(said("--help", with_run=False)[0].split())
    assert "that the search for the likeliest keeps, at least --num and at most 1000" in told


def test_there_and_back(said: Said) -> None:
    Path("all.txt").write_text("".join(f"{each}\n" for each in SENTENCES))
    out, err = said("all.txt", "-o", "de.txt")
    assert (out, err) == ("de.txt\n", "12 lines translated\n")
    assert Path("de.txt").read_text().splitlines() == [*map(in_german, SENTENCES)]
    said("de.txt", "--back", "-o", "back.txt")
    assert Path("back.txt").read_bytes() == Path("all.txt").read_bytes()
    assert not list(Path().glob("*.part"))


def test_standard_input_is_a_text(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, TEXT.encode())
    assert said("-", "--quiet") == (GERMAN, "")
    give(monkeypatch, GERMAN.replace("\n", "\r\n").encode("utf-8-sig"))
    assert said("-", "--back") == (TEXT.replace(" \t", ""), "")


@pytest.mark.parametrize("back", [False, True])
def test_scores_are_log_probabilities(back: bool, said: Said, run: Path) -> None:
    text, options = (GERMAN, ("--back",)) if back else (TEXT, ())
    Path("text").write_text(text)
    out, _ = said("text", "--scores", "--num", "3", *options)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [*"111", "2", *"333", "4", *"555", *"666"]
    assert [line[1:] for line in lines if line[0] in "24"] == [["", "", ""], ["", "", ""]]
    sources = text.splitlines()
    found = [
        (int(n), float(log_p), float(per_token), [sources[int(n) - 1], text])
        for n, log_p, per_token, text in lines
        if log_p
    ]
    exact = densities([pair for *_, pair in found], run, back)
    printed = torch.tensor([log_p for _, log_p, _, _ in found])
    torch.testing.assert_close(printed, exact, atol=1e-3, rtol=1e-4)
    tokens = torch.tensor([len(WORDS.rows([pair[1]])[0]) for *_, pair in found])
    per_token = torch.tensor([each for _, _, each, _ in found])
    torch.testing.assert_close(per_token, exact / tokens, atol=1e-3, rtol=1e-4)
    for number in (1, 3, 5, 6):
        each = [pair[1] for n, _, _, pair in found if n == number]
        assert len({*each}) == 3
        ranks = [per_token for n, _, per_token, _ in found if n == number]
        assert ranks == sorted(ranks, reverse=True)
    single, _ = said("text", "--scores", *options)
    assert [line.split("\t")[3] for line in single.splitlines()] == (
        TEXT.replace(" \t", "") if back else GERMAN
    ).splitlines()


def test_several_translations_have_the_number_of_their_line(said: Said) -> None:
    out, _ = said("en.txt", "--num", "2", "--beams", "7", "--length_penalty", "0.5")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [*"11", "2", *"33", "4", *"55", *"66"]
    assert [text for _, text in lines][::2][:1] == ["Hund Katze"]
    assert all(len(line) == 2 for line in lines)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 3.0])
def test_the_best_come_first_by_log_p_and_length(penalty: float, said: Said) -> None:
    """Of other penalties the order is another one, of some text at least: which one, rounding may tell."""
    others = {other: False for other in (0.0, 0.5, 1.0, 3.0) if other != penalty}
    for text in ENGLISH:
        Path("text").write_text(text)
        options = ("--num", "30", "--length_penalty", str(penalty), "--scores")
        lines = [line.split("\t") for line in said("text", *options)[0].splitlines()]
        log_p, per_token = (torch.tensor([float(line[i]) for line in lines]) for i in (1, 2))
        tokens = (log_p / per_token).round()
        assert len(tokens.unique()) > 1
        scores = log_p / tokens**penalty
        assert bool((scores.diff() <= 1e-3).all())
        for other in others:
            others[other] |= bool(((log_p / tokens**other).diff() > 1e-3).any())
    assert all(others.values())


def test_where_there_are_few_sentences_each_comes_once(said: Said, run: Path) -> None:
    """Of at most one word: all numbers but those of PAD and BLANK, with END for the empty one."""
    model = LatentTranslation((2,), len(WORDS), NETWORK)
    save_run(run, model, Translator(model), vocabulary=WORDS, overwrite=True)
    Path("dog").write_text("dog")
    out, _ = said("dog", "--num", "1000", "--scores")
    log_p = torch.tensor([float(line.split("\t")[1]) for line in out.splitlines()])
    assert len(log_p) == len(WORDS) - 2
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-3)


def test_draws_have_a_seed(said: Said, run: Path) -> None:
    state = torch.random.get_rng_state()
    options = ("en.txt", "--draws", "--num", "4", "--scores", "--seed")
    one, _ = said(*options, "1")
    assert said(*options, "1")[0] == one
    others = {said(*options, str(seed))[0] for seed in range(2, 8)}
    assert others != {one}
    assert torch.equal(torch.random.get_rng_state(), state)
    lines = [line.split("\t") for line in one.splitlines() if line[0] in "1356"]
    assert len(lines) == 16
    pairs = [[TEXT.splitlines()[int(n) - 1], text] for n, _, _, text in lines]
    found = torch.tensor([float(log_p) for _, log_p, _, _ in lines])
    torch.testing.assert_close(found, densities(pairs, run), atol=1e-3, rtol=1e-4)


def test_long_texts_are_translated_in_parts(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their lines, and as soon as a part is found."""
    monkeypatch.setattr(module, "_FIRST", 2)
    monkeypatch.setattr(module, "_LINES", 5)
    sizes, shown = [], []
    real, show = translate, show_lines

    def counting(model: Any, guide: Any, x: Tensor, **options: Any) -> Translations:
        sizes.append(len(x))
        return real(model, guide, x, **options)

    def showing(lines: Any) -> None:
        texts = [*lines]
        shown.append((len(sizes), len(texts)))
        show(texts)

    monkeypatch.setattr(module, "translate_rows", counting)
    monkeypatch.setattr(module, "show_lines", showing)
    texts = [*SENTENCES[:7], "", *SENTENCES[7:], "", "", "", "", "", "", "", ""]
    Path("long.txt").write_text("".join(f"{each}\n" for each in texts))
    out, _ = said("long.txt")
    assert out.splitlines() == [*map(in_german, texts)]
    assert sizes == [2, 4, 4, 2]
    assert shown == [(1, 2), (2, 4), (3, 5), (4, 5), (4, 5)]
    monkeypatch.setattr(module, "_TRANSLATIONS", 3)
    said("long.txt", "--num", "3")
    assert {*sizes[4:]} == {1}


def test_a_line_is_one_line(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model writes; but letters of all languages stay as they are."""
    text = "one\ntwo \x1b[2J\r\u2028\u202e\t10\xa0%, नमस्\u200dते 👨\u200d👩"
    row = WORDS.rows([text])
    found = Translations(row[None], torch.zeros(1, 1))
    monkeypatch.setattr(module, "translate_rows", lambda *_, **__: found)
    give(monkeypatch, b"dog\n")
    line = "one\\ntwo \\x1b[2J\\r\\u2028\\u202e\t10\xa0%, नमस्\u200dते 👨\u200d👩\n"
    assert said("-")[0] == line
    Path("dog").write_text("dog")
    said("dog", "-o", "out.txt")
    assert Path("out.txt").read_text() == line


# -- lines that do not suit ------------------------------------------------------------------------------


def test_a_line_that_is_too_long(said: Said) -> None:
    """It is told before anything is translated, or cut."""
    Path("long.txt").write_text("dog\ncat\ndog cat cow\ncow cow dog dog\n")
    out, err = said("long.txt", code=1)
    assert out == ""
    told = (
        "long.txt, line 3 has 4 tokens including its end, and the model reads at most 3: split the"
    )
    assert told in err
    out, err = said("long.txt", "--too_long", "cut")
    assert out == "Hund\nKatze\nHund Katze\nKuh Kuh\n"
    told = "lines 3, 4: longer than the 3 tokens that the model reads, so that the last words were left"
    assert told in err
    # The latents of this pair may be longer.
    Path("de.txt").write_text("Hund Katze Kuh\nHund Katze Kuh Hund\n")
    told = "de.txt, line 2 has 5 tokens including its end, and the model reads at most 4"
    assert told in said("de.txt", "--back", code=1)[1]


def test_a_line_of_any_length_is_cut(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than 64 KiB of it are held; the lines behind keep their numbers."""
    text = b"dog\n" + b"cat " * 50_000 + b"\ncow\n" + b"dog " * 50_000
    Path("long.txt").write_bytes(text)
    out, err = said("long.txt", code=1)
    assert out == ""
    told = "long.txt, line 2 has more than 65,536 bytes: expected a file of text with one sentence a line"
    assert f"{told}; with too_long cut, the rest of it is left out" in err
    given = said("long.txt", "--too_long", "cut")
    give(monkeypatch, text)
    for out, err in (given, said("-", "--too_long", "cut")):
        assert out == "Hund\nKatze Katze\nKuh\nHund Hund\n"
        assert "lines 2, 4: longer than the 3 tokens that the model reads, so that the last" in err


def test_a_long_line_of_standard_input_comes_after_those_before(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST", 1)
    give(monkeypatch, b"dog\ndog dog dog\n")
    out, err = said("-", code=1)
    assert out == "Hund\n"
    assert "standard input, line 2 has 4 tokens including its end" in err


def test_what_the_vocabulary_has_not_seen_is_told_once(said: Said) -> None:
    texts = ["dog", "🙂", "dog cat", "собака", "Ж", *["é"] * 12]
    Path("odd.txt").write_text("\n".join(texts))
    out, err = said("odd.txt", "--too_long", "cut")
    assert len(out.splitlines()) == len(texts)
    (told,) = [line for line in err.splitlines() if "mostly of characters" in line]
    assert told.startswith("ppl-vae: warning: lines 2, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 5 more: ")
    assert told.endswith("so that what the model makes of them means nothing")
    Path("odd.txt").write_text("dog\né")
    assert "warning: line 2: mostly of" in said("odd.txt", "--too_long", "cut")[1]


BAD = {
    "Latin-1": (b"dog\ngr\xfcn\n", "line 2 is not UTF-8 (its byte 3 is 0xfc)"),
    "binary": (b"\0\1\2", "line 1 holds a null byte, as no text does"),
    "UTF-16": ("dog".encode("utf-16"), "line 1 begins as a text in UTF-16 does: save it as UTF-8"),
    "empty": (b"", "is empty: expected a file of text with one sentence a line"),
    "no lines": (b"a" * 2**17, "line 1 has more than 65,536 bytes"),
}


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_what_is_no_text(
    content: bytes, told: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad.txt").write_bytes(content)
    out, err = said("bad.txt", "-o", "de.txt", code=1)
    assert (out, err.count("\n")) == ("", 1)
    assert f"bad.txt{',' if 'line ' in told else ''} {told}" in err
    assert not Path("de.txt").exists()
    give(monkeypatch, content)
    assert f"standard input{',' if 'line ' in told else ''} {told}" in said("-", code=1)[1]


def test_what_another_command_writes_is_standard_input(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said of <(zcat en.txt.gz), as the text is read more than once."""
    reading, writing = os.pipe()
    with open(writing, "w") as pipe:
        pipe.write(TEXT)
    with open(reading) as pipe:
        _, err = said(f"/dev/fd/{reading}", code=2)
        monkeypatch.setattr(sys, "stdin", pipe)
        assert said("-", "--quiet")[0] == GERMAN
    told = f"/dev/fd/{reading} is a pipe or a device; expected a file of text. What another command"
    assert f"{told} writes is read by: COMMAND | ppl-vae translate - --run run" in err


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "FILE is missing: give a text file with one sentence a line, or - for standard"),
        (("nowhere.txt",), 1, "nowhere.txt does not exist"),
        (("run",), 1, "run is a folder; expected a file of text"),
        (("/dev/null",), 2, "/dev/null is a pipe or a device; expected a file of text"),
        (("en.txt", "more.txt"), 2, "unrecognized arguments: more.txt"),
        (("en.txt", "--num", "0"), 2, "--num must be at least 1, got 0"),
        (("en.txt", "--num", "1e4"), 2, "--num must be at most 1,000, got 10,000"),
        (("en.txt", "--beams", "0"), 2, "--beams must be at least 1, got 0"),
        (("en.txt", "--beams", "many"), 2, "--beams: expected int, got many"),
        (("en.txt", "--length_penalty", "inf"), 2, "expected a finite number, got inf"),
        (("en.txt", "--length_penalty", "-1"), 2, "--length_penalty must be at least 0, got -1"),
        (("en.txt", "--draws", "--beams", "3"), 2, "--beams is of the search, and with --draws"),
        (("en.txt", "--draws", "--length_penalty", "0"), 2, "--length_penalty is of the search"),
        (("en.txt", "--seed", "1"), 2, "--seed is of draws, and without --draws there are none"),
        (("en.txt", "--draws", "--seed", "9" * 30), 1, "seed must be at most 9,223,372,036"),
        (("en.txt", "--too_long", "skip"), 2, "--too_long: invalid choice: 'skip'"),
        (("en.txt", "--device", "abacus"), 1, "device='abacus': expected 'auto', 'cpu'"),
        (("en.txt", "-o", "en.txt"), 2, "--output: en.txt is read and would be lost: choose"),
        (
            ("en.txt", "-o", "other.txt"),
            1,
            "other.txt is there already: choose another --output, or",
        ),
        (("en.txt", "-o", "no/de.txt"), 1, "--output no/de.txt: there is no folder no"),
        (("en.txt", "-o", "run"), 1, "run is a folder, but a file is to be written there"),
        (("en.txt", "-o", "run/vocabulary.json"), 2, "vocabulary.json belongs to a run, and would"),
        (("en.txt", "-o", "/dev/stdout"), 1, "but a file is to be written there: choose another"),
        (("en.txt", "-o", "x" * 300), 1, "File name too long: choose a shorter one"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: tuple[str, ...], code: int, told: str, said: Said, run: Path
) -> None:
    Path("other.txt").write_text("precious")
    before = {file.name for file in Path().iterdir()}
    out, err = said(*arguments, code=code)
    assert out == ""
    assert told in err
    assert {file.name for file in Path().iterdir()} == before
    assert Path("en.txt").read_text() == TEXT


def test_mistakes_in_the_run_are_told(said: Said, run: Path) -> None:
    def of(folder: str, *options: str, code: int = 1) -> str:
        return said("en.txt", "--run", folder, *options, code=code, with_run=False)[1]

    assert "--run is missing: give the folder of a run" in said("en.txt", code=2, with_run=False)[1]
    assert "there is no run folder nowhere" in of("nowhere")
    assert "en.txt is a file: give the folder of a run" in of("en.txt")
    (run / "vocabulary.json").write_text("{}")
    told = "run/vocabulary.json: is no vocabulary that Vocabulary.save wrote"
    assert told in of("run")
    Vocabulary(()).save(run / "vocabulary.json")
    assert f"has 260 numbers, and LatentTranslation was built for words={len(WORDS)}" in of("run")
    (run / "vocabulary.json").unlink()
    assert "run/vocabulary.json: it is missing: the weights in" in of("run")
    found = load_run(run)
    save_run(run, found.model, found.guide, overwrite=True)
    told = of("run")
    assert "run has no vocabulary.json, which says which text its numbers are: save the run" in told
    assert "save_run(..., vocabulary=words)" in told
    WORDS.save(run / "vocabulary.json")  # as is advised
    assert said("en.txt")[0] == GERMAN
    save_run("vae", VAE((3,), 2, MLP((4,))), MeanField((3,), 2, MLP((4,))), vocabulary=WORDS)
    told = "vae holds VAE and MeanField, which do not translate: needed is a pair whose rows and"
    assert told in of("vae")
    assert told in of("vae", "--back")
    model = LanguageModel((LENGTH,), len(WORDS), NETWORK)
    save_run("lm", model, NoLatent(), vocabulary=WORDS)
    assert "lm holds LanguageModel and NoLatent, which do not translate" in of("lm")


def test_weights_without_numbers_are_told(said: Said, run: Path) -> None:
    found = load_run(run)
    assert isinstance(found.model, LatentTranslation)
    with torch.no_grad():
        found.model.network.bias.fill_(torch.nan)
    save_run(run, found.model, found.guide, vocabulary=WORDS, overwrite=True)
    for options in ((), ("--draws",)):
        out, err = said("en.txt", *options, code=1)
        assert out == ""
        assert "run: its weights are not finite: the training has diverged" in err


# -- what is kept ----------------------------------------------------------------------------------------


def test_a_file_is_replaced_if_that_is_wanted(said: Said) -> None:
    Path("de.txt").write_text("precious")
    said("en.txt", "-o", "de.txt", code=1)
    assert Path("de.txt").read_text() == "precious"
    said("en.txt", "-o", "de.txt", "--overwrite")
    assert Path("de.txt").read_text() == GERMAN


def test_the_text_that_is_read_is_not_replaced(
    said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By any of its names, and before anything is translated."""
    monkeypatch.setattr(module, "load_run", None)
    Path("folder").mkdir()
    Path("link.txt").symlink_to("en.txt")
    Path("hard.txt").hardlink_to("en.txt")
    spellings = ["en.txt", "folder/../en.txt", str(tmp_path / "en.txt"), "link.txt", "hard.txt"]
    for given, output in itertools.product(spellings, repeat=2):
        for overwrite in ((), ("--overwrite",)):
            out, err = said(given, "-o", output, *overwrite, code=2)
            assert out == ""
            same = "" if output == given else f"the same file as {given}, which is "
            assert f"--output: {output} is {same}read and would be lost: choose another" in err
    with open("en.txt") as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        told = "en.txt is the same file as standard input, which is read and would be lost"
        assert told in said("-", "-o", "en.txt", "--overwrite", code=2)[1]
    assert Path("en.txt").read_text() == TEXT
    assert Path("link.txt").is_symlink()
    assert not list(Path().glob("*.part"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_was_found_is_kept_after_ctrl_c(
    overwrite: bool, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST", 3)
    real, calls = translate, []

    def interrupted(*arguments: Any, **options: Any) -> Translations:
        calls.append(1)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "translate_rows", interrupted)
    assert said("en.txt", code=130) == ("Hund Katze\n\nKuh\n", "ppl-vae: interrupted\n")
    options = ["en.txt", "-o", "de.txt"]
    if overwrite:
        Path("de.txt").write_text("precious")
        options.append("--overwrite")
    _, err = said(*options, code=130)
    assert err == "3 lines that had been found are in de.txt.part\nppl-vae: interrupted\n"
    assert Path("de.txt.part").read_text() == "Hund Katze\n\nKuh\n"
    assert Path("de.txt").exists() is overwrite
    assert not overwrite or Path("de.txt").read_text() == "precious"
    monkeypatch.setattr(module, "translate_rows", real)
    told = "de.txt.part is there already: a command writes de.txt now, or was interrupted"
    assert told in said(*options, code=1)[1]
    Path("de.txt.part").unlink()
    said(*options)
    assert Path("de.txt").read_text() == GERMAN


def test_nothing_is_lost_on_a_full_disk(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(module, "_FIRST", 3)
    Path("de.txt").write_text("precious")

    def limited() -> int:
        words = ["translate", "en.txt", "--run", "run", "-o", "de.txt", "--overwrite", "--quiet"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        sys.stdout = sys.stderr = open(os.dup(writing), "w", buffering=1)  # noqa: SIM115
        return main(words)

    reading, writing = os.pipe()
    assert Forked(limited, tmp_path / "said").wait(60) == 1
    os.close(writing)
    with open(reading) as told:
        lines, error = told.read().splitlines()
    assert lines == "3 lines that had been found are in de.txt.part"
    assert "error: de.txt was not written: no room on the disk of ." in error
    assert Path("de.txt").read_text() == "precious"
    assert Path("de.txt.part").read_text() == "Hund Katze\n\nKuh\n"


# -- other commands --------------------------------------------------------------------------------------


def test_commands_that_need_data_say_so(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "diagnose", "gaps", "export"):
        assert main([command, "run"]) == 1
        told = capsys.readouterr().err
        assert (
            "config.yaml names no data: it was saved from Python, and its rows are sentences"
            in told
        )
        assert "`ppl-vae evaluate`, `diagnose` and `export` take some with --text FILE" in told
        assert "run.vocabulary.rows(sentences)" in told
    assert main(["report", "run"]) == 0
    assert "LatentTranslation with Translator" in Path("run/report.html").read_text()


def test_a_text_is_evaluated(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the functions of Python do it with the same rows, which the run then remembers."""
    found, x = load_run("run"), WORDS.rows(["dog cat", "cow", "cat dog", "dog"])
    expected = evaluate(found.model, found.guide, x, num_samples=3, seed=2, progress=False)
    line = ["evaluate", "run", "--num_samples", "3", "--seed", "2", "--quiet"]
    assert main([*line, "--text", "en.txt"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{expected}\n"
    assert "warning: lines 2, 4: without words, left out" in told.err
    assert "bits per token" in told.out
    rows = read_rows(run)
    assert rows is not None
    assert rows["elbo"] == pytest.approx(expected.elbo.values.tolist())
    summary = json.loads(Path("run/evaluation.json").read_text())
    assert summary["rows"] == describe_rows(x, "en.txt", "test")

    give(monkeypatch, TEXT.encode())
    assert main([*line, "--text", "-", "--max_rows", "2", "--overwrite"]) == 0
    capsys.readouterr()
    summary = json.loads(Path("run/evaluation.json").read_text())
    assert summary["rows"] == describe_rows(x[:2], "standard input", "test")


def test_a_text_is_diagnosed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.txt").write_text("".join(f"{each}\n" for each in 3 * SENTENCES))
    found, x = load_run("run"), WORDS.rows(3 * SENTENCES)
    expected = diagnose(found.model, found.guide, x, seed=1, progress=False)
    assert main(["diagnose", "run", "--text", "many.txt", "--seed", "1", "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{expected}\n"
    assert told.err == "written: run/diagnosis.json\n"
    assert not expected.collapsed
    kept = json.loads(Path("run/diagnosis.json").read_text())
    assert kept["of_sentences"] == json.loads(json.dumps(expected.to_dict()))["of_sentences"]


def test_the_evaluation_of_a_text_is_read_by_its_diagnosis(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told of unreliable rows then, and of another text it is not."""
    Path("other.txt").write_text("cow dog\n" * 4)
    Path("text.txt").write_text("dog cat\ncow\ncat dog\ndog\n")
    options = ["--quiet", "--overwrite"]
    assert main(["evaluate", "run", "--text", "text.txt", "--num_samples", "3", *options]) == 0
    read = {}
    for name in ("text.txt", "other.txt"):
        assert main(["diagnose", "run", "--text", name, *options]) == 0
        capsys.readouterr()
        data = read_test_rows(load_run("run"), name)
        read[name] = stored_evaluation(load_run("run"), data) is not None
        assert "warning" not in capsys.readouterr().err
    assert read == {"text.txt": True, "other.txt": False}


def test_a_text_is_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = WORDS.rows(["dog cat", "cow", "cat dog", "dog"])
    assert main(["export", "run", "--text", "en.txt", "--num_samples", "3", "-o", "de.nc"]) == 0
    assert capsys.readouterr().out == "de.nc\n"
    with xarray.open_dataset("de.nc", group="observed_data") as observed:
        assert observed["x"].values.tolist() == x.tolist()


def test_texts_are_refused_that_are_none(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("long.txt").write_text("dog\ndog cat cow dog\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    save_run("vae", VAE((3,), 2, MLP((4,))), MeanField((3,), 2, MLP((4,))), vocabulary=WORDS)
    found = load_run("run")
    save_run("bare", found.model, found.guide)
    cases = (
        (("run", "--text", "nope.txt"), 1, "nope.txt does not exist"),
        (("run", "--text", "empty.txt"), 1, "empty.txt: no line of it has words"),
        (("run", "--text", "latin.txt"), 1, "latin.txt, line 1"),
        (("run", "--text", "long.txt"), 1, "long.txt, line 2 has 5 tokens including its end"),
        (("run", "--too_long", "cut"), 2, "--too_long is of the lines of --text FILE"),
        (("vae", "--text", "en.txt"), 1, "vae holds a VAE, whose rows are no sentences"),
        (("bare", "--text", "en.txt"), 1, "bare has no vocabulary.json"),
    )
    for command in ("evaluate", "diagnose", "export"):
        for arguments, code, expected in cases:
            before = sorted(Path(arguments[0]).iterdir())
            assert main([command, *arguments]) == code
            assert expected in capsys.readouterr().err
            assert sorted(Path(arguments[0]).iterdir()) == before
    line = ["evaluate", "run", "--num_samples", "2", "--quiet", "--text", "long.txt"]
    assert main([*line, "--too_long", "cut"]) == 0
    assert "line 2: longer than the 3 tokens that the model reads" in capsys.readouterr().err


def test_sentences_are_drawn_without_data(
    said: Said, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sample", "run", "--num", "7", "--quiet"]) == 0
    told = capsys.readouterr()
    model = load_run("run").model
    drawn = sample(model, 7, seed=0, progress=False)
    assert told == ("".join(f"{as_line(text)}\n" for text in WORDS.sentences(drawn)), "")
    assert main(["sample", "run", "--num", "7", "--seed", "1", "--what", "draws", "--quiet"]) == 0
    other = capsys.readouterr().out
    assert other != told.out
    line = ["sample", "run", "--num", "7", "-o", "drawn.txt"]
    assert main(line) == 0
    assert capsys.readouterr().out == "drawn.txt\n"
    assert Path("drawn.txt").read_text(encoding="utf-8") == told.out
    assert main([*line, "--seed", "1"]) == 1
    assert "drawn.txt is there already" in capsys.readouterr().err
    assert main([*line, "--seed", "1", "--overwrite"]) == 0
    assert Path("drawn.txt").read_text(encoding="utf-8") == other
    capsys.readouterr()
    for options, error in (
        (("--label", "1"), "--label 1: LatentTranslation writes sentences, which have no labels"),
        (
            ("--what", "means"),
            "--what means: LatentTranslation writes sentences, which have no means",
        ),
        (("--num", "0"), "--num must be at least 1, got 0"),
        (("-o", "run/vocabulary.json"), "vocabulary.json belongs to a run, and would be lost"),
    ):
        assert main(["sample", "run", *options]) == 2
        assert error in capsys.readouterr().err
    for name in ("drawn.npz", "drawn.png"):  # what the rows of data are drawn into
        assert main(["sample", "run", "-o", name]) == 1
        assert "config.yaml names no data" in capsys.readouterr().err
    text = "one\ntwo \x1b[2J\r"
    module_of_samples = importlib.import_module("ppl_vae.cli.samples")
    monkeypatch.setattr(module_of_samples, "sample_pair", lambda *_, **__: WORDS.rows([text]))
    assert main(["sample", "run", "--num", "1"]) == 0
    assert capsys.readouterr().out == "one\\ntwo \\x1b[2J\\r\n"
    assert "samples.png" not in {file.name for file in Path("run").iterdir()}


def test_equal_draws_of_a_sentence_are_no_exact_log_p(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guide is so sure that all draws are the same, though log p(x) is a sum over other sentences, too."""
    found, x = load_run(run), WORDS.rows(SENTENCES)
    evaluation = evaluate(found.model, found.guide, x, num_samples=5, seed=1, progress=False)
    assert not evaluation.log_likelihood_error.any()
    for name in ("a", "b"):
        save_run(name, found.model, found.guide, evaluation=evaluation, rows=x, vocabulary=WORDS)
    assert main(["compare", "a", "b"]) == 0
    assert "log p(x) by importance sampling with 5 samples" in capsys.readouterr().out
    assert main(["report", "a"]) == 0
    page = Path("a/report.html").read_text()
    assert "What the model is worth, by 5 importance samples of each row." in page
    assert "exact" not in page.partition("ways to log p(x)")[2][:200]
