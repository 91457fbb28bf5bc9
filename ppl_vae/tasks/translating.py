"""translate(): sentences in the other language of a pair, with their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.distributions import Sentences
from ppl_vae.pairs import Pair, PairError, Program
from ppl_vae.runtime import (
    as_words,
    described,
    lengths_of,
    preserve_random_state,
    progress_bar,
    require_count,
    require_flags,
    require_number,
    require_progress,
    require_sentences,
)

_NUMBERS_AT_ONCE = 20_000_000
"""Logits that are held at a time."""

_SENTENCES_AT_ONCE = 2000
"""Beginnings of sentences whose keys and values are held at a time."""


@dataclass(frozen=True, eq=False)
class Translations:
    """What `translate` returns.

    Attributes:
        rows: Sentences, `(n, num, T)`, the best first, by log p / tokens^length_penalty, where the end is a
            token, too: by `log_probs_per_word` if the penalty is 1, by `log_probs` if it is 0. Draws are in
            their order.
        log_probs: Of each sentence given the one that it translates, in nats, `(n, num)`; -inf where there are
            not so many sentences.
    """

    rows: Tensor
    log_probs: Tensor

    @property
    def log_probs_per_word(self) -> Tensor:
        """The same per token of the sentence, including the end, `(n, num)`."""
        return self.log_probs / lengths_of(self.rows).clamp(min=1)


def translate(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    back: bool = False,
    num: int = 1,
    beams: int = 5,
    length_penalty: float = 1.0,
    draws: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
) -> Translations:
    """Translations of sentences: latents z of rows x by q(z | x), or rows of latents by p(x | z).

    The likeliest ones are found by a search that keeps `beams` beginnings of each sentence: see
    `ppl_vae.distributions.beam_search`. It may miss the likeliest of all.

    Args:
        model: The model; for rows it needs a method `decode(z)`, which returns the `Sentences` p(x | z).
        guide: The guide; for latents it needs a method `encode(x)`, which returns the `Sentences` q(z | x).
        x: Sentences, `(n, T)`; with `back` those of the latents' language.
        back: Whether latents are translated into rows.
        num: Translations of each sentence.
        beams: Beginnings that are kept; `num` if that is more.
        length_penalty: What counts, and gives the order, is log p / tokens^length_penalty: with 0 short
            sentences are preferred.
        draws: Whether translations are drawn, in place of the likeliest ones.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The sentences and their log-probabilities, on the CPU.

    Raises:
        PairError: The program has no such method, or its training has diverged: a log-probability is NaN.
        TypeError: An option is of another type, or x is no tensor.
        ValueError: A number is out of its range, or a row of x is no sentence, too long for the programs, or
            not of their vocabulary.

    Example:
        >>> from ppl_vae.guides import Translator
        >>> from ppl_vae.models import LatentTranslation
        >>> from ppl_vae.networks import EncoderDecoder
        >>> model = LatentTranslation((6,), words=20, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> found = translate(model, Translator(model), torch.tensor([[5, 7, 1, 0, 0, 0]]), num=3)
        >>> found.rows.shape, bool((found.log_probs < 0).all())
        (torch.Size([1, 3, 6]), True)
    """
    require_count("num", num, 1)
    require_count("beams", beams, 1)
    require_flags(back=back, draws=draws)
    require_number("length_penalty", length_penalty)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be finite and at least 0, got {length_penalty}")
    density = _density(model, "decode") if back else _density(guide, "encode")
    x = as_words("x", x)
    require_sentences("x", x)
    require_progress(progress)
    pair, kept = Pair.of(model, guide), num if draws else max(num, beams)
    found: list[tuple[Tensor, Tensor]] = []
    order = lengths_of(x).argsort()
    parameters = (p for module in pair.modules().values() for p in module.parameters())
    device = next((p.device for p in parameters), torch.device("cpu"))
    random = preserve_random_state() if seed is not None else nullcontext()
    with random, pair.scope(), torch.no_grad(), pair.mode(training=False):
        if seed is not None:
            torch.manual_seed(seed)
        words = _first_look(density, x, order, device) if len(x) else 1
        at_once = max(1, min(_NUMBERS_AT_ONCE // words, _SENTENCES_AT_ONCE) // kept)
        with progress_bar(len(x), "translate", "sentence", progress) as bar:
            for part in order.split(at_once) if len(x) else ():
                p = density(x[part].to(device))
                if draws:
                    rows = p.sample((num,))
                    log_p = p.log_prob(rows).T
                    rows = rows.transpose(0, 1)
                else:
                    rows, log_p = p.beam(kept, length_penalty)
                if bool(log_p.isnan().any()):
                    raise _diverged(pair)
                found.append((rows[:, :num].cpu(), log_p[:, :num].cpu()))
                bar.update(len(part))
    if not found:
        return Translations(x.new_zeros(0, num, x.shape[1]), torch.zeros(0, num))
    rows, log_p = (torch.cat(each) for each in zip(*found, strict=True))
    again = order.argsort().cpu()
    return Translations(rows[again], log_p[again])


def _first_look(
    density: Callable[[Tensor], Sentences], x: Tensor, order: Tensor, device: torch.device
) -> int:
    """The size of the vocabulary, once the longest row and the one with the largest number have been read.

    What the programs cannot read is told now, and not after hours.

    Raises:
        ValueError: They cannot read a row.
    """
    words = 1
    for row in {int(order[-1]), int(x.amax(1).argmax())}:
        try:
            words = density(x[row : row + 1].to(device)).words
        except PairError:
            raise
        except ValueError as error:
            raise ValueError(f"x, row {row}, counted from 0: {error}") from error
    return words


def _diverged(pair: Pair) -> PairError:
    """The error for log-probabilities that are NaN; that of the parameters if one of them is."""
    pair.require_no_nan()
    return PairError(
        "log p of translations is NaN, though no parameter is: parameters may be infinite or very large, as "
        "after a training that has diverged; train again with a smaller learning rate or clip_grad_norm, or "
        "load good weights"
    )


def _density(program: Program, method: str) -> Callable[[Tensor], Sentences]:
    """The method of a program that maps sentences to the distribution of their translations."""
    found = getattr(program, method, None)
    if not callable(found):
        raise PairError(
            f"translate needs a method {method}, which maps sentences to a distribution of sentences, as "
            f"LatentTranslation and Translator have; {described(program)} has none"
        )

    def density(rows: Tensor) -> Sentences:
        p: Any = found(rows)
        if not isinstance(p, Sentences):
            raise PairError(
                f"translate needs distributions of sentences, and {method} of {described(program)} returns "
                f"{described(p)}"
            )
        return p

    return density
