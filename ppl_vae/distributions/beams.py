"""The likeliest sentences, by a search that keeps a few beginnings at a time."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ppl_vae.runtime import BLANK, END, PAD, require_count, require_number


class WritesWords(Protocol):
    """What gives the probabilities of the words of some rows, each after those before it."""

    def of_rows(self, index: Tensor) -> WritesWords:
        """The same for some of the rows, in this order; a row may come several times."""

    def states(self, rows: Tensor) -> Tensor:
        """What the logits of each word are made of, `(n, T, *)`, for rows `(n, T)`."""

    def as_drawn(self) -> WritesWords:
        """The same with states as `step` has them: without dropout, say."""

    def logits(self, states: Tensor) -> Tensor:
        """The logits of all words, `(*, words)`; those of PAD and BLANK are so low that they never come."""

    def begun(self, n: int) -> WritesWords:
        """The same, before the first word of n rows."""

    def step(self, words: Tensor | None, i: int) -> Tensor:
        """The logits of word i, `(n, words)`, once it is told the word before, `(n,)`."""


Search = tuple[Tensor, Tensor]
"""Rows `(n, beams, T)`, and their log-probabilities, `(n, beams)`."""


@torch.no_grad()
def beam_search(
    writing: WritesWords, n: int, length: int, beams: int, length_penalty: float
) -> Search:
    """Sentences with high probability, the best first.

    At each place, the beginnings that are kept are extended by all words, and the best `beams` of these are
    kept; sentences that have ended compete with them. What counts is log p / (number of words)^length_penalty,
    where the end is a word. With as many beams as there are sentences, nothing is missed.

    Args:
        writing: What gives the probabilities of words, a `WritesWords`, for n rows.
        n: How many rows.
        length: T, the most numbers of a sentence.
        beams: How many sentences of each row.
        length_penalty: With 0 it is log p that counts, which prefers short sentences.

    Returns:
        Rows and log-probabilities. Where a row has fewer sentences, the others have log p = -inf.

    Raises:
        TypeError: `beams` is no whole number, or the length penalty no number.
        ValueError: `beams` is below 1, or the length penalty is negative or not finite.
    """
    require_count("beams", beams)
    require_number("length_penalty", length_penalty)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be finite and at least 0, got {length_penalty}")
    state = writing.begun(n)
    logits = state.step(None, 0)
    device, words = logits.device, logits.shape[-1]
    rows = torch.full((n, 1, length), PAD, device=device)
    log_p = logits.new_zeros(n, 1)
    lengths = torch.zeros(n, 1, dtype=torch.long, device=device)
    going = torch.ones(n, 1, dtype=torch.bool, device=device)
    ended = torch.full((words,), -torch.inf, device=device, dtype=logits.dtype)
    ended[PAD] = 0.0
    for i in range(length - 1):
        each = logits.log_softmax(-1).reshape(n, -1, words)
        each[..., [PAD, BLANK]] = -torch.inf
        each = torch.where(going.unsqueeze(-1), each, ended)
        total = log_p.unsqueeze(-1) + each
        scores = total / (lengths + going).clamp(min=1).unsqueeze(-1) ** length_penalty
        kept = min(beams, total.shape[1] * words)
        chosen = scores.flatten(1).topk(kept, 1).indices
        parent, word = chosen // words, chosen % words
        log_p = total.flatten(1).gather(1, chosen)
        rows = rows.gather(1, parent.unsqueeze(-1).expand(-1, -1, length)).clone()
        rows[:, :, i] = word
        lengths, going = (lengths + going).gather(1, parent), going.gather(1, parent)
        going = going & (word != END) & log_p.isfinite()
        if not bool(going.any()) or i == length - 2:
            break
        first = torch.arange(n, device=device).unsqueeze(1) * each.shape[1]
        state = state.of_rows((parent + first).flatten())
        logits = state.step(word.flatten(), i + 1)
    rows[..., -1] = torch.where(going, END, rows[..., -1])  # where a sentence ends for certain
    lengths = lengths + going
    order = (log_p / lengths.clamp(min=1) ** length_penalty).argsort(1, descending=True)
    missing = beams - rows.shape[1]
    rows = rows.gather(1, order.unsqueeze(-1).expand(-1, -1, length))
    log_p = log_p.gather(1, order)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, missing), value=PAD)
    return rows, torch.nn.functional.pad(log_p, (0, missing), value=-torch.inf)
