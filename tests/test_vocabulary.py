"""Any text comes back from its numbers, which are those of byte-pair encoding; files are read within limits."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from ppl_vae.data import Vocabulary
from ppl_vae.data.byte_pairs import LETTERS, bytes_of
from ppl_vae.runtime import BLANK, END, FIRST_WORD, MOST_JSON, PAD, UNKNOWN, CorruptFileError

SENTENCES = [
    "a man in a red shirt plays the guitar.",
    "two men in red shirts play guitars, don't they?",
    "ein mann in einem roten hemd spielt gitarre.",
    "zwei männer in roten hemden spielen die gitarre; 10 grüße!",
] * 3
WORDS = Vocabulary.learn(SENTENCES, size=320)


def joined(text: str, merges: tuple[tuple[str, str], ...]) -> list[str]:
    """The pieces of a word by the definition: again and again, the earliest learned pair is joined."""
    rank = {pair: i for i, pair in enumerate(merges)}
    pieces = [LETTERS[byte] for byte in text.encode()]
    while pairs := [p for p in itertools.pairwise(pieces) if p in rank]:
        best = min(pairs, key=rank.__getitem__)
        found, i = [], 0
        while i < len(pieces):
            two = tuple(pieces[i : i + 2]) == best
            found.append("".join(pieces[i : i + 2]) if two else pieces[i])
            i += 1 + two
        pieces = found
    return pieces


def learned(words: Counter[str], number: int) -> list[tuple[str, str]]:
    """The first pairs that are joined in counted words, by the definition."""
    merges: list[tuple[str, str]] = []
    for _ in range(number):
        counts: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            pieces = joined(word, tuple(merges))
            for pair in itertools.pairwise(pieces):
                counts[pair] += count
        (best, first), (_, second) = counts.most_common(2)
        assert first > second, "the text leaves open which pair comes next"
        merges.append(best)
    return merges


def test_each_byte_has_a_letter_of_its_own() -> None:
    assert len(set(LETTERS)) == 256
    assert all(letter.isprintable() and not letter.isspace() for letter in LETTERS)
    assert [bytes_of(letter)[0] for letter in LETTERS] == list(range(256))


def test_the_most_frequent_pairs_are_joined() -> None:
    counts = Counter({" zu": 40, " azu": 10, " a": 3})
    words = Vocabulary.learn(
        [word[1:] for word, count in counts.items() for _ in range(count)], size=263
    )
    assert list(words.merges) == learned(counts, 3)
    assert words.merges == (("z", "u"), ("Ġ", "zu"), ("Ġ", "a"))


@pytest.mark.parametrize("text", [*SENTENCES[:4], "redshirts of the hemdenmann"])
def test_numbers_are_those_of_the_definition(text: str) -> None:
    (row,) = WORDS.rows([text]).tolist()
    assert row.pop() == END
    pieces = [*LETTERS, *dict.fromkeys(map("".join, WORDS.merges))]
    words = re.findall(r" \w+|[.,;!?]|'t", " " + text)
    expected = [piece for word in words for piece in joined(word, WORDS.merges)]
    assert [pieces[number - FIRST_WORD] for number in row] == expected
    shown = [bytes_of(piece).decode(errors="backslashreplace") for piece in expected]
    assert WORDS.words_of(WORDS.rows([text])[0]) == shown


def test_which_numbers_begin_a_word() -> None:
    starts = WORDS.word_starts
    assert starts.shape == (len(WORDS),)
    row = WORDS.rows(["the dogs,  Hundε don't"])[0]
    pieces = WORDS.words_of(row)
    begins = [not piece[0].isalnum() and not piece.startswith("\\x") for piece in pieces]
    assert 1 < sum(begins) < len(begins)
    assert starts[row].tolist() == [*begins, True]  # the end is no part of the word before it
    assert starts[[PAD, END, UNKNOWN, BLANK]].all()


@given(st.lists(st.text(), max_size=4))
@example(
    ["", " ", "  a  b ", "\n\t\0", "</s> <pad> [UNK] <blank>", "日本語 🙂‍↔️ e\u0301 \u2028\x85\r"]
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_text_comes_back(texts: list[str]) -> None:
    rows = WORDS.rows(texts)
    assert rows.dtype == torch.int64
    assert WORDS.sentences(rows) == [unicodedata.normalize("NFC", text) for text in texts]
    for row, text in zip(rows, texts, strict=True):
        ended = row.tolist().index(END)
        assert (row[:ended] >= FIRST_WORD).all()  # no text makes a number that is no word
        assert (row[:ended] < len(WORDS)).all()
        assert (row[ended + 1 :] == PAD).all()
        assert (ended == 0) == (text == "")
    assert rows.shape[1] == max([1 + len(WORDS.words_of(row)) for row in rows], default=1)


def test_both_spellings_of_a_letter_are_the_same() -> None:
    """An ü, or a u and two dots behind it: as files of macOS and of others spell it."""
    apart = [unicodedata.normalize("NFD", text) for text in SENTENCES]
    assert apart != SENTENCES
    assert torch.equal(WORDS.rows(apart), WORDS.rows(SENTENCES))
    assert Vocabulary.learn(apart, size=320) == WORDS
    assert WORDS.unseen_share(WORDS.rows(["zwei ma\u0308nner"])).tolist() == [0]
    # Signs that are not the same to a reader stay what they are.
    assert WORDS.sentences(WORDS.rows(["ﬁ x² ①"])) == ["ﬁ x² ①"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("the guitar", 0),
        ("zwei männer", 0),
        ("a#!", 0),  # signs may be words of their own, of which no pieces are made
        ("日本", 6 / 7),  # three bytes each, and the space
        ("🙂", 4 / 5),
        ("QQQ QQ", 5 / 7),  # no longer piece has such a letter; and two spaces
        ("a 🙂", 4 / 6),
    ],
)
def test_characters_that_were_not_there_are_counted(text: str, share: float) -> None:
    (found,) = WORDS.unseen_share(WORDS.rows([text])).tolist()
    assert found == pytest.approx(share)
    bare = Vocabulary(())
    assert bare.unseen_share(bare.rows([text])).tolist() == [0]


def test_a_word_at_the_beginning_is_the_word_elsewhere() -> None:
    row = WORDS.rows(["the guitar the"])[0]
    words = WORDS.words_of(row)
    assert words[0] == " the" == words[-1]
    assert row[0] == row[len(words) - 1]


def test_the_same_sentences_give_the_same_pieces() -> None:
    for order in (SENTENCES, SENTENCES[::-1], (text for text in SENTENCES)):
        assert Vocabulary.learn(order, size=320) == WORDS
    assert hash(Vocabulary(WORDS.merges)) == hash(WORDS)


def test_threads_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    Vocabulary.learn(SENTENCES, size=270)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert Vocabulary.learn(SENTENCES, size=320) == WORDS
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_sizes() -> None:
    assert len(WORDS) == 320
    assert len(Vocabulary.learn(SENTENCES, size=260)) == 260
    assert len(Vocabulary.learn([], size=3200)) == 260
    assert len(Vocabulary.learn(["ab ab", ""], size=3200)) == 262  # ab, and it with its space
    for words in (Vocabulary.learn([]), Vocabulary(())):
        assert words.sentences(words.rows(["Grüße"])) == ["Grüße"]
        assert words.rows(["Grüße"]).shape == (1, 9)
    with pytest.raises(ValueError, match="size must be at least 260, got 259: there are 4 numbers"):
        Vocabulary.learn(SENTENCES, size=259)
    with pytest.raises(TypeError, match=r"size must be a whole number, got 4000\.0"):
        Vocabulary.learn(SENTENCES, size=4e3)  # type: ignore[arg-type]


def test_long_sentences_are_refused_or_cut() -> None:
    texts = ["a", "a man", "a red guitar man", ""]
    rows = WORDS.rows(texts)
    lengths = (rows != PAD).sum(1).tolist()
    assert lengths[:2] == [2, 3]
    told = (
        rf"2 of 4 sentences have more than max_length=2 numbers, with the end: the first is sentence 1, "
        rf"counted from 0, with 3; the longest has {lengths[2]}\."
    )
    with pytest.raises(ValueError, match=told):
        WORDS.rows(texts, max_length=2)
    cut = WORDS.rows(texts, max_length=3, too_long="cut")
    assert cut.shape == (4, 3)
    assert torch.equal(cut[:2], rows[:2, :3])
    assert cut[2].tolist() == [*rows[2, :2].tolist(), END]
    assert WORDS.rows(texts, max_length=1, too_long="cut").tolist() == [[END]] * 4
    whole = lengths[2]
    assert torch.equal(WORDS.rows(texts, max_length=whole), rows)
    assert torch.equal(WORDS.rows(texts, max_length=whole + 9), rows)
    with pytest.raises(ValueError, match="too_long must be 'error' or 'cut', got 'drop'"):
        WORDS.rows(texts, too_long="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        WORDS.rows(texts, max_length=0)


def test_rows_that_do_not_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.vocabulary.available_memory", lambda: 10**9)
    monkeypatch.setattr("ppl_vae.data.vocabulary.Vocabulary._encoder", Long())
    with pytest.raises(ValueError, match=r"leave out the longest sentence, 3, counted from 0"):
        Vocabulary(()).rows(["x"] * 3 + ["long"] + ["x"] * 2**15)


class Long:
    """In the place of the library: one text has many numbers."""

    def encode(self, text: str) -> Any:
        class Found:
            ids = range(2**13 if text == " long" else 1)

        return Found()


def test_no_sentences() -> None:
    assert WORDS.rows([]).shape == (0, 1)
    assert WORDS.sentences(WORDS.rows([])) == []


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ("a dog", "sentences must be a list of texts, got the string 'a dog'"),
        (3, "sentences must be a list of texts, got 3"),
        (["a", b"b"], "sentence 1, counted from 0, is no text but an object of bytes"),
        ([None], "sentence 0, counted from 0, is no text but None"),
    ],
)
def test_what_is_no_text_is_refused(given_: Any, told: str) -> None:
    for call in (WORDS.rows, Vocabulary.learn):
        with pytest.raises(TypeError, match=told):
            call(given_)


def test_half_of_a_pair_of_surrogates_is_refused() -> None:
    for call in (WORDS.rows, Vocabulary.learn):
        with pytest.raises(
            ValueError, match="sentence 1, counted from 0, cannot be written in UTF-8"
        ):
            call(["a", "b\ud800"])


# -- from numbers to text ----------------------------------------------------------------------------------


def test_rows_that_no_text_gives() -> None:
    the = WORDS.rows(["the"])[0, 0].item()
    half = FIRST_WORD + "ü".encode()[0]
    rows = torch.tensor(
        [
            [the, BLANK, UNKNOWN, END, the],
            [BLANK, the, the, the, the],  # without an end
            [half, the, END, PAD, PAD],
            [PAD, the, END, PAD, PAD],
            [END, END, END, END, END],
        ]
    )
    assert WORDS.sentences(rows) == [
        "the <blank> <unknown>",
        "<blank> the the the the",
        "� the",
        "",
        "",
    ]
    assert WORDS.words_of(rows[0]) == [" the", " <blank>", " <unknown>"]
    assert WORDS.words_of(rows[2]) == ["\\xc3", " the"]
    assert WORDS.words_of(rows[3]) == []
    assert WORDS.sentences(rows.int()) == WORDS.sentences(rows)
    assert WORDS.sentences(rows[:, :0]) == [""] * 5


def test_what_are_no_rows_is_refused() -> None:
    rows = WORDS.rows(["the dog"])
    with pytest.raises(
        TypeError, match=r"rows must be a tensor of whole numbers, .* got one of torch\.float"
    ):
        WORDS.sentences(rows.float())
    with pytest.raises(
        TypeError, match=r"rows must be a tensor of whole numbers, .* object of list"
    ):
        WORDS.sentences(rows.tolist())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rows must have the shape \(n, T\), got \(\d,\)"):
        WORDS.sentences(rows[0])
    with pytest.raises(ValueError, match=r"row must have the shape \(T,\), got \(1, \d\)"):
        WORDS.words_of(rows)
    for wrong in (320, -1):
        told = f"rows: the number {wrong} is not in the vocabulary, which has those below 320"
        with pytest.raises(ValueError, match=told):
            WORDS.sentences(torch.tensor([[5, wrong, END]]))
    assert WORDS.sentences(torch.tensor([[END, 320]])) == [""]  # nothing stands behind the end


# -- files -------------------------------------------------------------------------------------------------


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    WORDS.save(tmp_path / "words.json")
    read = Vocabulary.load(str(tmp_path / "words.json"))
    assert read == WORDS
    assert torch.equal(read.rows(SENTENCES), WORDS.rows(SENTENCES))
    text = (tmp_path / "words.json").read_text(encoding="utf-8")
    assert text.count('\n  "Ġ') > 5
    assert len(text.splitlines()) == len(WORDS.merges) + 6
    Vocabulary(()).save(tmp_path / "words.json")
    assert Vocabulary.load(tmp_path / "words.json") == Vocabulary(())


def test_copies() -> None:
    WORDS.rows(["the dog"])  # so that the library's object is there
    for other in (pickle.loads(pickle.dumps(WORDS)), copy.deepcopy(WORDS)):
        assert other == WORDS
        assert torch.equal(other.rows(SENTENCES), WORDS.rows(SENTENCES))
    assert Vocabulary(WORDS.merges[:-1]) != WORDS
    assert repr(WORDS) == "<Vocabulary of 320 numbers>"


def written(**changed: Any) -> str:
    return json.dumps({"kind": "ppl_vae vocabulary", "version": 1, "merges": ["a b"]} | changed)


DAMAGED = {
    "empty": ("", "cannot be read as a vocabulary"),
    "no JSON": ("a b", "cannot be read as a vocabulary"),
    "a list": ("[]", "expected names and values"),
    "deep": ('{"a":' * 500, "more than 100 levels"),
    "another file": ('{"version": 1}', "is no vocabulary that Vocabulary.save wrote"),
    "another kind": (written(kind=["x"]), "is no vocabulary that Vocabulary.save wrote"),
    "a later version": (
        written(version=2),
        "is a vocabulary of version 2, and .* reads version 1",
    ),
    "no merges": (written(merges=None), "its merges are no texts"),
    "merges of numbers": (written(merges=[1]), "its merges are no texts"),
    "one piece": (
        written(merges=["ab"]),
        r"merge 0, counted from 0, is \('ab',\): expected two pieces",
    ),
    "three pieces": (written(merges=["a b c"]), "merge 0, counted from 0"),
    "a piece that is not there": (written(merges=["a b", "ab cd"]), "merge 1, counted from 0"),
    "a piece too early": (written(merges=["ab c", "a b"]), "merge 0, counted from 0"),
    "a pair twice": (written(merges=["a b", "a b"]), "merge 1, counted from 0"),
    "no letter": (written(merges=["a 日"]), "merge 0, counted from 0"),
    "nothing": (written(merges=[" "]), "merge 0, counted from 0"),
    "what a terminal obeys": (written(merges=["\x1b[2J b"]), r"merge 0, .*\\x1b\[2J"),
}


@pytest.mark.parametrize(("text", "told"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "words.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=told) as found:
        Vocabulary.load(file)
    assert str(found.value).startswith(str(file))
    assert len(str(found.value)) < 400 + len(str(file))


def test_cut_files_are_told(tmp_path: Path) -> None:
    WORDS.save(tmp_path / "words.json")
    whole = (tmp_path / "words.json").read_bytes()
    for end in (*range(0, len(whole) - 2, 97), len(whole) - 2):
        (tmp_path / "cut.json").write_bytes(whole[:end])
        with pytest.raises(CorruptFileError, match="cannot be read as a vocabulary"):
            Vocabulary.load(tmp_path / "cut.json")
    (tmp_path / "cut.json").write_bytes(b"\xff" + whole)
    with pytest.raises(CorruptFileError, match="utf-8"):
        Vocabulary.load(tmp_path / "cut.json")


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptFileError, match="larger than the 32768 KiB that are read"):
        Vocabulary.load(tmp_path / "huge.json")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    """Ten merges double the length of a piece to a thousand letters; a few more need megabytes."""
    merges = [("a" * 2**i, "a" * 2**i) for i in range(25)]
    with pytest.raises(ValueError, match="would take more than the 32 MiB"):
        Vocabulary(tuple(merges)).save(tmp_path / "words.json")
    assert not (tmp_path / "words.json").exists()
    assert MOST_JSON == 2**25


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        Vocabulary.load(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match="is a folder; expected the file of a vocabulary"):
        Vocabulary.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        Vocabulary.load(tmp_path / "pipe")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    WORDS.save(tmp_path / "words.json")
    rows = WORDS.rows(SENTENCES)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    read = Vocabulary.load(tmp_path / "words.json")
    assert read.sentences(rows) == SENTENCES  # the way back does not need it
    for call in (read.rows, Vocabulary.learn):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[text\]'"):
            call(SENTENCES)
