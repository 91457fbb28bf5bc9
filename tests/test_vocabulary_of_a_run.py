"""A run of sentences holds its vocabulary: it comes back, goes with the run, and suits the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_vae import load_run, save_run
from ppl_vae.data import Vocabulary
from ppl_vae.guides import MeanField, Translator
from ppl_vae.models import VAE, LatentTranslation
from ppl_vae.networks import MLP, EncoderDecoder
from ppl_vae.runs import ReplacedError
from ppl_vae.runtime import CorruptFileError

WORDS = Vocabulary.learn(["a dog and a dog", "the dog", "the cat"], size=266)
OTHERS = Vocabulary(WORDS.merges[:-1])
FILE = "vocabulary.json"


def pair(words: int = len(WORDS)) -> tuple[LatentTranslation, Translator]:
    model = LatentTranslation((4,), words, EncoderDecoder(width=4, layers=1, heads=1))
    return model, Translator(model)


def test_it_comes_back(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    assert Vocabulary.load(tmp_path / "run" / FILE) == WORDS
    run = load_run(tmp_path / "run")
    assert run.vocabulary == WORDS
    assert run.vocabulary is run.vocabulary
    assert load_run(tmp_path / "run", *pair(), results=False).vocabulary == WORDS


def test_a_run_without_one_has_none(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *pair())
    assert not (tmp_path / "run" / FILE).exists()
    assert load_run(tmp_path / "run").vocabulary is None


def test_it_is_replaced_and_removed_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save_run(folder, *pair(), vocabulary=WORDS)
    first = load_run(folder)
    save_run(folder, *pair(len(OTHERS)), vocabulary=OTHERS, overwrite=True)
    assert load_run(folder).vocabulary == OTHERS
    with pytest.raises(ReplacedError, match="holds other weights than those that were read"):
        _ = first.vocabulary
    save_run(folder, *pair(), overwrite=True)
    assert not (folder / FILE).exists()
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "weights.safetensors"]


def test_a_run_moves_with_it(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert load_run(tmp_path / "elsewhere").vocabulary == WORDS


class Odd:
    """What can be saved, and is no vocabulary."""

    def save(self, path: Path) -> None:
        path.write_text('{"odd": 1}')


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ("words.json", TypeError, r"must have a method save\(path\), as a ppl_vae.data.Vocabulary"),
        (Vocabulary, TypeError, "got the class Vocabulary"),
        ({"a": 1}, TypeError, "got an object of dict"),
        (
            OTHERS,
            ValueError,
            "has 265 numbers, and LatentTranslation was built for words=266; give",
        ),
        (Odd(), CorruptFileError, "is no vocabulary that Vocabulary.save wrote"),
    ],
)
def test_what_is_none_is_refused_and_the_run_stays(
    given: Any, kind: type[Exception], told: str, tmp_path: Path
) -> None:
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    for folder in ("run", "new"):
        with pytest.raises(kind, match=told):
            save_run(tmp_path / folder, *pair(), vocabulary=given, overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert not (tmp_path / "new").exists()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (
        lambda file: file.write_bytes(file.read_bytes()[:50]),
        "cannot be read as a vocabulary",
    ),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read as a vocabulary"),
    "another JSON": (lambda file: file.write_text("{}"), "is no vocabulary that Vocabulary.save"),
    "a merge": (
        lambda file: file.write_text(file.read_text().replace("Ġ a", "Ġ aa", 1)),
        "expected two pieces that are letters or come from merges before it",
    ),
    "of another run": (
        OTHERS.save,
        "has 265 numbers, and LatentTranslation was built for words=266: it belongs to another model",
    ),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_by_what_needs_it_alone(
    damage: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    before = (tmp_path / "run" / FILE).read_bytes()
    damage(tmp_path / "run" / FILE)
    assert (tmp_path / "run" / FILE).read_bytes() != before
    run = load_run(tmp_path / "run")
    assert isinstance(run.model, LatentTranslation)
    with pytest.raises(CorruptFileError, match=told) as found:
        _ = run.vocabulary
    assert str(found.value).startswith(str(tmp_path / "run" / FILE))


def test_another_vocabulary_of_this_size_is_noticed(tmp_path: Path) -> None:
    """It would make other text of the same numbers."""
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    file = tmp_path / "run" / FILE
    Vocabulary((*WORDS.merges[:-1], ("x", "y"))).save(file)
    with pytest.raises(CorruptFileError, match="was changed, or is that of another run: the weigh"):
        _ = load_run(tmp_path / "run").vocabulary
    file.unlink()
    with pytest.raises(CorruptFileError, match="it is missing: the weights in weights"):
        _ = load_run(tmp_path / "run").vocabulary
    WORDS.save(file)
    assert load_run(tmp_path / "run").vocabulary == WORDS


def test_a_run_that_was_saved_without_one_is_given_one(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *pair())
    WORDS.save(tmp_path / "run" / FILE)
    assert load_run(tmp_path / "run").vocabulary == WORDS


def test_a_folder_or_a_link_to_nothing_in_its_place(tmp_path: Path) -> None:
    save_run(tmp_path / "run", *pair(), vocabulary=WORDS)
    file = tmp_path / "run" / FILE
    file.unlink()
    file.symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _ = load_run(tmp_path / "run").vocabulary
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; expected the file of a vocabulary"):
        _ = load_run(tmp_path / "run").vocabulary


def test_other_models_may_have_one(tmp_path: Path) -> None:
    """What an attribute `words` of theirs means is not known."""

    class Mine(VAE):
        words = "mine"

    model, guide = Mine((3,), 2, MLP((4,))), MeanField((3,), 2, MLP((4,)))
    save_run(tmp_path / "run", model, guide, vocabulary=WORDS)
    assert load_run(tmp_path / "run", model, guide).vocabulary == WORDS
    assert json.loads((tmp_path / "run" / FILE).read_text())["kind"] == "ppl_vae vocabulary"
