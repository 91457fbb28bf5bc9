"""Sentences of any length up to a largest one, as distributions over rows of whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import cross_entropy

from ppl_vae.distributions.beams import Search, WritesWords, beam_search
from ppl_vae.runtime import BLANK, END, PAD, are_sentences, lengths_of, trimmed

_FEWER = 0.8
"""Share of the rows that are still written below which the others are left out: that copies what they know."""


def _drawn(logits: Tensor) -> Tensor:
    """A word for each row of logits, by its probability: from one uniform number, which is quick.

    Logits that are NaN give the last word: its log p is NaN, too, which whoever asks for it will see.
    """
    below = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    at = torch.rand(len(logits), 1, dtype=below.dtype, device=below.device) * below[:, -1:]
    found = torch.searchsorted(below, at, right=True).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)


class _Sentence(constraints.Constraint):
    """Rows `(T,)` of words, then END, then PAD alone."""

    is_discrete = True
    event_dim = 1

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        self.words, self.length = words, length

    def check(self, value: Tensor) -> Tensor:
        whole = (value == value.long()).all(-1)
        value = value.long()
        fits = ((value >= 0) & (value < self.words) & (value != BLANK)).all(-1)
        return whole & fits & are_sentences(value) & (lengths_of(value) <= self.length)

    def __repr__(self) -> str:
        return (
            f"sentences of {self.words} words, of which {BLANK} is a blank that noise alone writes, at most "
            f"{self.length} including the end, then zeros"
        )


class Sentences(dist.TorchDistribution):
    """p(x) = prod_t p(x_t | x_1, ..., x_{t-1}) of a sentence, whose last word is its end.

    A row holds the words, then END, then PAD, up to the largest length T. Whether the sentence ends is one more
    word, so that lengths have probabilities. After T - 1 words it ends for certain, so that the probabilities
    of all sentences sum to 1. Rows that are no sentences have log p = -inf.

    A density takes one pass, in which PAD costs little: columns that hold nothing else are cut, and logits are
    computed for words alone. A draw takes a step for each word, until all rows have ended. Its density, which
    is remembered, is that of the steps: with gradients, too, a draw is scored without dropout, so that the
    score function is unbiased in training mode.

    Args:
        writing: What gives the probabilities of words: `Writing` of an `EncoderDecoder`, say.
        words: Size of the vocabulary.
        length: T.
        batch_shape: The shape of the rows that `writing` is about, in their order.

    Raises:
        ValueError: T is below 2.

    Example:
        >>> from ppl_vae.networks import EncoderDecoder
        >>> network = EncoderDecoder(width=8, layers=1, heads=2).build_writer(words=20, length=5)
        >>> p = Sentences(network.writing(0), words=20, length=5)
        >>> p.log_prob(torch.tensor([[4, 1, 0, 0, 0], [1, 0, 0, 0, 0]])).shape
        torch.Size([2])
        >>> p.sample((3,)).shape
        torch.Size([3, 5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        writing: WritesWords,
        words: int,
        length: int,
        batch_shape: Any = (),
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.Size(batch_shape)
        self._writing, self._shape = writing, shape
        self.words, self.length = words, length
        self._latest: tuple[Tensor, Tensor] | None = None
        if length < 2:
            raise ValueError(
                f"Sentences.length must be at least 2, a word and the end, got {length}"
            )
        super().__init__(shape, torch.Size([length]), validate_args=validate_args)

    @property
    def categories(self) -> int:
        """How many words there are: the numbers of a row name words, so that their mean means nothing."""
        return self.words

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Words, then END, then PAD."""
        return _Sentence(self.words, self.length)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Sentences:
        """The same distribution for a larger batch shape."""
        new = Sentences(self._writing, self.words, self.length, self._shape, validate_args=False)
        super(Sentences, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of sentences, in nats, `(*batch)`; rows may be narrower than T."""
        own = self._latest is not None and value is self._latest[0]
        if own and self._latest is not None and not torch.is_grad_enabled():
            return self._latest[1]
        missing = self.length - value.shape[-1]
        if missing > 0:
            value = torch.nn.functional.pad(value, (0, missing), value=PAD)
        if self._validate_args:
            self._validate_sample(value)
        each = self._log_prob_of_words(value, self._writing.as_drawn() if own else self._writing)
        inside = _Sentence(self.words, self.length).check(value)
        return each.sum(-1).where(inside, -torch.inf).expand(self._batch_of(value))

    def log_prob_of_words(self, value: Tensor) -> Tensor:
        """log p(x_t | x_1, ..., x_{t-1}) of each word and of the end, `(*batch, T)`; 0 for PAD.

        `value` may be shorter than T; what is returned is as long as it.

        Raises:
            ValueError: A row is not in the support.
        """
        missing = max(0, self.length - value.shape[-1])
        inside = self.support.check(torch.nn.functional.pad(value, (0, missing), value=PAD))
        if not bool(inside.all()):
            wrong = value.reshape(-1, value.shape[-1])[~inside.reshape(-1)][0].tolist()
            raise ValueError(
                f"log_prob_of_words: a row is outside of the support, {self.support}: {wrong}"
            )
        return self._log_prob_of_words(value, self._writing)

    def _log_prob_of_words(self, value: Tensor, writing: WritesWords) -> Tensor:
        batch = self._batch_of(value)
        width = value.shape[-1]
        rows = value.long().expand(*batch, -1).reshape(batch.numel(), width)
        rows = trimmed(rows).clamp(0, self.words - 1)
        there = rows != PAD
        states = self._of_batch(batch, writing).states(rows)
        logits = writing.logits(states[there])
        log_p = -cross_entropy(logits, rows[there], reduction="none")
        each = torch.zeros(rows.shape, dtype=log_p.dtype, device=rows.device)
        each = each.masked_scatter(there, log_p)
        if rows.shape[-1] >= self.length:  # there it ends for certain
            each = torch.cat(
                [each[:, : self.length - 1], torch.zeros_like(each[:, self.length - 1 :])], -1
            )
        each = torch.nn.functional.pad(each, (0, width - rows.shape[-1]))
        return each.reshape(*batch, width)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws sentences, `(*sample_shape, *batch, T)`."""
        return self._written(torch.Size(sample_shape) + self.batch_shape, _drawn)

    def greedy(self) -> Tensor:
        """The likeliest word after those before it, each time, `(*batch, T)`: no draw."""
        return self._written(self.batch_shape, lambda logits: logits.argmax(-1))

    def beam(self, beams: int, length_penalty: float = 0.0) -> Search:
        """The likeliest sentences, by `beam_search`, the best first.

        Args:
            beams: How many beginnings are kept at a time, and how many sentences are returned.
            length_penalty: What counts is log p / (number of words)^length_penalty, at least 0.

        Returns:
            Sentences, `(*batch, beams, T)`, and log p of each, in nats, `(*batch, beams)`; -inf where there are
            not so many.

        Raises:
            TypeError: `beams` is no whole number, or the length penalty no number.
            ValueError: `beams` is below 1, or the length penalty is negative or not finite.
        """
        batch = self.batch_shape
        writing = self._of_batch(batch, self._writing)
        rows, log_p = beam_search(writing, batch.numel(), self.length, beams, length_penalty)
        return rows.reshape(*batch, beams, self.length), log_p.reshape(*batch, beams)

    @torch.no_grad()
    def _written(self, batch: torch.Size, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Sentences whose words are chosen one after the other, by their logits."""
        n = batch.numel()
        writing = self._of_batch(batch, self._writing).begun(n)
        logits = writing.step(None, 0)
        device = logits.device
        rows = torch.full((n, self.length), PAD, device=device)
        log_p = logits.new_zeros(n)
        active, going = (
            torch.arange(n, device=device),
            torch.ones(n, dtype=torch.bool, device=device),
        )
        for i in range(self.length - 1):
            words = choose(logits).where(going, PAD)
            rows[active, i] = words
            log_p[active] -= cross_entropy(logits, words, reduction="none").where(going, 0.0)
            going = going & (words != END)
            left = int(going.sum())
            if not left or i == self.length - 2:
                break
            if left <= _FEWER * len(words):
                kept = going.nonzero().squeeze(-1)
                writing, words, active = writing.of_rows(kept), words[kept], active[kept]
                going = going[kept]
            logits = writing.step(words, i + 1)
        rows[(rows != END).all(-1), -1] = END  # those that have the largest length
        found = rows.reshape(*batch, self.length)
        self._latest = found, log_p.reshape(batch)
        return found

    def _of_batch(self, batch: torch.Size, writing: WritesWords) -> WritesWords:
        """What writes the rows of a larger batch."""
        if batch == self._shape:
            return writing
        index = torch.arange(self._shape.numel()).reshape(self._shape).expand(batch).reshape(-1)
        return writing.of_rows(index)

    def _batch_of(self, value: Tensor) -> torch.Size:
        return torch.Size(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))
