"""The texts of decipherment.py: languages whose bigrams are known, and secret scripts."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.models import SubstitutionCipher
from ppl_vae.runtime import digest

ALPHABET = "abcdefghijklmnopqrstuvwxyzäöüß "
"""The letters of files; others are left out."""

INVENTED = 27
"""Letters of the invented language."""

ROW = 25
"""Letters of a row: a text is cut into rows, which run side by side. The first letter of each has no bigram."""


@dataclass(frozen=True)
class Language:
    """A language whose bigrams are known.

    Attributes:
        bigrams: What `SubstitutionCipher` is given.
        plain: Rows of text that anybody may read, `(m, ROW)`.
        hidden: Letters of which the secret texts are pieces, or None: then each is drawn.
        entropy: The entropy of the bigram model, nats per letter.
    """

    bigrams: tuple[list[float], list[list[float]]]
    plain: Tensor
    hidden: Tensor | None
    entropy: float

    @property
    def letters(self) -> int:
        """How many different ones."""
        return len(self.bigrams[0])

    @property
    def digest(self) -> str:
        """What the numbers of a text of this language depend on, beside its length and its seed."""
        texts = [self.plain] if self.hidden is None else [self.plain, self.hidden]
        tables = [torch.tensor(table, dtype=torch.float64) for table in self.bigrams]
        return digest([*tables, *texts])

    def model(self) -> SubstitutionCipher:
        """A model of texts in a secret script, with as many symbols as letters."""
        return SubstitutionCipher((ROW,), *self.bigrams)

    @classmethod
    def invented(cls, seed: int) -> Language:
        """Some letters are likely after each letter, drawn at random; their mean entropy is that of German."""
        generator = torch.Generator().manual_seed(seed)
        logits = 1.6 * torch.randn(INVENTED, INVENTED, generator=generator, dtype=torch.float64)
        habits = logits.softmax(-1)
        shares = torch.linalg.matrix_power(habits, 1000)[0]
        bigrams = (shares / shares.sum()).tolist(), habits.tolist()
        plain = drawn(bigrams, 400 * ROW, seed).reshape(-1, ROW)
        return cls(bigrams, plain, None, entropy_of(bigrams))

    @classmethod
    def of_file(cls, plain: Path, secret: Path | None) -> Language:
        """The bigrams of a file, and the texts of another one, or of its second half.

        Raises:
            ValueError: There are too few letters to count.
        """
        known = lines_of(plain)
        hidden = lines_of(secret) if secret is not None else known[len(known) // 2 :]
        if secret is None:
            known = known[: len(known) // 2]
        rows = numbers_of(known)
        if len(rows) < ROW:
            part = "" if secret is not None else " in the first half of its lines"
            raise ValueError(
                f"{plain} has {len(rows)} letters{part}, and at least {ROW} are needed to count pairs of them: "
                "give a longer text of the language"
            )
        rows = rows[: len(rows) // ROW * ROW].reshape(-1, ROW)
        bigrams = SubstitutionCipher.bigrams_of(rows, len(ALPHABET))
        return cls(bigrams, rows, numbers_of(hidden), entropy_of(bigrams))

    def require_texts(self, length: int) -> None:
        """Raises an error unless there are texts of this length.

        Raises:
            ValueError: They have less than a row, or more letters than there are.
        """
        if length < ROW:
            raise ValueError(
                f"--lengths has {length}, and a text has at least {ROW} letters, a row"
            )
        if self.hidden is not None and length > len(self.hidden):
            raise ValueError(
                f"--lengths has {length}, and the secret texts are pieces of {len(self.hidden)} letters: give "
                "a longer --secret (without one, they are the second half of --plain), or lower --lengths"
            )


def lines_of(file: Path) -> list[str]:
    """The lines of a file, in the letters of `ALPHABET`.

    Raises:
        ValueError: It is no UTF-8: the message says in which line.
    """
    data = file.read_bytes()
    try:
        text = data.decode("utf-8").lower()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}, line {line} is not UTF-8 (it has a byte {data[error.start]:#04x}): save the text as UTF-8"
        ) from error
    # An ä may be an a with two dots behind it, which would be left out.
    lines = unicodedata.normalize("NFC", text).splitlines()
    kept = (" ".join("".join(c for c in line if c in ALPHABET).split()) for line in lines)
    return [line for line in kept if line]


def numbers_of(lines: list[str]) -> Tensor:
    """The letters of all lines, one after the other, as numbers."""
    number = {letter: i for i, letter in enumerate(ALPHABET)}
    return torch.tensor([number[letter] for letter in " ".join(lines)], dtype=torch.long)


def drawn(bigrams: tuple[list[float], list[list[float]]], length: int, seed: int) -> Tensor:
    """A text of the bigram model."""
    initial, transition = (torch.tensor(p, dtype=torch.float64).log() for p in bigrams)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MarkovChain(initial, transition.expand(length - 1, -1, -1)).sample()


def entropy_of(bigrams: tuple[list[float], list[list[float]]]) -> float:
    """The entropy of a letter given the one before, in a long text of the bigram model, in nats."""
    habits = torch.tensor(bigrams[1], dtype=torch.float64)
    shares = torch.linalg.matrix_power(habits, 1000)[0]
    return float((shares.unsqueeze(1) * torch.special.entr(habits)).sum())


@dataclass(frozen=True)
class Secret:
    """A text and what it is in a secret script.

    Attributes:
        language: Its language.
        plain: The text, `(n, ROW)`.
        key: The symbol of each letter.
        seed: Seed of what is tried to read it.
    """

    language: Language
    plain: Tensor
    key: Tensor
    seed: int

    @classmethod
    def of(cls, language: Language, length: int, seed: int) -> Secret:
        """A piece of the language, and a key at random.

        Raises:
            ValueError: There is no text of this length.
        """
        language.require_texts(length)
        generator = torch.Generator().manual_seed(seed)
        key = torch.randperm(language.letters, generator=generator)
        if language.hidden is None:
            text = drawn(language.bigrams, length, seed + 1)
        else:
            most = max(1, len(language.hidden) - length)
            at = int(torch.randint(most, (), generator=generator))
            text = language.hidden[at : at + length]
        return cls(language, text[: length // ROW * ROW].reshape(-1, ROW), key, seed)

    @property
    def x(self) -> Tensor:
        """What there is to read."""
        return self.key[self.plain]

    def model_of(self, key: Tensor) -> SubstitutionCipher:
        """The model with a symbol for each letter, and nothing else."""
        model = self.language.model()
        with torch.no_grad():
            model.key.fill_(IMPOSSIBLE).scatter_(1, key.unsqueeze(1), 0.0)
        return model
