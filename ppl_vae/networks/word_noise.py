"""Noise on sentences: words that are left out, hidden, or in another order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.networks.arguments import require_at_least, require_numbers
from ppl_vae.runtime import (
    BLANK,
    END,
    PAD,
    described,
    digest,
    lengths_of,
    require_sentences,
    trimmed,
)


@dataclass(frozen=True)
class WordNoise:
    """Sentences with noise, from which a denoising autoencoder learns what sentences look like.

    In this order, and independently for each word ("Unsupervised Machine Translation Using Monolingual Corpora
    Only", arXiv:1711.00043):

    1. It is left out with probability `drop`. If this takes all words, one of them stays, any with equal
       probability.
    2. The words that are left, at places i = 0, 1, ..., are sorted by i + u_i with u_i ~ U(0, `shuffle` + 1).
       Words that are more than `shuffle` places apart keep their order. So only the `shuffle` words before a
       word can come to stand behind it, and only the `shuffle` words behind it before it: no word moves by
       more than `shuffle` places.
    3. It becomes `BLANK` with probability `blank`.

    A word is a number of the row, or several: with `starts` the pieces of a word go together, so that they are
    left out, moved and hidden as one. A hidden word is as many `BLANK`s as it had pieces.

    Args:
        drop: Share of the words that are left out, from 0 to 1.
        blank: Share of the other words that are hidden, from 0 to 1.
        shuffle: Most places, in words, by which a word moves; 0 keeps the order.
        starts: Which numbers begin a word, `(words,)`, such as `Vocabulary.word_starts`; others belong to the
            word before them. None: each number is a word.

    Raises:
        TypeError: A setting is of another type.
        ValueError: It is out of its range.

    Example:
        >>> rows = torch.tensor([[4, 5, 6, 7, 1], [8, 9, 1, 0, 0]])
        >>> WordNoise(drop=0.0, blank=0.0, shuffle=0)(rows).equal(rows)
        True
        >>> WordNoise(drop=0.0, blank=1.0)(rows)
        tensor([[3, 3, 3, 3, 1],
                [3, 3, 1, 0, 0]])
        >>> pieces = torch.tensor([True] * 8 + [False] * 2)  # 8 and 9 go on with a word
        >>> WordNoise(drop=1.0, blank=0.0, starts=pieces)(torch.tensor([[4, 8, 9, 1]]))
        tensor([[4, 8, 9, 1]])
    """

    drop: float = 0.1
    blank: float = 0.2
    shuffle: int = 3
    starts: Tensor | None = None

    def __post_init__(self) -> None:
        require_numbers(self, drop=self.drop, blank=self.blank)
        for name, share in (("drop", self.drop), ("blank", self.blank)):
            if not 0 <= share <= 1:
                raise ValueError(f"WordNoise.{name} must be from 0 to 1, got {share}")
        require_at_least(self, 0, shuffle=self.shuffle)
        starts = self.starts
        if starts is not None and not (isinstance(starts, Tensor) and starts.dtype == torch.bool):
            raise TypeError(
                "WordNoise.starts must be a tensor of bool, one for each number of the vocabulary, as "
                f"Vocabulary.word_starts, got {described(starts)}"
            )
        if starts is not None and starts.dim() != 1:
            raise ValueError(
                f"WordNoise.starts must have the shape (words,), got {tuple(starts.shape)}"
            )

    def __repr__(self) -> str:
        # Trainings that go on compare what is shown, so that the tensor is shown by its numbers.
        pieces = "" if self.starts is None else f", starts=<{digest([self.starts])[:12]}>"
        return f"WordNoise(drop={self.drop}, blank={self.blank}, shuffle={self.shuffle}{pieces})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WordNoise):
            return NotImplemented
        return self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    @property
    def _settings(self) -> tuple[float | str, ...]:
        starts = "" if self.starts is None else digest([self.starts])
        return self.drop, self.blank, self.shuffle, starts

    def __call__(self, rows: Tensor) -> Tensor:
        """The sentences with noise, drawn from torch's global generator.

        Args:
            rows: Sentences, whole numbers `(n, T)`: words, `END`, then `PAD`.

        Returns:
            `(n, T')`, of the same dtype, as wide as the longest sentence that is left.

        Raises:
            TypeError: They are no whole numbers.
            ValueError: They have another shape, or a row is no sentence.
        """
        require_sentences("WordNoise: rows", rows)
        rows = trimmed(rows)
        if not len(rows):
            return rows
        places = torch.arange(rows.shape[1], device=rows.device)
        pieces = places < lengths_of(rows)[:, None] - 1
        word = self._word_of(rows)  # from 0 on; the end is one more
        words = torch.arange(int(word.max()) + 1, device=rows.device) < word.gather(
            1, pieces.sum(1, keepdim=True)
        )
        kept = words & self._stay(words)
        order = kept.cumsum(1).float()
        if self.shuffle:
            order += torch.rand_like(order) * (self.shuffle + 1)
        order = order.masked_fill(~kept, float("inf"))
        hidden = torch.rand_like(order) < self.blank if self.blank else torch.zeros_like(kept)
        # Words whose sums are rounded to the same number keep their order, and pieces that of their word, so
        # that the bound holds exactly.
        found = rows.masked_fill(hidden.gather(1, word), BLANK)
        found = found.gather(1, order.gather(1, word).argsort(dim=1, stable=True))
        number = (pieces & kept.gather(1, word)).sum(1, keepdim=True)
        found = found.masked_fill(places == number, END).masked_fill(places > number, PAD)
        return trimmed(found)

    def _word_of(self, rows: Tensor) -> Tensor:
        """To which word of its sentence each piece belongs, `(n, T)`, from 0 on."""
        if self.starts is None:
            return torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        if int(rows.max()) >= len(self.starts):
            raise ValueError(
                f"WordNoise.starts tells which of {len(self.starts)} numbers begin a word, and the rows hold "
                f"the number {int(rows.max())}: give that of the vocabulary which wrote them"
            )
        begins = self.starts.to(rows.device)[rows.long()] | (rows == END)
        begins[:, 0] = True
        return begins.cumsum(1) - 1

    def _stay(self, words: Tensor) -> Tensor:
        """Which words are not left out."""
        if not self.drop:
            return words
        lots = torch.rand(words.shape, dtype=torch.float32, device=words.device)
        stay = lots >= self.drop
        best = lots.masked_fill(~words, -1.0).argmax(1, keepdim=True)
        none = ~(stay & words).any(1, keepdim=True)
        return stay.scatter(1, best, stay.gather(1, best) | none)
